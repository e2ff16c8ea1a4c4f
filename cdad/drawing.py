"""The normal images that a model draws instead of those that it is shown, and how far apart they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from . import _core
from .autoencoder import Autoencoder
from .config import Config
from .device_arrays import Array
from .features import FeatureDistance
from .memory_bank import MemoryBank
from .programs import Programs
from .scoring import Calibration, chosen_layers, whitening


class Drawing:
    """Draws with the weights that ``trainer`` tells (their moving average, where it keeps one). ``context``:
    [context_length, context_dim], what the U-Net is told beside the condition, the same for every image; None where it has no
    cross-attention."""

    def __init__(
        self, config: Config, params: _core.Params, autoencoder: Autoencoder, trainer: _core.Trainer, context: np.ndarray | None
    ):
        self.config, self.autoencoder, self.context = config, autoencoder, context
        self._trainer, self._features, self._planned = trainer, None, params.device == "planned"
        self.samplers = Programs(lambda n: _core.Sampler(params, config.denoiser(), n), config.scoring.batch_size)

    @property
    def features(self) -> FeatureDistance:
        """The backbone of the scores, read when it is first used."""
        if self._features is None:
            self._features = FeatureDistance.of(self.config, self.autoencoder, load=not self._planned)
        return self._features

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the condition and, once `features` was used, of the backbone's weights."""
        found = {"condition": sum(sampler.condition_bytes for sampler in self.samplers.compiled)}
        return found if self._features is None else found | self._features.memory_bytes

    @property
    def workspace_needs(self) -> dict[str, int]:
        """Bytes that the networks take of the workspace: the ``sampler`` and, once `features` was used, ``compare``."""
        found = {"sampler": self.samplers.memory_bytes}
        return found if self._features is None else found | {"compare": self._features.programs.memory_bytes}

    def contexts(self, n: int) -> np.ndarray | None:
        """``context`` for each of n samples: [n, context_length, context_dim]."""
        return None if self.context is None else np.broadcast_to(self.context, (n, *self.context.shape))

    def denoise(
        self, images: Array, latents: np.ndarray, noise_seed: int, samplers: Programs[_core.Sampler] | None = None
    ) -> np.ndarray:
        """The latents that are drawn under images' conditions from their noised ``latents``."""
        d, seed = self.config.diffusion, self.config.seed
        how = {"steps": d.steps, "skip": d.skip}

        def run(sampler: _core.Sampler, z: np.ndarray, x: np.ndarray) -> np.ndarray:
            streams = np.full(len(z), noise_seed, np.int64)
            start, twin = sampler.start(z, streams, seed, **how), None
            if d.stop and d.mirrored:
                twin = start - 2 * sampler.start(np.zeros_like(z), streams, seed, **how)
            return sampler.denoise(x, start, self.contexts(len(z)), **how, stop=d.stop, twin=twin, weights=self._trainer)

        return (samplers or self.samplers).run(run, latents, images)

    def x0_error(self, latents: np.ndarray, conditions: np.ndarray) -> float:
        """The mean squared error of latents as predicted at the sampler's first timestep under images' conditions."""
        d, seed = self.config.diffusion, self.config.seed

        def run(sampler: _core.Sampler, z: np.ndarray, x: np.ndarray, stream: np.ndarray) -> np.ndarray:
            start = sampler.start(z, stream, seed, steps=d.steps, skip=d.skip)
            return sampler.denoise(x, start, self.contexts(len(z)), steps=d.steps, skip=d.skip, stop=1, weights=self._trainer)

        x0 = self.samplers.run(run, latents, conditions, np.arange(len(latents)))
        return float(np.mean((x0 - latents) ** 2, dtype=np.float64))

    def draw(self, images: Array) -> tuple[Array, list[Array]]:
        """x^ = D(E(x)) [N,H,W,3], and x- from each of the noises, on the device where the images lie there."""
        latents = self.autoencoder.encode(images)
        start = np.asarray(latents)  # noise is drawn, and steps are taken, on the host

        def one(seed: int) -> Array:
            z = self.denoise(images, start, seed)
            return self.autoencoder.decode(z if start is latents else _core.DeviceArray(z, latents.device))

        return self.autoencoder.decode(latents), [one(seed) for seed in range(self.config.scoring.noise_seeds)]

    def distances(self, reference: Array, drawn: list[Array], white: Sequence[np.ndarray]) -> np.ndarray:
        """Feature distances [N,H,W,layers] between x^ and x- (paper, Eq. 1), the mean over the noises."""
        total = self.features(reference, drawn[0], white)
        for x in drawn[1:]:
            total += self.features(reference, x, white)
        return total / np.float32(len(drawn))

    def nearest(self, images: Array, calibration: Calibration | None) -> np.ndarray | None:
        """How far images' own features are from the calibration's banks: [N,h,w]; None where there are none, or none are wanted."""
        if calibration is None or not self.config.scoring.memory_bank:
            return None
        return calibration.nearest(self._chosen_features(images))

    def _chosen_features(self, images: Array) -> list[np.ndarray]:
        layers = self.features.extract(images)
        return [np.asarray(layers[i]) for i in chosen_layers(self.config.scoring, len(layers))]

    def calibration_of(self, images: np.ndarray, all_images: Iterable[np.ndarray] = (), n: int = 0) -> Calibration:
        """What a class's distances are measured against, of its normal images. ``all_images``: in chunks the n images of which the
        memory bank is made; none: of ``images``."""
        reference, drawn = self.draw(images)
        moments: list[np.ndarray] = []
        banks: list[MemoryBank] = []
        scoring = self.config.scoring
        layers = chosen_layers(scoring, len(self.features.widths))
        if scoring.distance == "mahalanobis":
            moments = self.features.second_moments(np.concatenate([reference] * len(drawn)), np.concatenate(drawn))
        distances = self.distances(reference, drawn, [whitening(m) for m in moments])
        del reference, drawn  # before the bank takes its memory
        if scoring.memory_bank:
            features = map(self._chosen_features, all_images if n else [images])
            banks = [MemoryBank.measure(features, n or len(images), scoring.memory_bank, self.config.seed, layers)]
        return Calibration.measure(distances, moments, banks, self.features.checksum, layers)


__all__ = ["Drawing"]
