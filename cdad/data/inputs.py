"""What a user hands over, images and tasks in any of their forms, made one form or refused by name.

A path is a str or an os.PathLike of one. Bytes are none, and neither are integers, which the system takes for open files. An array
is what has ``__dlpack__``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import _core
from ..errors import DataError
from .records import ClassData, ImageLike, MemoryImage, check_name

def check_path(path: Any, what: str = "path", wanted: str = "a path (str or os.PathLike)") -> None:
    """Raise TypeError, saying ``what`` it is, unless ``path`` is a str or an os.PathLike of one; ValueError where it is empty."""
    if not isinstance(path, str) and not (isinstance(path, os.PathLike) and isinstance(os.fspath(path), str)):
        raise TypeError(f"{what} is {_described(path)}; {wanted} is wanted")
    if path == "":  # which Path takes for the folder that one is in
        raise ValueError(f"{what} is an empty path")


def as_images(
    images: ImageLike | Iterable[ImageLike],
    what: str = "images",
    owner: str = "",
    *,
    one: bool = True,
    device_size: int | None = None,
) -> list[Path | MemoryImage] | Iterator[Path | MemoryImage]:
    """Images of any kind, paths, arrays and PIL images, each as its path or a `MemoryImage` that is called ``owner`` and its
    number; none is opened, and no pixel looked at. The paths of a set are sorted; of an iterator one is given, as what it makes
    may be too much to be held at once. ``one``: an image alone is as good as a list of it. ``device_size``: arrays on a device,
    [device_size,device_size,3] each, are taken too.

    TypeError: something else, or an array of another type; ValueError: an array of another shape.
    """
    if isinstance(images, np.ndarray) and images.dtype.kind in "OSU":  # of paths or objects
        images = images.tolist()
    if one and isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    elif hasattr(images, "__dlpack__"):
        images = _unstacked(images, what, one)
    lazy = isinstance(images, Iterator)
    items = images if lazy else _listed(images, what)
    found = (_as_image(item, f"{owner}image {i}", device_size) for i, item in enumerate(items))
    if lazy:
        return found
    return sorted(found) if isinstance(images, set | frozenset) else list(found)


def as_items(task: Any) -> list[ClassData] | list[Path | MemoryImage]:
    """The classes of a task, or the images of its only one, which has no name then. Their names are not looked at.

    TypeError: one path where a list is wanted, classes and images mixed, or something else; ValueError: as in `as_images`.
    """
    if isinstance(task, ClassData):
        task = [task]
    if isinstance(task, Mapping):
        return [_as_class(name, given) for name, given in task.items()]
    if isinstance(task, Iterator):
        task = list(task)
    if hasattr(task, "__dlpack__") or not any(isinstance(item, ClassData) for item in _listed(task, "task")):
        return list(as_images(task, "task", one=False))
    items = list(task)
    if not all(isinstance(item, ClassData) for item in items):
        raise TypeError("classes and images are mixed, expected one kind")
    if isinstance(task, set | frozenset):
        items.sort(key=lambda data: data.name)
    return [_as_class(data.name, data) for data in items]


def as_classes(task: Any, index: int | None) -> list[ClassData]:
    """The classes of a task in any of the forms that `ContinualModel.fit_task` takes; of images alone, the class has the name
    of task ``index``, counted from 0.

    DataError: no class, one without images, one that comes twice, or a name that no checkpoint can keep (`check_name`);
    TypeError, ValueError: as in `as_items`; TypeError: images alone where ``index`` is None.
    """
    items: list[Any] = as_items(task)
    if items and not isinstance(items[0], ClassData):
        if index is None:
            raise TypeError("images alone do not say of which class they are; {name: images} or ClassData is wanted")
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
    """``given``, images or a class, as the class called ``name``."""
    data = given if isinstance(given, ClassData) else ClassData(name, given, ())
    if data.name != name:
        data = replace(data, name=name)
    if isinstance(data.train, tuple) and all(isinstance(source, Path | MemoryImage) for source in data.train):
        return data
    return replace(data, train=tuple(as_images(data.train, f"class {name!r}", f"class {name!r}, ", one=False)))


def _unstacked(array: Any, what: str, one: bool) -> list:
    """The images of an array of the host that is a stack of them or, with ``one``, an image."""
    there = _core.as_device_array(array)
    if there is not None:
        raise TypeError(f"{what}: an array on {there.device}; images are read from the host here")
    shape = list(array.shape)
    if len(shape) == 4:
        return [array[i] for i in range(shape[0])]
    if one and (len(shape) == 2 or len(shape) == 3 and shape[2] in (1, 3)):
        return [array]
    given, single, grey = f"an array of the shape {shape}" if shape else "one number", " or [H,W,3]" * one, "[H,W], " * one
    raise ValueError(f"{what}: {given}; [N,H,W,3]{single} is wanted, of grey images {grey}[N,H,W,1] or a list of [H,W]")


def _as_image(item: Any, name: str, device_size: int | None) -> Path | MemoryImage:
    if isinstance(item, Path | MemoryImage):
        return item
    if isinstance(item, Image.Image):
        return MemoryImage(item, name)
    if not hasattr(item, "__dlpack__"):
        check_path(item, name, "a path (str or os.PathLike), an array or a PIL image")
        return Path(item)
    there = _core.as_device_array(item)
    if there is not None:
        if device_size is None:
            raise TypeError(f"{name} lies on {there.device}; images are read from the host here")
        if there.shape != (device_size, device_size, 3):
            raise ValueError(
                f"{name} lies on {there.device} and has the shape {list(there.shape)}; [{device_size},{device_size},3] is wanted, as "
                "images of other sizes are resized on the host"
            )
        return MemoryImage(there, name)
    array = np.asarray(item)
    if not (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (1, 3)) or array.size == 0:
        raise ValueError(f"{name} has the shape {list(array.shape)}; [H,W,3] is wanted, or [H,W] of grey")
    if (array.dtype.kind, array.dtype.itemsize) not in (("u", 1), ("u", 2)) and (array.dtype.kind != "f" or array.dtype.itemsize < 4):
        raise TypeError(f"{name} is of {array.dtype}; uint8, uint16, or float32 in [0,1], is wanted")
    return MemoryImage(array, name)


def _listed(items: Any, what: str) -> list:
    """The items of what is iterable, and neither a path nor a mapping, in which one looks for paths in vain."""
    if isinstance(items, str | os.PathLike):
        path = os.fspath(items)
        raise TypeError(f"{what}: a list of image paths is wanted, not the one path {path!r}; open_dataset() lists a folder's")
    if not isinstance(items, Iterable) or isinstance(items, bytes | bytearray | memoryview | Mapping):
        raise TypeError(f"{what}: a list of images is wanted, not {_described(items)}")
    return list(items)


def _described(x: Any) -> str:
    if isinstance(x, bytes | int | float):
        text = repr(x)
        return f"{type(x).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
    return "None" if x is None else f"of the type {type(x).__name__}"
