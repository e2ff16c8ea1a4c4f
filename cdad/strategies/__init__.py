"""What is done so that a new task does not harm the old ones: one class a strategy, by the names of
``continual.strategy``.

========================== ====================================================================================
``cdad``                   updates off the old tasks' features (the paper)
``finetune, without_cdm``  nothing: the lower bound; the second is the paper's name for it
``joint``                  all images so far at each task: the upper bound
``replay``                 a few images a class are kept, and mixed into later batches
``ewc``, ``si``, ``mas``   a quadratic penalty on weights that mattered
``distill``                the model before the task is a teacher
``without_amn``            ``cdad`` on a denoiser without the anomaly-masked network's condition and loss
``controlnet``             ``cdad`` on a denoiser with a ControlNet for its condition
========================== ====================================================================================
"""

from __future__ import annotations

from ..config import ContinualConfig
from .base import Strategy
from .controlnet import ControlNet
from .distillation import Distill
from .importance import EWC, MAS, SI
from .projection import CDAD
from .rehearsal import Joint, Replay

_CLASSES: dict[str, type[Strategy]] = {
    "cdad": CDAD,
    "finetune": Strategy,
    "without_cdm": Strategy,
    "joint": Joint,
    "replay": Replay,
    "ewc": EWC,
    "si": SI,
    "mas": MAS,
    "distill": Distill,
    "without_amn": CDAD,
    "controlnet": ControlNet,
}


def make_strategy(config: ContinualConfig) -> Strategy:
    """The strategy that a configuration names."""
    return _CLASSES[config.strategy](config)


__all__ = ["CDAD", "EWC", "MAS", "SI", "ControlNet", "Distill", "Joint", "Replay", "Strategy", "make_strategy"]
