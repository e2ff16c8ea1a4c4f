"""Weight files that are made to break a reader: every one is to be refused with a FormatError.

`corpus` gives them all, built from a pickle assembler, an archive writer and a safetensors writer that can lie.
"""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from collections.abc import Iterator

import numpy as np

VALUES = np.arange(12, dtype="<f4").tobytes()
LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
LITTLE, BIG = (b"\x80\x02}X\x0d\0\0\0little_endian" + flag + b"s." for flag in (b"\x88", b"\x89"))


class Raw(bytes):
    """Opcodes as they are."""


def name(module, attribute):
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function, *arguments):
    return Raw(function + encode(arguments) + b"R")


def encode(value):
    match value:
        case Raw():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encode(key) + encode(item) for key, item in value.items()) + b"u"


def program(value):
    return b"\x80\x02" + encode(value) + b"."


def storage(kind="FloatStorage", key="0", count=12, module="torch", tag="storage"):
    return Raw(encode((tag, name(module, kind), key, "cpu", count)) + b"Q")


def tensor(store=None, offset=0, shape=(3, 4), strides=(4, 1)):
    function = name("torch._utils", "_rebuild_tensor_v2")
    return call(function, store or storage(), offset, shape, strides, False, None)


def archive(entries, *, lies=None, zip64=False, tail=b"", repeat=None, drop_end=False):
    """A zip of stored entries; `lies` maps an entry to the header fields that are wrong."""
    body, directory, count = b"", b"", 0
    for path, data in [*entries.items(), *((repeat, entries[repeat]) for _ in (1,) if repeat)]:
        lie = (lies or {}).get(path, {})
        raw = lie.get("name", path).encode("latin-1")
        crc, size = lie.get("crc", zlib.crc32(data)), lie.get("size", len(data))
        packed, flags, method = lie.get("packed", size), lie.get("flags", 0x800), lie.get("method", 0)
        header = lie.get("header", len(body))
        extra = struct.pack("<2H3Q", 1, 24, size, packed, header) if zip64 else lie.get("extra", b"")
        sizes = (0xFFFFFFFF, 0xFFFFFFFF) if zip64 else (packed & 0xFFFFFFFF, size & 0xFFFFFFFF)
        local = lie.get("local", raw)
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 45, flags, method, 0, 0, crc, *sizes, len(local), 4)
        body += local + b"FB\0\0" + data
        at = 0xFFFFFFFF if zip64 else header
        rest = (len(raw), len(extra), 0, 0, 0, 0, at)
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, 45, flags, method, 0, 0, crc, *sizes, *rest)
        directory += raw + extra
        count += 1
    lie = (lies or {}).get("end", {})
    count, begin = lie.get("count", count), lie.get("begin", len(body))
    length = lie.get("length", len(directory))
    end = b""
    if zip64:
        at = len(body) + len(directory)
        end += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, begin)
        end += struct.pack("<4sLQL", b"PK\6\7", 0, lie.get("record", at), 1)
        count, begin, length = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, begin, 0)
    return body + directory + (b"" if drop_end else end) + tail


def saved(value, data=VALUES, lies=None, **more):
    """The archive that torch.save would write for a pickled value with one storage."""
    return archive(
        {"a/data.pkl": program(value), "a/byteorder": b"little", "a/data/0": data, "a/version": b"3\n"},
        lies=lies, **more,
    )  # fmt: skip


def legacy(value, keys=("0",), data=VALUES, count=12, system=LITTLE, tail=b""):
    stored = b"".join(struct.pack("<q", count) + data for _ in keys)
    return LEGACY_HEAD + system + program(value) + program(list(keys)) + stored + tail



GOOD = {"w": tensor()}
BOOLEANS = {"w": tensor(storage(kind="BoolStorage", count=48))}
EVIL = call(name("os", "system"), "touch EXECUTED")
VIEW = Raw(encode(("storage", name("torch", "FloatStorage"), "0", "cpu", 12, ("1", 0, 4))) + b"Q")
TYPED = name("torch._tensor", "_rebuild_from_type_v2")
OTHER = storage(kind="DoubleStorage", count=6)

PICKLES = {
    "a call of os.system as the root": (EVIL, "expected a dict"),
    "a call of a builtin": (call(name("builtins", "eval"), "open('EXECUTED', 'w')"), "expected a dict"),
    "a module that would be imported": (call(name("this", "s")), "expected a dict"),
    "no tensors": ({"x": EVIL}, "no tensors"),
    "a storage that a stub stands for": ({"w": tensor(EVIL)}, "not built from a storage"),
    "shape from a stub": ({"w": tensor(shape=EVIL)}, "no tuple"),
    "beyond the storage": ({"w": tensor(shape=(3, 5), strides=(4, 1))}, "exceeds"),
    "beyond the storage by the offset": ({"w": tensor(offset=1)}, "exceeds"),
    "beyond the storage by a stride": ({"w": tensor(shape=(2,), strides=(12,))}, "exceeds"),
    "a product that wraps": ({"w": tensor(shape=(1 << 32, 1 << 32), strides=(0, 0))}, "too large"),
    "an empty product that wraps": ({"w": tensor(shape=(0, 1 << 62, 4), strides=(1, 1, 1))}, "too large"),
    "an expanded bomb": ({"w": tensor(shape=(1 << 40,), strides=(0,))}, "exceeds"),
    "negative stride": ({"w": tensor(offset=11, shape=(12,), strides=(-1,))}, "holds -1"),
    "negative offset": ({"w": tensor(offset=-1)}, "holds -1"),
    "negative size": ({"w": tensor(shape=(-3, -4))}, "holds -3"),
    "a float for a size": ({"w": tensor(shape=(3.0, 4))}, "holds float"),
    "a bool for a size": ({"w": tensor(shape=(True, 4))}, "holds bool"),
    "fewer strides": ({"w": tensor(strides=(1,))}, "2 dimensions has 1 strides"),
    "100 dimensions": ({"w": tensor(shape=(1,) * 100, strides=(1,) * 100)}, "at most 32"),
    "a tensor without arguments": ({"w": call(name("torch._utils", "_rebuild_tensor_v2"))}, "not built"),
    "a parameter of text": ({"w": call(name("torch._utils", "_rebuild_parameter"), "x", 1, 2)}, "not built"),
    "an unknown storage class": ({"w": tensor(storage(kind="EvilStorage"))}, "not supported"),
    "a storage class of another module": ({"w": tensor(storage(module="os"))}, "not supported"),
    "no storage": ({"w": tensor(storage(tag="module"))}, "names no storage"),
    "a persistent id that is a number": ({"w": tensor(Raw(b"K\1Q"))}, "names no storage"),
    "a view of another storage": ({"w": tensor(VIEW)}, "names no storage"),
    "a storage of negative size": ({"w": tensor(storage(count=-12))}, "states -12"),
    "a storage of huge size": ({"w": tensor(storage(count=1 << 60))}, "states 1152921504606846976"),
    "a storage twice, of two types": ({"w": tensor(), "v": tensor(OTHER, shape=(6,), strides=(1,))}, "twice"),
    "a storage of fewer bytes": ({"w": tensor(storage(count=13))}, "expected 52|expected 60"),
    "one name twice": ({"a.b": tensor(), "a": {"b": tensor()}}, "two tensors are named a.b"),
    "a long name": ({"x" * 5000: tensor()}, "longer than"),
    "an unsupported kind": ({"w": call(name("torch._utils", "_rebuild_qtensor"), 1)}, "unsupported kind"),
    "a typed tensor of a stub": ({"w": call(TYPED, name("os", "system"), 0, (), 0)}, "not built"),
    "an OrderedDict with arguments": ({"w": call(name("collections", "OrderedDict"), [])}, "arguments"),
    "a dict within itself": (Raw(b"}q\0X\1\0\0\0ah\0s"), "dicts within each other"),
    "items set on a list": (Raw(b"]K\1K\2s"), "list where dict"),
    "items set on a tensor": ({"w": Raw(tensor() + b"K\1K\2s")}, "_Tensor where dict"),
    "items set on a number": (Raw(b"K\1(K\1K\2u"), "int where dict"),
    "values appended to a dict": (Raw(b"}K\1a"), "dict where list"),
    "attributes set on a number": (Raw(b"K\1}b"), "int where dict"),
    "a call of a number": (Raw(b"K\1)R"), "int where Global"),
    "a call with a list": (Raw(name("os", "system") + b"]R"), "list where tuple"),
    "a key that is a dict": (Raw(b"}}K\1s"), "dict where"),
    "a key that is a tuple": (Raw(b"})K\1s"), "tuple where"),
    "a key wider than 64 bits": ({1 << 64: 1}, "64 bits"),
    "a key without value": (Raw(b"}(K\1u"), "without a value"),
    "a global whose name is a number": (Raw(b"K\1K\2\x93"), "int where str"),
    "an endless name": (Raw(b"c" + b"a" * 2000), "does not end"),
    "text that is not UTF-8": (Raw(b"X\1\0\0\0\xff"), "UTF-8"),
    "text of 4 GiB": (Raw(b"X\xff\xff\xff\xff"), "bytes in a string"),
    "bytes of 2^63": (Raw(b"\x8e" + b"\xff" * 7 + b"\x7f"), "bytes expected"),
    "a frame past the end": (Raw(b"\x95" + b"\xff" * 8 + b"N"), "a frame of"),
    "protocol 9": (Raw(b"\x80\x09N"), "protocol 9"),
    "a memo entry that is not set": (Raw(b"h\7"), "not set"),
    "an empty stack": (Raw(b"0"), "stack is empty"),
    "a tuple of too little": (Raw(b"N\x87"), "a tuple of 3 from 1"),
    "no mark": (Raw(b"Nt"), "no mark"),
    "an open mark": (Raw(b"N(N"), "open marks"),
    "two values": (Raw(b"NN"), "2 values"),
    "a bomb of marks": (Raw(b"(" * 5000), "open marks"),
    "protocol 0's opcodes": (Raw(b"(lp0\nI1\na"), "not one that"),
    "an extension's opcode": (Raw(b"\x82\1"), "not one that"),
    "a duplicate's opcode": (Raw(b"N2"), "not one that"),
    "a buffer's opcode": (Raw(b"\x97"), "not one that"),
}  # fmt: skip

DATA, HUGE = "a/data/0", 1 << 31
FILES = {
    "nothing": (b"", "not a weight file"),
    "text": (b"hello, world", "not a weight file"),
    "npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}", "not a weight file"),
    "tar": (b"pickle".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 248, "tar archive"),
    "another pickle": (pickle.dumps({"w": [1.0]}), "torch.save did not write"),
    "a pickle that runs": (b"\x80\x02" + EVIL + b".", "torch.save did not write"),
    "a pickle that fills memory": (b"\x80\x02" + b"]\x94" * 100_000, "torch.save did not write"),
    "compressed": (saved(GOOD, lies={DATA: {"method": 8}}), "compressed"),
    "packed to less": (saved(GOOD, lies={DATA: {"packed": 7}}), "compressed"),
    "encrypted": (saved(GOOD, lies={DATA: {"flags": 1}}), "encrypted"),
    "another CRC": (saved(GOOD, lies={DATA: {"crc": 7}}), "CRC"),
    "the pickle's CRC": (saved(GOOD, lies={"a/data.pkl": {"crc": 7}}), "CRC"),
    "an entry twice": (saved(GOOD, repeat=DATA), "two entries"),
    "a name that leaves": (saved(GOOD, lies={DATA: {"name": "../x/0"}}), "plain relative"),
    "an absolute name": (saved(GOOD, lies={DATA: {"name": "/data/0"}}), "plain relative"),
    "a name with a backslash": (saved(GOOD, lies={DATA: {"name": "a\\0"}}), "plain relative"),
    "a name with NUL": (saved(GOOD, lies={DATA: {"name": "a\0b"}}), "plain relative"),
    "a name that is not UTF-8": (saved(GOOD, lies={DATA: {"name": "\xff"}}), "not UTF-8"),
    "another local name": (saved(GOOD, lies={DATA: {"local": b"a/data/1"}}), "disagrees"),
    "overlapping entries": (saved(GOOD, lies={DATA: {"header": 0}}), "overlaps"),
    "an entry outside": (saved(GOOD, lies={DATA: {"header": HUGE}}), "outside"),
    "an entry of 2 GiB": (saved(GOOD, lies={DATA: {"size": HUGE}}), "overlaps|past"),
    "a zip64 field that is missing": (saved(GOOD, lies={DATA: {"size": 0xFFFFFFFF}}), "zip64 field"),
    "a zip64 size of 2^62": (saved(GOOD, zip64=True, lies={DATA: {"size": 1 << 62}}), "overlaps|past"),
    "a zip64 record elsewhere": (saved(GOOD, zip64=True, lies={"end": {"record": 0}}), "before its locator"),
    "65534 entries": (saved(GOOD, lies={"end": {"count": 65534}}), "65534 entries"),
    "900 entries": (saved(GOOD, lies={"end": {"count": 900}}), "of 900 entries"),
    "fewer entries": (saved(GOOD, lies={"end": {"count": 1}}), "follow the directory"),
    "a directory elsewhere": (saved(GOOD, lies={"end": {"begin": 0}}), "directory ends"),
    "a huge directory": (saved(GOOD, zip64=True, lies={"end": {"length": 1 << 63}}), "directory ends"),
    "no directory": (saved(GOOD, drop_end=True), "no end record"),
    "a comment": (saved(GOOD, tail=b"x" * 30), "no end record"),
    "data before the archive": (b"PK\3\4" + saved(GOOD), "directory ends"),
    "storages of too many bytes": (saved(GOOD, data=VALUES + b"x"), "49 bytes, expected 48"),
    "storages of too few bytes": (saved(GOOD, data=VALUES[:-1]), "47 bytes, expected 48"),
    "no storage": (saved({"w": tensor(storage(key="1"))}), "no such entry"),
    "a storage that is the pickle": (saved({"w": tensor(storage(key="../data.pkl"))}), "no such entry"),
    "booleans of 2 and more": (saved(BOOLEANS), "other than 0 and 1"),
    "legacy, booleans of 2 and more": (legacy(BOOLEANS, count=48), "other than 0 and 1"),
    "no pickle": (archive({DATA: VALUES}), "0 entries"),
    "two pickles": (archive({"a/data.pkl": program(GOOD), "b/data.pkl": program(GOOD)}), "2 entries"),
    "bytes after the pickle": (archive({"a/data.pkl": program(GOOD) + b"N"}), "follow the pickle"),
    "big endian": (archive({"a/data.pkl": program(GOOD), "a/byteorder": b"big", DATA: VALUES}), "byte order"),
    "legacy, big endian": (legacy(GOOD, system=BIG), "little-endian"),
    "legacy, another protocol": (legacy(GOOD).replace(b"M\xe9\x03", b"M\xe9\x04"), "protocol version"),
    "legacy, another count": (legacy(GOOD, count=11), "11 values, expected 12"),
    "legacy, a negative count": (legacy(GOOD, count=-1), "-1 values"),
    "legacy, no such key": (legacy(GOOD, keys=("1",)), "list of storages"),
    "legacy, a key twice": (legacy(GOOD, keys=("0", "0")), "list of storages"),
    "legacy, keys that are lists": (legacy(GOOD, keys=([],)), "list of storages"),
    "legacy, trailing bytes": (legacy(GOOD, tail=b"x"), "57 bytes, expected 56"),
    "legacy, a second file": (legacy(GOOD) * 2, "expected 56"),
}  # fmt: skip


# Safetensors.


def safetensors(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape=(3, 4), begin=0, end=48, dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]} | more


def text(name, value):
    """An entry of a header as JSON text, so that names may come twice."""
    return json.dumps(name) + ":" + (value if isinstance(value, str) else json.dumps(value))


def headed(*entries, data=VALUES):
    return safetensors(("{" + ",".join(entries) + "}").encode(), data)


def one(**changes):
    return safetensors({"a": entry(**changes)}, VALUES)


A = text("a", entry())
SAFETENSORS = {
    "a length alone": (struct.pack("<Q", 0), "not a weight file"),
    "seven bytes": (b"\x10\0\0\0\0\0\0", "not a weight file"),
    "no header": (struct.pack("<Q", 0) + b"{}", "EOF|JSON"),
    "a header past the end": (safetensors({"a": entry()}, length=1000), "header of 1000 bytes"),
    "a header of 2^63 bytes": (safetensors({"a": entry()}, VALUES, length=1 << 63), "not a weight file"),
    "a header of 2^64 - 8 bytes": (safetensors({}, length=(1 << 64) - 8), "not a weight file"),
    "a header of 99 MB in a small file": (safetensors({"a": entry()}, VALUES, length=99_000_000), "header of 99"),
    "a header that ends in the middle": (safetensors({"a": entry()}, VALUES, length=20), "JSON"),
    "blanks before the header": (safetensors(b'  {"a":1}'), "not a weight file"),
    "values after the header's object": (safetensors(b"{}\0\0"), "trailing characters"),
    "a byte order mark": (safetensors(b"\xef\xbb\xbf{}"), "not a weight file"),
    "a list": (safetensors(b"[1]"), "not a weight file"),
    "an entry that is a list": (headed(text("a", [])), "JSON"),
    "an entry that is null": (headed(text("a", None)), "JSON"),
    "text that is not UTF-8": (safetensors(b'{"\xff":{}}'), "UTF-8"),
    "half a surrogate": (safetensors(b'{"\\ud800":{}}'), "JSON"),
    "lists within lists": (headed(text("a", "[" * 50_000 + "]" * 50_000)), "recursion limit"),
    "objects within objects": (headed(text("a", '{"a":' * 50_000 + "1" + "}" * 50_000)), "JSON"),
    "lists in a field that nobody knows": (one(x=[[[[[1]]]]]), "more than a type"),
    "an object in a field that nobody knows": (one(x={"y": 1}), "more than a type"),
    "a field that nobody knows": (one(x="y"), "more than a type"),
    "a tensor twice": (headed(A, A), "a name twice"),
    "a tensor twice, escaped": (headed(A, A.replace('"a"', '"\\u0061"')), "a name twice"),
    "a field twice": (headed(A.replace('"dtype"', '"dtype":"F32","dtype"')), "duplicate field"),
    "an unknown field twice": (headed(A.replace('"dtype"', '"x":1,"x":2,"dtype"')), "are named 'x'"),
    "metadata twice": (headed(text("__metadata__", {}), text("__metadata__", {}), A), "duplicate|twice"),
    "a key of the metadata twice": (headed(text("__metadata__", '{"k":"1","k":"2"}'), A), "are named 'k'"),
    "metadata of numbers": (headed(text("__metadata__", {"k": 1}), A), "expected a string"),
    "metadata that is a tensor": (headed(text("__metadata__", entry())), "expected a string|JSON"),
    "a hole before": (safetensors({"a": entry(begin=4, end=52)}, b"...." + VALUES), "invalid offset"),
    "a hole between": (headed(A, text("b", entry((1,), 52, 56)), data=VALUES + bytes(8)), "invalid offset"),
    "overlapping tensors": (headed(A, text("b", entry((3,), 40, 52)), data=VALUES + bytes(4)), "invalid offset"),
    "two tensors at one place": (headed(A, text("b", entry())), "invalid offset"),
    "a tensor past the end": (safetensors({"a": entry()}, VALUES[:-1]), "not fully covered"),
    "bytes after the tensors": (safetensors({"a": entry()}, VALUES + b"x"), "not fully covered"),
    "offsets of 2^63": (one(begin=1 << 63, end=(1 << 63) + 48), "offset|overflow"),
    "offsets of 2^64": (one(begin=0, end=1 << 64), "JSON"),
    "a negative offset": (one(begin=-48, end=0), "integer `-48`"),
    "an end before the beginning": (one(begin=48, end=0), "invalid"),
    "a float for an offset": (headed(A.replace("48]", "48.0]")), "floating point"),
    "one offset": (headed(A.replace("[0, 48]", "[48]")), "JSON"),
    "three offsets": (headed(A.replace("[0, 48]", "[0, 48, 48]")), "JSON"),
    "fewer bytes than the shape wants": (one(shape=(3, 5)), "invalid shape|mismatch|not match"),
    "a negative size": (one(shape=(-3, -4)), "integer `-3`"),
    "a float for a size": (one(shape=(3.0, 4)), "floating point"),
    "a bool for a size": (one(shape=(True, 12)), "JSON"),
    "NaN for a size": (headed(A.replace("[3, 4]", "[NaN]")), "JSON"),
    "a product that wraps": (one(shape=(1 << 33, 1 << 33)), "overflow"),
    "bytes that wrap": (one(shape=(1 << 61,), dtype="F64"), "overflow"),
    "an empty product that wraps": (headed(text("a", entry((0, 1 << 63, 4), 0, 0)), data=b""), "too large"),
    "100 dimensions": (one(shape=(1,) * 98 + (3, 4)), "100 dimensions"),
    "an unknown type": (one(dtype="F33"), "unknown variant"),
    "a type of half a byte": (one(shape=(96,), dtype="F4"), "which is not read"),
    "a type of 8 bits": (one(shape=(48,), dtype="F8_E4M3"), "which is not read"),
    "complex numbers": (one(shape=(6,), dtype="C64"), "which is not read"),
    "booleans of 2 and more": (one(shape=(48,), dtype="BOOL"), "other than 0 and 1"),
    "an empty name": (headed(text("", entry())), "name is empty"),
    "a name with NUL": (headed(text("a\0b", entry())), "NUL"),
    "a long name": (headed(text("x" * 5000, entry())), "longer than"),
}  # fmt: skip


def _bombs() -> Iterator[tuple[str, bytes, str]]:
    """Files of some MiB that ask for much more time or memory."""
    many = ",".join(text(f"t{i}", entry((0,), 0, 0)) for i in range(30_000))
    yield "safetensors: a header of 5 MiB", safetensors(b"{" + b" " * (5 << 20) + b"}"), "at most"
    brackets = '{"dtype":"F32","shape":[0],"data_offsets":[0,0],"x":[' + "[]," * 650_000 + "[]]}"
    yield "safetensors: 2 MiB of brackets", headed(text("a", brackets), data=b""), "more than a type"
    words = brackets.replace("[],", '"xy",', 380_000).replace("[],", "").replace("[]]", '""]')
    yield "safetensors: 2 MiB of words", headed(text("a", words), data=b""), "more than a type"
    sizes = json.dumps(entry((0, *[1000] * 300_000), 0, 0))
    yield "safetensors: 2 MiB of sizes", headed(text("a", sizes), data=b""), "300001 dimensions"
    yield "safetensors: 30000 tensors and a bad one", headed(many, text("a", entry()), data=VALUES[1:]), "covered"
    yield "safetensors: 30000 tensors and one twice", headed(many, text("t9", entry((0,), 0, 0)), data=b""), "a name twice"
    for title, body in (
        ("opcodes", b"N0" * 200_000),
        ("lists", b"]" * 200_000),
        ("lists that are remembered", b"]\x94" * 200_000),
        ("tuples", b"N" + b"\x85" * 200_000),
        ("dicts", b"}" * 200_000),
        ("numbers", b"M\xff\xff" * 200_000),
        ("wide numbers", (b"\x8a\xff" + b"\x7f" * 255) * 30_000),
        ("wide text", (b"X\0\0\x10\0\xf0\x9f\x98\x80" + b"x" * (0x100000 - 4)) * 7),
        ("keys", b"}(" + b"".join(b"J" + i.to_bytes(4, "little") + b"N" for i in range(200_000)) + b"u"),
        ("names", b"".join(b"cos\nx%d\n0" % i for i in range(200_000))),
        ("a pickle of 9 MiB", b"N" * (9 << 20)),
    ):
        yield f"saved: {title}", saved(Raw(body + b"N")), ""
    yield "legacy: opcodes", legacy(Raw(b"N0" * 300_000 + b"N")), "opcodes"
    shared = Raw(b"}" + b"q\0" b"0}K\1h\0sK\2h\0s" * 15)
    yield "saved: dicts that are shared", saved(shared), "items in the dicts|no tensors"
    entries = {"a/data.pkl": program(GOOD)} | {f"a/data/{i}": b"" for i in range(20_000)}
    yield "zip: 20000 entries", archive(entries), "20001 entries"
    entries = {"a/data.pkl": program(GOOD)} | {f"a/data/{i}": b"" for i in range(10_000)}
    yield "zip: 10000 entries", archive(entries), "0 bytes, expected 48"


def corpus() -> Iterator[tuple[str, bytes, str]]:
    """(title, content, a pattern of the error's message) of every hostile weight file."""
    for title, (value, reason) in PICKLES.items():
        for make in (saved, legacy):
            yield f"{make.__name__}: {title}", make(value), reason
    for title, (content, reason) in FILES.items():
        yield f"file: {title}", content, reason
    for title, (content, reason) in SAFETENSORS.items():
        yield f"safetensors: {title}", content, reason
    yield from _bombs()
