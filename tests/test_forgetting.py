"""The benchmark of strategies: its quick run, from choosing strengths to records, and going on."""

from __future__ import annotations

import json

import pytest
from paths import benchmark

from cdad import run


@pytest.fixture(scope="module")
def forgetting():
    return benchmark("forgetting")


def test_a_quick_run(forgetting, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forgetting, "TUNED", {"mas": (1.0, 1e4)})
    monkeypatch.setattr(forgetting, "BEYOND", 1)
    out = tmp_path / "runs"
    how = ["--quick", "--out", str(out), "--strategies", "finetune", "mas"]
    assert forgetting.main([*how, "--tune"]) == 0
    folder = out / "gear+cloth_steel_plank"
    chosen, tried = (json.loads((folder / f"{name}.json").read_text()) for name in ("strengths", "tuning"))
    assert len(tried) in (5, 6), "fine-tuning, two strengths, one beyond the better of them, one or two beside the best"
    assert f"mas {chosen['mas']:g}" in tried
    assert all(error > 0 for errors in tried.values() for error in errors.values())
    assert tried["mas 10000"] != tried["finetune 1"]

    assert forgetting.main([*how, "--json", str(tmp_path / "records.json")]) == 0
    records = json.loads((tmp_path / "records.json").read_text())
    assert len(records) == 10 and all(r["peer"] == "fine-tuning" and r["unit"] == "percent" for r in records)
    for r in records:
        better = (r["value"], r["peer_value"]) if r["name"].endswith("average") else (r["peer_value"], r["value"])
        assert r["ratio"] is None or r["ratio"] == pytest.approx(better[0] / better[1])
    config = (folder / "seed0" / "mas" / "config.toml").read_text()
    assert f"strength = {chosen['mas']}" in config
    assert not list((folder / "seed0" / "mas").rglob("*.safetensors")), "a finished run keeps no checkpoint"
    table = (out / "table.txt").read_text()
    assert "finetune" in table and "image_auroc A-" in table

    def no_more(*args, **kwargs):
        raise AssertionError("a finished run is only read")

    monkeypatch.setattr(forgetting.cdad, "run_protocol", no_more)
    assert forgetting.main([*how, "--json", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert [r["value"] for r in again] == [r["value"] for r in records]
    with pytest.raises(ValueError, match="another configuration"):
        forgetting.main([*how, "--set", "training.lr=0.002"])
    kept = run.read_config(folder / "seed0" / "mas")
    run.check_same_run(kept, folder / "seed0" / "mas")
    with pytest.raises(ValueError, match=r"another configuration \(continual.strength"):  # its checkpoints are gone, its results are not
        run.check_same_run(kept.updated({"continual.strength": 2 * kept.continual.strength}), folder / "seed0" / "mas")
    capsys.readouterr()
