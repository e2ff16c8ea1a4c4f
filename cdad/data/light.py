"""The same part under another light."""

from __future__ import annotations

import numpy as np


def relight(image: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """``image`` float32 [H,W,3] in [0, 1] with another brightness and contrast, each a factor drawn from 1 - ``amount`` to
    1 + ``amount``; contrast turns about the image's mean."""
    brightness, contrast = 1 + amount * rng.uniform(-1, 1, 2).astype(np.float32)
    mean = image.mean(dtype=np.float64).astype(np.float32)
    return np.clip((image - mean) * (brightness * contrast) + mean * brightness, 0, 1)
