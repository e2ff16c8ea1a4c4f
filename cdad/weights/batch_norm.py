"""Batch norms folded into the convolutions before them, as networks in evaluation allow."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from ..errors import FormatError


def folded(
    raw: Mapping[str, np.ndarray], conv: str, norm: str, eps: float, *, what: str, path: str | os.PathLike
) -> tuple[np.ndarray, np.ndarray]:
    """(weight [O,I,R,S], bias [O]) in float64 of ``conv``, a convolution without a bias, followed by the batch norm
    ``norm``. FormatError, which says that ``path`` is not ``what``: a tensor is missing or of another shape."""

    def take(name: str, dimensions: int) -> np.ndarray:
        if name not in raw or raw[name].ndim != dimensions:
            shape = f"has the shape {list(raw[name].shape)}" if name in raw else "is missing"
            raise FormatError(f"not {what}: {name} {shape}, expected {dimensions} dimensions", path)
        return raw[name].astype(np.float64)

    weight = take(f"{conv}.weight", 4)
    gamma, beta = take(f"{norm}.weight", 1), take(f"{norm}.bias", 1)
    mean, var = take(f"{norm}.running_mean", 1), take(f"{norm}.running_var", 1)
    if not gamma.shape == beta.shape == mean.shape == var.shape == weight.shape[:1]:
        raise FormatError(f"not {what}: {conv} and {norm} differ in channels", path)
    scale = gamma / np.sqrt(var + eps)
    return weight * scale[:, None, None, None], beta - mean * scale
