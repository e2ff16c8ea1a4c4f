"""What the readers of weight files share: the tensors of a file that is open, read one at a time."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..bfloat16 import from_bfloat16
from ..errors import FormatError

# Types by their names in safetensors. NumPy has no bfloat16: its bits are the upper half of a float32's.
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
MAX_DIMENSIONS = 32
MAX_NAME = 4096  # characters of a tensor's name


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's type (a key of `DTYPES`) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the values in the file."""
        return self.count * np.dtype(DTYPES[self.dtype]).itemsize


class TensorFile:
    """A weight file that is open: ``tensors`` says what it holds, and `read` gives one tensor's values.

    ``kind`` names the format, ``metadata`` is text that goes with the tensors. Nothing but what describes the tensors
    has been read. A context manager; a reader of each format is a subclass.
    """

    kind = ""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.file = file
        status = os.fstat(file.fileno())
        self.size, self._changed_at = status.st_size, status.st_mtime_ns
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, maybe read-only; bfloat16 as float32, other types as they are."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """FormatError where the file was written since it was opened: values would not go with what describes them."""
        status = os.fstat(self.file.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.size, self._changed_at):
            raise FormatError("was changed while it was read", self.path)

    @property
    def paths(self) -> list[Path]:
        """The files that hold the tensors."""
        return [self.path]

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read, unbuffered; FileNotFoundError, or FormatError for what is no file."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no weight file {path}") from None
    if regular:
        # What the path names may have changed since: a pipe must not keep the reader waiting.
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    raise FormatError("a folder, not a regular file" if path.is_dir() else "not a regular file", path)


def read_exactly(file: BinaryIO, offset: int, target: memoryview, path: Path) -> None:
    """Fill ``target`` (bytes) from ``offset`` of the file; FormatError where the file ends before, e.g. as it was cut
    meanwhile. A mapped file that is cut ends the process instead, so weights are read, not mapped."""
    file.seek(offset)
    done = 0
    while done < len(target):
        got = file.readinto(target[done:])
        if not got:
            raise FormatError(f"{len(target)} bytes expected, {done} left", path, offset)
        done += got


def values(raw: np.ndarray, dtype: str, what: str, path: Path) -> np.ndarray:
    """Raw values as `TensorFile.read` gives them: bfloat16 widened, booleans checked."""
    if dtype == "BF16":
        return from_bfloat16(raw)
    if dtype == "BOOL" and raw.view("u1").max(initial=0) > 1:
        raise FormatError(f"{what} of booleans has bytes other than 0 and 1", path)
    return raw


def check_shape(shape: tuple[int, ...], what: str, path: Path | None = None) -> None:
    """FormatError for a shape that NumPy could not hold; it checks the product for empty arrays also."""
    if len(shape) > MAX_DIMENSIONS:
        raise FormatError(f"{what} has {len(shape)} dimensions, at most {MAX_DIMENSIONS} are read", path)
    if math.prod(max(size, 1) for size in shape) >= 1 << 56:
        raise FormatError(f"{what} of the shape {list(shape)} is too large", path)
