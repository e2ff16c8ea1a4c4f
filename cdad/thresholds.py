"""Above which score an image counts as anomalous, a class."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


def check_quantile(quantile: float) -> None:
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile is {quantile!r}; 0 < quantile <= 1 is wanted")


@dataclass(frozen=True)
class Threshold:
    """``value``: what scores have to be above; the ``quantile`` of those of so many held-out normal ``images``, measured when the
    model had learned so many ``tasks``: later ones move scores a little."""

    value: float
    quantile: float
    images: int
    tasks: int

    @classmethod
    def of(cls, scores: np.ndarray, quantile: float, tasks: int) -> Threshold:
        """Of normal images' scores. With the quantile 1 about one new normal image in n + 1 lies above. Between two scores it is the
        higher one. ValueError: no scores, one that is no finite number, or a quantile outside of (0, 1]."""
        check_quantile(quantile)
        if len(scores) == 0:
            raise ValueError("a threshold is measured on held-out normal images: there are none")
        if not np.isfinite(scores).all():
            raise ValueError(f"image {int(np.argmin(np.isfinite(scores)))} has the score {scores[~np.isfinite(scores)][0]}: no threshold")
        return cls(float(np.quantile(scores, quantile, method="higher")), float(quantile), len(scores), tasks)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Threshold:
        """ValueError: it is none."""
        found = cls(float(record["value"]), float(record["quantile"]), int(record["images"]), int(record["tasks"]))
        if not math.isfinite(found.value):
            raise ValueError(f"a threshold is {found.value}")
        return found
