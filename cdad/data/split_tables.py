"""Tables that say which image belongs where: a user's own, and VisA's published split.

The paths of VisA's are text from elsewhere, so each is resolved, symbolic links included, and must stay below the root.
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .records import GOOD, ClassData, Sample, check_name, is_image_name, plain_name, require_normal

VISA_SPLIT = Path("split_csv", "1cls.csv")
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class _Form:
    """``columns``: of class, split, label and image, by these names; ``masks``: whether the table has to have a mask's; ``below``:
    whether paths have to stay below the root. ``defect`` of a label is "good" for normal images, None for no label of the form;
    ``labels``: what they are, in words."""

    columns: tuple[str, str, str, str]
    masks: bool
    below: bool
    defect: Callable[[str], str | None]
    labels: str


def _defect(label: str) -> str | None:
    plain = plain_name(label)
    if label == "0" or plain in GOOD:
        return "good"
    if label == "1" or plain in ("anomalous", "anomaly"):
        return "anomaly"
    # What another program writes of numbers and truth is no defect's name, which would make the image a defective one.
    return None if plain in ("", "true", "false", "none", "nan") or not any(map(str.isalpha, plain)) else label


_VISA = _Form(("object", "split", "label", "image"), True, True, {"normal": "good", "anomaly": "anomaly"}.get, "normal or anomaly")
_OWN = _Form(("class", "split", "label", "image"), False, False, _defect, "normal (0, good), anomalous (1) or a defect's name")


def read_table(path: Path, require_masks: bool, require_train: bool) -> list[ClassData]:
    """The classes of a user's table, each sorted by path; paths are absolute, or relative to its folder. Raises DataError with the line."""
    return _read(path, path.parent, _OWN, require_masks, require_train)


def read_visa_split(root: Path, require_masks: bool, require_train: bool) -> list[ClassData]:
    """The classes of ``root / split_csv / 1cls.csv``, each sorted by path. Raises DataError with the line."""
    return _read(root / VISA_SPLIT, root, _VISA, require_masks, require_train)


def _read(table: Path, root: Path, form: _Form, require_masks: bool, require_train: bool) -> list[ClassData]:
    train: dict[str, list[Path]] = defaultdict(list)
    test: dict[str, list[Sample]] = defaultdict(list)
    seen: dict[Path, int] = {}
    bound = Path(os.path.realpath(root)) if form.below else None
    for line, row in _rows(table, form):
        where = f"{table}, line {line}"
        name, split, label, given = (row[column] for column in form.columns)
        defect = form.defect(label)
        if not name or split not in ("train", "test") or defect is None:
            raise DataError(
                f"{where}: {form.columns[0]} {name!r}, split {split!r}, label {label!r}; expected a class, train or test, {form.labels}"
            )
        check_name(name, where)
        image = _path(root, bound, given, where)
        file = Path(os.path.realpath(image))
        if file in seen:
            raise DataError(f"{where}: {given} stands on line {seen[file]} already")
        seen[file] = line
        if split == "train":
            if defect != "good":
                raise DataError(f"{where}: anomalous image {given} in the training split of {name!r}")
            train[name].append(image)
        elif defect == "good":
            test[name].append(Sample(image, name, 0, "good", None))
        else:
            mask = _path(root, bound, row["mask"], where) if row.get("mask") else None
            if mask is None and require_masks:
                raise DataError(f"{where}: anomalous image {given} of class {name!r} has no mask")
            test[name].append(Sample(image, name, 1, defect, mask))
    names = sorted(train.keys() | test.keys())
    if not names:
        raise DataError(f"no classes in {table}")
    return [
        ClassData(
            name,
            require_normal(name, sorted(train[name]), table) if require_train else tuple(sorted(train[name])),
            tuple(sorted(test[name], key=lambda sample: sample.path)),
        )
        for name in names
    ]


def _rows(path: Path, form: _Form) -> list[tuple[int, dict[str, str]]]:
    """(line number, row by column) of the table; a byte-order mark and CRLF are as good as none."""
    with open(path, "rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise DataError(f"{path} is larger than the limit of {_MAX_BYTES} bytes")
    columns = [*form.columns, "mask"] if form.masks else form.columns
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [column.strip() for column in next(reader, [])]
        missing = [column for column in columns if column not in header]
        if missing:
            raise DataError(f"{path}, line 1: no column {missing[0]!r}, expected {', '.join(columns)}")
        if len(set(header)) < len(header):
            raise DataError(f"{path}, line 1: two columns have one name")
        rows = []
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                where = f"{path}, line {reader.line_num}"
                raise DataError(f"{where}: {len(values)} values, expected {len(header)}")
            row = {column: value.strip() for column, value in zip(header, values, strict=True)}
            rows.append((reader.line_num, row))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a UTF-8 table: {error}") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a UTF-8 table: {error}") from error
    return rows


def _path(root: Path, bound: Path | None, text: str, where: str) -> Path:
    if "\0" in text or not is_image_name(Path(text).name):
        raise DataError(f"{where}: {text!r} is not the path of an image")
    path = root / text
    if bound is not None and not Path(os.path.realpath(path)).is_relative_to(bound):
        raise DataError(f"{where}: {text!r} leads out of {root}")
    if not path.is_file():
        raise DataError(f"{where}: {text!r} does not exist in {root}, or is not a regular file")
    return path
