"""What a data set is made of: samples, classes and the rules that every layout shares."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Sample:
    """One test image: ``label`` 0 is normal, 1 anomalous; ``defect`` is "good" for normal images."""

    path: Path
    class_name: str
    label: int
    defect: str
    mask_path: Path | None


@dataclass(frozen=True)
class ClassData:
    """One class (product): normal images to train on, and samples to test on (none in layout "folder")."""

    name: str
    train: tuple[Path, ...]
    test: tuple[Sample, ...]


class Dataset(Mapping[str, ClassData]):
    """The classes of a data set by name, in alphabetical order. ``a | b`` joins two data sets."""

    def __init__(self, classes: Iterable[ClassData]):
        self._classes: dict[str, ClassData] = {}
        for data in sorted(classes, key=lambda data: data.name):
            if data.name in self._classes:
                raise DataError(f"two classes are named {data.name!r}")
            self._classes[data.name] = data

    def __getitem__(self, name: str) -> ClassData:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __or__(self, other: Dataset) -> Dataset:
        return Dataset([*self.values(), *other.values()])

    def __repr__(self) -> str:
        counts = (f"{c.name}: {len(c.train)} train, {len(c.test)} test" for c in self.values())
        return f"Dataset({'; '.join(counts)})"


def check_classes(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise DataError, with the nearest match, for the first of ``names`` that is not ``known``."""
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise DataError(f"no class {name!r} in the data; {hint}")


def is_image_name(name: str) -> bool:
    """Whether a file's name has an image suffix and is not hidden."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def require_normal(name: str, train: Iterable[Path], folder: Path) -> tuple[Path, ...]:
    """``train`` as a tuple; DataError, naming class and folder, where it is empty."""
    train = tuple(train)
    if not train:
        raise DataError(f"class {name!r} has no normal training images in {folder}")
    return train


def list_folders(folder: Path) -> list[Path]:
    """Sub-folders that are not hidden, sorted; none where ``folder`` does not exist."""
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if not f.name.startswith(".") and f.is_dir())


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder, sorted; none where it does not exist."""
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if is_image_name(path.name))
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is named like an image and is not a regular file")
    return paths


def spread(items: Sequence, n: int) -> list:
    """At most ``n`` of the items, evenly spread over their order."""
    return [items[i * len(items) // n] for i in range(n)] if len(items) > n else list(items)
