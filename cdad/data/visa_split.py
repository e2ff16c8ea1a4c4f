"""The published VisA split file: a table that says which image belongs where.

Its paths are text from elsewhere, so each is resolved, symbolic links included, and must stay below the root.
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from pathlib import Path

from ..errors import DataError
from .records import ClassData, Sample, check_name, is_image_name, require_normal

VISA_SPLIT = Path("split_csv", "1cls.csv")
_COLUMNS = ("object", "split", "label", "image", "mask")
_MAX_BYTES = 64 << 20


def read_visa_split(root: Path, require_masks: bool) -> list[ClassData]:
    """The classes of ``root / split_csv / 1cls.csv``, each sorted by path. Raises DataError with the line."""
    train: dict[str, list[Path]] = defaultdict(list)
    test: dict[str, list[Sample]] = defaultdict(list)
    seen: dict[Path, int] = {}
    real_root = Path(os.path.realpath(root))
    for line, row in _rows(root / VISA_SPLIT):
        where = f"{root / VISA_SPLIT}, line {line}"
        name, split, label = row["object"], row["split"], row["label"]
        if not name or split not in ("train", "test") or label not in ("normal", "anomaly"):
            raise DataError(
                f"{where}: object {name!r}, split {split!r}, label {label!r}; expected a class, "
                "train or test, normal or anomaly"
            )
        check_name(name, where)
        image = _path_below(root, real_root, row["image"], where)
        if image in seen:
            raise DataError(f"{where}: {row['image']} stands on line {seen[image]} already")
        seen[image] = line
        if split == "train":
            if label != "normal":
                raise DataError(f"{where}: anomalous image {row['image']} in the training split of {name!r}")
            train[name].append(image)
        elif label == "normal":
            test[name].append(Sample(image, name, 0, "good", None))
        else:
            mask = _path_below(root, real_root, row["mask"], where) if row["mask"] else None
            if mask is None and require_masks:
                raise DataError(f"{where}: anomalous image {row['image']} of class {name!r} has no mask")
            test[name].append(Sample(image, name, 1, "anomaly", mask))
    names = sorted(train.keys() | test.keys())
    if not names:
        raise DataError(f"no classes in {root / VISA_SPLIT}")
    return [
        ClassData(
            name,
            require_normal(name, sorted(train[name]), root / VISA_SPLIT),
            tuple(sorted(test[name], key=lambda sample: sample.path)),
        )
        for name in names
    ]


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row by column) of the table; a byte-order mark and CRLF are as good as none."""
    with open(path, "rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise DataError(f"{path} is larger than the limit of {_MAX_BYTES} bytes")
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [column.strip() for column in next(reader, [])]
        missing = [column for column in _COLUMNS if column not in header]
        if missing:
            raise DataError(f"{path} has no column {missing[0]!r}, expected {', '.join(_COLUMNS)}")
        rows = []
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                where = f"{path}, line {reader.line_num}"
                raise DataError(f"{where}: {len(values)} values, expected {len(header)}")
            row = {column: value.strip() for column, value in zip(header, values, strict=True)}
            rows.append((reader.line_num, row))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a UTF-8 table: {error}") from error
    return rows


def _path_below(root: Path, real_root: Path, text: str, where: str) -> Path:
    if "\0" in text or not is_image_name(Path(text).name):
        raise DataError(f"{where}: {text!r} is not the path of an image")
    path = root / text
    if not Path(os.path.realpath(path)).is_relative_to(real_root):
        raise DataError(f"{where}: {text!r} leads out of {root}")
    if not path.is_file():
        raise DataError(f"{where}: {text!r} does not exist in {root}, or is not a regular file")
    return path
