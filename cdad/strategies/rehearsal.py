"""Strategies that keep old images: all of them, or a few."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.images import Size
from ..data.loader import MixedBatches, TrainingBatches, read_pixels
from ..data.records import ClassData, MemoryImage, spread
from ..errors import DataError
from .base import Strategy


class Joint(Strategy):
    """Each task trains on all images so far: the upper bound. Old classes are calibrated again, too. The images are
    read from where they were; a checkpoint keeps their paths. DataError: an image that lies in memory."""

    _PATHS = "strategy/joint/paths"

    def __init__(self, config):
        super().__init__(config)
        self.old: dict[str, list[str]] = {}

    @property
    def ready(self) -> bool:
        return bool(self.old)

    def training_classes(self, classes):
        old = [ClassData(name, tuple(map(Path, paths)), ()) for name, paths in self.old.items()]
        for data in classes:
            self._paths(data)  # refused before anything is learned
        return [*old, *classes]

    def after_task(self, model, classes, progress):
        self.old = self.old | {data.name: self._paths(data) for data in classes}
        return {}

    @staticmethod
    def _paths(data: ClassData) -> list[str]:
        for source in data.train:
            if isinstance(source, MemoryImage):
                raise DataError(f"{source.name} lies in memory: the strategy 'joint' keeps paths, by which later tasks read it again")
        return [os.path.abspath(path) for path in data.train]  # a later process may stand in another folder

    def tensors(self):  # a file's header has no room for many paths
        text = json.dumps(list(self.old.items())).encode()
        return {self._PATHS: np.frombuffer(text, np.uint8)} if self.old else {}

    def agreed(self):
        return {}  # each process may have its images elsewhere

    def restore(self, tensors, state) -> None:
        if self._PATHS in tensors:
            self.old = dict(json.loads(tensors[self._PATHS].tobytes()))
        else:
            self.old = dict(state.get("classes", []))  # as files of version 0.1 hold them


class Replay(Strategy):
    """Of each class ``replay_images`` training images are kept, evenly spread, as 8-bit pixels of the model's size;
    ``replay_share`` of every later batch comes from them."""

    _PREFIX = "strategy/replay/"

    def __init__(self, config):
        super().__init__(config)
        self.stored: dict[str, np.ndarray] = {}  # uint8 [k,H,W,3]

    @property
    def ready(self) -> bool:
        return bool(self.stored)

    def batches(self, new: TrainingBatches) -> TrainingBatches | MixedBatches:
        if not self.stored:
            return new
        n = min(max(1, round(self.config.replay_share * new.batch_size)), new.batch_size - 1)
        old = TrainingBatches(
            {name: list(kept) for name, kept in self.stored.items()},
            image_size=new.image_size,
            batch_size=n,
            seed=new.seed + 1,  # other perturbations than those of the new images
            perturb_share=new.perturb_share,
            light=new.light,
        )
        return MixedBatches(new.resized(new.batch_size - n), old)

    def after_task(self, model, classes, progress):
        size = model.config.image_size
        new = {data.name: stored_pixels(data.train, self.config.replay_images, size) for data in classes}
        self.stored = self.stored | new
        return {"stored_images": sum(map(len, self.stored.values()))}

    def tensors(self):
        return {self._PREFIX + name: kept for name, kept in self.stored.items()}

    def state(self):
        return {"classes": list(self.stored)}

    def restore(self, tensors, state) -> None:
        self.stored = {name: tensors[self._PREFIX + name] for name in state["classes"]}


def stored_pixels(sources: Sequence[Path | MemoryImage], n: int, size: Size) -> np.ndarray:
    """At most ``n`` of the images, evenly spread, as training sees them: uint8 [k,H,W,3]."""
    return np.stack([read_pixels(source, size) for source in spread(sources, n)])
