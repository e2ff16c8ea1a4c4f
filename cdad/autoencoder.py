"""The frozen autoencoder E, D, with latents standardised for the denoiser."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from . import _core
from .config import AutoencoderConfig
from .device_arrays import Array, Scaling
from .programs import Programs
from .weights import fill, load_part
from .weights.loading import Piece

_FILES = {"tiny": 2, "vae": 1, "dct": 0}
# Of the images that run at once: eight of 256 x 256 fill a GPU, and the activations of more, a widest one 64 MiB an image of "vae",
# would be most of the memory that scoring takes.
PIXELS = 8 * 256 * 256


def images_at_once(batch_size: int, image_size: int) -> int:
    """Of a batch, in equal parts."""
    parts = -(-batch_size // max(1, PIXELS // image_size**2))
    return -(-batch_size // parts)


class Autoencoder:
    """E: images [N,H,W,3] in [0,1] -> latents [N,H/f,W/f,C]; D: back. Latents are (E(x) - shift) / scale.

    The VAE's latent is the mean, not a sample, so that scores depend on the image alone. Batches on a device (`DeviceArray`,
    and what can be one: a torch, CuPy or JAX array) stay there, and give `DeviceArray`s. ``batch_size``: of what it is given; large
    images run in equal parts of it.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        image_size: int,
        batch_size: int,
        *,
        load: bool = True,
        device: str | None = None,
        tf32: bool = False,
        beside: _core.Params | None = None,
    ):
        self.config = config
        self.image_size = image_size
        self.batch_size = batch_size
        self.tf32 = tf32
        self.params = _core.Params(device, beside)
        latent = image_size // config.downsampling
        core = self.core_config()

        params = self.params  # not of self, which would keep itself alive

        def programs(part: str, side: int) -> Programs[_core.Network]:
            kind = f"{config.kind}_{part}"
            return Programs(lambda n: _core.Network(params, kind, core, n, (side, side), tf32=tf32), images_at_once(batch_size, image_size))

        self._scaled = Scaling(self.params.device)
        self._encode, self._decode = programs("encode", image_size), programs("decode", latent)
        self.params.allocate(0)
        if load:
            self._load()
        channels = config.latent_channels
        self.shift = np.zeros(channels, np.float32)
        self.scale = np.ones(channels, np.float32)
        if not isinstance(config.shift_scale, str):
            self.scale[:] = 1.0 / config.shift_scale

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the weights."""
        return {"autoencoder": self.params.memory_bytes}

    @property
    def programs(self) -> tuple[Programs[_core.Network], Programs[_core.Network]]:
        """E's and D's."""
        return self._encode, self._decode

    def core_config(self) -> dict:
        """The configuration as the core takes it."""
        c = self.config
        if c.kind == "dct":
            return {"patch": c.downsampling, "latent_channels": c.latent_channels}
        if c.kind == "tiny":
            return {"channels": c.channels, "latent_channels": c.latent_channels, "midblock": c.midblock}
        return {
            "ch": c.channels,
            "ch_mult": list(c.ch_mult),
            "num_res_blocks": c.num_res_blocks,
            "z_channels": c.latent_channels,
            "norm_groups": 32,
        }

    def _load(self) -> None:
        files, wanted = self.config.weights, _FILES[self.config.kind]
        if len(files) != wanted:
            raise ValueError(
                f"autoencoder.weights: the kind {self.config.kind!r} wants {wanted} file(s), {len(files)} given; "
                "docs/WEIGHTS.md says where they come from"
            )
        if self.config.kind == "tiny":
            for side, path in zip(("encoder", "decoder"), files, strict=True):
                load_part(self.params, path, f"tiny_{side}")
        elif self.config.kind == "vae":
            load_part(self.params, files[0], "vae")

    def set_weights(self, tensors: Mapping[str, np.ndarray | Piece]) -> None:
        """Set every weight (conv weights [O,R,S,C]); FormatError lists what does not fit."""
        fill(self.params, tensors, what=f"{self.config.kind} autoencoder")

    def encode(self, images: Array) -> Array:
        """Standardised latents of images [N,H,W,3] in [0,1], any N."""
        there = _core.as_device_array(images)
        if there is not None:
            return self._encode.run(self._encode_there, there)
        return (self._run(self._encode, self._encoder_input(images), self._mean) - self.shift) / self.scale

    def decode(self, latents: Array) -> Array:
        """Images in [0,1] of standardised latents."""
        there = _core.as_device_array(latents)
        if there is not None:
            return self._decode.run(self._decode_there, there)
        images = self._run(self._decode, latents * self.scale + self.shift)
        if self.config.kind == "vae":
            images = images * 0.5 + 0.5
        return np.clip(images, 0.0, 1.0, out=images)

    def _encode_there(self, network: _core.Network, images: _core.DeviceArray) -> _core.DeviceArray:
        if self.config.kind == "vae":
            images = self._scaled(images, 2.0, -1.0)
        a, b = 1.0 / self.scale, -self.shift / self.scale
        return self._scaled(network.run(images)[0], a, b, channels=self.config.latent_channels)

    def _decode_there(self, network: _core.Network, latents: _core.DeviceArray) -> _core.DeviceArray:
        images = network.run(self._scaled(latents, self.scale, self.shift))[0]
        a, b = (0.5, 0.5) if self.config.kind == "vae" else (1.0, 0.0)
        return self._scaled(images, a, b, clip=True)

    def measure(self, images: np.ndarray) -> None:
        """Set shift and scale to the latents' mean and spread a channel over these images. The DCT is orthonormal:
        with one scale for all channels, errors of latents stay errors of pixels."""
        if self.config.shift_scale != "standardize":
            return
        latents = self._run(self._encode, self._encoder_input(images), self._mean).astype(np.float64)
        self.shift = latents.mean((0, 1, 2)).astype(np.float32)
        spread = np.maximum(latents.std((0, 1, 2)), 1e-3)
        if self.config.kind == "dct":
            spread[:] = np.sqrt(np.mean(spread**2))
        self.scale = spread.astype(np.float32)

    def _encoder_input(self, images: np.ndarray) -> np.ndarray:
        return images * 2.0 - 1.0 if self.config.kind == "vae" else images

    def _mean(self, moments: np.ndarray) -> np.ndarray:
        return moments[..., : self.config.latent_channels]

    def _run(self, programs: Programs[_core.Network], arrays: np.ndarray, after=lambda x: x) -> np.ndarray:
        return programs.run(lambda network, x: after(network.run(x)[0]), arrays)
