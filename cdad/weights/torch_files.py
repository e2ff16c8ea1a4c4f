"""PyTorch's weight files without PyTorch: the zip format (1.6 and later) and the one before it.

Nothing in a file is run or imported (`pickle_vm`), and no size that it states is trusted: a tensor must lie
in its storage and a storage must have exactly the bytes that it states. Only little-endian files are read.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import FormatError, LimitError
from .pickle_vm import MAX_BYTES, Global, Stub, load_pickle, opcode_cap
from .tensor_file import DTYPES, MAX_DIMENSIONS, MAX_NAME, TensorFile, TensorInfo, check_shape, read_exactly, values
from .zip_archive import ZipArchive

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the format before 1.6
_LEGACY_MAGIC_BYTES = 64  # its pickle has 15, and a few more in later pickle protocols
_LEGACY_PROTOCOL = 1001
_HINT = "load it with the library that wrote it and torch.save() its state_dict"
_MAX_KEY = 256  # characters of a storage's key
_MAX_NESTING = 16  # dicts in dicts
_MAX_ITEMS = 200_000  # visited in the dicts

# torch's storage classes: the types of their values
_DTYPES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str  # a key of DTYPES
    count: int

    @property
    def bytes(self) -> int:
        return self.count * np.dtype(DTYPES[self.dtype]).itemsize


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, array: np.ndarray) -> np.ndarray:
        """The tensor in its storage's values."""
        strides = tuple(stride * array.itemsize for stride in self.strides)
        return np.ndarray(self.shape, array.dtype, array.data, self.offset * array.itemsize, strides)


class _TorchFile(TensorFile):
    """A file that ``torch.save`` wrote of a dict, or of one with a dict under "state_dict", which is then taken alone.

    Dicts in it give names joined by dots; what is no tensor or has a key that is neither text nor an integer is left out.
    Arrays are read-only views of their storages, with the tensors' strides. FormatError: a damaged or hostile file, or
    tensors of a kind that is not supported (quantised, sparse, complex); LimitError: over a limit.
    """

    def _take(self, value: object) -> None:
        """The tensors of the object that the file holds."""
        self._views = _collect(value, self.path)
        self.tensors = {name: TensorInfo(t.storage.dtype, t.shape) for name, t in self._views.items()}
        self._kept: tuple[str, np.ndarray] | None = None

    def read(self, name: str) -> np.ndarray:
        tensor = self._views[name]
        key = tensor.storage.key
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # no two storages are held at once
            raw = np.frombuffer(self._read_storage(tensor.storage), DTYPES[tensor.storage.dtype])
            self.check_unchanged()
            array = values(raw, tensor.storage.dtype, f"storage {key!r}", self.path)
            array.flags.writeable = False
            self._kept = key, array
        return tensor.view(self._kept[1])

    def _read_storage(self, storage: _Storage) -> bytes:
        raise NotImplementedError


class TorchZipFile(_TorchFile):
    """The zip format (PyTorch 1.6 and later)."""

    kind = "torch zip"

    def __init__(self, path: Path, file: BinaryIO):
        super().__init__(path, file)
        self._archive = archive = ZipArchive(file, self.size, path)
        pickles = [name for name in archive.entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            found = f"{len(pickles)} entries */data.pkl"
            raise FormatError(f"a zip archive with {found}, expected 1 as torch.save writes", path)
        self._root = pickles[0].removesuffix("data.pkl")
        if self._root + "byteorder" in archive.entries:
            order = archive.read(self._root + "byteorder", limit=16)
            if order != b"little":
                raise FormatError(f"byte order {order!r}, expected b'little'", path)
        storages = _Storages()
        data = bytes(archive.read(pickles[0], limit=MAX_BYTES))
        base = archive.data_offset(pickles[0])
        value, end = load_pickle(data, 0, _CALLS, storages.identify, path, base, opcode_cap(self.size))
        if end != len(data):
            raise FormatError(f"{len(data) - end} bytes follow the pickle", path, base + end)
        self._take(value)
        for tensor in self._views.values():
            name, wanted = f"{self._root}data/{tensor.storage.key}", tensor.storage.bytes
            entry = archive.entries.get(name)
            if entry is None or entry.size != wanted:
                found = "no such entry" if entry is None else f"{entry.size} bytes"
                raise FormatError(f"storage {name!r}: {found}, expected {wanted} bytes", path)

    def _read_storage(self, storage: _Storage) -> bytes:
        return self._archive.read(f"{self._root}data/{storage.key}")


class TorchLegacyFile(_TorchFile):
    """The format before PyTorch 1.6: pickles, one after the other, then the storages."""

    kind = "torch legacy"

    def __init__(self, path: Path, file: BinaryIO):
        super().__init__(path, file)
        head = os.pread(file.fileno(), MAX_BYTES, 0)
        try:
            magic, at = load_pickle(head[:_LEGACY_MAGIC_BYTES], 0, {})
        except FormatError:
            magic = None
        if magic != _LEGACY_MAGIC:
            raise FormatError(f"a pickle that torch.save did not write (joblib's or another): {_HINT}", path, 0)
        protocol, at = load_pickle(head, at, {}, path=path)
        system, at = load_pickle(head, at, {}, path=path)
        if protocol != _LEGACY_PROTOCOL:
            raise FormatError(f"another protocol version than {_LEGACY_PROTOCOL}", path)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise FormatError("not written on a little-endian machine", path)
        storages = _Storages()
        value, at = load_pickle(head, at, _CALLS, storages.identify, path, 0, opcode_cap(self.size))
        self._take(value)
        keys, at = load_pickle(head, at, {}, path=path)
        named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not named or len(keys) != len(storages.by_key) or set(keys) != storages.by_key.keys():
            raise FormatError("the list of storages does not name each one once", path, at)

        # The rest is each storage's count of values (int64) and its bytes, in the list's order.
        stated = sum(8 + storage.bytes for storage in storages.by_key.values())
        if at + stated != self.size:
            raise FormatError(f"the storages have {self.size - at} bytes, expected {stated}", path, at)
        self._begin: dict[str, int] = {}
        for key in keys:
            storage = storages.by_key[key]
            count = bytearray(8)
            read_exactly(file, at, memoryview(count), path)
            found = int.from_bytes(count, "little", signed=True)
            if found != storage.count:
                raise FormatError(f"storage {key!r} has {found} values, expected {storage.count}", path, at)
            self._begin[key] = at + 8
            at += 8 + storage.bytes

    def _read_storage(self, storage: _Storage) -> bytes:
        data = bytearray(storage.bytes)
        read_exactly(self.file, self._begin[storage.key], memoryview(data), self.path)
        return data


def open_torch(path: Path, file: BinaryIO, magic: bytes) -> TensorFile:
    """The reader of a file in one of PyTorch's formats that begins with ``magic``; FormatError where it is none."""
    if magic[:4] == b"PK\3\4":
        return TorchZipFile(path, file)
    if magic[:1] == b"\x80":
        return TorchLegacyFile(path, file)
    if magic[257:262] == b"ustar":
        raise FormatError(f"a tar archive, as PyTorch before 0.2 wrote: {_HINT}", path)
    raise FormatError("not a weight file: neither safetensors nor a zip archive nor a pickle", path, 0)


class _Storages:
    """The storages that a pickle's persistent ids name, by key."""

    def __init__(self):
        self.by_key: dict[str, _Storage] = {}

    def identify(self, identity: object) -> _Storage:
        """('storage', class, key, device, count), and None where the old format could state a view."""
        match identity:
            case ("storage", Global() as kind, str() as key, str(), int() as count):
                pass
            case ("storage", Global() as kind, str() as key, str(), int() as count, None):
                pass
            case _:
                raise FormatError("a persistent id that names no storage")
        if kind.module != "torch" or kind.name not in _DTYPES:
            raise FormatError(f"storages of {kind} are not supported")
        if len(key) > _MAX_KEY:
            raise FormatError(f"a storage's key has {len(key)} characters, at most {_MAX_KEY} are read")
        if isinstance(count, bool) or not 0 <= count < 1 << 48:
            raise FormatError(f"storage {key!r} states {count} values")
        storage = _Storage(key, _DTYPES[kind.name], count)
        if self.by_key.setdefault(key, storage) != storage:
            raise FormatError(f"storage {key!r} is stated twice, with other types or sizes")
        return storage


def _sizes(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        raise FormatError(f"a tensor's {what} is no tuple of at most {MAX_DIMENSIONS} numbers")
    for item in value:
        if type(item) is not int or not 0 <= item < 1 << 63:
            found = item if type(item) is int else type(item).__name__
            raise FormatError(f"a tensor's {what} holds {found}, expected integers from 0 below 2^63")
    return value


def _rebuild_tensor(arguments: tuple) -> _Tensor:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata?)."""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], _Storage):
        raise FormatError("a tensor that is not built from a storage")
    storage, offset, shape, strides = arguments[:4]
    (offset,) = _sizes((offset,), "offset")
    shape, strides = _sizes(shape, "shape"), _sizes(strides, "strides")
    if len(shape) != len(strides):
        raise FormatError(f"a tensor of {len(shape)} dimensions has {len(strides)} strides")
    check_shape(shape, "a tensor")
    count = math.prod(shape)
    # An expanded tensor has more values than its storage: a small file could ask for any amount of memory.
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if count > storage.count or (count and last >= storage.count):
        where = f"offset {offset}, shape {list(shape)}, strides {list(strides)}"
        raise FormatError(f"a tensor ({where}) exceeds storage {storage.key!r} of {storage.count} values")
    if not count:
        offset, strides = 0, tuple(0 for _ in shape)
    # The stride of a dimension of size 1 is never used and may be anything.
    strides = tuple(stride if size > 1 else 1 for size, stride in zip(shape, strides, strict=True))
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(arguments: tuple) -> _Tensor:
    """torch._utils._rebuild_parameter(data, requires_grad, hooks), and its form with a state as the
    fourth."""
    if len(arguments) not in (3, 4) or not isinstance(arguments[0], _Tensor):
        raise FormatError("a parameter that is not built from a tensor")
    return arguments[0]


def _rebuild_typed(arguments: tuple) -> _Tensor:
    """torch._tensor._rebuild_from_type_v2(function, type, arguments, state), for tensors with attributes."""
    match arguments:
        case (Global() as function, _, tuple() as inner, _) if function in _REBUILDS:
            return _REBUILDS[function](inner)
    raise FormatError("a tensor of another class that is not built from a tensor")


def _ordered_dict(arguments: tuple) -> dict:
    if arguments:
        raise FormatError("an OrderedDict with arguments, expected none")
    return {}


_REBUILDS = {
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    Global("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
}
_CALLS = _REBUILDS | {
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("torch._tensor", "_rebuild_from_type_v2"): _rebuild_typed,
}


def _collect(value: object, path: Path) -> dict[str, _Tensor]:
    """The tensors of the object that a file holds, by name."""
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        kind = value.origin if isinstance(value, Stub) else type(value).__name__.lstrip("_").lower()
        raise FormatError(f"holds an object ({kind}), expected a dict of tensors: {_HINT}", path)
    tensors: dict[str, _Tensor] = {}
    visited = 0
    pending = [("", value, 1)]
    while pending:
        prefix, items, depth = pending.pop()
        inner = []
        for key, item in items.items():
            visited += 1
            if visited > _MAX_ITEMS:
                raise LimitError(f"more than {_MAX_ITEMS} items in the dicts", path)
            if not isinstance(key, str | int) or not isinstance(item, _Tensor | dict | Stub):
                continue
            name = f"{prefix}{key}"
            if len(name) > MAX_NAME:
                raise LimitError(f"a name is longer than {MAX_NAME} characters", path)
            if isinstance(item, dict):
                if depth == _MAX_NESTING:
                    raise LimitError(f"more than {_MAX_NESTING} dicts within each other at {name}", path)
                inner.append((f"{name}.", item, depth + 1))
            elif isinstance(item, Stub):
                if item.origin.module.startswith("torch") and item.origin.name.startswith("_rebuild"):
                    raise FormatError(f"tensor {name} is of an unsupported kind ({item.origin})", path)
            elif name in tensors:
                raise FormatError(f"two tensors are named {name}", path)
            else:
                tensors[name] = item
        pending.extend(reversed(inner))
    if not tensors:
        raise FormatError("holds no tensors", path)
    return tensors
