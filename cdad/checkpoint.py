"""One atomic checkpoint file: tensors and a JSON state in safetensors, with a checksum of each tensor and a digest of the rest.

The file is written beside its target, flushed to the disk and renamed: a crash at any moment leaves either the old
checkpoint or the new one. Bits of float16, float32, float64, int64, uint16 and uint8 arrays come back exactly. Neither
writing nor reading holds more than one tensor beside the arrays that are there anyway.

Checksums tell damage, not intent, so tensors have a CRC-32: of what the standard library has, it costs the least by far, and
finds every flipped bit. They are written last, when they are known, into the header; its digest (BLAKE2b) covers them, the state,
and names, types and shapes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError, FormatError
from .weights.files import open_tensors
from .weights.safetensors_file import SafetensorsFile, write_safetensors
from .weights.tensor_file import DTYPES, TensorInfo, values

FORMAT, VERSION = "cdad-checkpoint", 2  # version 1 had one digest of everything
_TYPES = {np.dtype(raw).str: name for name, raw in DTYPES.items() if name != "BF16"}


def previous_of(path: str | os.PathLike) -> Path:
    """Where the checkpoint before the one in ``path`` is kept."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray | Callable[[], np.ndarray]],
    state: dict[str, Any],
    *,
    keep_previous: bool = False,
) -> None:
    """Write ``tensors``, arrays or what gives them (each is asked twice), and the JSON-able ``state``. ``keep_previous``: the
    checkpoint that was in ``path`` goes to `previous_of`. OSError leaves both files as they were."""

    def made(name: str) -> np.ndarray:
        item = tensors[name]
        return item() if callable(item) else item

    described = {}
    for name in tensors:
        array = made(name)
        described[name] = (TensorInfo(_TYPES[array.dtype.str], array.shape), lambda name=name: made(name))
    text = json.dumps(state, sort_keys=True, allow_nan=False)

    def metadata(sums: Mapping[str, int]) -> dict[str, str]:
        found = {"format": FORMAT, "version": str(VERSION), "state": text}
        found["crc32"] = json.dumps({name: f"{value:08x}" for name, value in sums.items()}, sort_keys=True)
        return found | {"digest": _digest(found, {name: info for name, (info, _) in described.items()})}

    write_safetensors(path, described, metadata, previous_of(path) if keep_previous else None)


class Checkpoint:
    """A checkpoint that is open: its ``version``, its ``state``, and ``tensors`` that say what it holds; a tensor is checked when
    it is read. A context manager.

    CheckpointError: truncated, changed, damaged (which tensor, and where the checkpoint before it is kept, if it is), of another
    kind or a newer version; FileNotFoundError.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            file = open_tensors(self.path)
        except FileNotFoundError:
            if not previous_of(self.path).exists():
                raise
            raise self._error("there is no such file") from None
        except FormatError as error:
            folder = "a folder, of which a run's holds its model as checkpoint.safetensors"
            raise self._error(folder if self.path.is_dir() else error.reason, error.offset) from error
        try:
            if not isinstance(file, SafetensorsFile) or file.metadata.get("format") != FORMAT:
                raise self._error("not a cdad checkpoint")
            self._file, self.tensors = file, file.tensors
            self.state = self._read_state(file.metadata)
        except BaseException:
            file.close()
            raise
        self._unread = set(self.tensors)

    def _read_state(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        version = metadata.get("version", "")
        if not re.fullmatch("[0-9]{1,9}", version) or int(version) > VERSION:
            raise self._error(f"checkpoint version {version!r}; this cdad reads up to {VERSION}")
        others = [name for name, info in self.tensors.items() if info.dtype not in _TYPES.values()]
        if others:
            raise self._error(f"{others[0]} is of the type {self.tensors[others[0]].dtype}, which checkpoints do not hold")
        text = metadata.get("state", "")
        whole = self._digest_of_all(text) if int(version) < 2 else _digest(metadata, self.tensors)
        if whole != metadata.get("digest"):
            raise self._error("the digest does not match: the file was changed or is damaged")
        try:
            state, sums = json.loads(text), json.loads(metadata.get("crc32", "{}"))
        except (ValueError, RecursionError) as error:
            raise self._error(f"the state is no readable JSON: {error}") from None
        if not isinstance(state, dict) or not isinstance(sums, dict):
            raise self._error("the state is no JSON object")
        if int(version) >= 2 and sums.keys() != self.tensors.keys():
            raise self._error("its checksums are not those of its tensors")
        self._sums, self.version = sums, int(version)
        return state

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def read(self, name: str) -> np.ndarray:
        """A tensor's values."""
        info = self.tensors[name]
        raw = np.empty(info.shape, DTYPES[info.dtype])
        self.check(name, raw)
        return values(raw, info.dtype, f"tensor {name!r}", self.path)

    def check(self, name: str, target: np.ndarray | None = None) -> None:
        """Check a tensor; its values go to ``target``, a contiguous array of its type and size, where one is given."""
        total = 0
        for part in self._parts(name, target):
            total = zlib.crc32(part, total)
        if name in self._sums and self._sums[name] != f"{total:08x}":
            reason = f"the tensor {name!r} is damaged: its CRC-32 is {total:08x}, {self._sums[name]} was written"
            raise self._error(reason, self._file.offset(name))
        self._unread.discard(name)

    def check_unread(self) -> None:
        """Check every tensor that was not read."""
        for name in sorted(self._unread & self._sums.keys()):
            self.check(name)

    def _parts(self, name: str, target: np.ndarray | None = None) -> Iterator[memoryview]:
        try:
            yield from self._file.parts(name, target)
        except FormatError as error:
            raise self._error(error.reason, error.offset) from error

    def _error(self, reason: str, offset: int | None = None) -> CheckpointError:
        previous = previous_of(self.path)
        if previous.exists():
            reason += f"; the checkpoint before it is kept in {previous.name}: load that, or go on from it with --resume-previous"
        return CheckpointError(reason, self.path, offset)

    def _digest_of_all(self, text: str) -> str:
        """The digest of version 1."""
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        for name, info in sorted(self.tensors.items()):
            digest.update(f"{name}:{np.dtype(DTYPES[info.dtype]).str}:{info.shape}".encode())
            for part in self._parts(name):
                digest.update(part)
        return digest.hexdigest()


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> str:
    """Of all that the header says, but for itself and for offsets, without which the checksums would not fit."""
    said = sorted((key, value) for key, value in metadata.items() if key != "digest")
    described = sorted((name, info.dtype, info.shape) for name, info in tensors.items())
    return hashlib.blake2b(json.dumps([said, described]).encode(), digest_size=16).hexdigest()
