"""What a user hands over, images and tasks in any of their forms, made one form or refused by name.

A path is a str or an os.PathLike of one. Bytes are none, and neither are integers, which the system takes for open files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .records import ClassData, check_name


def check_path(path: Any, what: str = "path") -> None:
    """Raise TypeError, saying ``what`` it is, unless ``path`` is a str or an os.PathLike of one; ValueError where it is empty."""
    if not isinstance(path, str) and not (isinstance(path, os.PathLike) and isinstance(os.fspath(path), str)):
        raise TypeError(f"{what} is {_described(path)}; a path (str or os.PathLike) is wanted")
    if path == "":  # which Path takes for the folder that one is in
        raise ValueError(f"{what} is an empty path")


def as_paths(paths: Any, what: str = "images", *, one: bool = False) -> list[Path]:
    """Paths in their order, those of a set sorted. ``one``: a single path is as good as a list of it.

    TypeError, naming ``what``: no list of paths; ValueError: an empty path.
    """
    if one and isinstance(paths, str | os.PathLike):
        paths = [paths]
    found = _listed(paths, what)
    for i, item in enumerate(found):
        if not isinstance(item, Path):
            check_path(item, f"{what}[{i}]")
            found[i] = Path(item)
    return sorted(found) if isinstance(paths, set | frozenset) else found


def as_images(images: Any, size: int) -> list[Path] | list[Any]:
    """What is no array itself as a list of paths or of arrays, which have ``__dlpack__``; none of them is opened or read.

    TypeError: neither, or some of each; ValueError: an array that is not [size,size,3].
    """
    if isinstance(images, np.ndarray):  # of strings or objects
        images = images.tolist()
    if isinstance(images, str | os.PathLike | set | frozenset):
        return as_paths(images, one=True)
    items = _listed(images, "images")
    is_array = [hasattr(item, "__dlpack__") for item in items]
    if not any(is_array):
        return as_paths(items)
    for i, item in enumerate(items):
        if not is_array[i]:
            raise TypeError(f"images[{is_array.index(True)}] is an array and images[{i}] {_described(item)}; one kind is wanted")
        if tuple(item.shape) != (size, size, 3):
            raise ValueError(f"images[{i}] has the shape {list(item.shape)}; [{size},{size},3] is wanted")
    return items


def as_items(task: Any) -> list[ClassData] | list[Path]:
    """The classes of a task, or the paths of its only one, which has no name then. Their names are not looked at.

    TypeError: paths where lists of them are wanted, classes and paths mixed, or something else.
    """
    if isinstance(task, ClassData):
        task = [task]
    if isinstance(task, Mapping):
        return [_as_class(name, given) for name, given in task.items()]
    items = _listed(task, "task")
    if not any(isinstance(item, ClassData) for item in items):
        return as_paths(task if isinstance(task, set | frozenset) else items, "task")
    if not all(isinstance(item, ClassData) for item in items):
        raise TypeError("classes and paths are mixed, expected one kind")
    if isinstance(task, set | frozenset):
        items.sort(key=lambda data: data.name)
    return [_as_class(data.name, data) for data in items]


def as_classes(task: Any, index: int | None) -> list[ClassData]:
    """The classes of a task in any of the forms that `ContinualModel.fit_task` takes; of paths alone, the class has the name of
    task ``index``, counted from 0.

    DataError: no class, one without images, one that comes twice, or a name that no checkpoint can keep (`check_name`);
    TypeError: as in `as_items`, or paths alone where ``index`` is None.
    """
    items: list[Any] = as_items(task)
    if items and not isinstance(items[0], ClassData):
        if index is None:
            raise TypeError("paths alone do not say of which class they are; {name: paths} or ClassData is wanted")
        items = [ClassData(f"task{index + 1}", tuple(items), ())]
    if not items:
        raise DataError("a task has at least one class")
    names = set()
    for i, item in enumerate(items):
        name = check_name(item.name)
        if name in names:
            raise DataError(f"class {name!r} comes twice in the task")
        names.add(name)
        if type(item.name) is not str:  # a subclass may print itself as another
            items[i] = replace(item, name=name)
        if not item.train:
            raise DataError(f"class {name!r} has no normal training images")
    return items


def _as_class(name: Any, given: Any) -> ClassData:
    """``given``, paths or a class, as the class called ``name``."""
    data = given if isinstance(given, ClassData) else ClassData(name, given, ())
    if data.name != name:
        data = replace(data, name=name)
    if isinstance(data.train, tuple) and all(isinstance(path, Path) for path in data.train):
        return data
    return replace(data, train=tuple(as_paths(data.train, f"class {name!r}")))


def _listed(items: Any, what: str) -> list:
    """The items of what is iterable, and neither a path nor a mapping, in which one looks for paths in vain."""
    if isinstance(items, str | os.PathLike):
        path = os.fspath(items)
        raise TypeError(f"{what}: a list of image paths is wanted, not the one path {path!r}; open_dataset() lists a folder's")
    if not isinstance(items, Iterable) or isinstance(items, bytes | bytearray | memoryview | Mapping):
        raise TypeError(f"{what}: a list of image paths is wanted, not {_described(items)}")
    return list(items)


def _described(x: Any) -> str:
    if isinstance(x, bytes | int | float):
        text = repr(x)
        return f"{type(x).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
    return "None" if x is None else f"of the type {type(x).__name__}"
