"""Perturbation: patches of another image, edited in; what changes, what never does, and what decides it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pictures import random_image

from cdad.data import perturb, perturbation_rng


class TestPerturb:
    image = random_image(96, 80, 1) / np.float32(255)
    source = random_image(96, 80, 2) / np.float32(255)

    def test_changes_inside_the_mask_only_and_never_the_inputs(self):
        before = self.image.copy(), self.source.copy()
        for index in range(30):
            result, mask = perturb(self.image, self.source, perturbation_rng(0, 0, index))
            assert result.dtype == np.float32 and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
            assert np.array_equal(result[mask == 0], self.image[mask == 0])
            assert np.abs(result - self.image)[mask == 1].max() > 3 / 255
            assert 0 <= result.min() and result.max() <= 1
        assert np.array_equal(before[0], self.image) and np.array_equal(before[1], self.source)

    def test_depends_on_seed_epoch_and_index_alone(self):
        first = perturb(self.image, self.source, perturbation_rng(3, 1, 7))
        perturb(self.source, self.image, perturbation_rng(9, 9, 9))
        assert all(map(np.array_equal, first, perturb(self.image, self.source, perturbation_rng(3, 1, 7))))
        others = [perturbation_rng(*key) for key in ((4, 1, 7), (3, 2, 7), (3, 1, 8), (3, 7, 1))]
        assert not any(np.array_equal(first[0], perturb(self.image, self.source, rng)[0]) for rng in others)

    def test_number_and_size_of_patches(self):
        counts, sides = set(), []
        for index in range(150):
            rng = perturbation_rng(0, 0, index)
            mask = perturb(self.image, self.source, rng, n_patches=(1, 1), side=(0.1, 0.3))[1]
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # one rectangle
            sides += [(len(rows) - 4) / 96, (len(columns) - 4) / 80]
            many = perturb(self.image, self.source, perturbation_rng(0, 0, index), side=(0.03, 0.06))[1]
            counts.add(cv2.connectedComponents(many)[0] - 1)
        assert 0.09 <= min(sides) < 0.13 and 0.28 < max(sides) <= 0.31
        assert counts == {1, 2, 3, 4}

    def test_is_poisson_editing_and_not_a_paste(self):
        # Gradients are what is transferred: where the source has the image's own, only brighter, nothing
        # changes, while a paste would change every patch by 0.4.
        ramp = np.tile(np.arange(64, dtype=np.float32)[None, :, None] * 2 / 255, (64, 1, 3))
        for index in range(5):
            result, mask = perturb(ramp, ramp + np.float32(102 / 255), perturbation_rng(0, 0, index))
            assert np.abs(result - ramp).max() < 4 / 255

    def test_background_on_background_is_drawn_again(self):
        image = np.zeros((64, 64, 3), np.float32)
        source = image.copy()
        source[24:40, 24:40] = 1  # most patches miss its edge
        for index in range(10):
            result, mask = perturb(image, source, perturbation_rng(0, 0, index), n_patches=(1, 1))
            assert mask.any() and np.abs(result - image)[mask == 1].max() > 3 / 255

    def test_two_empty_pictures_cannot_be_perturbed(self):
        image = np.full((32, 32, 3), 0.5, np.float32)
        result, mask = perturb(image, image, perturbation_rng(0, 0, 0))
        assert np.array_equal(result, image) and not mask.any()

    def test_feathered_paste_where_poisson_editing_fails(self, monkeypatch):
        def fail(*_):
            raise cv2.error("degenerate")

        monkeypatch.setattr(cv2, "seamlessClone", fail)
        result, mask = perturb(self.image, self.source, perturbation_rng(0, 0, 0))
        assert np.array_equal(result[mask == 0], self.image[mask == 0])
        assert np.abs(result - self.image)[mask == 1].max() > 3 / 255

    @pytest.mark.parametrize(
        "change,message",
        [
            ({"image": np.zeros((8, 8, 3))}, "image is float64"),
            ({"source": np.zeros((8, 8), np.float32)}, "source is float32 \\[8, 8\\]"),
            ({"source": np.zeros((8, 8, 3), np.float32)}, "expected one shape"),
            (dict.fromkeys(("image", "source"), np.zeros((9, 20, 3), np.float32)), "at least 10"),
            ({"n_patches": (0, 4)}, "n_patches"),
            ({"side": (0.3, 0.2)}, "side"),
        ],
    )
    def test_refusals(self, change, message):
        arguments = {"image": self.image, "source": self.source} | change
        with pytest.raises(ValueError, match=message):
            perturb(rng=perturbation_rng(0, 0, 0), **arguments)
