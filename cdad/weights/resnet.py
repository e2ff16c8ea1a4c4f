"""The ResNets whose weights torchvision and timm publish under the same names, and how their images are normalised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Mean and spread of ImageNet's RGB in [0, 1], by which torchvision and timm normalise.
IMAGENET_MEAN, IMAGENET_STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


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
