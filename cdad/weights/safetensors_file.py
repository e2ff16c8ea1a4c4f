"""Safetensors: the library checks the layout, this module what the library lets pass.

The library refuses bad JSON, unknown types, products that wrap, offsets that leave holes, overlap or do not end with the
file. It takes the last of two tensors of one name, fields that nobody defined, and empty tensors of any dimensions; and it
maps files, which ends the process where another one cuts the file. So it sees the header alone, in a private file of the
same length, and values are read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from ..atomic import replacing
from ..data.ahead import ahead
from ..errors import FormatError, LimitError
from .tensor_file import DTYPES, MAX_NAME, TensorFile, TensorInfo, check_shape, read_exactly, values

MAX_HEADER = 1 << 21  # bytes: some 20000 tensors. The format allows 100 MB, for which Python would need 2 GB.
PART = 1 << 23  # bytes that are read or written in one go where something else is done with them, too
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
        read_exactly(self.file, self.offset(name), _bytes_of(raw), self.path)
        self.check_unchanged()
        return values(raw, info.dtype, f"tensor {name!r}", self.path)

    def parts(self, name: str, target: np.ndarray | None = None) -> Iterator[memoryview]:
        """The bytes of a tensor as they are in the file, part by part: the next is read while one is used. They go to
        ``target``, a contiguous array of as many bytes, where one is given."""
        size, at = self.tensors[name].bytes, self.offset(name)
        whole = None if target is None else _bytes_of(target)
        if whole is not None and len(whole) != size:
            raise ValueError(f"{len(whole)} bytes for the {size} of {name}")

        def read(begin: int) -> memoryview:
            end = min(begin + PART, size)
            part = memoryview(bytearray(end - begin)) if whole is None else whole[begin:end]
            read_exactly(self.file, at + begin, part, self.path)
            return part

        yield from _moved(read, size)
        self.check_unchanged()

    def offset(self, name: str) -> int:
        """Where a tensor's bytes begin in the file."""
        return self._offsets[name]


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, tuple[TensorInfo, Callable[[], np.ndarray]]],
    metadata: Mapping[str, str] | Callable[[Mapping[str, int]], Mapping[str, str]],
    previous: str | os.PathLike | None = None,
) -> None:
    """Replace a file by tensors, each made when it is written: {name: (type and shape, what gives the values in the type of
    `DTYPES`, in any layout)}. Every tensor is aligned to its items. ``metadata``: or what makes it of the CRC-32 of each
    tensor's bytes, which are known last; its length must not depend on them. ``previous``: see `replacing`.

    LimitError: the header would be longer than is read; OSError: the old file is as it was.
    """
    names = sorted(tensors, key=lambda name: (-np.dtype(DTYPES[tensors[name][0].dtype]).itemsize, name))
    entries, end = {}, 0
    for name in names:
        info = tensors[name][0]
        begin, end = end, end + info.bytes
        entries[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": (begin, end)}

    def header(sums: Mapping[str, int]) -> bytes:
        described = metadata(sums) if callable(metadata) else metadata
        encoded = json.dumps(({"__metadata__": dict(described)} if described else {}) | entries).encode()
        return encoded + b" " * (-len(encoded) % 8)

    first = header(dict.fromkeys(names, 0))
    if len(first) > MAX_HEADER:
        raise LimitError(f"a header of {len(first)} bytes, at most {MAX_HEADER} are read", path)
    with replacing(path, previous) as file:
        file.write(len(first).to_bytes(8, "little") + first)
        last = header({name: _write(file, *tensors[name]) for name in names})
        if len(last) != len(first):
            raise ValueError("the length of the metadata depends on the tensors' values")
        file.seek(8)
        file.write(last)


def _write(file: BinaryIO, info: TensorInfo, make: Callable[[], np.ndarray]) -> int:
    """Write a tensor; the CRC-32 of its bytes."""
    whole = _bytes_of(np.ascontiguousarray(make()))
    if len(whole) != info.bytes:
        raise ValueError(f"a tensor of {len(whole)} bytes that was announced with {info.bytes}")

    def write(begin: int) -> memoryview:
        part = whole[begin : begin + PART]
        file.write(part)
        return part

    total = 0
    for part in _moved(write, len(whole)):
        total = zlib.crc32(part, total)
    return total


def _moved(move: Callable[[int], memoryview], size: int) -> Iterator[memoryview]:
    """``move(begin)`` for each part, the next one on a thread while one is used."""
    begins = range(0, size, PART)
    return map(move, begins) if size <= PART else ahead(move, begins)


def _bytes_of(array: np.ndarray) -> memoryview:
    """The memory of an array; ValueError where it is not contiguous."""
    if not array.flags.c_contiguous:
        raise ValueError("an array that is not contiguous")
    return array.reshape(-1).view(np.uint8).data


def _outside_strings(header: bytes) -> bytes:
    """The opening brackets of a JSON text that are not within names or other strings."""
    plain = header.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _ALL_BUT_STRUCTURE)
    return b"".join(plain.split(b'"')[::2])
