"""Safetensors: the library checks the layout, this module what the library lets pass.

The library refuses bad JSON, unknown types, products that wrap, offsets that leave holes, overlap or do not end with the
file. It takes the last of two tensors of one name, fields that nobody defined, and empty tensors of any dimensions; and it
maps files, which ends the process where another one cuts the file. So it sees the header alone, in a private file of the
same length, and values are read.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import FormatError, LimitError
from ..results import write_atomically
from .tensor_file import DTYPES, MAX_NAME, TensorFile, TensorInfo, check_shape, read_exactly, values

MAX_HEADER = 1 << 21  # bytes: some 20000 tensors. The format allows 100 MB, for which Python would need 2 GB.
_MORE = "the header has more than a type, a shape and two offsets a tensor, or a name twice"
_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'"[{'))


def is_safetensors(magic: bytes) -> bool:
    """Whether a file that begins so can be safetensors: a header length, then a JSON object."""
    return len(magic) > 8 and int.from_bytes(magic[:8], "little") <= 100_000_000 and magic[8:9] == b"{"


class SafetensorsFile(TensorFile):
    """A safetensors file; FormatError where it breaks a rule, before any value is read."""

    kind = "safetensors"

    def __init__(self, path: Path, file: BinaryIO):
        super().__init__(path, file)
        header = self._read_header()
        entries = self._library_reads(header)
        structure = _outside_strings(header)
        has_metadata = structure.count(b"{") - 1 - len(entries)
        if structure.count(b"[") != 2 * len(entries) or has_metadata not in (0, 1):
            raise FormatError(_MORE, path, 8)
        self._offsets: dict[str, int] = {}
        data_at = 8 + len(header)
        parsed = json.loads(header, object_pairs_hook=self._unique)
        self.metadata = parsed.pop("__metadata__", {})
        for name in sorted(parsed, key=lambda name: parsed[name]["data_offsets"]):
            entry = parsed[name]
            if len(entry) != 3:
                raise FormatError(_MORE, path, 8)
            if entry["dtype"] not in DTYPES:
                raise FormatError(f"tensor {name!r} is of the type {entry['dtype']}, which is not read", path)
            if len(name) > MAX_NAME or "\0" in name or not name:
                raise FormatError(f"a tensor's name is empty, longer than {MAX_NAME} characters or has a NUL", path)
            check_shape(tuple(entry["shape"]), f"tensor {name!r}", path)
            self.tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]))
            self._offsets[name] = data_at + entry["data_offsets"][0]

    def _read_header(self) -> bytes:
        head = bytearray(8)
        read_exactly(self.file, 0, memoryview(head), self.path)
        length = int.from_bytes(head, "little")
        if length > self.size - 8:
            raise FormatError(f"a header of {length} bytes in a file of {self.size}", self.path, 0)
        if length > MAX_HEADER:
            raise LimitError(f"a header of {length} bytes, at most {MAX_HEADER} are read", self.path, 0)
        header = bytearray(length)
        read_exactly(self.file, 8, memoryview(header), self.path)
        return bytes(header)

    def _library_reads(self, header: bytes) -> list[str]:
        """The names that the library finds; FormatError with its reason where it refuses the header."""
        copy = os.memfd_create("safetensors header")
        try:
            for part in (len(header).to_bytes(8, "little"), header):
                while part:
                    part = part[os.write(copy, part) :]
            os.ftruncate(copy, self.size)  # zeros that take no memory stand for the values
            with safe_open(f"/proc/self/fd/{copy}", framework="numpy") as library:
                return list(library.keys())
        except (SafetensorError, ValueError, TypeError, OverflowError) as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise FormatError(f"not a readable safetensors file: {reason}", self.path) from error
        finally:
            os.close(copy)

    def _unique(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            raise FormatError(f"two entries of the header are named {twice!r}", self.path, 8)
        return result

    def read(self, name: str) -> np.ndarray:
        info = self.tensors[name]
        raw = np.empty(info.shape, DTYPES[info.dtype])
        read_exactly(self.file, self._offsets[name], memoryview(raw.reshape(-1).view(np.uint8)), self.path)
        self.check_unchanged()
        return values(raw, info.dtype, f"tensor {name!r}", self.path)


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, tuple[TensorInfo, Callable[[], np.ndarray]]],
    metadata: Mapping[str, str],
) -> None:
    """Replace a file by tensors, each made when it is written: {name: (type and shape, what gives the values in the type of
    `DTYPES`, in any layout)}. Every tensor is aligned to its items.

    LimitError: the header would be longer than is read; OSError: the old file is as it was.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    names = sorted(tensors, key=lambda name: (-np.dtype(DTYPES[tensors[name][0].dtype]).itemsize, name))
    end = 0
    for name in names:
        info = tensors[name][0]
        begin, end = end, end + info.bytes
        header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": (begin, end)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MAX_HEADER:
        raise LimitError(f"a header of {len(encoded)} bytes, at most {MAX_HEADER} are read", path)
    data = (np.ascontiguousarray(tensors[name][1]()).reshape(-1).view(np.uint8).data for name in names)
    write_atomically(path, itertools.chain([len(encoded).to_bytes(8, "little"), encoded], data))


def _outside_strings(header: bytes) -> bytes:
    """The opening brackets of a JSON text that are not within names or other strings."""
    plain = header.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _ALL_BUT_STRUCTURE)
    return b"".join(plain.split(b'"')[::2])
