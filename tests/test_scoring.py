"""Anomaly maps and image scores, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from cdad.config import ScoringConfig
from cdad.scoring import Calibration, image_scores, score_maps


def config(**changes) -> ScoringConfig:
    return ScoringConfig(**{"layers": (0, 2), "sigma": 0.0, **changes})


@pytest.fixture
def distances() -> np.ndarray:
    return np.random.default_rng(0).gamma(1.0, size=(3, 32, 32, 3)).astype(np.float32)


def test_a_map_is_the_mean_of_the_chosen_layers(distances):
    maps = score_maps(distances, None, config(), 32)
    assert np.allclose(maps, (distances[..., 0] + distances[..., 2]) / 2)


def test_smoothing_is_in_pixels_at_256(distances):
    flat = np.zeros((1, 65, 65, 1), np.float32)
    flat[0, 32, 32] = 1.0
    spread = score_maps(flat, None, config(layers=(0,), sigma=8.0), 64)[0]
    squares = (np.arange(65) - 32.0) ** 2
    assert spread.sum() == pytest.approx(1.0, rel=1e-3)
    assert (spread.sum(0) * squares).sum() == pytest.approx(2.0**2, rel=0.02)  # 8 pixels at 256 are 2 at 64


def test_calibrated_normal_images_have_mean_one_at_any_scale(distances):
    scale = np.array([1.0, 7.0, 100.0], np.float32)
    where = np.linspace(0.5, 1.5, 32, dtype=np.float32)[:, None, None]
    normal = np.random.default_rng(1).gamma(20.0, 0.05, size=(40, 32, 32, 3)).astype(np.float32) * where * scale
    calibration = Calibration.measure(normal)
    maps = score_maps(normal, calibration, config(), 32)
    assert maps.mean() == pytest.approx(1.0, rel=0.03)
    hardness = where[4:-4, 0, 0]  # the mean map is smoothed: its border mirrors
    assert np.allclose(maps.mean((0, 2))[4:-4], 3 * hardness / (hardness + 2), rtol=0.05)
    odd = normal[:1].copy()
    odd[0, 8:12, 20:24, 2] *= 10
    assert np.unravel_index(score_maps(odd, calibration, config(), 32)[0].argmax(), (32, 32))[0] in range(8, 12)


def test_layers_that_no_map_is_made_of_do_not_weigh_in_its_calibration(distances):
    hard = distances.copy()
    hard[:, 4:12, 4:12, 1] *= 20
    one, other = (score_maps(distances, Calibration.measure(d, chosen=[0, 2]), config(), 32) for d in (distances, hard))
    assert np.array_equal(one, other) and not np.array_equal(one, score_maps(distances, Calibration.measure(hard), config(), 32))
    calibration = Calibration.from_tensors(Calibration.measure(hard, chosen=[0, 2]).tensors())
    fits = [calibration.fits(32, [1, 1, 1], config(layers=layers, distance="euclidean", memory_bank=0)) for layers in ((0, 2), (1,))]
    assert fits == [True, False] and Calibration.pool([calibration]).chosen == (0, 2)


def test_a_pool_of_one_calibration_is_itself(distances):
    one = Calibration.measure(distances)
    pooled = Calibration.pool([one])
    assert np.array_equal(pooled.layers, one.layers) and np.array_equal(pooled.mean, one.mean)
    again = Calibration.from_tensors(one.tensors())
    assert np.array_equal(again.layers, one.layers) and np.array_equal(again.mean, one.mean)


def test_second_moments_go_with_a_calibration(distances):
    rng = np.random.default_rng(3)
    parts = [[x @ x.T for x in rng.normal(size=(2, n, 2 * n)).astype(np.float32)] for n in (3, 5)]
    one, two = (Calibration.measure(distances, moments) for moments in zip(*parts, strict=True))
    again = Calibration.from_tensors(one.tensors())
    assert all(np.array_equal(a, b) for a, b in zip(again.moments, one.moments, strict=True)) and len(again.moments) == 2
    pooled = Calibration.pool([one, two])
    for i, white in enumerate(pooled.whitening):
        moment = (one.moments[i] + two.moments[i]).astype(np.float64) / 2
        moment += 0.02 * np.trace(moment) / len(moment) * np.eye(len(moment))
        assert white.dtype == np.float32 and np.allclose(white.T @ white, np.linalg.inv(moment), rtol=1e-3, atol=1e-6)


def test_features_that_never_differ_have_a_whitening():
    assert np.isfinite(Calibration.measure(np.ones((1, 8, 8, 1), np.float32), [np.zeros((4, 4), np.float32)]).whitening[0]).all()


def test_an_image_s_score_is_the_mean_of_its_highest_pixels(distances):
    maps = distances[..., 0]
    ordered = np.sort(maps.reshape(3, -1), axis=1)
    plain = {"subtract_median": False}
    assert np.array_equal(image_scores(maps, config(top=0.0, **plain)), maps.max((1, 2)))
    assert np.allclose(image_scores(maps, config(top=0.1, **plain)), ordered[:, -102:].mean(1))
    assert np.allclose(image_scores(maps, config(top=1.0, **plain)), maps.mean((1, 2)))
    speck, blob = np.zeros((2, 1, 32, 32), np.float32)
    speck[0, 5, 5], blob[0, 10:20, 10:20] = 2.0, 1.0
    assert image_scores(speck, config(top=0.0)) > image_scores(blob, config(top=0.0))
    assert image_scores(speck, config(top=0.1)) < image_scores(blob, config(top=0.1))


def test_what_a_whole_map_shares_is_no_defect(distances):
    maps = distances[..., 0]
    lit = maps + np.float32(0.5)  # the same parts under another light
    assert np.allclose(image_scores(lit, config()), image_scores(maps, config()), atol=1e-5)
    assert np.all(image_scores(lit, config(subtract_median=False)) > image_scores(maps, config(subtract_median=False)) + 0.4)
    defect = maps.copy()
    defect[:, 4:14, 4:14] += 1.0
    assert np.all(image_scores(defect, config()) > image_scores(lit, config()))
