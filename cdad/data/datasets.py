"""Finding the images of anomaly-detection data sets on disk.

Four layouts are known; everything is sorted by name, so that a data set reads the same on every machine.
A hidden file or one without an image suffix is passed over; an image that is no regular file is an error.

**mvtec** (MVTec AD and many others)::

    <class>/train/good/*                    normal images to train on
    <class>/test/good/*, test/<defect>/*    normal and anomalous test images
    <class>/ground_truth/<defect>/          NNN_mask.png, or NNN.png, for test/<defect>/NNN.*

**visa**: with ``split_csv/1cls.csv`` the published split (columns object, split, label, image, mask; paths
relative to the root); without it ``<class>/Data/Images/{Normal,Anomaly}`` and ``<class>/Data/Masks/Anomaly``,
where every tenth normal image is kept for the test: the published proportion, not the published split.

**table**: the root is a CSV file, ``*.csv``, with columns class, split (train or test), label, image and, if there are masks, mask;
others are passed over. A label is normal, 0 or good; anomalous or 1; or a defect's name. Paths are absolute, or relative to the file's folder.

**folder**: normal images only. The root holds the images of one class, named like the root, or each of its
sub-folders holds those of one class. There is no test. Sub-folders named as the parts of one product's data are (good beside
bad, train beside test) are no products: "auto" refuses them, and layout "folder" takes them as they stand.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import DataError
from .images import Size, check_mask, read_image, read_mask, resize_image, resize_mask
from .inputs import check_path
from .records import (
    GOOD,
    ClassData,
    Dataset,
    Sample,
    check_name,
    list_folders,
    list_images,
    plain_name,
    require_normal,
)
from .split_tables import VISA_SPLIT, read_table, read_visa_split

LAYOUTS = ("mvtec", "visa", "folder", "table")

_VISA_TEST_EVERY = 10

# Folders within one product's data, by `plain_name`; a good one (`GOOD`) is told from a product by what stands beside it.
_BAD = {"bad", "ng", "nok", "notok", "notgood", "notnormal", "fail", "failed", "faulty", "abnormal", "reject", "rejected", "rejects"}
_BAD |= {"defect", "defects", "defective", "anomaly", "anomalies", "anomalous", "outlier", "outliers"}
_SPLITS = {"train", "training", "test", "testing", "val", "validation", "groundtruth"}
_WANTED = "<class>/train/good/* and, for the test, <class>/test/good/*, <class>/test/<defect>/* and <class>/ground_truth/<defect>/*"


def open_dataset(root: str | os.PathLike, layout: str = "auto", *, require_masks: bool = True, require_train: bool = True) -> Dataset:
    """List every image of the data set at ``root``, a folder or a table; no image is opened.

    ``layout`` is "mvtec", "visa", "folder", "table" or "auto", which takes a file for a table, and looks in a folder in this order
    of preference: the VisA split or its Data/Images folders, train folders, images. With ``require_masks=False`` an anomalous
    image may lack its mask (its samples serve image scores only), and with ``require_train=False`` a class normal training images
    (it serves tests only).

    Raises DataError, naming the class and the folder, for a missing root, no classes, a class without normal
    training images or with a name that `check_name` refuses, a defect image without a mask, a path of VisA's split that leaves the
    root, a faulty split or table (its line), or ("auto") folders such as good and bad, which are parts of one product's data.
    """
    root, layout = _resolve_layout(root, layout)
    if layout == "table":
        return Dataset(read_table(root, require_masks, require_train))
    if _has_visa_split(root, layout):
        return Dataset(read_visa_split(root, require_masks, require_train))
    return Dataset(_load(root, layout, name, require_masks, require_train) for name in _class_names(root, layout))


def list_classes(root: str | os.PathLike, layout: str = "auto") -> tuple[str, ...]:
    """Names of the classes at ``root``, sorted. Raises DataError for a missing root or no classes."""
    root, layout = _resolve_layout(root, layout)
    if layout == "table" or _has_visa_split(root, layout):
        return tuple(open_dataset(root, layout, require_masks=False))
    return _class_names(root, layout)


def read_sample(sample: Sample, *, size: Size | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a test image, float32 [H,W,3] in [0, 1], and its mask, uint8 [H,W] of 0/1.

    The mask of a normal image is all 0. The two are compared as stored and only then resized to ``size``.
    Raises ImageError where they differ in size, DataError for an anomalous sample without a mask, and what
    `read_image` raises.
    """
    if sample.label and sample.mask_path is None:
        raise DataError(f"class {sample.class_name!r}: {sample.path} is anomalous and has no mask")
    image = read_image(sample.path)
    if sample.mask_path is None:
        mask = np.zeros(image.shape[:2], np.uint8)
    else:
        mask = read_mask(sample.mask_path)
        check_mask(image, mask, sample.mask_path)
    if size is None:
        return image, mask
    return resize_image(image, size), resize_mask(mask, size)


def _resolve_layout(root: str | os.PathLike, layout: str) -> tuple[Path, str]:
    if layout not in ("auto", *LAYOUTS):
        raise ValueError(f"layout is {layout!r}, expected 'auto' or one of {', '.join(LAYOUTS)}")
    check_path(root, "the data set")
    root = Path(root)
    if layout == "table" or layout == "auto" and root.is_file():
        if not root.is_file() or root.suffix.lower() != ".csv":
            raise DataError(f"data set {root} is no table: a file *.csv is wanted" + ", or a folder" * (layout == "auto"))
        return root, "table"
    if not root.is_dir():
        raise DataError(f"data set folder {root} {'is not a folder' if root.exists() else 'does not exist'}")
    return root, _detect_layout(root) if layout == "auto" else layout


def _detect_layout(root: Path) -> str:
    folders = list_folders(root)
    if (root / VISA_SPLIT).is_file() or any((f / "Data" / "Images").is_dir() for f in folders):
        return "visa"
    if _good_folders(root / "train"):
        raise DataError(f"{root} is the folder of one class; the data set's root is {root.absolute().parent}")
    if plain_name(root.absolute().name) in _SPLITS and _good_folders(root):
        raise DataError(f"{root} is a part of one class's data; the data set's root is {root.absolute().parent.parent}")
    if any((f / "train").is_dir() or _good_folders(f / "test") for f in folders):
        return "mvtec"
    parts = _parts_of_a_product(folders)
    if parts and not list_images(root):
        raise DataError(
            f"{root} holds the folders {', '.join(parts)}, which are parts of one product's data, not products; {_WANTED} are wanted "
            'below the root (layout="folder" takes each folder for a product\'s normal images)'
        )
    return "folder"


def _parts_of_a_product(folders: list[Path]) -> list[str]:
    """Which folders' names, should there be any, say that together they are one product: a good one beside others, one of defects,
    or one of a split."""
    plain = {f.name: plain_name(f.name) for f in folders}
    good = [name for name, text in plain.items() if text in GOOD]
    others = [name for name, text in plain.items() if text in _BAD or text in _SPLITS]
    if good and len(folders) > 1:
        return list(plain)[:8]
    return others


def _has_visa_split(root: Path, layout: str) -> bool:
    return layout == "visa" and (root / VISA_SPLIT).is_file()


def _class_names(root: Path, layout: str) -> tuple[str, ...]:
    if layout == "mvtec":
        names = [f.name for f in list_folders(root) if (f / "train").is_dir() or (f / "test").is_dir()]
    elif layout == "visa":
        names = [f.name for f in list_folders(root) if (f / "Data" / "Images").is_dir()]
    else:
        names = [f.name for f in list_folders(root)]
        if list_images(root):
            mixed = [name for name in names if list_images(root / name)]
            if mixed:
                raise DataError(f"{root} holds images of its own and a folder of images, {mixed[0]!r}")
            names = [Path(os.path.abspath(root)).name]  # of "." and ".." too
    if not names:
        raise DataError(f"no classes of layout {layout!r} in {root}")
    return tuple(check_name(name, f"a folder in {str(root)!r}") for name in names)


def _good_folders(folder: Path) -> list[Path]:
    """Of normal images, by their names."""
    return [f for f in list_folders(folder) if plain_name(f.name) in GOOD]


def _load(root: Path, layout: str, name: str, require_masks: bool, require_train: bool) -> ClassData:
    if layout == "mvtec":
        return _load_mvtec(root / name, name, require_masks, require_train)
    if layout == "visa":
        return _load_visa(root / name / "Data", name, require_masks, require_train)
    folder = root if list_images(root) else root / name
    images = list_images(folder)
    if not images and (inside := [f.name for f in list_folders(folder)]):
        raise DataError(
            f"class {name!r} has no normal training images in {folder}, which holds the folders {', '.join(inside[:8])}; "
            f"{_WANTED} are wanted"
        )
    return ClassData(name, require_normal(name, images, folder), ())


def _load_mvtec(folder: Path, name: str, require_masks: bool, require_train: bool) -> ClassData:
    train = tuple(path for good in _good_folders(folder / "train") for path in list_images(good))
    if require_train:
        require_normal(name, train, folder / "train" / "good")
    test: list[Sample] = []
    if stray := list_images(folder / "test"):
        raise DataError(f"class {name!r}: {stray[0]} lies in no folder of test/, which says by its name whether it is good")
    for tested in list_folders(folder / "test"):
        if plain_name(tested.name) in GOOD:
            test += [Sample(path, name, 0, "good", None) for path in list_images(tested)]
        else:
            masks = folder / "ground_truth" / tested.name
            test += _with_masks(name, tested.name, list_images(tested), masks, require_masks)
    return ClassData(name, train, tuple(test))


def _load_visa(folder: Path, name: str, require_masks: bool, require_train: bool) -> ClassData:
    normal = list_images(folder / "Images" / "Normal")
    if require_train:
        require_normal(name, normal, folder / "Images" / "Normal")
    held_out = slice(_VISA_TEST_EVERY - 1, None, _VISA_TEST_EVERY)
    train = list(normal)
    del train[held_out]
    test = [Sample(path, name, 0, "good", None) for path in normal[held_out]]
    anomalous = list_images(folder / "Images" / "Anomaly")
    test += _with_masks(name, "anomaly", anomalous, folder / "Masks" / "Anomaly", require_masks)
    return ClassData(name, tuple(train), tuple(test))


def _with_masks(
    name: str, defect: str, images: list[Path], mask_folder: Path, require_masks: bool
) -> list[Sample]:
    masks = {path.stem: path for path in list_images(mask_folder)}
    samples = []
    for path in images:
        mask = masks.get(f"{path.stem}_mask", masks.get(path.stem))
        if mask is None and require_masks:
            raise DataError(f"class {name!r}: {path} has no mask {path.stem}_mask.png in {mask_folder}")
        samples.append(Sample(path, name, 1, defect, mask))
    return samples
