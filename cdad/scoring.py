"""From feature distances to anomaly maps and image scores (paper, Eqs. 1 and 2), calibrated by normal images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from . import _core
from .config import ScoringConfig
from .memory_bank import MemoryBank

_BLUR = 8.0  # pixels at 256: normal parts move by this much from image to image
_FLOOR = 2.0  # of a map's mean: what every pixel's normal distance counts at least
_RIDGE = 0.02  # of the mean variance: what is added to that of every direction of the features
_LEAST = 1 << 18  # floats that are worth several threads


@dataclass(frozen=True)
class Calibration:
    """What is normal for a class, from its training images: ``layers`` float32 [L], the mean distance a layer, and
    ``mean`` float32 [H,W], the mean map of the ``chosen`` layers so balanced (None: of all, as first builds measured). Places that
    are hard to redraw on every normal part then count for less, and the maps of all classes have one scale. ``moments``: where distances are Mahalanobis', the second
    moments float32 [C,C] a layer of the features' differences: directions of the features in which normal images and their
    drawings differ count for less. ``banks``: of the class's normal features, one or none; several classes' where these are pooled. ``backbone``:
    `FeatureDistance.checksum` of what it was measured by, where that is known."""

    layers: np.ndarray
    mean: np.ndarray
    moments: tuple[np.ndarray, ...] = ()
    banks: tuple[MemoryBank, ...] = ()
    backbone: int | None = None
    chosen: tuple[int, ...] | None = None

    @classmethod
    def measure(
        cls,
        distances: np.ndarray,
        moments: Sequence[np.ndarray] = (),
        banks: Sequence[MemoryBank] = (),
        backbone: int | None = None,
        chosen: Sequence[int] | None = None,
    ) -> Calibration:
        """From distances [N,H,W,L] of normal images. ``chosen``: the layers of which maps are made; None: all."""
        of = list(range(distances.shape[-1]) if chosen is None else chosen)
        layers = distances.mean((0, 1, 2), dtype=np.float64).astype(np.float32) + np.float32(1e-12)
        mean = (distances[..., of] / layers[of]).mean((0, 3), dtype=np.float64).astype(np.float32)
        return cls(layers, _smooth(mean, _BLUR * distances.shape[1] / 256), tuple(moments), tuple(banks), backbone, tuple(of))

    def fits(self, image_size: int, widths: Sequence[int], config: ScoringConfig, backbone: int | None = None) -> bool:
        """Whether it is of maps of this size, by layers of so many channels and these weights, has or lacks moments as the distance wants
        it, and a bank of those layers where one is wanted."""
        if None not in (backbone, self.backbone) and backbone != self.backbone:
            return False
        wanted = list(widths) if config.distance == "mahalanobis" else []
        same = len(self.layers) == len(widths) and self.mean.shape == (image_size, image_size)
        chosen = chosen_layers(config, len(widths))
        if self.chosen is not None and list(self.chosen) != chosen:
            return False
        side_by_side = sum(widths[layer] for layer in chosen)
        alike = (list(bank.layers) == chosen and len(bank.centre) == side_by_side for bank in self.banks)
        banks = not config.memory_bank or (self.banks and all(alike))
        return bool(same and banks) and [len(moment) for moment in self.moments] == wanted

    @classmethod
    def pool(cls, calibrations: Sequence[Calibration]) -> Calibration:
        """For images of an unknown class: the mean of several classes' calibrations."""
        layers = np.mean([c.layers for c in calibrations], axis=0)
        moments = [np.mean(layer, axis=0) for layer in zip(*(c.moments for c in calibrations), strict=True)]
        banks = tuple(bank for c in calibrations for bank in c.banks)
        return cls(layers, np.mean([c.mean for c in calibrations], axis=0), tuple(moments), banks, chosen=calibrations[0].chosen)

    def nearest(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """Features [N,h,w,C] of images, one of the chosen layers each -> [N,h,w]: how far they are from the nearest bank."""
        return np.min([bank.distances(features) for bank in self.banks], axis=0)

    @cached_property
    def whitening(self) -> list[np.ndarray]:
        """A matrix W float32 [C,C] a layer: |W r|^2 is the squared Mahalanobis distance of a difference r."""
        return [whitening(moment) for moment in self.moments]

    def tensors(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        banks = {f"bank.{key}": value for bank in self.banks for key, value in bank.tensors().items()}
        by = {} if self.backbone is None else {"backbone": np.array([self.backbone], np.int64)}
        by |= {} if self.chosen is None else {"chosen": np.array(self.chosen, np.int64)}
        return {"layers": self.layers, "mean": self.mean} | {f"moment.{i}": m for i, m in enumerate(self.moments)} | banks | by

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> Calibration:
        """The inverse of `tensors`."""
        moments = (tensors[f"moment.{i}"] for i in range(sum(key.startswith("moment.") for key in tensors)))
        bank = {key.removeprefix("bank."): value for key, value in tensors.items() if key.startswith("bank.")}
        if not bank.keys() & {"centre", "layers"}:  # as first builds with banks kept them: one to be measured again
            bank = {}
        by = int(tensors["backbone"].item()) if "backbone" in tensors else None
        banks = (MemoryBank.from_tensors(bank),) if bank else ()
        chosen = tuple(map(int, tensors["chosen"])) if "chosen" in tensors else None
        return cls(tensors["layers"], tensors["mean"], tuple(moments), banks, by, chosen)


def whitening(moment: np.ndarray) -> np.ndarray:
    """W float32 [C,C] with W^T W the inverse of a second moment [C,C], to which a ridge is added: few images do not tell
    directions without variance from those whose variance they did not meet."""
    C = len(moment)
    ridge = _RIDGE * np.trace(moment, dtype=np.float64) / C + 1e-12
    factor = np.linalg.cholesky(moment.astype(np.float64) + ridge * np.eye(C))
    return np.ascontiguousarray(np.linalg.inv(factor), np.float32)


def chosen_layers(config: ScoringConfig, n: int) -> list[int]:
    """Those that a configuration wants, of n that a backbone has, the finest first."""
    return sorted(layer for layer in config.layers if layer < n)


def score_maps(
    distances: np.ndarray,
    calibration: Calibration | None,
    config: ScoringConfig,
    image_size: int,
    nearest: np.ndarray | None = None,
) -> np.ndarray:
    """Distances [N,H,W,L] -> anomaly maps [N,H,W]: summed over the layers, smoothed. With a calibration, layers weigh
    alike and a pixel is divided by what is normal there: 1 is a normal image's mean. ``nearest`` [N,h,w]: those from the calibration's
    banks, with which the map is averaged."""
    chosen = chosen_layers(config, distances.shape[-1])
    normal = None if calibration is None else (calibration.mean + _FLOOR * calibration.mean.mean()) / (1.0 + _FLOOR)
    sigma = config.sigma * image_size / 256

    def make(i: int) -> np.ndarray:
        image = distances[i]
        map = np.zeros(image.shape[:-1], np.float32)
        for layer in chosen:  # a pass a layer takes half of what a mean over so few does
            map += image[..., layer] if calibration is None else image[..., layer] / calibration.layers[layer]
        map /= np.float32(len(chosen))
        if normal is not None:
            map /= normal
        if nearest is not None:
            map = (map + cv2.resize(nearest[i], map.shape[::-1], interpolation=cv2.INTER_LINEAR)) / 2
        return _smooth(map, sigma)

    return np.stack(_each(make, len(distances), distances.size))


def image_scores(maps: np.ndarray, config: ScoringConfig) -> np.ndarray:
    """Anomaly maps [N,H,W] -> scores [N]: the mean of a map's highest pixels, `ScoringConfig.top` of them, so that one
    speck that is hard to redraw weighs less than a defect (0: the maximum alone, the paper's score), less the map's median
    where the configuration says so."""

    def score(i: int) -> float:
        flat = maps[i].ravel()
        n, middle = max(1, round(config.top * flat.size)), flat.size // 2
        # Sorted, so that a sum's order, and with it a score's last bit, does not depend on partition's.
        mean = np.sort(np.partition(flat, flat.size - n)[flat.size - n :]).mean(dtype=np.float64)
        if not config.subtract_median:
            return mean
        parted = np.partition(flat, middle)  # np.median, which asks partition for two places, takes nine times as long
        upper = parted[middle]
        return mean - (upper if flat.size % 2 else (parted[:middle].max() + upper) / 2)

    return np.array(_each(score, len(maps), maps.size), np.float32)


def _each(f: Callable[[int], Any], n: int, size: int) -> list[Any]:
    """f of the numbers of n images, of ``size`` floats in all, by as many threads as the core has: NumPy and OpenCV need no lock."""
    threads = min(_core.get_threads(), n) if size >= _LEAST else 1
    if threads < 2:
        return [f(i) for i in range(n)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(f, range(n)))


def _smooth(array: np.ndarray, sigma: float) -> np.ndarray:
    if sigma <= 0:
        return array
    return cv2.GaussianBlur(array, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101).reshape(array.shape)
