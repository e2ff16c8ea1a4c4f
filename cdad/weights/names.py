"""Tensor names and layouts: the original checkpoints' beside the core's.

The core keeps the original (LDM) names; conv weights are [O,R,S,C] instead of OIHW, and the packed projection of
the anomaly-masked network's attention is three weights, since q and k read other features than v.
"""

from __future__ import annotations

import re

import numpy as np

PACKED = re.compile(r"(.*\.self_attn\.)in_proj_(weight|bias)$")


def to_channels_last(name: str, array: np.ndarray) -> np.ndarray:
    """An original tensor as the core holds it: float32, conv weights OIHW -> [O,R,S,C]."""
    if array.ndim == 4:
        array = array.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(array, np.float32)


def from_channels_last(name: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_channels_last`."""
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)


def denoiser_from_original(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``unet.*`` and ``amn.*`` tensors of a published checkpoint as the core's parameters."""
    result = {}
    for name, array in tensors.items():
        packed = PACKED.match(name)
        if packed:
            for part, rows in zip("qkv", np.split(np.asarray(array, np.float32), 3), strict=True):
                result[f"{packed[1]}{part}_proj.{packed[2]}"] = np.ascontiguousarray(rows)
        else:
            result[name] = to_channels_last(name, array)
    return result


def denoiser_to_original(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `denoiser_from_original`."""
    result = {}
    for name, array in tensors.items():
        split = re.match(r"(.*\.self_attn\.)([qkv])_proj\.(weight|bias)$", name)
        if not split:
            result[name] = from_channels_last(name, array)
        elif split[2] == "q":
            parts = [tensors[f"{split[1]}{part}_proj.{split[3]}"] for part in "qkv"]
            result[f"{split[1]}in_proj_{split[3]}"] = np.concatenate(parts)
    return result
