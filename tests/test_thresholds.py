"""Decisions: a threshold a class, from held-out normal images, kept with the model."""

from __future__ import annotations

import copy
import csv
import json
import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from cdad import ContinualModel
from cdad.cli import main
from cdad.errors import CheckpointError
from cdad.evaluation import Decisions, evaluate_class
from cdad.thresholds import Threshold


def paths(data, label):
    return [sample.path for sample in data.test if sample.label == label]


def test_the_quantile_of_normal_scores():
    scores = np.array([3.0, 1.0, 2.0, 10.0], np.float32)
    assert Threshold.of(scores, 1.0, 2) == Threshold(10.0, 1.0, 4, 2)
    assert Threshold.of(scores, 0.5, 1).value == 3.0  # the higher of the two in the middle
    for given, quantile, message in ((scores, 0.0, "0 < quantile"), (scores, 1.1, "0 < quantile"), (scores[:0], 1.0, "there are none")):
        with pytest.raises(ValueError, match=message):
            Threshold.of(given, quantile, 1)


def test_decisions_are_kept(model, products, tmp_path):
    good, bad = paths(products["gear"], 0), paths(products["gear"], 1)
    with pytest.raises(ValueError, match="there is no threshold"):
        model.predict(bad, "gear").anomalous  # noqa: B018
    value = model.set_threshold("gear", good)
    assert value == model.predict(good, "gear").scores.max()
    lower = model.set_threshold("gear", good, quantile=0.25)
    assert lower == np.quantile(model.predict(good, "gear").scores, 0.25, method="higher") < value
    model.set_threshold("gear", good)
    model.save(tmp_path / "model.safetensors")
    for other in (model, ContinualModel.load(tmp_path / "model.safetensors"), copy.copy(model),
                  ContinualModel.load(tmp_path / "model.safetensors", predict_only=True)):  # fmt: skip
        found = other.predict(good + bad, "gear")
        assert found.threshold == value and not found.anomalous[: len(good)].any()
        assert np.array_equal(found.anomalous, found.scores > value)
        assert other.predict(good).threshold is None and other.predict(good, "cloth").threshold is None
    for name in ("steel", None):
        with pytest.raises(ValueError, match="was not learned"):
            model.set_threshold(name, good)


def test_a_later_task_makes_it_old(model, products, caplog):
    good = paths(products["gear"], 0)
    model.set_threshold("gear", good)
    model.predict(good, "gear")
    assert not caplog.records
    model.fit_task([products["steel"]], progress=False)
    caplog.clear()
    assert model.predict(good, "gear").threshold is not None
    assert "measured after 1 of 2 tasks" in caplog.text
    caplog.clear()
    model.predict(good, "gear")
    assert not caplog.records  # told once
    model.set_threshold("gear", good)
    model.predict(good, "gear")
    assert not caplog.records


def test_a_threshold_of_other_scores_is_dropped(model, products, tmp_path, caplog):
    good, path = paths(products["gear"], 0), tmp_path / "model.safetensors"
    value = model.set_threshold("gear", good)
    model.save(path)
    model.recalibrate([products["gear"]])  # to what it was
    assert ContinualModel.load(path, model.config.updated({"scoring.batch_size": 2})).thresholds["gear"].value == value
    assert model.thresholds["gear"].value == value and not caplog.records
    for changes in ({"scoring.top": 0.0}, {"diffusion.steps": 2}):
        assert not ContinualModel.load(path, model.config.updated(changes)).thresholds
    few = {"gear": products["gear"].train[:2]}
    model.recalibrate(few)
    assert model.predict(good, "gear").threshold is None and caplog.text.count("the thresholds of gear") == 3


@pytest.mark.parametrize(
    "changes",
    [{"seed": 5}, {"precision": "bfloat16"}, {"unet.norm_groups": 4}, {"unet.num_heads": 4}, {"amn.neighbor": [5, 5]}, {"training.ema_decay": 0.0}],
    ids=str,
)
def test_a_threshold_is_of_what_draws(products, quick_config, tmp_path, changes):
    """Noise, rounding and structure that no weight's shape tells change scores as a sampler does."""
    path, good = tmp_path / "model.safetensors", paths(products["gear"], 0)
    config = quick_config.updated({"continual.strategy": "finetune", "training.ema_decay": 0.5, "training.steps": 2})
    model = ContinualModel(config)
    model.fit_task([products["gear"]], progress=False)
    model.set_threshold("gear", good)
    model.save(path)
    same = {"training.lr": 1.0, "continual.strategy": "cdad", "amn.target": "as_written", "preset": "small"}
    assert ContinualModel.load(path, config.updated(same)).thresholds == model.thresholds
    other = ContinualModel.load(path, config.updated(changes))
    assert not np.array_equal(other.predict(good, "gear").scores, model.predict(good, "gear").scores)
    assert not other.thresholds


def test_a_damaged_threshold(model, products, tmp_path, monkeypatch):
    model.thresholds = {"gear": Threshold(1.0, 1.0, 3, 1)}
    monkeypatch.setattr(Threshold, "to_dict", lambda self: {"value": "much"})
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="do(es)? not fit together"):
        ContinualModel.load(tmp_path / "model.safetensors")


def test_commands(first_checkpoint, products, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    file.write_bytes(first_checkpoint.read_bytes())
    good, bad = (list(map(str, paths(products["gear"], label))) for label in (0, 1))
    assert main(["predict", str(file), *good, "--class", "gear"]) == 0
    assert capsys.readouterr().out.startswith("image,score\n")
    assert main(["threshold", str(file), *good, "--class", "gear"]) == 0
    value = float(capsys.readouterr().out.split()[1].rstrip(","))
    assert main(["predict", str(file), *good, *bad, str(tmp_path / "none.png"), "--class", "gear"]) == 1
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["image", "score", "anomalous"] and rows[-1][1:] == ["", ""]
    assert all(row[2] == str(int(float(row[1]) > value)) for row in rows[1:-1])
    assert [row[2] for row in rows[1 : 1 + len(good)]] == ["0"] * len(good)
    assert main(["threshold", str(file), *good, "--class", "gear", "--quantile", "2"]) == 1
    assert "0 < quantile" in capsys.readouterr().err
    assert ContinualModel.load(file).thresholds["gear"].quantile == 1.0


def test_an_evaluation_tells_what_a_threshold_decides(model, products):
    assert evaluate_class(model, products["gear"]).decisions is None
    scores = model.predict([sample.path for sample in products["gear"].test], "gear").scores
    middle = float(np.median(scores))
    model.thresholds = {"gear": Threshold(middle, 1.0, 3, 1)}
    found = evaluate_class(model, products["gear"]).decisions
    defective = np.array([sample.label for sample in products["gear"].test], bool)
    above = scores > middle
    assert found == Decisions(middle, (defective & above).sum(), (defective & ~above).sum(), (~defective & above).sum(), (~defective & ~above).sum())
    assert found.precision == precision_score(defective, above) and found.recall == recall_score(defective, above)
    assert found.f1 == pytest.approx(f1_score(defective, above))
    assert Decisions(1.0, 0, 3, 2, 5).f1 == 0 and math.isnan(Decisions(1.0, 0, 0, 2, 5).f1) and math.isnan(Decisions(1.0, 0, 3, 0, 5).precision)


def test_a_command_tells_decisions(first_checkpoint, root, products, tmp_path, capsys):
    file, out = tmp_path / "model.safetensors", tmp_path / "report"
    file.write_bytes(first_checkpoint.read_bytes())
    assert main(["eval", str(file), "--data", str(root), "--quiet"]) == 0
    assert "thresholds" not in capsys.readouterr().out
    good = paths(products["gear"], 0)
    assert main(["threshold", str(file), *map(str, good), "--class", "gear"]) == 0
    capsys.readouterr()
    assert main(["eval", str(file), "--data", str(root), "--quiet", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    decided = json.loads((out / "metrics.json").read_text())["gear"]["decisions"]
    assert decided["refused"] == 0 and decided["passed"] == len(good)
    assert f"{decided['found']} of {decided['found'] + decided['missed']}" in told and f"0 of {len(good)}" in told
    with open(out / "scores.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert sum(row["anomalous"] == "1" for row in rows if row["class"] == "gear") == decided["found"]
    assert {row["anomalous"] for row in rows if row["class"] != "gear"} <= {""}


def test_scores_that_are_no_numbers_give_no_threshold(model, products, monkeypatch):
    with pytest.raises(ValueError, match="image 1 has the score nan"):
        Threshold.of(np.array([1, np.nan, 2], np.float32), 1.0, 1)
    monkeypatch.setattr(ContinualModel, "_predict", lambda *_: pytest.fail("the quantile is looked at first"))
    with pytest.raises(ValueError, match="0 < quantile"):
        model.set_threshold("gear", paths(products["gear"], 0), quantile=95)


def test_predictions_are_keys(model, products):
    first, second = (model.predict(paths(products["gear"], 0)[:1]) for _ in range(2))
    assert first == first and first != second and len({first, second}) == 2
