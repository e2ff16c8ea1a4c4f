"""Reading zip archives of stored entries, as ``torch.save`` writes them; no size is used unchecked.

Python's zipfile takes archives in which two readers may see different entries (data before the archive,
duplicate names, overlapping entries, sizes that disagree). This reader takes only those with one meaning:
the layout of APPNOTE.TXT 6.3 (PKWARE), on one disk, nothing compressed or encrypted, no comment.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import FormatError, LimitError
from .tensor_file import read_exactly

MAX_ENTRIES = 1 << 14  # a Stable Diffusion checkpoint with its optimiser's state has some 5000
MAX_DIRECTORY = 1 << 22  # bytes of the central directory

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x0001
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # the value is in a zip64 field


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry: where its local header is, its size in bytes and the CRC-32 of its data."""

    name: str
    header: int
    size: int
    crc: int


class ZipArchive:
    """The entries of the archive in an open file of ``size`` bytes; FormatError where it breaks a rule."""

    def __init__(self, file: BinaryIO, size: int, path: str | os.PathLike):
        self._file, self._path = file, path
        begin, end, count = self._find_directory(size)
        self._directory_at = begin
        self.entries = self._read_directory(begin, end, count)
        self._data_at = self._locate_data()

    def read(self, name: str, limit: int | None = None) -> bytearray:
        """The data of an entry, its CRC verified; LimitError when there are more than ``limit`` bytes."""
        entry = self.entries.get(name)
        if entry is None:
            raise self._error(f"there is no entry {name!r}", None)
        if limit is not None and entry.size > limit:
            reason = f"zip: entry {name!r} has {entry.size} bytes, at most {limit} are read"
            raise LimitError(reason, self._path)
        data = self._read_at(self._data_at[name], entry.size)
        crc = zlib.crc32(data)
        if crc != entry.crc:
            reason = f"entry {name!r} has the CRC {crc:08x}, expected {entry.crc:08x}"
            raise self._error(reason, self._data_at[name])
        return data

    def data_offset(self, name: str) -> int:
        """Where the data of an entry begins in the file."""
        return self._data_at[name]

    def _error(self, reason: str, offset: int | None) -> FormatError:
        return FormatError(f"zip: {reason}", self._path, offset)

    def _read_at(self, offset: int, count: int) -> bytearray:
        data = bytearray(count)
        read_exactly(self._file, offset, memoryview(data), self._path)
        return data

    def _find_directory(self, size: int) -> tuple[int, int, int]:
        """(begin, end, entries) of the central directory."""
        at = size - _END.size
        if at < 0:
            raise self._error(f"{size} bytes are too few for an archive", 0)
        magic, disk, first, here, count, length, begin, comment = _END.unpack(self._read_at(at, _END.size))
        if magic != b"PK\5\6" or comment:
            raise self._error("no end record in the last 22 bytes: truncated, or followed by data", at)
        end = at
        locator_at = at - _LOCATOR64.size
        if locator_at >= 0:
            magic, disk64, record_at, disks = _LOCATOR64.unpack(self._read_at(locator_at, _LOCATOR64.size))
            if magic == b"PK\6\7":
                if disk64 or disks > 1 or record_at != locator_at - _END64.size:
                    raise self._error("the zip64 end record is not right before its locator", locator_at)
                end = record_at
                wide = _END64.unpack(self._read_at(record_at, _END64.size))
                magic, rest, _, _, disk64, first64, here64, count64, length64, begin64 = wide
                if magic != b"PK\6\6" or rest != _END64.size - 12:
                    raise self._error("damaged zip64 end record", record_at)
                for narrow, full, value in (
                    (disk, _FULL16, disk64),
                    (first, _FULL16, first64),
                    (here, _FULL16, here64),
                    (count, _FULL16, count64),
                    (length, _FULL32, length64),
                    (begin, _FULL32, begin64),
                ):
                    if narrow not in (full, value):
                        raise self._error(f"the end records disagree: {narrow} and {value}", at)
                disk, first, here, count, length, begin = disk64, first64, here64, count64, length64, begin64
        if disk or first or here != count:
            raise self._error("the archive spans several disks", at)
        if begin + length != end:
            raise self._error(f"the directory ends at {begin + length}, expected {end}", at)
        if count > MAX_ENTRIES or length > MAX_DIRECTORY:
            raise LimitError(f"zip: {count} entries in a directory of {length} bytes", self._path, at)
        return begin, end, count

    def _read_directory(self, begin: int, end: int, count: int) -> dict[str, Entry]:
        data = self._read_at(begin, end - begin)
        entries: dict[str, Entry] = {}
        at = 0
        for _ in range(count):
            if at + _CENTRAL.size > len(data):
                raise self._error(f"the directory ends after {len(entries)} of {count} entries", begin + at)
            fields = _CENTRAL.unpack_from(data, at)
            magic, flags, method, crc, packed, size = fields[0], fields[3], fields[4], *fields[7:10]
            name_size, extra_size, comment_size, disk, _, _, header = fields[10:]
            name_at = at + _CENTRAL.size
            extra_at = name_at + name_size
            after = extra_at + extra_size + comment_size
            if magic != b"PK\1\2" or after > len(data):
                raise self._error("damaged directory entry", begin + at)
            name = self._entry_name(data[name_at:extra_at], begin + at)
            if name in entries:
                raise self._error(f"two entries are named {name!r}", begin + at)
            extra = data[extra_at : extra_at + extra_size]
            size, packed, header = self._widen(extra, (size, packed, header), begin + at)
            if method or flags & _ENCRYPTED or packed != size:
                raise self._error(f"entry {name!r} is compressed or encrypted, expected stored", begin + at)
            if disk not in (0, _FULL16):
                raise self._error("the archive spans several disks", begin + at)
            entries[name] = Entry(name, header, size, crc)
            at = after
        if at != len(data):
            raise self._error(f"{len(data) - at} bytes follow the directory's {count} entries", begin + at)
        return entries

    def _entry_name(self, raw: bytes, offset: int) -> str:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise self._error(f"the name {raw!r} is not UTF-8", offset) from None
        if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise self._error(f"the name {name!r} is not a plain relative path", offset)
        return name

    def _widen(self, extra: bytes, values: tuple[int, ...], offset: int) -> list[int]:
        """size, packed size and header offset: those that are full are in the zip64 field, in this order."""
        wide = b""
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1:
                wide = extra[at + 4 : at + 4 + length]
                break
            at += 4 + length
        result = []
        for value in values:
            if value == _FULL32:
                if len(wide) < 8:
                    raise self._error("the zip64 field is missing or too short", offset)
                value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
            result.append(value)
        return result

    def _locate_data(self) -> dict[str, int]:
        """Where each entry's data begins; local headers are checked, and that no two entries overlap."""
        result = {}
        free = 0  # everything before this offset belongs to an entry
        for entry in sorted(self.entries.values(), key=lambda entry: entry.header):
            if entry.header < free:
                raise self._error(f"entry {entry.name!r} overlaps another", entry.header)
            if entry.header + _LOCAL.size > self._directory_at:
                raise self._error(f"entry {entry.name!r} begins outside the archive's data", entry.header)
            fields = _LOCAL.unpack(self._read_at(entry.header, _LOCAL.size))
            magic, method, name_size, extra_size = fields[0], fields[3], fields[9], fields[10]
            name_at = entry.header + _LOCAL.size
            begin = name_at + name_size + extra_size
            free = begin + entry.size
            if magic != b"PK\3\4" or method or self._read_at(name_at, name_size) != entry.name.encode():
                reason = f"the local header of {entry.name!r} disagrees with the directory"
                raise self._error(reason, entry.header)
            if free > self._directory_at:
                reason = f"entry {entry.name!r} ends at {free}, past the data's end at {self._directory_at}"
                raise self._error(reason, entry.header)
            result[entry.name] = begin
        return result
