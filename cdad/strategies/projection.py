"""The paper's method: updates off the significant representations of the old tasks."""

from __future__ import annotations

import numpy as np

from .base import Strategy


class CDAD(Strategy):
    """Updates stay orthogonal to the input features of the old tasks (paper, Eqs. 6 and 7); parameters without such
    features (biases, norms) are frozen on incremental tasks."""

    def __init__(self, config):
        super().__init__(config)
        self.bases: dict[str, np.ndarray] = {}

    @property
    def ready(self) -> bool:
        return bool(self.bases)

    def before_task(self, model, index, step):
        if index == 0:
            return
        for name in model.params.shapes():
            basis = self.bases.get(name)
            model._trainer.protect(name, basis, frozen=basis is None)

    def after_task(self, model, classes, progress):
        bases = model.collect_bases(classes, progress)
        self.bases = {name: np.ascontiguousarray(U) for name, (U, _) in bases.items()}
        return {}

    def tensors(self):
        return {f"basis/{name}": U for name, U in self.bases.items()}

    def restore(self, tensors, state):
        self.bases = {k.removeprefix("basis/"): v for k, v in tensors.items() if k.startswith("basis/")}
