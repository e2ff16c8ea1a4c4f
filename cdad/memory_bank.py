"""How far an image's features are from those of a class's normal images: a memory bank (Roth et al., "Towards Total Recall in
Industrial Anomaly Detection", CVPR 2022, Sec. 3), which no later task changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import cv2
import numpy as np

from . import _core

_CANDIDATES = 8  # for each vector that is kept
_PROJECTED = 64  # directions in which candidates are compared
_CHANNELS = 64  # that every OpenCV resizes at once
_LEAST = 1e-3  # of a layer's largest feature: what its scale is at least
_LEAST_SHARE = 0.01  # of the features' spread: what is normal at least
_PROBES = 2048  # places that tell what is normal, at most
PLACES_AT_ONCE = 256  # whose distances are measured
BANK_IMAGES = 1024  # of a class, at most


@dataclass(frozen=True)
class MemoryBank:
    """Normal features: ``vectors`` float32 [n,C], of a place each, the backbone's ``layers`` (their numbers, [L]) side by side, a layer
    divided by its ``scales``, float32 [L], from which their mean, ``centre`` float32 [C], is taken away; chosen so that all others are
    near one of them. ``normal``: the mean squared distance of a normal image's features from the nearest ones of other images."""

    vectors: np.ndarray
    scales: np.ndarray
    centre: np.ndarray
    layers: np.ndarray
    normal: float

    @classmethod
    def measure(
        cls, features: Iterable[Sequence[np.ndarray]], images: int, size: int, seed: int, layers: Sequence[int]
    ) -> MemoryBank:
        """Of at most ``size`` vectors, from the features of so many normal images, in chunks: [N,h,w,C] of each of the ``layers``.
        Images of which one is a copy of the other count as one where it is told what is normal."""
        rng = np.random.Generator(np.random.Philox(seed))
        parts, owners, each, seen = [], [], -(-_CANDIDATES * size // images), {}
        for chunk in features:
            widths = [layer.shape[-1] for layer in chunk]
            for image in _places(chunk):
                flat = image.reshape(-1, image.shape[-1])
                parts.append(flat[rng.permutation(len(flat))[:each]])
                owners.append(np.full(len(parts[-1]), seen.setdefault(hashlib.blake2b(flat).digest(), len(seen))))
        vectors, owner = np.concatenate(parts), np.concatenate(owners)
        del parts
        mean, variances = _moments(vectors)
        scales = np.array([_scale(*of) for of in zip(*(_split(x, widths) for x in (vectors, mean, variances)), strict=True)], np.float32)
        wide = np.repeat(scales, widths)
        vectors /= wide
        centre = (mean / wide).astype(np.float32)
        vectors -= centre
        order = rng.permutation(len(vectors))
        kept, probes = order[_spread(_compared(vectors, rng)[order], size)], order[: min(size, _PROBES)]
        bank = cls(np.ascontiguousarray(vectors[kept]), scales, centre, np.array(layers, np.int64), 1.0)
        spread = float(np.sum(variances / wide**2))
        # What is nearest in images that are all but the same says little of the next one.
        least = max(_LEAST_SHARE * spread, _LEAST**2 * vectors.shape[1])
        squares = bank._squares(vectors[probes], owner[probes], owner[kept])
        squares = squares[np.isfinite(squares)]  # the others' nearest ones are all of their own image
        return replace(bank, normal=float(max(squares.mean(dtype=np.float64) if len(squares) else spread, least)))

    def distances(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """Features [N,h,w,C] of images, of each layer -> float32 [N,h,w], of the middle layer's places: squared distances from the
        nearest vector; 1 is a normal image's mean."""
        places = _places(features) / np.repeat(self.scales, [layer.shape[-1] for layer in features]) - self.centre
        squares = [self._squares(image.reshape(-1, image.shape[-1])).reshape(image.shape[:-1]) for image in places]
        return np.stack(squares) / np.float32(self.normal)

    @staticmethod
    def making_bytes(size: int, images: int, places: int, width: int) -> int:
        """That `measure` takes at most: the candidates twice, of so many images with so many places each."""
        return 8 * width * images * min(places, -(-_CANDIDATES * size // images))

    def _squares(self, x: np.ndarray, owner: np.ndarray | None = None, others: np.ndarray | None = None) -> np.ndarray:
        """[n,C] -> [n]. ``owner`` [n], ``others`` [vectors]: of whom each is; its own ones do not count; infinite where there are no
        others."""
        (input, vectors, halves), program = _products(*self.vectors.shape)
        feeds = {vectors: self.vectors, halves: self._halves}
        best = np.empty(len(x), np.float32)
        for start in range(0, len(x), PLACES_AT_ONCE):
            part, rows = x[start : start + PLACES_AT_ONCE], slice(start, start + PLACES_AT_ONCE)
            (products,) = program.run(feeds | {input: np.pad(part, ((0, PLACES_AT_ONCE - len(part)), (0, 0)))})
            products = products[: len(part)]
            if owner is not None:
                products[owner[rows, None] == others] = -np.inf
            best[rows] = products.max(axis=1)
        return np.maximum(np.einsum("ij,ij->i", x, x) - 2 * best, 0)

    @cached_property
    def _halves(self) -> np.ndarray:
        """-|v|^2 / 2 of every vector v."""
        return np.einsum("ij,ij->i", self.vectors, self.vectors) / np.float32(-2)

    def tensors(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        normal = np.array([self.normal], np.float32)
        return {"vectors": self.vectors, "scales": self.scales, "centre": self.centre, "layers": self.layers, "normal": normal}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> MemoryBank:
        """The inverse of `tensors`. ValueError: what could be no bank."""
        vectors, scales, centre, layers, normal = (
            tensors.get(name, np.empty(0)) for name in ("vectors", "scales", "centre", "layers", "normal")
        )
        parts = vectors, scales, centre, normal
        fit = all(part.dtype == np.float32 and np.isfinite(part).all() for part in parts) and layers.dtype == np.int64
        fit = fit and vectors.ndim == 2 and len(vectors) > 0 and centre.shape == vectors.shape[1:] and scales.shape == layers.shape
        if not fit or normal.shape != (1,) or not (scales > 0).all() or not normal[0] > np.finfo(np.float32).tiny:
            told = ", ".join(f"{name} {part.dtype}{list(part.shape)}" for name, part in tensors.items())
            raise ValueError(f"a memory bank of {told} is none, or has numbers that it cannot have")
        return cls(*parts[:3], layers, float(normal[0]))


@lru_cache(maxsize=4)
def _products(n: int, width: int) -> tuple[tuple[int, int, int], _core.Program]:
    """x v - |v|^2 / 2 of places x with n vectors v, of which the largest is the nearest one's: inputs x, v and -|v|^2 / 2."""
    graph = _core.Graph()
    shapes = {"x": (PLACES_AT_ONCE, width), "vectors": (n, width), "halves": (n,)}
    inputs = x, vectors, halves = tuple(graph.input(name, shape) for name, shape in shapes.items())
    (y,) = graph.op("linear", [x, vectors, halves])
    return inputs, graph.compile([y], device="cpu")


def _split(x: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    """By layers."""
    return np.split(x, np.cumsum(widths)[:-1], axis=-1)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance, float64 [C], of rows [n,C]: some rows at a time, as a copy in float64 would be large."""
    mean = x.mean(axis=0, dtype=np.float64)
    squares = sum(np.square(x[i : i + PLACES_AT_ONCE] - mean).sum(axis=0) for i in range(0, len(x), PLACES_AT_ONCE))
    return mean, squares / len(x)


def _scale(layer: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """By which a layer's features are divided: its spread, or, where that is next to nothing, a share of its largest one."""
    largest = max(float(layer.max()), -float(layer.min()))
    return max(float(np.sqrt(variance.mean() + mean.var())), _LEAST * largest) or 1.0


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


def _compared(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As vectors [n,C] are compared when some are chosen: in random directions, where these are fewer; by einsum, whose sums do not
    depend on BLAS's threads."""
    if vectors.shape[1] <= _PROJECTED:
        return vectors
    return np.einsum("ij,jk->ik", vectors, rng.standard_normal((vectors.shape[1], _PROJECTED), np.float32))


def _spread(vectors: np.ndarray, size: int) -> np.ndarray:
    """Places of ``size`` of the vectors [n,C], the first one and then always the one that is farthest from all before (greedy
    k-centre)."""
    if len(vectors) <= size:
        return np.arange(len(vectors))
    squares = np.einsum("ij,ij->i", vectors, vectors)
    far, chosen = np.full(len(vectors), np.inf, np.float32), [0]
    for _ in range(size - 1):
        last = chosen[-1]
        far = np.minimum(far, squares + squares[last] - 2 * np.einsum("ij,j->i", vectors, vectors[last]))
        chosen.append(int(far.argmax()))
    return np.array(chosen)
