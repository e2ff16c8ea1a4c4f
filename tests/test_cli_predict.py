"""`cdad predict` and `cdad eval` with what they write, and errors that are told before hours of work."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cdad import ContinualModel, evaluate, open_dataset, run
from cdad.cli import main
from cdad.data import ClassData, Dataset
from cdad.errors import CheckpointError, DataError, ImageError
from cdad.protocols import protocol

QUICK = ["--preset", "tiny", "--quiet", "--set", "training.steps=2", "--set", "training.increment_steps=2", "--set", "scoring.backbone=autoencoder"]


def images_of(products, kind: str):
    return [str(s.path) for s in products["gear"].test if (s.defect == "good") == (kind == "good")]


def test_a_picture_does_not_depend_on_what_else_is_scored(first_checkpoint, products, tmp_path):
    good, bad = images_of(products, "good")[0], images_of(products, "bad")[0]
    for name, images in (("alone", [good]), ("both", [good, bad])):
        assert main(["predict", str(first_checkpoint), *images, "--class", "gear", "--out", str(tmp_path / name), "--raw"]) == 0
    (one,), (other, worse) = (sorted((tmp_path / name).glob("*_map.png")) for name in ("alone", "both"))
    assert one.read_bytes() == other.read_bytes() != worse.read_bytes()
    found = ContinualModel.load(first_checkpoint).predict([good], "gear").maps[0]
    raw = np.load(one.with_suffix(".npy"))
    assert raw.dtype == np.float32 and np.array_equal(raw, found)
    assert len(os.listdir(tmp_path / "both")) == 4


def test_a_folder_stands_for_its_images(first_checkpoint, products, tmp_path, capsys):
    for i, path in enumerate(images_of(products, "good")):
        shutil.copy(path, tmp_path / f"{i}.png")
    assert main(["predict", str(first_checkpoint), str(tmp_path), "--class", "gear"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["image"] for row in rows] == [str(path) for path in sorted(tmp_path.iterdir())]
    (tmp_path / "none").mkdir()
    assert main(["predict", str(first_checkpoint), str(tmp_path / "none")]) == 1
    assert main(["predict", str(first_checkpoint), str(tmp_path), "--raw"]) == 1
    assert main(["predict", str(first_checkpoint), str(tmp_path), "--class", "gaer"]) == 1
    told = capsys.readouterr()
    assert not told.out and "without images" in told.err and "--raw is for" in told.err and "'gaer' was not learned" in told.err


def test_pictures_are_there_as_soon_as_their_scores(first_checkpoint, products, tmp_path, monkeypatch, capsys):
    """What comes in the middle takes none of those before, and an image that goes meanwhile costs its own alone."""
    paths = [shutil.copy(path, tmp_path / f"{i}.png") for i, path in enumerate(images_of(products, "good")[:3])]
    real = ContinualModel.predict

    def predict(self, images, class_name=None):
        found = real(self, images, class_name)
        os.remove(tmp_path / "1.png")
        return found

    monkeypatch.setattr(ContinualModel, "predict", predict)
    assert main(["predict", str(first_checkpoint), *map(str, paths), "--class", "gear", "--out", str(tmp_path / "maps")]) == 1
    assert sorted(os.listdir(tmp_path / "maps")) == ["0000_gear_0_map.png", "0002_gear_2_map.png"] and "1.png" in capsys.readouterr().err


def test_eval_writes_the_score_of_every_image(first_checkpoint, products, root, tmp_path):
    assert main(["eval", str(first_checkpoint), "--data", str(root), "--classes", "gear", "--out", str(tmp_path), "--quiet"]) == 0
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    samples = products["gear"].test
    assert [(row["class"], row["image"], int(row["label"]), row["kind"]) for row in rows] == [
        ("gear", str(s.path), s.label, s.defect) for s in samples
    ]
    scores = ContinualModel.load(first_checkpoint).predict([s.path for s in samples], "gear").scores
    assert np.allclose([float(row["score"]) for row in rows], scores, rtol=1e-5)


def test_tests_are_read_before_anything_is_learned(products, quick_config, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(products["steel"].test[0].path.read_bytes()[:200])
    steel = products["steel"]
    data = Dataset([products["gear"], ClassData("steel", steel.train, (*steel.test[1:], replace(steel.test[0], path=cut)))])
    with pytest.raises(ImageError, match="cut.png"):
        run.run_protocol(quick_config, data, protocol("gear/steel"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_resuming_what_is_not_there(root, tmp_path, capsys, caplog):
    train = ["train", "--data", str(root), "--protocol", "gear", *QUICK, "--out"]
    assert main([*train, str(tmp_path / "typo"), "--resume-previous"]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert main([*train, str(tmp_path / "typo"), "--resume"]) == 0
    assert "holds no run to go on with: one of preset 'tiny' begins" in caplog.text
    assert main([*train, str(tmp_path / "next"), "--start-from", str(tmp_path / "typo")]) == 0
    with pytest.raises(CheckpointError, match="checkpoint.safetensors"):
        ContinualModel.load(tmp_path / "typo")


def test_one_file_by_two_names_is_told(root, products, tmp_path):
    image = products["gear"].train[0]
    table = tmp_path / "table.csv"
    (tmp_path / "link").symlink_to(image.parent)
    table.write_text(f"class,split,label,image,mask\ngear,train,normal,{image},\ngear,test,normal,link/{image.name},\n")
    with pytest.raises(DataError, match="stands on line 2 already"):
        open_dataset(table)


def test_a_part_of_a_class_is_no_data_set(root):
    with pytest.raises(DataError, match="a part of one class's data"):
        open_dataset(root / "gear" / "train")


def test_what_a_notebook_shows_is_short(first_checkpoint, products, root, tmp_path):
    result = evaluate(ContinualModel.load(first_checkpoint), products, ["gear"], progress=False)
    assert len(repr(result)) < 400 and "image_auroc" in repr(result)
    assert repr(products["gear"]) == f"ClassData(gear: {len(products['gear'].train)} train, {len(products['gear'].test)} test)"
    assert main(["train", "--data", str(root), "--protocol", "gear", *QUICK, "--out", str(tmp_path / "run")]) == 0
    found = run.read_json(tmp_path / "run" / "results.json")
    assert repr(found).startswith("RunResults(TaskMatrix(gear; after all: ") and "image_auroc" in repr(found) and len(repr(found)) < 400


def test_models_are_saved_in_files(first_checkpoint, tmp_path, monkeypatch):
    model, here = ContinualModel.load(first_checkpoint), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for path in ("", ".", here, "none/model.safetensors"):
        with pytest.raises((OSError, ValueError)):
            model.save(path)
    assert os.listdir(tmp_path) == ["here"] and not os.listdir(here)
