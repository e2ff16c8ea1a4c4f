"""The interface of a strategy: hooks around a task, and what is kept between tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import ContinualConfig
from ..data.loader import MixedBatches, TrainingBatches
from ..data.records import ClassData

if TYPE_CHECKING:
    from ..model import ContinualModel


class Strategy:
    """What is done so that a new task does not harm the old ones. By itself: nothing, which is plain fine-tuning, the
    lower bound.

    Gradients and updates live in the core and never exist all at once there, so there are no hooks inside a step:
    `before_task` tells the trainer what to do at each one. It can project or freeze a weight (by `restrict`), pull
    the weights to an anchor (`penalize`), add up gradient times change (`follow`) and learn from a teacher (`teach`).
    """

    #: The trainer's loss has a term for a teacher.
    distils = False
    #: Blocks of the size of all parameters that it holds while a later task runs.
    kept_blocks = 0

    def __init__(self, config: ContinualConfig):
        self.config = config

    @property
    def ready(self) -> bool:
        """Whether it holds what the next task needs of the tasks learned so far."""
        return True

    def collected(self, weights: Sequence[str]) -> list[str]:
        """Of a model's ``weights`` (matrices and convolutions), those whose input features it is to collect. ValueError: they
        are not what the configuration speaks of."""
        return list(weights)

    def training_classes(self, classes: Sequence[ClassData]) -> list[ClassData]:
        """What a task that brings ``classes`` trains on; each of them gets a class's training steps and a calibration."""
        return list(classes)

    def batches(self, new: TrainingBatches) -> TrainingBatches | MixedBatches:
        """The task's batches, given those of its `training_classes`."""
        return new

    def restrict(self, model: ContinualModel, index: int) -> None:
        """Tell the trainer what task ``index`` may move (`Trainer.protect`, `confine`): apart from `before_task`, which does it too,
        as a checkpoint within a task has the moments of just that."""

    def before_task(self, model: ContinualModel, classes: Sequence[ClassData], index: int, step: int, progress: bool) -> None:
        """Task ``index`` (from 0), of ``classes``, is about to begin, or at ``step`` > 0 to go on."""

    def after_task(self, model: ContinualModel, classes: Sequence[ClassData], progress: bool) -> dict[str, Any]:
        """``classes`` have been learned. Returns what the task's line of the ledger says of it (JSON values). What is
        kept changes at the end, as a whole: an interruption leaves it as it was."""
        return {}

    def tensors(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps, by its name there."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps as JSON."""
        return {}

    def agreed(self) -> Mapping[str, np.ndarray]:
        """Of `tensors`, what all processes of a `DataParallel` have to hold alike."""
        return self.tensors()

    def restore(self, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Take over what `tensors` and `state` of the same strategy gave."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of what is kept."""
        return sum(array.nbytes for array in self.tensors().values())
