"""Learning from the model as it was before the task."""

from __future__ import annotations

import numpy as np

from ..errors import CheckpointError
from .base import Strategy


class Distill(Strategy):
    """Learning without forgetting (Li & Hoiem, ECCV 2016): what the model predicted before the task, on the task's own
    noised latents, is the target of a second term, ``strength * mse``. The old weights are kept while a task runs."""

    distils = True
    kept_blocks = 1

    def __init__(self, config):
        super().__init__(config)
        self.weights: np.ndarray | None = None  # before the task that runs

    def before_task(self, model, classes, index, step, progress):
        if index == 0:
            return
        if step == 0:
            self.weights = model._trainer.block("weights").copy()
        elif self.weights is None:
            raise CheckpointError("distill wants the weights before the task: it cannot begin in the middle of one")
        model._trainer.teach(self.weights, self.config.strength)

    def after_task(self, model, classes, progress):
        model._trainer.teach(None)
        self.weights = None
        return {}

    def tensors(self):
        return {} if self.weights is None else {"strategy/teacher": self.weights}

    def restore(self, tensors, state):
        self.weights = tensors.get("strategy/teacher")
