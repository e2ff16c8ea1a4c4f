"""Synthetic products: equal seeds give equal bytes, masks are exact, defects are there to be seen."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from cdad.data import PRODUCTS, open_dataset, read_sample, render, synthetic, write_dataset
from cdad.errors import DataError

KINDS = [(name, defect) for name, product in PRODUCTS.items() for defect in product.defects]


def digests(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def test_there_are_textures_and_objects_with_three_kinds_of_defects_each():
    assert len(PRODUCTS) >= 6 and all(len(p.defects) >= 3 for p in PRODUCTS.values())


@pytest.mark.parametrize("name,defect", KINDS)
def test_the_mask_is_where_the_pictures_differ(name, defect):
    """The defective picture equals the sound one outside the mask, to what stays below the visible."""
    for index in range(2):
        sound, none = render(name, 3, index, size=96)
        image, mask = render(name, 3, index, defect, size=96)
        assert image.dtype == mask.dtype == np.uint8 and not none.any()
        assert 0.002 < mask.mean() < 0.2
        difference = np.abs(image.astype(int) - sound).max(axis=2)
        assert difference[mask == 0].max() <= 9  # the noise of both pictures is the same
        assert difference[mask == 1].mean() > 16 and difference[mask == 1].max() > 40


@pytest.mark.parametrize("name", PRODUCTS)
def test_normal_specimens_vary_but_look_alike(name):
    small = [cv2.resize(render(name, 0, i)[0], (8, 8), interpolation=cv2.INTER_AREA) for i in range(4)]
    for other in small[1:]:
        difference = np.abs(other.astype(int) - small[0])
        assert 0.5 < difference.mean() < 30


def test_a_defect_cannot_be_told_by_brightness_alone():
    """The spread of normal brightness covers most defective pictures."""
    for name, product in PRODUCTS.items():
        normal = [render(name, 0, i, size=48)[0].mean() for i in range(12)]
        defective = [render(name, 0, 50 + i, d, size=48)[0].mean() for i in range(2) for d in product.defects]
        inside = [min(normal) - 4 <= value <= max(normal) + 4 for value in defective]
        assert np.mean(inside) > 0.5, name


def test_written_data_set(tmp_path):
    write_dataset(tmp_path / "a", classes=("gear", "steel"), size=48, n_train=3, n_good=2, n_defect=2, seed=7)
    dataset = open_dataset(tmp_path / "a", "mvtec")
    assert list(dataset) == ["gear", "steel"]
    gear = dataset["gear"]
    assert len(gear.train) == 3
    assert [s.defect for s in gear.test if s.label] == [d for d in PRODUCTS["gear"].defects for _ in range(2)]
    for sample in gear.test:
        image, mask = read_sample(sample)
        assert image.shape == (48, 48, 3) and mask.any() == bool(sample.label)
    pictures = {p.read_bytes() for p in (tmp_path / "a").rglob("*.png") if "ground_truth" not in p.parts}
    assert len(pictures) == 5 + 8 + 5 + 6  # no specimen comes twice
    assert not [p.name for p in (tmp_path / "a").iterdir() if p.name.startswith(".")]
    # The blue and the red channel are not swapped on the way to the file.
    assert np.array_equal(np.rint(read_sample(gear.test[-1])[0] * 255), _rendered_like(gear.test[-1], 7))


def _rendered_like(sample, seed):
    kinds = PRODUCTS["gear"].defects
    index = 3 + 2 + 2 * kinds.index(sample.defect) + int(sample.path.stem)
    return render("gear", seed, index, sample.defect, 48)[0]


def test_equal_seeds_write_equal_bytes_whatever_else_is_written(tmp_path):
    few = {"size": 32, "n_train": 1, "n_good": 1, "n_defect": 1}
    for folder, classes, seed in (("a", ["cloth"], 1), ("b", ["plank", "cloth"], 1), ("c", ["cloth"], 2)):
        write_dataset(tmp_path / folder, classes=classes, seed=seed, **few)
    a, b, c = (digests(tmp_path / folder / "cloth") for folder in "abc")
    assert a == b and a.keys() == c.keys() and not set(a.values()) & set(c.values())


def test_refusals(tmp_path):
    with pytest.raises(DataError, match="did you mean 'gear'"):
        write_dataset(tmp_path, classes=["gears"])
    with pytest.raises(DataError, match="no defect 'hole'"):
        render("gear", 0, 0, "hole")
    with pytest.raises(ValueError, match="size is 8"):
        render("gear", 0, 0, size=8)
    with pytest.raises(ValueError, match="n_train"):
        write_dataset(tmp_path, n_train=0)
    (tmp_path / "gear").mkdir()
    with pytest.raises(DataError, match="gear exists already"):
        write_dataset(tmp_path, classes=["steel", "gear"])
    assert [p.name for p in tmp_path.iterdir()] == ["gear"]


def test_an_interrupted_class_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def fail(path, pixels):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr(synthetic, "_write_png", fail)
    with pytest.raises(OSError, match="No space"):
        write_dataset(tmp_path, classes=["steel"], size=32, n_train=5)
    assert list(tmp_path.iterdir()) == []
