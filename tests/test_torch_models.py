"""The benchmarks against PyTorch: both sides compute the same, and records are written (tests/test_parity.py: models)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from paths import benchmark

from cdad.weights.efficientnet import find_efficientnet_lite0

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
TOLERANCE = 2e-5
peer, speed = benchmark("torch_models"), benchmark("run")


def to_core(tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / (np.linalg.norm(wanted) + 1e-30))


@pytest.mark.parametrize("name", ["conv3x3_1280x8", "attention_1024x320", "group_norm_silu", "vae_decode", "amn_forward"])
def test_both_sides_of_a_benchmark_compute_the_same(name):
    sides = {side: speed.BENCHMARKS[name]()(side)() for side in ("cdad", "torch")}
    assert error(sides["cdad"][0], to_core(sides["torch"])) < 5 * TOLERANCE


@pytest.mark.skipif(find_efficientnet_lite0() is None, reason="the backbone's weights are not installed")
def test_image_to_score_computes_the_same():
    mine, theirs = (speed.image_to_score(2)(side)() for side in ("cdad", "torch"))
    assert mine == pytest.approx(theirs.numpy(), rel=1e-3)


def test_a_benchmark_writes_its_records(tmp_path, monkeypatch):
    out = tmp_path / "records.json"
    monkeypatch.setattr("sys.argv", ["run.py", "--quick", "--only", "group_norm_silu", "--json", str(out)])
    assert speed.main() == 0
    (record,) = json.loads(out.read_text())
    assert set(record) == {"name", "value", "unit", "peer", "peer_value", "ratio", "command"}
    assert record["name"] == "group_norm_silu" and record["value"] > 0 and record["peer_value"] > 0
    assert record["ratio"] == pytest.approx(record["peer_value"] / record["value"])
