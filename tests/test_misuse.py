"""What users do that was not meant: said at once, in words that help, and without a wrong result."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import threading

import numpy as np
import pytest
from bits import assert_same
from PIL import Image

from cdad import ContinualModel, evaluate, open_dataset
from cdad.cli import main
from cdad.data import load_images, read_image
from cdad.errors import CheckpointError, DataError, ImageError
from cdad.exclusion import Exclusion
from cdad.results import TaskMatrix


def same(a, b, images):
    return np.array_equal(a.predict(images).scores, b.predict(images).scores)


# ---- learning -----------------------------------------------------------------------------------------------


def test_consolidation_of_a_part_of_what_is_learned(first_checkpoint, products, quick_config):
    model = ContinualModel.load(first_checkpoint, quick_config.updated({"continual.strategy": "replay"}))
    with pytest.raises(ValueError, match="images of cloth are missing"):
        model.consolidate([products["gear"]], progress=False)
    assert not model.strategy.ready
    model.consolidate([products["cloth"], products["gear"]], progress=False)
    assert set(model.strategy.stored) == {"gear", "cloth"}


class Stop(Exception):
    pass


def stopped(model, task):
    def stop(report):
        if report.step == 2:
            raise Stop

    with pytest.raises(Stop):
        model.fit_task(task, progress=False, callback=stop)


def test_a_task_goes_on_with_its_own_images(quick_config, products, tmp_path):
    model = ContinualModel(quick_config)
    stopped(model, {"part": products["steel"].train})
    model.save(tmp_path / "within.safetensors")
    for other in (model, ContinualModel.load(tmp_path / "within.safetensors")):
        with pytest.raises(CheckpointError, match="began with images of other names"):
            other.fit_task({"part": products["gear"].train[:5]}, progress=False)
        with pytest.raises(CheckpointError, match="middle of the task .*part.*load a file"):
            other.fit_task({"another": products["steel"].train}, progress=False)
    for path in products["steel"].train:
        (tmp_path / "moved").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "moved")
    other.fit_task({"part": sorted((tmp_path / "moved").iterdir())}, progress=False)
    assert other.classes == ("part",)


def test_a_checkpoint_s_folder_is_looked_at_first(quick_config, products, tmp_path):
    model = ContinualModel(quick_config)
    with pytest.raises(FileNotFoundError, match="no folder for the checkpoint.*missing/x.safetensors"):
        model.fit_task([products["gear"]], progress=False, checkpoint=tmp_path / "missing" / "x.safetensors")
    assert not model.progress and model._trainer.n_steps == 0


def test_many_paths_of_joint_training_are_kept(first_checkpoint, quick_config, tmp_path):
    model = ContinualModel.load(first_checkpoint, quick_config.updated({"continual.strategy": "joint"}))
    model.strategy.old = {"gear": [f"/{'ordner/' * 20}图像{i:06d}.png" for i in range(30_000)], "cloth": ["a.png"]}
    model.save(tmp_path / "joint.safetensors")
    assert list(ContinualModel.load(tmp_path / "joint.safetensors").strategy.old.items()) == list(model.strategy.old.items())


def test_configurations_of_a_sweep(quick_config):
    """NumPy's numbers are numbers; what is no configuration is told."""
    swept = quick_config.updated({"training.steps": np.arange(3)[2], "training.lr": np.float32(0.5), "continual.gamma": np.float64(0.75)})
    assert (swept.training.steps, swept.training.lr, swept.continual.gamma) == (2, 0.5, 0.75)
    assert json.loads(json.dumps(swept.to_dict())) == swept.to_dict()
    for given in ({"training": {"steps": 3}}, None):
        with pytest.raises(TypeError, match="a Config or a preset's name is wanted"):
            ContinualModel(given)


# ---- threads and copies -------------------------------------------------------------------------------------


def test_a_change_waits_for_predictions_and_nothing_begins_meanwhile():
    use, order = Exclusion(), []
    reading, go_on = threading.Event(), threading.Event()

    def read():
        with use.reading():
            reading.set()
            assert go_on.wait(60)
            order.append("read")

    def change():
        with use.changing():
            order.append("changed")
            with pytest.raises(RuntimeError, match="training in another thread"):
                thread_says(use.check_saving)
            use.check_saving()

    def thread_says(fn):
        found = []

        def call():
            try:
                fn()
            except RuntimeError as error:
                found.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join(60)
        if found:
            raise found[0]

    threads = [threading.Thread(target=read), threading.Thread(target=change)]
    threads[0].start()
    assert reading.wait(60)
    threads[1].start()
    while use._writer is None:
        pass
    for begin in (use.reading, use.changing):
        with pytest.raises(RuntimeError, match="model is training"), begin():
            raise AssertionError("it began")
    assert not order
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert order == ["read", "changed"]
    with use.reading():
        with pytest.raises(RuntimeError, match="prediction of this thread"), use.changing():
            raise AssertionError("it began")
    with use.changing():
        pass


def test_a_prediction_is_of_one_model(model, products):
    images = np.repeat(load_images(products["gear"].test[0].path, model.config.image_size), 300, axis=0)
    before = model.predict(images[:1]).scores[0]
    found = []
    thread = threading.Thread(target=lambda: found.append(model.predict(images).scores))
    thread.start()
    while not +model._use._readers:
        pass
    model.fit_task([products["steel"]], progress=False)
    thread.join(60)
    assert_same(found[0], np.full_like(found[0], before))
    assert model.predict(images[:1]).scores[0] != before


def test_only_the_training_thread_saves(quick_config, products, tmp_path):
    model, found = ContinualModel(quick_config), []

    def save(report):
        def elsewhere():
            with pytest.raises(RuntimeError, match="another thread"):
                model.save(tmp_path / "other.safetensors")
            found.append(True)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(60)
        model.save(tmp_path / "own.safetensors")

    model.fit_task([products["gear"]], progress=False, callback=save)
    assert len(found) == 6 and not (tmp_path / "other.safetensors").exists()
    assert ContinualModel.load(tmp_path / "own.safetensors").progress["step"] == 6


def test_copies_are_models_of_their_own(model, products):
    images = load_images([s.path for s in products["gear"].test], model.config.image_size)
    copies = [copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert all(same(model, other, images) for other in copies)
    before = copies[0].predict(images).scores
    copies[0].fit_task([products["steel"]], progress=False)
    assert copies[0].classes == ("gear", "cloth", "steel") and model.classes == ("gear", "cloth")
    assert not np.array_equal(copies[0].predict(images).scores, before)
    assert all(same(model, other, images) for other in copies[1:])


# ---- data -----------------------------------------------------------------------------------------------------


@pytest.fixture
def unmasked(root, tmp_path):
    for name in ("gear", "cloth"):
        shutil.copytree(root / name, tmp_path / "data" / name)
    shutil.rmtree(tmp_path / "data" / "gear" / "ground_truth")
    return tmp_path / "data"


def test_defective_images_without_masks_count_for_images(unmasked, first_checkpoint, products, tmp_path, capsys):
    model = ContinualModel.load(first_checkpoint)
    found = evaluate(model, open_dataset(unmasked, require_masks=False), progress=False)
    whole = evaluate(model, products, ["gear", "cloth"], progress=False)
    assert found["cloth"].measures == whole["cloth"].measures
    for name, value in found["gear"].measures.items():
        assert np.isnan(value) if name.startswith("pixel") else value == whole["gear"].measures[name]
    assert main(["eval", str(first_checkpoint), "--data", str(unmasked)]) == 1
    assert "has no mask" in capsys.readouterr().err
    assert main(["eval", str(first_checkpoint), "--data", str(unmasked), "--no-masks", "--out", str(tmp_path / "report")]) == 0

    def strict(text):
        raise AssertionError(f"{text} is no JSON")

    record = json.loads((tmp_path / "report" / "metrics.json").read_text(), parse_constant=strict)
    assert record["gear"]["pixel_auroc"] is None and record["gear"]["image_auroc"] == whole["gear"].measures["image_auroc"]


def test_good_test_images_by_other_names(unmasked):
    (unmasked / "gear" / "test" / "good").rename(unmasked / "gear" / "test" / "better")
    (unmasked / "cloth" / "test" / "good").rename(unmasked / "cloth" / "test" / "Non-Defective")
    data = open_dataset(unmasked, require_masks=False)
    assert {s.label for s in data["cloth"].test if "Non-Defective" in str(s.path)} == {0}
    assert {s.label for s in data["gear"].test} == {1}  # a defect of this name, for all that is known
    image = next((unmasked / "gear" / "train" / "good").iterdir())
    shutil.copy(image, unmasked / "gear" / "test" / "stray.png")
    with pytest.raises(DataError, match="stray.png lies in no folder of test/"):
        open_dataset(unmasked, require_masks=False)


def test_deep_tiffs_that_are_misread_are_refused(tmp_path):
    pixels = np.full((5, 7), 6000, np.uint16)
    deep = tmp_path / "deep.tif"
    Image.fromarray(pixels).save(deep)
    assert read_image(deep) == pytest.approx(6000 / 65535)
    content = bytearray(deep.read_bytes())
    entry = content.index(b"\x06\x01\x03\x00")  # PhotometricInterpretation, a short
    content[entry + 8] = 0
    deep.write_bytes(content)
    with pytest.raises(ImageError, match="white as 0"):
        read_image(deep)


def test_what_leaves_a_summary_undefined_is_named():
    matrix = TaskMatrix(["a", "b", "c"])
    for learned in range(3):
        for task in range(learned + 1):
            for measure in matrix.measures:
                lacks = task == 1 and measure.startswith("pixel")
                matrix.update(learned, task, {measure: np.nan if lacks else 0.5})
    assert matrix.undefined() == ["b"]
    assert np.isnan(matrix.summary()["pixel_auroc"]["average"])
    assert matrix.summary()["image_auroc"] == {"average": 0.5, "forgetting": 0.0, "backward_transfer": 0.0}


def test_what_another_run_learned_is_no_lack_of_tests():
    matrix = TaskMatrix(["a", "b", "c"])
    for task in range(2):
        matrix.update(1, task, dict.fromkeys(matrix.measures, 0.5))
    assert matrix.untested() == ["a"]
    matrix.update(0, 0, {"image_auroc": 0.5})
    assert matrix.untested() == []


def test_an_unreadable_image_costs_the_others_nothing(first_checkpoint, products, tmp_path, capsys):
    paths = [str(s.path) for s in products["gear"].test[:3]]
    (tmp_path / "cut.png").write_bytes(open(paths[0], "rb").read()[:200])
    images = [paths[0], str(tmp_path / "cut.png"), *paths[1:], str(tmp_path / "missing.png")]
    assert main(["predict", str(first_checkpoint), *images, "--class", "gear", "--out", str(tmp_path / "maps")]) == 1
    told = capsys.readouterr()
    rows = [line.rsplit(",", 1) for line in told.out.splitlines()[1:]]
    assert [path for path, _ in rows] == images and [bool(score) for _, score in rows] == [True, False, True, True, False]
    assert "cut.png" in told.err and "missing.png" in told.err
    assert len(list((tmp_path / "maps").iterdir())) == 3
    assert main(["predict", str(first_checkpoint), *paths, "--class", "gear"]) == 0
    assert [line for line in told.out.splitlines()[1:] if not line.endswith(",")] == capsys.readouterr().out.splitlines()[1:]
