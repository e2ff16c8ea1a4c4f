"""ResNets' ImageNet weights from a file with torchvision's names, which are timm's too."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np

from .batch_norm import folded
from .files import load_tensors
from .names import to_channels_last

_BN_EPS = 1e-5
# Mean and spread of ImageNet's RGB in [0, 1], by which torchvision and timm normalise.
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class ResNet:
    """``blocks`` of the four stages; ``bottleneck``: of three convolutions, not two; ``widening`` of their 3x3 one."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    widening: int = 1
    channels: int = 64

    def core_config(self) -> dict:
        """The configuration as the core takes it."""
        return {
            "blocks": list(self.blocks),
            "bottleneck": int(self.bottleneck),
            "widening": self.widening,
            "channels": self.channels,
        }


RESNETS = {
    "resnet18": ResNet((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNet((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNet((3, 4, 6, 3)),
    "resnet101": ResNet((3, 4, 23, 3)),
    "wide_resnet50_2": ResNet((3, 4, 6, 3), widening=2),
}


def load_resnet(name: str, path: str | os.PathLike) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(tensors, mean, std): every convolution of the file with its batch norm folded, by the core's names, and the
    normalisation [3] of RGB in [0, 1] that the model was trained with. The classifier is left out.

    FileNotFoundError; FormatError: the file is damaged, or a convolution has no batch norm.
    """
    raw = load_tensors(path)
    tensors: dict[str, np.ndarray] = {}
    for key in raw:
        conv = re.fullmatch(r"(.*?)(?:conv(\d)|downsample\.0)\.weight", key)
        if conv:
            norm = f"{conv[1]}bn{conv[2]}" if conv[2] else f"{conv[1]}downsample.1"
            layer = key.removesuffix(".weight")
            weight, bias = folded(raw, layer, norm, _BN_EPS, what=name, path=path)
            tensors[key] = to_channels_last(key, weight)
            tensors[f"{layer}.bias"] = bias.astype(np.float32)
    return tensors, _MEAN, _STD
