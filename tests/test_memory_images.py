"""Tasks of images that lie in memory: trained, kept and gone on with to the bits of the same files."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
from conftest import FIRST, SECOND
from PIL import Image
from test_parallel import Meeting, together

from cdad import CheckpointError, ContinualModel, DataError, DataParallel, ImageError
from cdad.data import ClassData, Dataset, TrainingBatches
from cdad.data.inputs import as_classes

Task = dict[str, object]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{class: paths} of noise in grey and in colours; most are not of the model's size."""
    rng, found = np.random.default_rng(0), {}
    for name in (*FIRST, *SECOND):
        folder = tmp_path_factory.mktemp(name)
        sizes = [(64, 64, 3), (90, 70, 3), (40, 130), (64, 64, 3), (31, 64, 3), (64, 64)]
        for i, size in enumerate(sizes):
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"{i}.png")
        found[name] = sorted(folder.iterdir())
    return found


@pytest.fixture(scope="module")
def whole(files, quick_config):
    """A model that has learned both tasks from files."""
    return learned(quick_config, files, list)


def arrays(paths) -> list[np.ndarray]:
    """Of which none may be written."""
    found = [np.array(Image.open(path)) for path in paths]
    for array in found:
        array.flags.writeable = False
    return found


def opened(paths) -> list[Image.Image]:
    return [Image.open(path) for path in paths]


def learned(config, files, make: Callable, **how) -> ContinualModel:
    model = ContinualModel(config, **how)
    for names in (FIRST, SECOND):
        model.fit_task({name: make(files[name]) for name in names}, progress=False)
    return model


def assert_equal(got: ContinualModel, want: ContinualModel) -> None:
    for name in want.params.shapes():
        np.testing.assert_array_equal(got.params[name], want.params[name])
    for name, calibration in want.calibrations.items():
        np.testing.assert_array_equal(got.calibrations[name].mean, calibration.mean)
    kept = got.strategy.tensors()
    for name, wanted in want.strategy.tensors().items():
        np.testing.assert_array_equal(kept[name], wanted)


def test_training_is_that_of_the_same_files(files, quick_config, whole):
    assert whole.bases
    assert_equal(learned(quick_config, files, arrays), whole)


def test_stored_images_are_those_of_the_same_files(files, quick_config):
    config = quick_config.updated({"continual.strategy": "replay", "training.steps": 2, "training.increment_steps": 2})
    want = learned(config, files, list)
    assert want.strategy.stored
    assert_equal(learned(config, files, opened), want)


def test_a_stack_is_a_list_of_images(files, quick_config):
    paths = [files["gear"][i] for i in (0, 3)]
    quick_config = quick_config.updated({"continual.strategy": "finetune", "training.steps": 1})
    want, stack = ContinualModel(quick_config), np.stack(arrays(paths))
    want.fit_task({"task1": paths}, progress=False)
    for task in ({"task1": stack}, [ClassData("task1", stack, ())], Dataset([ClassData("task1", stack, ())]), stack, opened(paths)):
        model = ContinualModel(quick_config)
        model.fit_task(task, progress=False)
        assert_equal(model, want)
    grey = np.stack([array[..., :1] for array in stack])
    assert [len(data.train) for data in as_classes({"a": grey, "b": [grey[0], grey[1, ..., 0]], "c": iter(stack)}, 0)] == [2, 2, 2]


class Stop(Exception):
    pass


def stop(report) -> None:
    if report.step == 3:
        raise Stop


def test_a_task_goes_on_with_the_same_images(files, quick_config, tmp_path, whole):
    model = ContinualModel(quick_config)
    model.fit_task({name: opened(files[name]) for name in FIRST}, progress=False)
    with pytest.raises(Stop):
        model.fit_task({"steel": opened(files["steel"])}, progress=False, callback=stop)
    model.save(tmp_path / "within.safetensors")
    changed = [array.copy() for array in arrays(files["steel"])]
    changed[-1][0, 0] ^= 1
    for other in (changed, changed[:-1], arrays(files["steel"])[::-1], files["steel"]):
        with pytest.raises(CheckpointError, match="began with images of other names or, in memory, other pixels"):
            ContinualModel.load(tmp_path / "within.safetensors").fit_task({"steel": other}, progress=False)
    again = ContinualModel.load(tmp_path / "within.safetensors")
    again.fit_task({"steel": [array.copy() for array in arrays(files["steel"])]}, progress=False)  # elsewhere in memory
    assert_equal(again, whole)


def test_recalibrating_and_consolidating(files, first_checkpoint):
    want, got = (ContinualModel.load(first_checkpoint, predict_only=True) for _ in range(2))
    want.consolidate({name: files[name] for name in FIRST}, progress=False)
    got.consolidate({name: arrays(files[name]) for name in FIRST}, progress=False)
    want.recalibrate({name: files[name] for name in FIRST})
    got.recalibrate({name: opened(files[name]) for name in FIRST})
    assert_equal(got, want)


def test_joint_training_reads_files_again(files, quick_config, first_checkpoint):
    config = quick_config.updated({"continual.strategy": "joint"})
    model = ContinualModel(config)
    with pytest.raises(DataError, match="^class 'cloth', image 1 lies in memory: the strategy 'joint' keeps paths"):
        model.fit_task({"gear": files["gear"], "cloth": [files["cloth"][0], *arrays(files["cloth"][1:])]}, progress=False)
    assert not model.progress and model._trainer.n_steps == 0
    other = ContinualModel.load(first_checkpoint, config)
    with pytest.raises(DataError, match="^class 'gear', image 0 lies in memory"):
        other.consolidate({"gear": arrays(files["gear"]), "cloth": files["cloth"]}, progress=False)
    assert not other.strategy.ready


def test_processes_hold_the_same_images(files, quick_config):
    config = quick_config.updated({"training.batch_size": 4, "training.steps": 2})
    images = arrays(files["gear"])
    changed = [images[0] ^ 1, *images[1:]]

    def refused(member: DataParallel) -> None:
        model = ContinualModel(config, parallel=member)
        with pytest.raises(RuntimeError, match="the 2 processes do not go on from the same model"):
            model.fit_task({"gear": (images, changed)[member.rank]}, progress=False)
        model.fit_task({"gear": copy.deepcopy(images)}, progress=False)

    together(Meeting(2).members(), refused)


def test_an_image_that_cannot_be_learned_is_named(files, quick_config):
    model, images = ContinualModel(quick_config), arrays(files["gear"])
    for bad, message in (
        (np.full((8, 8, 3), 2.0), "float pixels lie in"),
        (Image.new("I", (8, 8)), "pixel type 'I' is not supported"),
        (Image.new("1", (9000, 9000)), "image is 9000x9000 pixels"),
    ):
        with pytest.raises((ImageError, DataError, ValueError), match=f"^class 'gear', image 3: .*{message}"):
            model.fit_task({"cloth": images, "gear": [*images[:3], bad]}, progress=False)
    assert model._trainer.n_steps == 0
    model.fit_task({"gear": images}, progress=False)
    assert model.classes == ("gear",)


def test_arrays_of_the_model_s_size_are_not_copied(files):
    images = arrays([files["gear"][i] for i in (0, 3)])
    batches = TrainingBatches([ClassData("gear", tuple(images), ())], image_size=64, batch_size=2, seed=0)
    assert batches._pixels(0) is images[0]
    of_files = TrainingBatches({"gear": [files["gear"][i] for i in (0, 3)]}, image_size=64, batch_size=2, seed=0)
    for a, b in zip(batches.epoch(1), of_files.epoch(1), strict=True):
        assert np.array_equal(a.perturbed, b.perturbed) and np.array_equal(a.image, b.image)
