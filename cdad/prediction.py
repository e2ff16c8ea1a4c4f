"""What `ContinualModel.predict` gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Prediction:
    """``scores`` float32 [N], higher is more anomalous; ``maps`` float32 [N,H,W]; ``reconstructions`` float32
    [N,H,W,3] in [0,1], the normal image that the model draws instead; ``threshold``: the class's, where it was told and has one."""

    scores: np.ndarray
    maps: np.ndarray
    reconstructions: np.ndarray
    threshold: float | None = None

    @property
    def anomalous(self) -> np.ndarray:
        """bool [N]: scores above the threshold. ValueError: there is none."""
        if self.threshold is None:
            raise ValueError("there is no threshold: set_threshold() measures a class's, and predict() is told the class")
        return self.scores > self.threshold

    def __repr__(self) -> str:
        n = len(self.scores)
        text = f"{n} image{'s' * (n != 1)}, maps {list(self.maps.shape)}"
        if n:
            text += f", scores {self.scores.min():.4g} to {self.scores.max():.4g}"
        if self.threshold is not None:
            text += f", {self.anomalous.sum()} above the threshold {self.threshold:.4g}"
        return f"Prediction({text})"
