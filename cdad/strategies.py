"""What is done so that a new task does not harm the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .config import ContinualConfig
from .data.records import ClassData

if TYPE_CHECKING:
    from .model import ContinualModel


class Strategy(Protocol):
    """Hooks around a task; ``index`` counts from 0."""

    def before_task(self, model: ContinualModel, index: int) -> None: ...

    def after_task(self, model: ContinualModel, classes: Sequence[ClassData], progress: bool) -> None: ...


class CDAD:
    """The paper's method: updates stay orthogonal to the input features of the old tasks (Eqs. 6 and 7);
    parameters without such features (biases, norms) are frozen on incremental tasks."""

    def before_task(self, model: ContinualModel, index: int) -> None:
        if index == 0:
            return
        for name in model.params.shapes():
            basis = model.bases.get(name)
            model._trainer.protect(name, basis, frozen=basis is None)

    def after_task(self, model: ContinualModel, classes: Sequence[ClassData], progress: bool) -> None:
        bases = model.collect_bases(classes, progress)
        model.bases = {name: np.ascontiguousarray(U) for name, (U, _) in bases.items()}


class Finetune:
    """No protection: the lower bound."""

    def before_task(self, model: ContinualModel, index: int) -> None:
        pass

    def after_task(self, model: ContinualModel, classes: Sequence[ClassData], progress: bool) -> None:
        pass


_STRATEGIES = {"cdad": CDAD, "finetune": Finetune}


def make_strategy(config: ContinualConfig) -> Strategy:
    """The strategy that a configuration names."""
    return _STRATEGIES[config.strategy]()
