"""Training batches: clean and perturbed images, made ahead of the core on background threads.

What a batch holds depends on (images, seed, epoch, step) alone: not on the number of workers, on prefetching,
on the cache, or on where the epoch was entered.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .ahead import ahead
from .images import Size, parse_size, read_image, unit_float
from .inputs import as_items
from .light import relight
from .perturb import perturb, perturbation_rng
from .records import ClassData, ImageLike, MemoryImage

# Of an image under ``light``: itself, and so many others. What is computed of each of them once a task stays affordable.
_LIGHTS = 4
# By default: batches made ahead, and bytes of decoded images that stay in memory.
PREFETCH, CACHE_BYTES = 4, 1 << 30


def versions(light: float) -> int:
    """Of each image: how many of them latents are kept of."""
    return _LIGHTS if light > 0 else 1


@dataclass(frozen=True)
class Batch:
    """``image`` x and ``perturbed`` x~: float32 [N,H,W,3] in [0, 1]; ``index``: int64 [N], which of the loader's `clean`
    images x is; ``step``: the batch's place in the epoch."""

    image: np.ndarray
    perturbed: np.ndarray
    index: np.ndarray
    step: int


class TrainingBatches:
    """Batches of the normal training images of one task.

    ``task``: `ClassData` of the task's classes, {class: images}, or images that make up one class: paths, arrays, PIL images.
    ``image_size``: int or (height, width). ``perturb_share``: probability that a sample is perturbed, by
    patches of an image of its own class; the others have x~ = x. ``light``: brightness and contrast of x vary by up to this
    share (`relight`): each image has four versions, itself the first, of which every sample draws one.
    ``prefetch`` batches are made ahead, on ``workers`` threads (decoding and blending release the GIL).

    Each image is decoded once, resized and rounded to 8 bits; up to ``cache_bytes`` of them stay in memory.
    None is ever replaced: with every image used once an epoch, a fixed subset has the highest hit rate.
    """

    def __init__(
        self,
        task: ClassData | Iterable[ClassData | ImageLike | MemoryImage],
        *,
        image_size: Size,
        batch_size: int,
        seed: int,
        perturb_share: float = 0.5,
        prefetch: int = PREFETCH,
        workers: int = 1,
        light: float = 0.0,
        cache_bytes: int = CACHE_BYTES,
    ):
        for name, value in (("batch_size", batch_size), ("prefetch", prefetch), ("workers", workers)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if not 0 <= perturb_share <= 1:
            raise ValueError(f"perturb_share is {perturb_share}, expected 0..1")
        if not 0 <= light < 1:
            raise ValueError(f"light is {light}, expected 0 <= light < 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected at least 0")
        self.sources, self._group_of = _group(task)
        self.image_size = parse_size(image_size)
        self.batch_size = batch_size
        self.seed = seed
        self.perturb_share = perturb_share
        self._prefetch = prefetch
        self._workers = workers
        self.light = light
        self._versions = versions(light)
        self._part = range(batch_size)
        self._cache: dict[int, np.ndarray] = {}
        self._cache_room = cache_bytes
        self._cache_lock = threading.Lock()

    def __len__(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.sources) // self.batch_size)

    @property
    def n_images(self) -> int:
        """Of how many images a batch's ``index`` tells: the versions of the first source, of the second, and so on."""
        return len(self.sources) * self._versions

    def clean(self, start: int, stop: int) -> np.ndarray:
        """The images ``start`` to ``stop`` - 1, not perturbed: float32 [n,H,W,3] in [0, 1]."""
        return np.stack([self._version(i) for i in range(start, min(stop, self.n_images))])

    def resized(self, batch_size: int) -> TrainingBatches:
        """The same images in batches of another size."""
        other = copy.copy(self)
        other.batch_size, other._part = batch_size, range(batch_size)
        return other

    def part(self, samples: range) -> TrainingBatches:
        """Of the same batches these samples alone."""
        other = copy.copy(self)
        other._part = self._part[samples.start : samples.stop]
        return other

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of ``epoch`` in order.

        All images come in an order drawn from (seed, epoch). Where the last batch is short it is filled from
        the order's beginning, so every batch has ``batch_size`` samples. What a worker raises is raised here,
        at its batch. Leaving early ends the workers after the batches they are at.
        """
        return self._run((epoch, step) for step in range(len(self)))

    def steps(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of the steps ``first`` to ``last`` - 1, counted through all epochs: those of `epoch` 0, 1
        and so on, but the next epoch's are made ahead too, so that short epochs do not wait for their first batch."""
        if first < 0:
            raise ValueError(f"first is {first}, expected at least 0")
        return self._run(divmod(step, len(self)) for step in range(first, last))

    def _run(self, places: Iterator[tuple[int, int]]) -> Iterator[Batch]:
        """``places``: epoch and step of each batch."""
        return ahead(lambda place: self._make(*place), places, prefetch=self._prefetch, workers=self._workers)

    def _order(self, epoch: int) -> np.ndarray:
        # A spawn key of another length than perturbation_rng's: independent random numbers.
        sequence = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
        return np.random.Generator(np.random.Philox(sequence)).permutation(len(self.sources))

    def _make(self, epoch: int, step: int) -> Batch:
        order = self._order(epoch)
        places = (step * self.batch_size + np.asarray(self._part, np.int64)) % len(order)
        index = np.empty(len(places), np.int64)
        image = np.empty((len(places), *self.image_size, 3), np.float32)
        perturbed = np.empty_like(image)
        for i, j in enumerate(order[places]):
            index[i], image[i], perturbed[i] = self._sample(epoch, int(j))
        return Batch(image, perturbed, index, step)

    def _version(self, place: int) -> np.ndarray:
        index, version = divmod(place, self._versions)
        image = unit_float(self._pixels(index))
        if version == 0:
            return image
        # A spawn key of another length than perturbation_rng's and _order's: the same light in every epoch.
        sequence = np.random.SeedSequence(self.seed, spawn_key=(index, version, 0))
        return relight(image, np.random.Generator(np.random.Philox(sequence)), self.light)

    def _sample(self, epoch: int, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The place of x among the clean images, x and x~."""
        rng = perturbation_rng(self.seed, epoch, index)
        place = index * self._versions + (int(rng.integers(self._versions)) if self._versions > 1 else 0)
        image = self._version(place)
        if rng.random() >= self.perturb_share:
            return place, image, image
        group = self._group_of[index]
        # Another image of the class: the k-th after this one, around the end. A class of one has only itself.
        offset = int(rng.integers(1, max(len(group), 2)))
        source = group.start + (index - group.start + offset) % len(group)
        return place, image, perturb(image, unit_float(self._pixels(source)), rng)[0]

    def _pixels(self, index: int) -> np.ndarray:
        """The image as uint8 [H,W,3], from the cache or its source."""
        pixels = self._cache.get(index)
        if pixels is None:
            pixels = read_pixels(self.sources[index], self.image_size)
            with self._cache_lock:
                if index not in self._cache and pixels.nbytes <= self._cache_room:
                    self._cache[index] = pixels
                    self._cache_room -= pixels.nbytes
        return pixels


class MixedBatches:
    """Batches of ``new`` images, each followed by a batch of ``old`` ones; ``index`` counts the old after the new."""

    def __init__(self, new: TrainingBatches, old: TrainingBatches):
        self.new, self.old = new, old
        self.sources = new.sources

    @property
    def n_images(self) -> int:
        return self.new.n_images + self.old.n_images

    def part(self, samples: range) -> MixedBatches:
        """Of the same batches these samples alone."""
        n = len(self.new._part)
        return MixedBatches(
            self.new.part(range(min(samples.start, n), min(samples.stop, n))),
            self.old.part(range(max(samples.start - n, 0), max(samples.stop - n, 0))),
        )

    def clean(self, start: int, stop: int) -> np.ndarray:
        n = self.new.n_images
        if stop <= n:
            return self.new.clean(start, stop)
        old = self.old.clean(max(start - n, 0), stop - n)
        return old if start >= n else np.concatenate([self.new.clean(start, n), old])

    def steps(self, first: int, last: int) -> Iterator[Batch]:
        with closing(self.new.steps(first, last)) as new, closing(self.old.steps(first, last)) as old:
            for a, b in zip(new, old, strict=True):
                yield Batch(
                    np.concatenate([a.image, b.image]),
                    np.concatenate([a.perturbed, b.perturbed]),
                    np.concatenate([a.index, b.index + self.new.n_images]),
                    a.step,
                )


def read_pixels(source: str | os.PathLike | MemoryImage, size: Size) -> np.ndarray:
    """An image as training keeps it: resized, 8 bits, uint8 [H,W,3]; not to be written, as it may be an array that was handed over."""
    if isinstance(source, MemoryImage) and isinstance(source.content, np.ndarray):
        array = source.content
        if array.dtype == np.uint8 and array.shape == (*parse_size(size), 3):  # what comes of it below, too
            return array
    return np.rint(read_image(source, size=parse_size(size)) * np.float32(255)).astype(np.uint8)


def _group(
    task: ClassData | Iterable[ClassData | ImageLike | MemoryImage],
) -> tuple[tuple[Path | MemoryImage, ...], list[range]]:
    """All sources of images, and for each the range of those of its class."""
    items = as_items(task)
    classes = [item.train for item in items if isinstance(item, ClassData)] or [tuple(items)]
    sources: list[Path | MemoryImage] = []
    group_of: list[range] = []
    for train in classes:
        group_of += [range(len(sources), len(sources) + len(train))] * len(train)
        sources += train
    if not sources:
        raise DataError("no training images")
    return tuple(sources), group_of
