"""What users hand to a model and to `evaluate`: every form means one thing, or is refused by name before anything runs."""

from __future__ import annotations

import copy
import threading
import weakref
from dataclasses import replace
from enum import Enum
from pathlib import Path

import cv2
import numpy as np
import pytest
from bits import ON_GPU, assert_same
from conftest import FIRST
from PIL import Image

from cdad import ContinualModel, DataError, DeviceArray, ImageError, LimitError, evaluate
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
        ({"gear": [3]}, "^class 'gear', image 0 is int 3; a path .* an array or a PIL image is wanted"),
        ({"gear": ["a.png", b"b.png"]}, "^class 'gear', image 1 is bytes b'b.png'"),
        ([b"x.png"], "^image 0 is bytes"),
        (b"x.png", "not bytes b'x.png'"),
        (3, "not int 3"),
        (None, "not None"),
        ([["a.png"]], "^image 0 is of the type list"),
        ([ClassData("gear", (HERE,), ()), "a.png"], "mixed"),
        ([np.zeros((8, 8, 3)), ClassData("gear", (HERE,), ())], "classes and images are mixed"),
        ({"gear": Image.new("RGB", (8, 8))}, "class 'gear': a list of images is wanted, not of the type Image"),
        ({"gear": [HERE, np.zeros((8, 8, 3), np.int32)]}, "^class 'gear', image 1 is of int32; uint8, uint16, or float32"),
        ({"gear": DeviceArray(np.zeros((2, 8, 8, 3), np.float32), "emulated")}, "^class 'gear': an array on emulated; images are read"),
        ({"gear": [DeviceArray(np.zeros((8, 8, 3), np.float32), "emulated")]}, "^class 'gear', image 0 lies on emulated; images are read"),
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


@pytest.mark.parametrize("shape", [(8, 8, 3), (5, 8, 8), (8, 8), (8, 8, 1), (), (1, 5, 8, 8, 3)])
def test_an_array_that_is_no_stack_of_images(first, shape):
    for use in (first.fit_task, first.consolidate, first.recalibrate):
        with pytest.raises(ValueError, match=r"^class 'gear': (an array of the shape|one number).*; \[N,H,W,3\] is wanted, of grey images"):
            use({"gear": np.zeros(shape, np.uint8)})


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
        assert_same(first.predict(given).maps, wanted.maps)
    bytes_ = np.rint(images * 255).astype(np.uint8)
    mixed = [bytes_[0], images[1], bytes_[2].astype(np.float64) / 255]  # each has its own white
    assert_same(first.predict(mixed).maps[0], first.predict(bytes_[:1]).maps[0])
    np.testing.assert_allclose(first.predict(mixed).maps, wanted.maps[:3], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        (b"a.png", TypeError, "images: .*not bytes b'a.png'"),
        ([b"a.png"], TypeError, r"image 0 is bytes b'a.png'; a path .* is wanted"),
        (3, TypeError, "images: .*not int 3"),
        ([3], TypeError, r"image 0 is int 3; a path \(str or os.PathLike\), an array or a PIL image is wanted"),
        (None, TypeError, "not None"),
        ({"gear": ["a.png"]}, TypeError, "not of the type dict"),
        (ClassData("gear", (HERE,), ()), TypeError, "not of the type ClassData"),
        ([["a.png"]], TypeError, r"image 0 is of the type list"),
        ([np.zeros((64, 64, 3)), np.zeros((1, 64, 64, 3))], ValueError, r"image 1 has the shape \[1, 64, 64, 3\]; \[H,W,3\] is wanted"),
        ([np.zeros((64, 64, 4), np.uint8)], ValueError, r"image 0 has the shape \[64, 64, 4\]; \[H,W,3\] is wanted"),
        ([np.zeros((0, 64, 3), np.uint8)], ValueError, r"image 0 has the shape \[0, 64, 3\]"),
        ([np.zeros((4, 4, 3)), np.zeros((4, 4, 3), np.int16)], TypeError, "image 1 is of int16; uint8, uint16, or float32"),
        (np.zeros((2, 4, 4, 3), np.float16), TypeError, "image 0 is of float16"),
        (np.zeros((5, 64, 64), np.uint8), ValueError, r"an array of the shape \[5, 64, 64\]; .* of grey images .* a list of \[H,W\]"),
        (np.zeros((1, 5, 64, 64, 3), np.uint8), ValueError, r"an array of the shape \[1, 5, 64, 64, 3\]"),
        (np.full((4, 4, 3), 255.0), ImageError, r"image 0: float pixels lie in \[255, 255\], expected \[0, 1\]"),
        (np.full((4, 4, 3), np.nextafter(np.float32(1), 2)), ImageError, r"image 0: float pixels lie in \[1.00000012, 1.00000012\]"),
        ([np.zeros((4, 4)), np.full((4, 4), -0.1)], ImageError, r"image 1: float pixels lie in \[-0.1"),
        ([Image.new("I", (4, 4))], ImageError, r"image 0: cannot be decoded: pixel type 'I' is not supported"),
        (np.float32(0) + np.zeros(()), TypeError, "images: "),
        (np.zeros(()).reshape(()), ValueError, "one number"),
    ],
)
def test_what_are_no_images(first, images, kind, message):
    with pytest.raises(kind, match=message) as raised:
        first.predict(images)
    assert "\n" not in str(raised.value)


def test_images_in_memory_are_read_as_their_files(tmp_path):
    """Every kind of file, by Pillow, before and after it is decoded; nothing that is handed over is written."""
    rng = np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (40, 48, 3), np.uint8), rng.integers(0, 256, (40, 48), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = {
        "rgb.png": Image.fromarray(colour),
        "rgb.jpg": Image.fromarray(colour),
        "rgb.bmp": Image.fromarray(colour),
        "rgb.webp": Image.fromarray(colour),
        "rgb.tiff": Image.fromarray(colour),
        "grey.png": Image.fromarray(grey),
        "one_bit.png": Image.fromarray(grey > 128),
        "palette.png": Image.fromarray(colour).quantize(16),
        "rgba.png": Image.fromarray(rng.integers(0, 256, (40, 48, 4), np.uint8)),
        "la.png": Image.fromarray(rng.integers(0, 256, (40, 48, 2), np.uint8)),
        "cmyk.jpg": Image.fromarray(colour).convert("CMYK"),
        "grey16.png": Image.fromarray(rng.integers(0, 65536, (40, 48)).astype(np.uint16)),
        "grey16.tiff": Image.fromarray(rng.integers(0, 65536, (40, 48)).astype(np.uint16)),
        "float.tiff": Image.fromarray(rng.random((40, 48), np.float32)),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    for name in ("rgb.png", "rgb.jpg", "rgb.tiff"):
        pictures[name].save(tmp_path / f"turned_{name}", exif=turned)
    deep = rng.integers(0, 65536, (40, 48, 3)).astype(np.uint16)
    (tmp_path / "colour16.png").write_bytes(cv2.imencode(".png", deep[..., ::-1])[1].tobytes())
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 18
    for size in (32, (24, 100)):
        wanted = load_images(paths, size)
        opened = [Image.open(path) for path in paths]
        for _ in range(2):
            assert np.array_equal(load_images(opened, size), wanted)
        assert sum(bool(image.tile) for image in opened) == 17  # of all but WEBP, which Pillow reads at once: none was decoded
        for i, (path, image) in enumerate(zip(paths, opened, strict=True)):
            if path.name != "colour16.png":  # of which Pillow keeps the high bytes
                image.load()
                assert np.array_equal(load_images(image, size)[0], wanted[i]), path.name
                assert np.array_equal(load_images([image.copy()], size)[0], wanted[i]), path.name
        assert opened[paths.index(tmp_path / "turned_rgb.png")].size == (48, 40)
        of_float = np.asarray(opened[paths.index(tmp_path / "float.tiff")])
        for name, array in (("rgb.png", colour), ("grey.png", grey), ("grey.png", grey[..., None]), ("float.tiff", of_float),
                            ("colour16.png", deep), ("colour16.png", deep.astype(">u2"))):  # fmt: skip
            array.flags.writeable = False
            place = paths.index(tmp_path / name)
            for given in (array, array[::-1][::-1], np.asfortranarray(array)):
                assert np.array_equal(load_images(given, size)[0], wanted[place]), name
    stack = np.stack([grey, grey[::-1]])
    assert np.array_equal(load_images(stack[..., None], 32), load_images(list(stack), 32))
    assert np.array_equal(load_images(colour / np.float64(255), 32), load_images((colour / np.float64(255)).astype(np.float32), 32))


def test_an_image_that_pillow_cannot_read_is_named(tmp_path):
    Image.new("RGB", (48, 40)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as closed:
        pass
    (tmp_path / "cut.jpg").write_bytes(b"")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:999])
    for image in (closed, Image.open(tmp_path / "cut.jpg"), Image.new("1", (8001, 8001))):
        with pytest.raises((ImageError, LimitError), match="^image 1: "):
            load_images([tmp_path / "a.png", image], 8)


def test_a_frame_that_was_sought_is_that_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    with open(tmp_path / "a.tiff", "rb") as file:
        image = Image.open(file)
        for frame in (2, 0, 1):
            image.seek(frame)
            place = file.tell()
            assert load_images(image, 8)[0, 0, 0, 0] * 255 == 40 * frame
            assert frame or file.tell() == place and image.tile


def test_predictions_of_images_in_memory(first, tmp_path):
    rng = np.random.default_rng(1)
    pixels = [rng.integers(0, 256, size, np.uint8) for size in ((64, 64, 3), (90, 70, 3), (20, 130, 3), (80, 80))]
    for i, array in enumerate(pixels):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    files = sorted(tmp_path.iterdir())
    wanted = first.predict(files, "gear")
    for given in (pixels, [Image.open(path) for path in files], [files[0], Image.fromarray(pixels[1]), pixels[2], str(files[3])]):
        found = first.predict(given, "gear")
        for name in ("scores", "maps", "reconstructions"):
            assert_same(getattr(found, name), getattr(wanted, name))
    for one in (pixels[1], Image.open(files[1])):
        assert_same(first.predict(one, "gear").maps, wanted.maps[1:2])
    assert_same(first.predict(np.stack([pixels[1]] * 2), "gear").maps, wanted.maps[[1, 1]])
    model = copy.copy(first)
    assert model.set_threshold("gear", pixels) == model.set_threshold("gear", map(Image.open, files)) == wanted.scores.max()
    assert first.denoising_error(pixels) == first.denoising_error(files)


def test_images_of_an_iterator_are_not_held(first):
    """Beside those that are drawn, one chunk is read ahead."""
    chunk, alive = 4 * first.config.scoring.batch_size, []

    def images():
        for i in range(4 * chunk):
            array = np.full((32, 32, 3), i, np.uint8)
            alive.append(weakref.ref(array))
            assert sum(ref() is not None for ref in alive) <= 3 * chunk
            yield array

    found = first.predict(images())
    assert len(found.scores) == len(alive) == 4 * chunk
    assert np.array_equal(found.scores, first.predict([np.full((32, 32, 3), i, np.uint8) for i in range(4 * chunk)]).scores)


def test_arrays_on_a_device_are_not_resized(first, first_checkpoint):
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    there, model = DeviceArray(images, "emulated"), ContinualModel.load(first_checkpoint, device="emulated")
    for given in (there, list(map(DeviceArray, images, ["emulated"] * 2))):
        with pytest.raises(ValueError, match=r"on emulated .* the shape .*32, 32, 3\]; .*64,64,3\] is wanted, as images of other sizes"):
            model.predict(given)
    whole = load_images(images, 64)
    assert np.array_equal(first.predict([DeviceArray(image, "emulated") for image in whole]).maps, first.predict(images).maps)
    with pytest.raises(TypeError, match="image 0 lies on emulated; images are read from the host here"):
        first.denoising_error([DeviceArray(whole[0], "emulated")])


def test_folders_and_files_without_images_are_named(first, tmp_path, paths):
    with pytest.raises(ImageError, match="a folder, not a regular file"):
        first.predict(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="empty.png: no image that can be read: the file is empty"):
        first.predict([*paths, tmp_path / "empty.png"])


def test_images_are_opened_chunk_after_chunk(first, paths, monkeypatch):
    """Looking at the kinds of paths opens none of them."""
    chunk, drawn = 4 * first.config.scoring.batch_size, []
    original = first.drawing.draw
    monkeypatch.setattr(first.drawing, "draw", lambda images: drawn.append(len(images)) or original(images))
    with pytest.raises(FileNotFoundError, match="none.png"):
        first.predict(str(path) for path in [*(paths * 4)[:chunk], "none.png"])
    assert sum(drawn) == chunk and len(drawn) == (4 if ON_GPU else 1)  # a GPU takes a batch at a time


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


def test_classes_without_tests_are_passed_over(first, products, caplog):
    data = Dataset([replace(products["gear"], test=()), products["cloth"]])
    assert list(evaluate(first, data, progress=False)) == ["cloth"]
    assert "without test images, and passed over: gear" in caplog.text


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
    untested = replace(products["gear"], test=())
    with pytest.raises(DataError, match="'gear' has no test images"):
        evaluate(first, Dataset([untested, products["cloth"]]), ["cloth", "gear"])
    with pytest.raises(DataError, match="'gear' has no test images"):
        evaluate(first, Dataset([untested]))
    with pytest.raises(RuntimeError, match="no task"):
        evaluate(ContinualModel(first.config), products)
    with pytest.raises(TypeError, match="not str"):
        evaluate_class(first, "gear")
