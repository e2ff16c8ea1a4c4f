"""Training batches: what is in them, what their bits depend on, and who makes them when."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from pictures import random_image, save

from cdad import data
from cdad.data import ClassData, Dataset, TrainingBatches, read_image
from cdad.errors import DataError, ImageError


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two classes of 5 and 6 images: the first dark, the second bright."""
    root = tmp_path_factory.mktemp("classes")
    made = []
    for name, count, floor in (("dark", 5, 0), ("bright", 6, 160)):
        paths = []
        for i in range(count):
            grain = np.random.default_rng(floor + i).integers(0, 30, (40, 40, 3))
            pixels = random_image(40, 40, 100 * floor + i) // 4 + floor + grain
            paths.append(save(root / name / f"{i}.png", pixels.astype(np.uint8)))
        made.append(ClassData(name, tuple(paths), ()))
    return made


def make_loader(classes, **options):
    return TrainingBatches(classes, **({"image_size": 32, "batch_size": 4, "seed": 5} | options))


def assert_equal_batches(first, second):
    for a, b in itertools.zip_longest(first, second):
        assert a.step == b.step and np.array_equal(a.index, b.index)
        assert np.array_equal(a.image, b.image) and np.array_equal(a.perturbed, b.perturbed)


class TestTrainingBatches:
    def test_an_epoch(self, classes):
        loader = make_loader(classes)
        batches = list(loader.epoch(0))
        assert len(loader) == 3 == len(batches) and [b.step for b in batches] == [0, 1, 2]
        index = np.concatenate([b.index for b in batches])
        assert index.dtype == np.int64 and sorted(index[:11]) == list(range(11))
        assert index[11] == index[0]  # the last batch wraps around
        for batch in batches:
            assert batch.image.shape == batch.perturbed.shape == (4, 32, 32, 3)
            assert batch.image.dtype == batch.perturbed.dtype == np.float32
            for i, j in enumerate(batch.index):
                assert np.abs(batch.image[i] - read_image(loader.sources[j], size=32)).max() <= 0.5 / 255 + 1e-6

    def test_the_order_depends_on_seed_and_epoch(self, classes):
        def order(seed, epoch):
            return np.concatenate([b.index for b in make_loader(classes, seed=seed).epoch(epoch)]).tolist()

        assert order(5, 0) == order(5, 0)
        assert order(5, 0) != order(5, 1) and order(5, 0) != order(6, 0)

    def test_steps_run_through_the_epochs(self, classes):
        loader = make_loader(classes)
        joined = [batch for epoch in range(4) for batch in loader.epoch(epoch)]
        for first, last in ((0, 12), (2, 4), (5, 11), (7, 7)):
            assert_equal_batches(loader.steps(first, last), joined[first:last])
        with pytest.raises(ValueError, match="first is -1"):
            loader.steps(-1, 3)

    def test_the_next_epoch_is_made_ahead(self, classes, monkeypatch):
        loader = make_loader(classes, prefetch=2)
        original, next_epoch = loader._make, threading.Event()

        def make(epoch, step):
            if epoch == 1:
                next_epoch.set()
            return original(epoch, step)

        monkeypatch.setattr(loader, "_make", make)
        batches = loader.steps(0, 6)
        assert [next(batches).step for _ in range(2)] == [0, 1]
        assert next_epoch.wait(timeout=10)
        batches.close()

    def test_bits_do_not_depend_on_workers_prefetch_cache_or_start(self, classes):
        reference = list(make_loader(classes).epoch(2))
        for options in (
            {"workers": 3, "prefetch": 8},
            {"prefetch": 1},
            {"cache_bytes": 0},
            {"cache_bytes": 4 * 32 * 32 * 3},
        ):
            loader = make_loader(classes, **options)
            list(loader.epoch(0))
            assert_equal_batches(loader.epoch(2), reference)
        assert_equal_batches(make_loader(classes, workers=2).steps(7, 9), reference[1:])

    def test_a_sample_does_not_depend_on_its_place(self, classes):
        def by_index(batch_size):
            batches = make_loader(classes, batch_size=batch_size).epoch(1)
            return {int(j): x for b in batches for j, x in zip(b.index, b.perturbed, strict=True)}

        one, many = by_index(1), by_index(7)
        assert one.keys() == many.keys() and all(np.array_equal(one[j], many[j]) for j in one)

    def test_share_of_perturbed_samples(self, classes):
        def share(perturb_share):
            loader = make_loader(classes, perturb_share=perturb_share, batch_size=11)
            changed = [
                (x != y).any() for e in range(20) for b in loader.epoch(e)
                for x, y in zip(b.image, b.perturbed, strict=True)
            ]  # fmt: skip
            return np.mean(changed)

        assert share(0) == 0 and share(1) == 1 and 0.4 < share(0.5) < 0.6

    def test_patches_come_from_another_image_of_the_class(self, classes, monkeypatch):
        from cdad.data import loader as module

        pairs = []

        def record(image, source, rng):
            pairs.append((image, source))
            return image, None

        monkeypatch.setattr(module, "perturb", record)
        for epoch in range(4):
            list(make_loader(classes, perturb_share=1).epoch(epoch))
        assert len(pairs) == 48
        assert all((image.mean() < 0.5) == (source.mean() < 0.5) for image, source in pairs)
        assert not any(np.array_equal(image, source) for image, source in pairs)

    def test_decodes_each_image_once_within_the_budget(self, classes, monkeypatch):
        from cdad.data import loader as module

        reads = []
        monkeypatch.setattr(module, "read_image", lambda *a, **k: reads.append(a) or read_image(*a, **k))
        loader = make_loader(classes)
        for epoch in range(3):
            list(loader.epoch(epoch))
        assert len(reads) == 11
        reads.clear()
        loader = make_loader(classes, cache_bytes=5 * 32 * 32 * 3 + 1, perturb_share=0, batch_size=11)
        for epoch in range(3):
            list(loader.epoch(epoch))
        assert len(reads) == 11 + 6 + 6

    def test_light(self, classes):
        plain, lit = make_loader(classes), make_loader(classes, light=0.2)
        assert (plain.n_images, lit.n_images) == (11, 44)
        clean, original = lit.clean(0, 44), plain.clean(0, 11)
        assert np.array_equal(clean[::4], original) and not np.array_equal(clean[1::4], original)
        seen = set()
        for epoch in range(3):
            for a, b in zip(plain.epoch(epoch), lit.epoch(epoch), strict=True):
                assert np.array_equal(b.index // 4, a.index) and np.array_equal(b.image, clean[b.index])
                seen |= set(b.index % 4)
        assert seen == {0, 1, 2, 3}
        with pytest.raises(ValueError, match="light is 1, expected 0 <= light < 1"):
            make_loader(classes, light=1)

    def test_relight(self):
        image = np.random.default_rng(0).uniform(0.3, 0.7, (8, 9, 3)).astype(np.float32)
        rng, gains, contrasts = np.random.default_rng(1), [], []
        for _ in range(200):
            other = data.relight(image, rng, 0.2)
            assert other.dtype == np.float32 and 0 <= other.min() and other.max() <= 1
            gains.append(other.mean() / image.mean())
            contrasts.append(other.std() / image.std() / gains[-1])
        for found in (gains, contrasts):
            assert 0.8 <= min(found) < 0.85 and 1.15 < max(found) <= 1.2 and abs(np.mean(found) - 1) < 0.03
        assert np.allclose(data.relight(image, rng, 0.0), image, atol=1e-6)

    def test_paths_make_one_class_and_a_single_image_is_enough(self, classes):
        loader = make_loader([str(p) for p in classes[0].train])
        assert loader.sources == classes[0].train
        assert make_loader(classes[1]).sources == classes[1].train
        assert make_loader(Dataset(classes)).sources == (*classes[1].train, *classes[0].train)
        assert make_loader(set(classes[0].train)).sources == classes[0].train == make_loader(iter(classes[0].train)).sources
        alone = next(make_loader(classes[0].train[:1], perturb_share=1).epoch(0))
        assert alone.index.tolist() == [0, 0, 0, 0] and (alone.image != alone.perturbed).any()

    def test_errors_of_workers_surface_at_their_batch(self, classes, tmp_path):
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"not an image")
        loader = make_loader([*classes[0].train, bad], batch_size=1, perturb_share=0, workers=2)
        sound = make_loader([*classes[0].train, classes[1].train[0]], batch_size=1)
        order = [int(b.index[0]) for b in sound.epoch(0)]
        seen = []
        with pytest.raises(ImageError, match="bad.png"):
            for batch in loader.epoch(0):
                seen.append(int(batch.index[0]))
        assert seen == order[: order.index(5)]
        assert not data_threads()

    def test_leaving_early_ends_the_workers(self, classes, monkeypatch):
        loader = make_loader(classes, batch_size=1, workers=2, prefetch=10)
        original, go_on, made = loader._make, threading.Event(), []

        def make(epoch, step):
            assert step == 0 or go_on.wait(timeout=10)
            made.append(step)
            return original(epoch, step)

        monkeypatch.setattr(loader, "_make", make)
        batches = loader.epoch(0)
        next(batches)
        assert data_threads()
        threading.Timer(0.1, go_on.set).start()  # the workers are at a batch while the epoch is left
        batches.close()
        assert not data_threads()
        assert sorted(made) in ([0, 1, 2], [0, 1])  # what was at work ended, what was queued never began
        monkeypatch.undo()
        with pytest.raises(KeyboardInterrupt):
            for _ in loader.epoch(0):
                raise KeyboardInterrupt
        assert not data_threads()

    def test_prefetching_is_ahead_and_bounded(self, classes, monkeypatch):
        made = threading.Semaphore(0)
        count = itertools.count(1)
        loader = make_loader(classes, batch_size=1, prefetch=3)
        original = loader._make

        def make(*arguments):
            batch = original(*arguments)
            next(count)
            made.release()
            return batch

        monkeypatch.setattr(loader, "_make", make)
        batches = loader.epoch(0)
        next(batches)
        for _ in range(4):  # the one handed over and three ahead are made without being asked for
            assert made.acquire(timeout=10)
        assert not made.acquire(timeout=0.2)
        batches.close()
        assert next(count) == 5

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"batch_size": 0}, "batch_size is 0"),
            ({"prefetch": 0}, "prefetch is 0"),
            ({"workers": 0}, "workers is 0"),
            ({"perturb_share": 1.5}, "perturb_share is 1.5"),
            ({"seed": -1}, "seed is -1"),
            ({"image_size": 0}, "size is 0"),
        ],
    )
    def test_refusals(self, classes, options, message):
        with pytest.raises(ValueError, match=message):
            make_loader(classes, **options)

    def test_refused_inputs(self, classes):
        with pytest.raises(DataError, match="no training images"):
            make_loader([])
        with pytest.raises(TypeError, match="mixed"):
            make_loader([classes[0], "a.png"])
        with pytest.raises(TypeError, match="not the one path 'a.png'; open_dataset"):
            make_loader("a.png")
        with pytest.raises(TypeError, match=r"image 1 is bytes b'b.png'"):
            make_loader(["a.png", b"b.png"])


def data_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("cdad-data")]


def test_load_images(classes):
    images = data.load_images(classes[0].train, (24, 32))
    assert images.shape == (5, 24, 32, 3) and images.dtype == np.float32
    assert np.array_equal(images[3], read_image(classes[0].train[3], size=(24, 32)))
    assert data.load_images([], 8).shape == (0, 8, 8, 3)
    for one in (classes[0].train[3], str(classes[0].train[3])):
        assert np.array_equal(data.load_images(one, (24, 32)), images[3:4])
    for order in (set(classes[0].train), iter(classes[0].train)):
        assert np.array_equal(data.load_images(order, (24, 32)), images)
    for wrong, message in ((b"a.png", "images.*not bytes b'a.png'"), ([3], "image 0 is int 3"), ({"a": 1}, "dict")):
        with pytest.raises(TypeError, match=message):
            data.load_images(wrong, 8)
