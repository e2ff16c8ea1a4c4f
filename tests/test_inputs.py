"""What users hand to a model and to `evaluate`: every form means one thing, or is refused by name before anything runs."""

from __future__ import annotations

import threading
from dataclasses import replace
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from conftest import FIRST
from PIL import Image

from cdad import ContinualModel, DataError, ImageError, evaluate
from cdad.data import ClassData, Dataset, load_images
from cdad.data.inputs import as_classes
from cdad.evaluation import evaluate_class

HERE = Path("a.png")


@pytest.fixture(scope="module")
def first(first_checkpoint):
    return ContinualModel.load(first_checkpoint)


@pytest.fixture
def paths(products):
    return [s.path for s in products["gear"].test[:5]]


class Kind(str, Enum):
    GEAR = "gear"


# ---- tasks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a/b", "a\0b", "a\nb", "a\x85b", "a\u2028b", "caf\udce9", "", "  ", "n" * 201, "\u00e9" * 101, 3, None, b"gear", ("a",)],
)
def test_names_that_no_checkpoint_can_keep(name):
    for task in (ClassData(name, (HERE,), ()), [ClassData("gear", (HERE,), ()), ClassData(name, (HERE,), ())], {name: [HERE]}):
        with pytest.raises(DataError, match="^(class .* name|a class's name is a str)") as raised:
            as_classes(task, 0)
        assert len(str(raised.value).encode()) < 200 and "\n" not in str(raised.value)


def test_names_are_refused_before_anything_is_trained(first):
    model, before = ContinualModel(first.config), threading.active_count()
    for task, message in (
        ({"a": ["none.png"], "a/b": ["none.png"]}, "class 'a/b' has '/' in its name"),
        ([ClassData("a", (HERE,), ())] * 2, "class 'a' comes twice in the task"),
    ):
        with pytest.raises(DataError, match=message):
            model.fit_task(task, progress=False)
    assert not model.progress and not model.ledger and threading.active_count() == before


def test_names_that_are_kept(products, quick_config, tmp_path):
    names = ["n" * 200, "\u00e9" * 100, "a b+c, d.e", "\u6b6f\u8eca", ".", "\\"]
    train = products["gear"].train[:2]
    model = ContinualModel(quick_config.updated({"training.steps": 1, "continual.strategy": "replay"}))
    model.fit_task({name: train for name in names}, progress=False, checkpoint=tmp_path / "model")
    again = ContinualModel.load(tmp_path / "model")
    assert again.classes == tuple(names) and all(again.calibrations[name] is not None for name in names)


def test_a_name_of_another_str_type_is_its_text():
    (found,) = as_classes({Kind.GEAR: [HERE]}, 0)
    assert type(found.name) is str and found.name == "gear"


def test_forms_of_a_task(products):
    data = products["gear"]
    train = list(data.train)
    assert as_classes(data, 0)[0] is data  # valid ones are handed on as they are
    for task in (
        [data],
        (data,),
        iter([data]),
        {data},
        {"gear": data},
        Dataset([data]),
        replace(data, train=list(map(str, train))),
    ):
        assert as_classes(task, 0) == [data]
    assert as_classes(products, 0) == list(products.values())
    assert as_classes({data, products["cloth"]}, 0) == [products["cloth"], data]
    for given in (train, map(str, train), set(train), frozenset(map(str, train)), np.array(list(map(str, train)))):
        assert as_classes(given, 1) == [ClassData("task2", data.train, ())]
    assert as_classes({"a": set(train), "b": iter(train)}, 0) == [ClassData(name, data.train, ()) for name in "ab"]
    assert as_classes({"other": data}, 0) == [replace(data, name="other")]
    assert as_classes(["b.png", "a.png"], 0)[0].train == (Path("b.png"), Path("a.png"))  # a list is in its order


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("x.png", "^task: a list of image paths is wanted, not the one path 'x.png'; open_dataset"),
        (HERE, "not the one path 'a.png'; open_dataset"),
        ({"gear": "folder/"}, "^class 'gear': a list of image paths is wanted, not the one path 'folder/'; open_dataset"),
        ({"gear": Path("folder")}, "class 'gear'.*not the one path 'folder'"),
        (ClassData("gear", "folder", ()), "class 'gear'.*not the one path 'folder'"),
        ({"gear": b"x.png"}, "class 'gear'.*not bytes b'x.png'"),
        ({"gear": None}, "class 'gear'.*not None"),
        ({"gear": {"a": 1}}, "class 'gear'.*dict"),
        ({"gear": [3]}, r"class 'gear'\[0\] is int 3; a path"),
        ({"gear": ["a.png", b"b.png"]}, r"class 'gear'\[1\] is bytes b'b.png'"),
        ([b"x.png"], r"task\[0\] is bytes"),
        (b"x.png", "not bytes b'x.png'"),
        (3, "not int 3"),
        (None, "not None"),
        ([["a.png"]], r"task\[0\] is of the type list"),
        ([ClassData("gear", (HERE,), ()), "a.png"], "mixed"),
        (np.zeros((2, 8, 8, 3), np.float32), r"task\[0\] is of the type ndarray"),
    ],
)
def test_what_is_no_task(first, task, message):
    with pytest.raises(TypeError, match=message):
        first.fit_task(task, progress=False)
    for use in (first.consolidate, first.recalibrate):
        with pytest.raises(TypeError):
            use(task)


def test_tasks_without_anything(first):
    for task, message in (([], "at least one class"), ({}, "at least one class"), ({"gear": iter([])}, "'gear' has no normal")):
        with pytest.raises(DataError, match=message):
            first.fit_task(task, progress=False)
    with pytest.raises(ValueError, match="empty path"):
        first.fit_task([""], progress=False)


def test_recalibrating_and_consolidating_by_name(products, first_checkpoint):
    model = ContinualModel.load(first_checkpoint)
    learned = dict(model.calibrations)
    tasks = [
        {name: list(map(str, products[name].train)) for name in FIRST},
        Dataset(products[name] for name in FIRST),
        [products[name] for name in FIRST],
    ]
    for task in tasks:
        model.calibrations = dict.fromkeys(FIRST)
        model.recalibrate(task)
        assert all(np.array_equal(model.calibrations[name].layers, learned[name].layers) for name in FIRST)
    model.recalibrate(products["gear"])
    small = ContinualModel.load(first_checkpoint, predict_only=True)
    small.consolidate(Dataset(products[name] for name in FIRST), progress=False)
    assert small.bases.keys() == model.bases.keys() != set()
    for use in (model.recalibrate, small.consolidate):
        with pytest.raises(TypeError, match="do not say of which class"):
            use(list(products["gear"].train))
        with pytest.raises(ValueError, match="'steel' was not learned"):
            use(products)


# ---- images ---------------------------------------------------------------------------------------------------


def test_one_path_is_a_list_of_it(first, paths):
    wanted = first.predict(paths[:1])
    for one in (paths[0], str(paths[0]), np.array(str(paths[0]))):
        found = first.predict(one)
        assert found.scores.shape == (1,) and found.maps.shape == (1, 64, 64)
        assert np.array_equal(found.maps, wanted.maps)
    assert first.denoising_error(paths[0]) == first.denoising_error([str(paths[0])])


def test_any_collection_of_paths(first, paths):
    wanted = first.predict(sorted(paths)).maps
    for given in (iter(sorted(paths)), set(paths), frozenset(map(str, paths)), np.array(sorted(map(str, paths))), tuple(sorted(paths))):
        assert np.array_equal(first.predict(given).maps, wanted)
    assert first.predict(iter(())).maps.shape == (0, 64, 64) == first.predict([]).maps.shape
    with pytest.raises(DataError, match="no images"):
        first.denoising_error([])


def test_a_list_of_arrays(first, paths):
    images = load_images(paths, 64)
    wanted = first.predict(images)
    for given in (list(images), iter(images), tuple(images)):
        assert np.array_equal(first.predict(given).maps, wanted.maps)
    bytes_ = np.rint(images * 255).astype(np.uint8)
    mixed = [bytes_[0], images[1], bytes_[2].astype(np.float64) / 255]  # each has its own white
    assert np.array_equal(first.predict(mixed).maps[0], first.predict(bytes_[:1]).maps[0])
    np.testing.assert_allclose(first.predict(mixed).maps, wanted.maps[:3], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        (b"a.png", TypeError, "images: .*not bytes b'a.png'"),
        ([b"a.png"], TypeError, r"images\[0\] is bytes b'a.png'; a path"),
        (3, TypeError, "images: .*not int 3"),
        ([3], TypeError, r"images\[0\] is int 3"),
        (None, TypeError, "not None"),
        ({"gear": ["a.png"]}, TypeError, "not of the type dict"),
        (ClassData("gear", (HERE,), ()), TypeError, "not of the type ClassData"),
        ([["a.png"]], TypeError, r"images\[0\] is of the type list"),
        (Image.new("RGB", (64, 64)), TypeError, "not of the type Image"),
        ([Image.new("RGB", (64, 64))], TypeError, r"images\[0\] is of the type Image"),
        ([np.zeros((64, 64, 3)), "a.png"], TypeError, r"images\[0\] is an array and images\[1\] of the type str; one kind"),
        (["a.png", "b.png", np.zeros((64, 64, 3))], TypeError, r"images\[2\] is an array and images\[0\] of the type str"),
        ([np.zeros((64, 64, 3)), np.zeros((32, 64, 3))], ValueError, r"images\[1\] has the shape \[32, 64, 3\]; \[64,64,3\] is"),
        ([np.zeros((1, 64, 64, 3))], ValueError, r"images\[0\] has the shape \[1, 64, 64, 3\]"),
        (np.float32(0) + np.zeros(()), TypeError, "images: "),
        (np.zeros(()).reshape(()), ValueError, "one number"),
        (np.zeros((64, 64), np.uint8), ValueError, "64,64,3"),
    ],
)
def test_what_are_no_images(first, images, kind, message):
    with pytest.raises(kind, match=message) as raised:
        first.predict(images)
    assert "\n" not in str(raised.value)


def test_folders_and_files_without_images_are_named(first, tmp_path, paths):
    with pytest.raises(ImageError, match="a folder, not a regular file"):
        first.predict(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="empty.png: no image that can be read: the file is empty"):
        first.predict([*paths, tmp_path / "empty.png"])


def test_images_are_opened_chunk_after_chunk(first, paths, monkeypatch):
    """Looking at the kinds of paths opens none of them."""
    chunk, drawn = 4 * first.config.scoring.batch_size, []
    original = first._drawings
    monkeypatch.setattr(first, "_drawings", lambda images: drawn.append(len(images)) or original(images))
    with pytest.raises(FileNotFoundError, match="none.png"):
        first.predict(str(path) for path in [*(paths * 4)[:chunk], "none.png"])
    assert drawn == [chunk]


# ---- evaluate -------------------------------------------------------------------------------------------------


def test_evaluating_chosen_classes(first, products):
    whole = evaluate(first, products, progress=False)
    assert list(whole) == list(FIRST)
    for dataset, classes, names in (
        (products, "gear", ["gear"]),
        (products, ["cloth", "gear", "cloth"], ["cloth", "gear"]),
        (products, {"gear", "cloth"}, ["cloth", "gear"]),
        (products["gear"], None, ["gear"]),
        ([products["gear"], products["steel"]], None, ["gear"]),
        ({"gear": products["gear"]}, None, ["gear"]),
    ):
        found = evaluate(first, dataset, classes, progress=False)
        assert list(found) == names and all(found[name].measures == whole[name].measures for name in names)
    assert evaluate_class(first, products["steel"]).name == "steel"  # one that was not learned may be tested alone


def test_what_cannot_be_evaluated(first, products, monkeypatch):
    monkeypatch.setattr(first, "predict", None)  # nothing is tested before all is known to fit
    for wrong in ("mv", Path("mv")):
        with pytest.raises(TypeError, match=r"not a path: open_dataset\('mv'\)"):
            evaluate(first, wrong)
        with pytest.raises(TypeError, match=r"ContinualModel.load\('mv'\)"):
            evaluate(wrong, products)
    for wrong in (b"mv", 3, None, ["a.png"], {"gear": ["a.png"]}):
        with pytest.raises(TypeError, match="as open_dataset\\(\\) gives it"):
            evaluate(first, wrong)
    for classes, message in (
        ("gaer", "no class 'gaer' in the data; did you mean 'gear'\\? known: cloth, gear, steel"),
        (["gear", "pipe"], "no class 'pipe' in the data; known: cloth, gear, steel"),
        (["gear", "steel"], "no class 'steel' among those that the model has learned; known: gear, cloth"),
        ([3], "no class 3 in the data"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate(first, products, classes, progress=False)
    with pytest.raises(DataError, match="no class that the model has learned: it has steel, the model gear, cloth"):
        evaluate(first, Dataset([products["steel"]]))
    with pytest.raises(DataError, match="'gear' has no test images"):
        evaluate(first, Dataset([replace(products["gear"], test=()), products["cloth"]]), ["cloth", "gear"])
    with pytest.raises(RuntimeError, match="no task"):
        evaluate(ContinualModel(first.config), products)
    with pytest.raises(TypeError, match="not str"):
        evaluate_class(first, "gear")
