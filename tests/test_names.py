"""Names and shapes that users give in pipelines: a mapping's keys, presets' and protocols' names, NumPy's numbers."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest
from PIL import Image

import cdad
from cdad import ContinualModel, evaluate, plan, preset, protocol, run_protocol
from cdad.evaluation import evaluate_class, write_contact_sheet
from cdad.protocols import Protocol


def test_a_mapping_s_keys_are_the_names(products, quick_config):
    model = ContinualModel(quick_config)
    model.fit_task({"first": products["gear"], "gear": products["steel"]}, progress=False)
    found = evaluate(model, {"first": products["gear"]}, progress=False)["first"]
    told = model.predict([sample.path for sample in products["gear"].test], "first")
    assert found.name == "first" and np.array_equal(found.prediction.scores, told.scores)
    assert not np.array_equal(told.scores, evaluate_class(model, products["gear"]).prediction.scores)


def test_a_run_by_names(products, quick_config, tmp_path):
    quick = quick_config.updated({"training.steps": 1, "training.increment_steps": 1})
    results = run_protocol(quick, {"a": products["gear"], "b": products["steel"]}, "a/b", tmp_path / "run", progress=False)
    assert results.matrix.tasks == ("a", "b") and results.matrix.n_learned == 2
    run_protocol(quick, [products["gear"]], "gear", tmp_path / "list", progress=False)
    for wrong, message in (
        ((3, products, "gear"), "a configuration is wanted"),
        (("tiny", str(tmp_path), "gear"), "a data set is wanted, not a path"),
        (("tiny", products, ("gear",)), "a protocol's name is wanted"),
    ):
        with pytest.raises(TypeError, match=message):
            run_protocol(*wrong, tmp_path / "none")
    with pytest.raises(cdad.DataError, match="did you mean 'gear'"):
        run_protocol("tiny", products, "geer", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_protocols_of_what_is_none():
    for wrong in (None, [["bottle"], ["pill"]]):
        with pytest.raises(TypeError, match="a protocol's name is wanted"):
            protocol(wrong)
    with pytest.raises(TypeError, match="tasks are tuples of class names"):
        Protocol("x", ("bottle", "pill"))


def test_numbers_of_sweeps():
    changed = preset("tiny").updated({"training": {"lr": np.float32(0.25)}, "scoring.layers": np.array([0, 1])})
    assert changed.training.lr == 0.25 and changed.scoring.layers == (0, 1) and hash(changed) == hash(dataclasses.replace(changed))


def test_a_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "c.toml").write_bytes(b'\xef\xbb\xbfpreset = "tiny"\nseed = 3\n')
    assert cdad.Config.from_toml(tmp_path / "c.toml") == preset("tiny").updated({"seed": 3})


def test_a_model_goes_with_its_last_name(first_checkpoint):
    """Not when the collector comes round: its workspace is large, and a device's memory is unknown to that."""
    gc.collect()
    gc.disable()
    try:
        model = ContinualModel.load(first_checkpoint)
        parts = [weakref.ref(part) for part in (model, model.autoencoder, model.features)]
        del model
        assert [part() for part in parts] == [None] * 3
    finally:
        gc.enable()


def test_masks_of_which_nothing_is_left(first_checkpoint, products, caplog, tmp_path):
    """A defect of a few pixels vanishes when its mask is made small; and an image without a mask shows none on the sheet."""
    model = ContinualModel.load(first_checkpoint)
    data = products["gear"]
    defective = [sample for sample in data.test if sample.label]
    size = 4 * model.config.image_size
    mask, image = np.zeros((size, size), np.uint8), np.full((size, size, 3), 128, np.uint8)
    mask[1, 1] = 255
    for name, pixels in (("dot.png", image), ("dot_mask.png", mask)):
        Image.fromarray(pixels).save(tmp_path / name)
    sample = dataclasses.replace(defective[0], path=tmp_path / "dot.png", mask_path=tmp_path / "dot_mask.png")
    evaluate_class(model, dataclasses.replace(data, test=(*data.test, sample)))
    assert "no pixel of 1 masks marks a defect at 64 pixels" in caplog.text and "dot_mask.png" in caplog.text
    caplog.clear()
    masked = evaluate_class(model, data)
    bare = tuple(dataclasses.replace(sample, mask_path=None) for sample in data.test)
    unmasked = evaluate_class(model, dataclasses.replace(data, test=bare))
    assert not caplog.text and np.isnan(unmasked.measures["pixel_auroc"])
    sheets = [write_contact_sheet(found, tmp_path / f"{i}.png").read_bytes() for i, found in enumerate((masked, unmasked))]
    blank = dataclasses.replace(masked, masks=np.zeros_like(masked.masks), measures=unmasked.measures)
    assert write_contact_sheet(blank, tmp_path / "blank.png").read_bytes() not in sheets, "no mask is not a mask without a defect"


def test_the_loss_is_drawn_from_its_first_step(products, quick_config, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("cdad.run.loss_curve", lambda path, values, title: drawn.append(values))
    run_protocol(quick_config.updated({"training.steps": 60}), products, "gear", tmp_path, progress=False)
    rows = (tmp_path / "loss.csv").read_text().splitlines()
    column = rows[0].split(",").index("loss_cdm")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    assert drawn[0] == pytest.approx([np.mean(losses[max(0, i - 49) : i + 1]) for i in range(60)])


def test_later_tasks_of_strategies_that_keep_images():
    config = preset("tiny")
    data = {name: plan(config.updated({"continual.strategy": name})).memory for name in ("cdad", "joint", "replay")}
    first = data["cdad"]["training"]["data"]
    assert first == data["joint"]["training"]["data"] == data["cdad"]["increment"]["data"]
    assert data["joint"]["increment"]["data"] == 2 * first
    assert first < data["replay"]["increment"]["data"] < 1.2 * first


