"""How far an image's features are from those of a class's normal images: a memory bank (Roth et al., "Towards Total Recall in
Industrial Anomaly Detection", CVPR 2022, Sec. 3), which no later task changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from . import _core

_CANDIDATES = 8  # for each vector that is kept
_PROJECTED = 64  # directions in which candidates are compared
_CHANNELS = 64  # that every OpenCV resizes at once
_LEAST = 1e-3  # of a layer's largest feature: what its scale is at least
_LEAST_SHARE = 0.01  # of the features' spread: what is normal at least
_TINY = np.float32(1e-12)
PLACES_AT_ONCE = 256  # whose distances are measured
BANK_IMAGES = 1024  # of a class, at most


@dataclass(frozen=True)
class MemoryBank:
    """Normal features: ``vectors`` float32 [n,C], of a place each, the layers' side by side, a layer divided by its ``scales``,
    float32 [L]; chosen so that all others are near one of them. ``normal``: the mean squared distance of a normal image's features
    from the nearest ones of other images."""

    vectors: np.ndarray
    scales: np.ndarray
    normal: float

    @classmethod
    def measure(cls, features: Iterable[Sequence[np.ndarray]], images: int, size: int, seed: int) -> MemoryBank:
        """Of at most ``size`` vectors, from the features of so many normal images, in chunks: [N,h,w,C], a layer each."""
        rng = np.random.Generator(np.random.Philox(seed))
        parts, owners, each, n = [], [], -(-_CANDIDATES * size // images), 0
        for chunk in features:
            widths = [layer.shape[-1] for layer in chunk]
            for image in _places(chunk):
                flat = image.reshape(-1, image.shape[-1])
                parts.append(flat[rng.permutation(len(flat))[:each]])
                owners.append(np.full(len(parts[-1]), n))
                n += 1
        vectors, owner = np.concatenate(parts), np.concatenate(owners)
        layers = np.split(vectors, np.cumsum(widths)[:-1], axis=1)
        scales = np.array([max(layer.std(dtype=np.float64), _LEAST * np.abs(layer).max()) for layer in layers], np.float32) + _TINY
        vectors /= np.repeat(scales, widths)
        order = rng.permutation(len(vectors))
        kept, probes = order[_spread(vectors[order], size, rng)], order[:size]
        bank, spread = cls(np.ascontiguousarray(vectors[kept]), scales, 1.0), vectors.var(axis=0, dtype=np.float64).sum()
        # What is nearest in images that are all but the same says little of the next one.
        least = max(_LEAST_SHARE * spread, _LEAST**2 * vectors.shape[1])
        if n > 1:
            spread = bank._squares(vectors[probes], owner[probes, None] == owner[kept]).mean(dtype=np.float64)
        return cls(bank.vectors, scales, float(max(spread, least)))

    def distances(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """Features [N,h,w,C] of images, a layer each -> float32 [N,h,w], of the middle layer's places: squared distances from the
        nearest vector; 1 is a normal image's mean."""
        widths = [layer.shape[-1] for layer in features]
        places = _places(features) / np.repeat(self.scales, widths)
        squares = [self._squares(image.reshape(-1, image.shape[-1])).reshape(image.shape[:-1]) for image in places]
        return np.stack(squares) / np.float32(self.normal)

    def _squares(self, x: np.ndarray, but: np.ndarray | None = None) -> np.ndarray:
        """[n,C] -> [n]. ``but`` bool [n,vectors]: those that do not count."""
        input, program = self._program
        best = np.empty(len(x), np.float32)
        for start in range(0, len(x), PLACES_AT_ONCE):
            part, rows = x[start : start + PLACES_AT_ONCE], slice(start, start + PLACES_AT_ONCE)
            (products,) = program.run({input: np.pad(part, ((0, PLACES_AT_ONCE - len(part)), (0, 0)))})
            products = products[: len(part)]
            if but is not None:
                products[but[rows]] = -np.inf
            best[rows] = products.max(axis=1)
        return np.maximum(np.einsum("ij,ij->i", x, x) - 2 * best, 0)

    @cached_property
    def _program(self) -> tuple[int, _core.Program]:
        """x v - |v|^2 / 2 of places x with every vector v, of which the largest is the nearest one's."""
        graph = _core.Graph()
        x = graph.input("x", (PLACES_AT_ONCE, self.vectors.shape[1]))
        halves = np.einsum("ij,ij->i", self.vectors, self.vectors) / np.float32(-2)
        (y,) = graph.op("linear", [x, graph.const(self.vectors), graph.const(halves)])
        return x, graph.compile([y], device="cpu")

    def tensors(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        return {"vectors": self.vectors, "scales": self.scales, "normal": np.array([self.normal], np.float32)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> MemoryBank:
        """The inverse of `tensors`. ValueError: what could be no bank."""
        vectors, scales, normal = tensors["vectors"], tensors["scales"], float(tensors["normal"][0])
        if vectors.ndim != 2 or not len(vectors) or scales.ndim != 1 or not (scales > 0).all() or not 0 < normal < np.inf:
            raise ValueError(f"a memory bank of {list(vectors.shape)}, with scales {list(scales.shape)} and {normal} as normal, is none")
        return cls(vectors, scales, normal)


def _places(features: Sequence[np.ndarray]) -> np.ndarray:
    """The layers' features side by side, at the places of the middle one: [N,h,w,C]."""
    side = features[len(features) // 2].shape[1:3]
    return np.concatenate([_resized(layer, side) for layer in features], axis=-1)


def _resized(layer: np.ndarray, side: tuple[int, ...]) -> np.ndarray:
    if layer.shape[1:3] == side:
        return layer
    how = cv2.INTER_AREA if layer.shape[1] > side[0] else cv2.INTER_LINEAR

    def resize(image: np.ndarray) -> np.ndarray:
        parts = [image[..., c : c + _CHANNELS] for c in range(0, image.shape[-1], _CHANNELS)]
        return np.concatenate([cv2.resize(part, side[::-1], interpolation=how).reshape(*side, -1) for part in parts], axis=-1)

    return np.stack([resize(image) for image in layer])


def _spread(vectors: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Places of ``size`` of the vectors [n,C], the first one and then always the one that is farthest from all before (greedy
    k-centre), compared in random directions; by einsum, whose sums do not depend on BLAS's threads."""
    if len(vectors) <= size:
        return np.arange(len(vectors))
    if vectors.shape[1] > _PROJECTED:
        vectors = np.einsum("ij,jk->ik", vectors, rng.standard_normal((vectors.shape[1], _PROJECTED), np.float32))
    squares = np.einsum("ij,ij->i", vectors, vectors)
    far, chosen = np.full(len(vectors), np.inf, np.float32), [0]
    for _ in range(size - 1):
        last = chosen[-1]
        far = np.minimum(far, squares + squares[last] - 2 * np.einsum("ij,j->i", vectors, vectors[last]))
        chosen.append(int(far.argmax()))
    return np.array(chosen)
