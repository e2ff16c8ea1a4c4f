"""From feature distances to anomaly maps and scores (paper, Eqs. 1 and 2), calibrated by normal images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .config import ScoringConfig

_BLUR = 2.0  # pixels at 256: normal parts move by this much from image to image


@dataclass(frozen=True)
class Calibration:
    """The distances of a class's normal training images: ``mean`` float32 [H,W,L] and ``spread`` float32 [H,W,L],
    a standard deviation. Places that are hard to redraw on every normal part then do not count as defects."""

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def measure(cls, distances: np.ndarray) -> Calibration:
        """From distances [N,H,W,L] of normal images. The spread of a pixel is its own, joined with the mean one of
        its layer, since a few images do not fix it."""
        size = distances.shape[1]
        smooth = np.stack([_smooth(d, _BLUR * size / 256) for d in distances])
        mean = smooth.mean(0)
        variance = smooth.var(0)
        floor = variance.mean((0, 1), keepdims=True) + 1e-12
        return cls(mean.astype(np.float32), np.sqrt(variance + floor).astype(np.float32))

    @classmethod
    def pool(cls, calibrations: Sequence[Calibration]) -> Calibration:
        """For images of an unknown class: the mean of several classes' calibrations."""
        return cls(
            np.mean([c.mean for c in calibrations], axis=0), np.mean([c.spread for c in calibrations], axis=0)
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        return {"mean": self.mean, "spread": self.spread}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> Calibration:
        """The inverse of `tensors`."""
        return cls(tensors["mean"], tensors["spread"])


def score_maps(
    distances: np.ndarray, calibration: Calibration | None, config: ScoringConfig, image_size: int
) -> np.ndarray:
    """Distances [N,H,W,L] -> anomaly maps [N,H,W]: calibrated, summed over the layers, smoothed."""
    layers = list(config.layers)
    if max(layers) >= distances.shape[-1]:
        layers = list(range(distances.shape[-1]))
    if calibration is not None:
        distances = (distances - calibration.mean) / calibration.spread
    maps = distances[..., layers].sum(-1, dtype=np.float32)
    sigma = config.sigma * image_size / 256
    return np.stack([_smooth(m, sigma) for m in maps])


def _smooth(array: np.ndarray, sigma: float) -> np.ndarray:
    if sigma <= 0:
        return array
    return cv2.GaussianBlur(array, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101).reshape(array.shape)
