"""The models against others' code (benchmarks/parity.py), and the files that their weights come from."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from paths import benchmark
from safetensors.numpy import save_file

from cdad.autoencoder import Autoencoder
from cdad.config import AutoencoderConfig
from cdad.errors import FormatError
from cdad.features import FeatureDistance
from cdad.weights.resnet import RESNETS

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
parity = benchmark("parity")


@pytest.mark.parametrize("case", parity.CASES, ids=lambda case: case.name)
def test_models_compute_what_others_do(case):
    if case.missing:
        pytest.skip(f"not installed: {', '.join(case.missing)}")
    rows = list(case.compare())
    assert rows
    for row in rows:
        assert row.error < row.bound, row


def test_rows_are_written_as_records(tmp_path, monkeypatch):
    rows = [parity.Row("U-Net", "v", "losses", error, "PyTorch 1.0", 3e-5) for error in (1e-5, 0.0, 1e-3)]
    monkeypatch.setattr(parity, "CASES", [parity.Case(lambda: iter(rows), "made up")])
    monkeypatch.setattr(sys, "argv", ["parity.py", "--json", "rows.json"])
    assert parity.main(["--json", str(tmp_path / "rows.json")]) == 1
    records = json.loads((tmp_path / "rows.json").read_text())
    assert records[0] == {"name": "U-Net, v: losses", "value": 1e-5, "unit": "relative error", "peer": "PyTorch 1.0",
                          "peer_value": 3e-5, "ratio": pytest.approx(3), "command": "python parity.py --json rows.json"}  # fmt: skip
    assert [record["ratio"] for record in records[1:]] == [None, pytest.approx(0.03)]


@pytest.mark.skipif(os.environ.get("CDAD_SLOW") != "1", reason="sd15 takes 14 GiB and minutes: CDAD_SLOW=1 runs it")
def test_the_full_size_model_computes_what_pytorch_does():
    for row in parity.FULL_SIZE.compare():
        assert row.error < row.bound, row


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(parity.random_resnet(RESNETS["resnet18"].core_config(), np.random.default_rng(0)), path)
    return path


def test_a_resnet_is_a_backbone(resnet18):
    features = FeatureDistance("resnet18", Autoencoder(AutoencoderConfig(), 64, 2), 64, 2, weights=str(resnet18))
    images = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    other = images.copy()
    other[1, 16:32, 40:56] = 0.5
    distances = features(images, other)
    assert features.name == "resnet18" and distances.shape == (2, 64, 64, 5)
    assert not distances[0].any()
    assert distances[1, 16:32, 40:56, 0].mean() > 10 * distances[1, 40:, :24, 0].mean()


def test_a_resnet_s_file_is_checked(resnet18, tmp_path):
    autoencoder = Autoencoder(AutoencoderConfig(), 64, 2)
    with pytest.raises(FormatError, match="resnet34; 32 missing: layer1.2.conv1.weight"):
        FeatureDistance("resnet34", autoencoder, 64, 2, weights=str(resnet18))
    with pytest.raises(FileNotFoundError):
        FeatureDistance("resnet18", autoencoder, 64, 2, weights=str(tmp_path / "none"))
    bad = tmp_path / "bad.safetensors"
    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32), "bn1.weight": np.zeros(64, np.float32)}, bad)
    with pytest.raises(FormatError, match="holds no ResNet"):
        FeatureDistance("resnet18", autoencoder, 64, 2, weights=str(bad))
