"""bfloat16, which NumPy lacks: the upper half of a float32's bits, as uint16."""

from __future__ import annotations

import numpy as np


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """uint16 bits -> float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> uint16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
