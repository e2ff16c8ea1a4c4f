"""The scripts of the paper's own evidence: their quick runs, and the recorder of features that they stand on."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
from paths import ROOT

from cdad import ContinualModel, _core
from cdad.results import read_json

DRAWS = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.fixture
def quick(script, tmp_path, capsys):
    """Runs a script's ``--quick``; returns its records by name and what it printed."""

    def run(name: str, *more: str) -> tuple[dict[str, dict], str]:
        picture, records = tmp_path / "picture.png", tmp_path / "records.json"
        how = ["--quick", "--json", str(records), "--png", str(picture) if DRAWS else "", *more]
        assert script(name).main(how) == 0
        assert not DRAWS or picture.read_bytes().startswith(b"\x89PNG")
        found = json.loads(records.read_text())
        wanted = {"name", "value", "unit", "peer", "peer_value", "ratio", "command"}
        assert found and all(set(record) == wanted for record in found)
        return {record["name"]: record for record in found}, capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def first(first_checkpoint):
    return ContinualModel.load(first_checkpoint)


def drawn(model, seed=0):
    size = model.config.image_size
    images = np.clip(_core.random_normal((model.config.scoring.batch_size, size, size, 3), seed, 0) * 0.2 + 0.5, 0, 1)
    return images, model.autoencoder.encode(images)


def test_recorded_features_are_what_a_collector_takes_in(script, first):
    evidence = script("evidence")
    names, batches = evidence.weights(first), [drawn(first, seed) for seed in (0, 1)]
    collector = _core.Collector(first.drawing.samplers.whole)
    for images, latents in batches:
        first.drawing.denoise(images, latents, 0)
    bases = collector.bases({})
    del collector
    streams = {name: _core.Stream(U.shape[0]) for name, (U, _, _) in bases.items()}
    assert sorted(streams) == sorted(names)
    recorder = _core.Recorder(first.drawing.samplers.whole, names)
    calls = {}
    for images, latents in batches:
        first.drawing.denoise(images, latents, 0)
        for name, X in recorder.take().items():
            for part in np.split(X, 2 if name.startswith("unet") else 1):  # the noise and its negative
                streams[name].add(part)
            calls[name] = calls.get(name, 0) + 1
    assert set(calls.values()) == {2}
    assert all(X.shape[0] == 0 for X in recorder.take().values()), "what was taken is gone"
    for name, stream in streams.items():
        U, energy = stream.basis()
        assert energy == pytest.approx(bases[name][1], rel=1e-6) and U.shape == bases[name][0].shape, name
        assert np.linalg.norm(U.T @ bases[name][0]) == pytest.approx(U.shape[1] ** 0.5, rel=1e-4), name


@pytest.mark.parametrize("layer", [0, 1])
def test_what_the_output_projection_reads_is_the_attention_of_what_is_recorded(first, layer):
    model, at = first.config, f"amn.encoder.layers.{layer}.self_attn."
    names = [f"{at}{part}_proj.weight" for part in ("q", "k", "v", "out")]
    recorder = _core.Recorder(first.drawing.samplers.whole, names)
    images, latents = drawn(first)
    first.drawing.denoise(images, latents, 0)
    found = recorder.take()
    *inputs, output = (found[name].reshape(len(images), -1, found[name].shape[1]).astype(np.float64) for name in names)
    side = int(output.shape[1] ** 0.5)
    weights, biases = ([first.params[name.replace("weight", end)] for name in names] for end in ("weight", "bias"))
    q, k, v = (reference.linear(x, w.astype(np.float64), b) for x, w, b in zip(inputs, weights, biases))
    mask = dict(zip(("mask_h", "mask_w"), model.amn.neighbor)) | {"grid_h": side, "grid_w": side}
    wanted, _ = reference.attention(q, k, v, heads=model.amn.num_heads, **mask)
    assert np.linalg.norm(output - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_a_recorder_refuses(first):
    sampler = first.drawing.samplers.whole
    name, bias = "unet.time_embed.2.weight", "unet.time_embed.2.bias"
    for names, message in (["nothing"], "no parameter nothing"), ([bias], "no weight"), ([name, name], "recorded already"):
        with pytest.raises(ValueError, match=message):
            _core.Recorder(sampler, names)
    with pytest.raises(TypeError):
        _core.Recorder(sampler, [1])
    with pytest.raises(TypeError, match="a Sampler is wanted"):
        _core.Recorder(first, [name])
    recorder = _core.Recorder(sampler, [name])
    for other in (lambda: _core.Collector(sampler), lambda: _core.Recorder(sampler, [name])):
        with pytest.raises(ValueError, match="attached to this sampler"):
            other()
    del recorder
    assert _core.Recorder(sampler, [name]).take()[name].shape[0] == 0


def test_drift(quick):
    records, printed = quick("drift")

    def of(variant: str, measure: str) -> float:
        return records[f"drift_{variant}_projected_{measure}"]["value"]

    def unprotected(measure: str) -> float:
        return records[f"drift_update_projected_{measure}"]["peer_value"]

    assert of("update", "in_the_basis_max") < 1e-5 and of("gradient", "in_the_basis_mean") > 1e-3
    for measure in ("in_the_basis_mean", "old_features_mean", "whole_network_mean", "output"):
        assert of("update", measure) < of("gradient", measure) < unprotected(measure)
        assert unprotected(measure) > 1e-2
    assert of("update", "in_the_basis_mean") < of("update", "old_features_mean")
    assert records["drift_update_projected_output"]["ratio"] == pytest.approx(unprotected("output") / of("update", "output"))
    assert "after steel" in printed


def test_drift_is_that_of_the_weights(script, first, first_checkpoint, products):
    """Half of every weight is half of every output on the same features, and an unchanged model does not drift."""
    drift = script("drift")
    half = ContinualModel.load(first_checkpoint)
    for name in half.params.shapes():
        half.params[name] = half.params[name] * np.float32(0.5)
    layers, outputs = drift.drifts(first, {"same": first, "half": half}, [products["gear"]], 4)
    assert outputs["same"] == 0 < outputs["half"]
    assert all(not values.any() for values in layers["same"].values())
    assert layers["half"]["old features"] == pytest.approx(0.5, rel=1e-5)
    assert np.all(layers["half"]["in the basis"] <= 0.5 * 1.05) and np.median(layers["half"]["in the basis"]) > 0.45


def test_projected_values(quick):
    records, printed = quick("projected_values")
    one, first, last = (records[f"projection_error_{key}"] for key in ("one_SVD", "iSVD_n_=_1", "iSVD_n_=_10"))
    exact = one["value"]
    assert exact**2 == pytest.approx(one["peer_value"] ** 2, abs=1e-4), "the energy of one SVD"
    assert 0.019 < exact**2 <= 0.02 < first["peer_value"] ** 2, "iSVD stops one direction short of the threshold"
    assert last["peer_value"] > 1.5 * exact, "earlier products fade"
    assert "5000 x 256" in printed


def test_values_of_a_projection(script):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((5000, 8)).astype(np.float32) + np.float32(0.5)
    U = np.eye(8, dtype=np.float32)[:, :6]
    edges, projected = np.linspace(-5, 5, 11), X.copy()
    projected[:, 6:] = 0
    found = script("projected_values").values(X, U, edges)
    assert found["mean"] == pytest.approx(projected.mean(), abs=1e-5) and found["std"] == pytest.approx(projected.std(), rel=1e-5)
    assert found["histogram"] == pytest.approx(np.histogram(projected, edges)[0] / X.size)
    assert found["energy"] == pytest.approx((projected**2).sum() / (X**2).sum(), rel=1e-5)
    assert found["error"] ** 2 == pytest.approx(1 - found["energy"], rel=1e-4)


def test_projected_values_of_a_model(quick, first_checkpoint, root, capsys):
    how = ["--model", str(first_checkpoint), "--data", str(root)]
    records, printed = quick("projected_values", *how, "--layer", "unet.time_embed.2.weight")
    assert 0 <= records["projection_error_one_SVD"]["value"] ** 2 <= 0.02 + 1e-4
    with pytest.raises(SystemExit):
        quick("projected_values", *how, "--layer", "nothing")
    assert "unet.time_embed.2.weight (" in capsys.readouterr().err


def test_features_come_class_after_class(script, first, products):
    evidence = script("evidence")
    name = evidence.weights(first)[0]
    gear, cloth = (evidence.layer_features(first, [products[c]], name, 50) for c in ("gear", "cloth"))
    both = evidence.layer_features(first, [products["gear"], products["cloth"]], name, 100)
    assert np.array_equal(both, np.concatenate([gear, cloth])) and len(gear) == 50
    assert not np.array_equal(gear, cloth)


def test_made_up_features(script):
    X = script("evidence").made_up_features(4000, 64, groups=4)
    assert np.mean(X * X) == pytest.approx(1, abs=0.01)
    energies = np.linalg.svd(X, compute_uv=False) ** 2
    assert energies[:8].sum() > 0.7 * energies.sum() and energies[-1] > 0
    parts = np.split(X, 4)
    V = np.linalg.svd(parts[0], full_matrices=False)[2][:8].T
    held = [np.square(part @ V).sum() / np.square(part).sum() for part in parts]
    assert held[0] > max(held[1:]) + 0.1, "every product has directions of its own"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")
def test_table8(quick):
    records, printed = quick("table8", "--threads", "1")
    assert sorted(records) == sorted(f"basis_{what}_n{n}_e0.98" for what in ("time", "memory") for n in (1, 5))
    assert all(record["value"] > 0 and record["peer_value"] > 0 for record in records.values())
    whole, blocks = (records[f"basis_memory_n{n}_e0.98"] for n in (1, 5))
    block = 5000 * 256 * 4 / 2**20
    assert whole["peer_value"] > 1.8 * block, "iSVD holds a block and a copy of it"
    assert block < whole["value"] < whole["peer_value"] and blocks["value"] < whole["value"]
    rows = [line.split() for line in printed.splitlines() if line[:1] in "15" and "0.98" in line]
    assert [float(row[5]) for row in rows][0] == pytest.approx(0.98, abs=0.002) and float(rows[1][5]) < 0.95
    assert all(float(row[9]) >= 0.98 for row in rows), "the exact stream holds what was asked for"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")
def test_saving(quick):
    records, printed = quick("saving")
    peers = ["", "_published"] if importlib.util.find_spec("torch") else [""]
    assert sorted(records) == sorted(f"saving_{what}_{d}x4{peer}" for what in ("time", "memory") for d in (320, 640) for peer in peers)
    assert all(record["value"] > 0 and record["peer_value"] > 0 for record in records.values())
    assert all(records[f"saving_memory_{d}x4"]["ratio"] > 2 for d in (320, 640)), "beside all features, and their decomposition"
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] in (["320"], ["640"])]
    energies = {(row[0], row[2]): float(row[-7]) for row in rows}
    for d in "320", "640":
        assert energies[d, "one"] == pytest.approx(0.999, abs=2e-4) and energies[d, "auto"] == energies[d, "exact"] >= 0.999
        assert energies[d, "iSVD"] < 0.98, "earlier images fade"
        assert "_published" not in peers or energies[d, "Algorithm"] == pytest.approx(energies[d, "iSVD"], abs=1e-3)


def test_theory_of_saving(script):
    theory = script("saving").theory
    assert theory("svd", 10, 3, 20, 5, 0.999) == (4 * 10 * 60, 60 * 100)
    assert theory("isvd", 10, 3, 20, 5, 0.999) == theory("published", 10, 3, 20, 5, 0.999) == (4 * 10 * 25, 3 * 25 * 100)
    assert theory("exact", 10, 3, 20, 5, 0.999) == theory("auto", 10, 3, 20, 5, 0.999) == (12 * 100, 60 * 100 + 1000)
    assert theory("auto", 5000, 2, 100, 50, 0.999) == (4 * 5000 * 200, 5000 * 200 * 50 + 200 * 2500), "a weighted basis"


def test_pictures_want_matplotlib(script, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for name in ("drift", "projected_values", "saving", "table8"):
        with pytest.raises(SystemExit, match="pip install matplotlib"):
            script(name).main(["--quick", "--png", str(tmp_path / "picture.png")])


def test_gamma(quick, script, tmp_path, monkeypatch):
    out = str(tmp_path / "runs")
    records, printed = quick("gamma", "--out", out, "--gammas", "0", "0.9", "1")
    assert len(records) == 2 * 5 * 2 and all(r["peer"] == "gamma 0" and r["unit"] == "percent" for r in records.values())
    runs = tmp_path / "runs" / "cloth+gear_steel" / "gamma-seed0"
    configs = [(runs / name / "config.toml").read_text() for name in ("0", "0.9", "1")]
    assert 'strategy = "finetune"' in configs[0] and "gamma = 0.9\n" in configs[1] and "gamma = 1.0\n" in configs[2]
    assert not list((runs / "0.9").rglob("*.safetensors")) and (runs / "first" / "tasks" / "0.safetensors").exists()
    R = [read_json(runs / name / "results.json").matrix["pixel_auroc"] for name in ("0", "0.9", "1")]
    assert R[0][0, 0] == R[1][0, 0] == R[2][0, 0], "one first task"
    assert len({r[1, 0] for r in R}) == 3, "and three ways to go on"
    for name, r in records.items():
        higher, lower = (r["value"], r["peer_value"]) if name.endswith("average") else (r["peer_value"], r["value"])
        assert r["ratio"] is None or r["ratio"] == pytest.approx(higher / lower)

    def no_more(*args, **kwargs):
        raise AssertionError("a finished run is only read")

    monkeypatch.setattr(script("gamma").cdad, "run_protocol", no_more)
    again, _ = quick("gamma", "--out", out, "--gammas", "0", "0.9", "1")
    assert {n: r["value"] for n, r in again.items()} == {n: r["value"] for n, r in records.items()}
    with pytest.raises(ValueError, match="another configuration"):
        quick("gamma", "--out", out, "--gammas", "0", "--set", "training.lr=0.002")


def test_samplers_are_those_that_are_asked_for(first_checkpoint, root, script, tmp_path, monkeypatch):
    steps = script("steps")

    used = []
    monkeypatch.setattr(steps, "SETTINGS", {steps.PEER: steps.SETTINGS[steps.PEER], "2 steps": steps.SETTINGS["2 steps"]})
    predict = ContinualModel.predict

    def noted(model, *what, **how):
        used.append(model.drawing.config.diffusion.steps)
        return predict(model, *what, **how)

    monkeypatch.setattr(ContinualModel, "predict", noted)
    arguments = [str(first_checkpoint), "--data", str(root), "--classes", "gear", "--seeds", "0", "--rounds", "1"]
    assert steps.main([*arguments, "--json", str(tmp_path / "records")]) == 0
    assert set(used) == {10, 2}
    records = {record["name"]: record for record in json.loads((tmp_path / "records").read_text())}
    assert len(records) == 8 and records["sampler_10_steps_time"]["value"] > 0
