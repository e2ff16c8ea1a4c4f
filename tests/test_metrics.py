"""Measures against scikit-learn, a brute force AUPRO, hand-computed task matrices and the golden values."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from paths import golden_file
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from cdad import _core, metrics


def brute_force_aupro(masks, maps, limit):
    """One pass over the images for every distinct threshold."""
    regions = []
    for k, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(k, labelled == c) for c in range(1, count + 1)]
    xs, ys = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        hit = maps >= threshold
        xs.append(hit[masks == 0].mean())
        ys.append(np.mean([hit[k][region].mean() for k, region in regions]))
    area = 0.0
    for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:]):
        if x1 > limit:
            if x0 >= limit:
                break
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def defects(rng, n=3, size=14, levels=None):
    masks = (ndimage.gaussian_filter(rng.normal(size=(n, size, size)), (0, 1.2, 1.2)) > 0.35).astype(np.uint8)
    masks[0] = 0
    maps = masks + rng.normal(size=masks.shape)
    return masks, maps if levels is None else np.round(maps * levels) / levels


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_auroc_and_average_precision_equal_scikit_learn(levels, dtype):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, size=(5, 8, 10))
    scores = 0.7 * labels + rng.normal(size=labels.shape)
    if levels is not None:
        scores = np.round(scores * levels) / levels
    scores = scores.astype(dtype)
    flat = labels.ravel(), scores.ravel()
    assert metrics.auroc(labels, scores) == pytest.approx(roc_auc_score(*flat), abs=1e-12)
    measured = metrics.average_precision(labels.astype(bool), scores)
    assert measured == pytest.approx(average_precision_score(*flat), abs=1e-12)
    thresholds = precision_recall_curve(*flat)[2]
    best = max(f1_score(flat[0], flat[1] >= threshold) for threshold in thresholds)
    assert metrics.f1_max(labels, scores) == pytest.approx(best, abs=1e-12)


def test_integer_scores_and_a_constant_score():
    assert metrics.auroc([0, 0, 1, 1], [1, 2, 2, 3]) == 0.875
    assert metrics.auroc([0, 1, 1], np.uint8([7, 7, 7])) == 0.5
    assert metrics.average_precision([0, 1, 1, 0], [7, 7, 7, 7]) == 0.5
    assert metrics.auroc([0, 1], [2.0, 1.0]) == 0.0  # below chance stays below chance


@pytest.mark.parametrize("limit", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("levels", [None, 2])
def test_aupro_equals_brute_force(limit, levels):
    masks, maps = defects(np.random.default_rng(2), levels=levels)
    expected = brute_force_aupro(masks, maps, limit)
    assert metrics.aupro(masks, maps, limit) == pytest.approx(expected, abs=1e-12)


def test_aupro_counts_regions_and_not_pixels():
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[0, 0] = 1         # one pixel, never found
    mask[3:7, 3:7] = 1     # 16 pixels, found first
    score = np.where(mask == 1, 1.0, 0.5)
    score[0, 0] = 0.0
    # PRO is 1/2 at FPR 0 and at FPR 1 (all normal pixels share one score): half up to any limit.
    assert metrics.aupro(mask, score) == pytest.approx(0.5)


def test_aupro_regions_are_eight_connected_and_end_with_the_image():
    masks = np.zeros((2, 4, 4), dtype=np.uint8)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 2, 2] = 1  # one diagonal region of three pixels
    masks[1, 0, 0] = 1                                    # touches the first only if images were joined
    maps = np.where(masks == 1, 0.0, 0.5)
    maps[1, 0, 0] = 1.0
    # One of two regions; 1/4 if the regions were 4-connected or joined across images.
    assert metrics.aupro(masks, maps) == pytest.approx(0.5)


def test_aupro_interpolates_at_the_limit():
    mask = np.zeros((1, 11), dtype=np.uint8)
    mask[0, 0] = 1
    assert metrics.aupro(mask, np.zeros((1, 11))) == pytest.approx(0.15)  # the diagonal up to 0.3, over 0.3
    assert metrics.aupro(mask, mask) == 1.0


def test_golden_values():
    from safetensors.numpy import load_file
    golden = load_file(golden_file("rand_metrics"))
    measured = metrics.evaluate_scores(*(golden[key] for key in ("labels", "image_scores", "masks", "maps")))
    measured["aupro_03"] = measured.pop("pixel_aupro")
    measured["average_last"] = metrics.average_last(golden["task_matrix"])
    measured["forgetting"] = metrics.forgetting(golden["task_matrix"])
    for name, value in measured.items():
        assert value == pytest.approx(float(golden[name][0]), abs=1e-6), name


def test_task_measures_by_hand():
    nan = float("nan")
    matrix = [[0.90, nan, nan],
              [0.95, 0.80, nan],
              [0.85, 0.82, 0.70]]
    assert metrics.average_last(matrix) == pytest.approx((0.85 + 0.82 + 0.70) / 3)
    # task 0: max(0.90, 0.95) - 0.85 = 0.10; task 1: 0.80 - 0.82 = -0.02 (it gained)
    assert metrics.forgetting(matrix) == pytest.approx((0.10 - 0.02) / 2)
    # task 0: 0.85 - 0.90; task 1: 0.82 - 0.80
    assert metrics.backward_transfer(matrix) == pytest.approx((-0.05 + 0.02) / 2)


def test_forgetting_ignores_what_lies_above_the_diagonal():
    matrix = np.array([[0.9, 5.0, 5.0], [0.95, 0.8, 5.0], [0.85, 0.82, 0.7]])
    assert metrics.forgetting(matrix) == pytest.approx(0.04)


def test_backward_transfer_is_no_less_than_forgetting_undone():
    for seed in range(20):
        matrix = np.random.default_rng(seed).random((4, 4))
        assert metrics.backward_transfer(matrix) >= -metrics.forgetting(matrix)
        falling = np.sort(matrix, axis=0)[::-1]
        assert metrics.backward_transfer(falling) == pytest.approx(-metrics.forgetting(falling))


def test_undefined_task_measures_are_nan():
    assert np.isnan(metrics.average_last([[0.9, 0.0], [0.8, np.nan]]))
    assert np.isnan(metrics.forgetting([[np.nan, np.nan], [0.8, 0.9]]))
    with pytest.warns(RuntimeWarning, match="single task"):
        assert np.isnan(metrics.forgetting([[0.9]]))
    assert np.isnan(metrics.backward_transfer([[np.nan, np.nan], [0.8, 0.9]]))
    assert metrics.backward_transfer([[0.9, np.nan], [0.8, np.nan]]) == pytest.approx(-0.1)
    with pytest.warns(RuntimeWarning, match="backward transfer .* single task"):
        assert np.isnan(metrics.backward_transfer([[0.9]]))


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.zeros(3), np.zeros((0, 0))])
def test_task_matrix_must_be_square(bad):
    for measure in (metrics.average_last, metrics.forgetting, metrics.backward_transfer):
        with pytest.raises(ValueError, match="square"):
            measure(bad)


def test_evaluate_scores_equals_the_single_measures():
    masks, maps = defects(np.random.default_rng(3), n=4)
    labels, scores = masks.any(axis=(1, 2)), np.array([2.0, 3.0, 1.0, 4.0])
    measured = metrics.evaluate_scores(labels, scores, masks, maps)
    assert tuple(measured) == metrics.MEASURES
    assert measured == {
        "image_auroc": metrics.auroc(labels, scores), "image_ap": metrics.average_precision(labels, scores),
        "pixel_auroc": metrics.auroc(masks, maps), "pixel_ap": metrics.average_precision(masks, maps),
        "pixel_aupro": metrics.aupro(masks, maps)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_only = metrics.evaluate_scores(labels, scores)
    assert image_only["image_auroc"] == measured["image_auroc"]
    assert all(np.isnan(image_only[name]) for name in metrics.MEASURES[2:])
    with pytest.raises(ValueError, match="3 image labels but 4 maps"):
        metrics.evaluate_scores(labels[:3], scores[:3], masks, maps)


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_is_nan_with_a_warning(value):
    labels, scores = np.full((1, 2, 3), value), np.arange(6.0).reshape(1, 2, 3)
    for measure in (metrics.auroc, metrics.average_precision, metrics.aupro):
        with pytest.warns(RuntimeWarning, match="both classes are needed") as record:
            assert np.isnan(measure(labels, scores))
        assert record[0].filename == __file__
    with pytest.warns(RuntimeWarning, match="0 normal and 0 anomalous"):
        assert np.isnan(metrics.auroc([], []))


@pytest.mark.parametrize("measure", [metrics.auroc, metrics.average_precision, metrics.aupro])
def test_wrong_input_is_refused(measure):
    labels, scores = np.array([[0, 1, 0]]), np.array([[0.1, 0.9, 0.3]])
    for bad in (np.nan, np.inf, -np.inf):
        spoiled = scores.copy()
        spoiled[0, 1] = bad
        with pytest.raises(ValueError, match="1 of 3 values that are not finite"):
            measure(labels, spoiled)
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(1, 2\)"):
        measure(labels, scores[:, :2])
    with pytest.raises(ValueError, match="must be 0 or 1, found 255"):
        measure(labels * 255, scores)
    with pytest.raises(TypeError, match="complex128"):
        measure(labels, scores.astype(complex))


def test_aupro_refuses_wrong_ranks_and_limits():
    with pytest.raises(ValueError, match=r"\[N,H,W\]"):
        metrics.aupro(np.zeros(4), np.zeros(4))
    for limit in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="fpr_limit"):
            metrics.aupro(np.eye(4), np.eye(4), limit)


def test_inputs_are_not_written():
    masks, maps = defects(np.random.default_rng(4))
    masks.flags.writeable = maps.flags.writeable = False
    metrics.evaluate_scores(masks.any(axis=(1, 2)), maps.max(axis=(1, 2)), masks, maps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_places_are_counted_as_sorting_would(dtype):
    rng = np.random.default_rng(5)
    values, skip = (100 * rng.standard_normal(5000)).astype(dtype), rng.random(5000) < 0.3
    marks = np.unique(np.append(values[:200], [7, 1000])).astype(np.float64)
    kept = np.sort(values[~skip].astype(np.float64))
    edges = np.stack([np.searchsorted(kept, marks, "left"), np.searchsorted(kept, marks, "right")], 1).ravel()
    wanted = np.diff(np.concatenate([[0], edges, [kept.size]]))
    np.testing.assert_array_equal(_core.count_places(values, skip, marks), wanted)
    with pytest.raises(ValueError, match="5000 values but 4999 flags"):
        _core.count_places(values, skip[1:], marks)


def test_the_command_line_warns_in_a_line():
    code = "import sys; from cdad.cli import main; from cdad.metrics import forgetting; main(['info']); forgetting([[1.0]])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING: forgetting is undefined with a single task\n"


@pytest.mark.parametrize("dtype, first", [(np.int64, 2**60), (np.int64, -(2**60)), (np.uint64, 2**63), (np.longdouble, 1)])
def test_scores_finer_than_float64_keep_their_order(dtype, first):
    rng = np.random.default_rng(0)
    ranks, labels = rng.integers(0, 9, 60), rng.integers(0, 2, 60)
    step = np.finfo(dtype).eps if dtype is np.longdouble else 1
    scores = np.array(first, dtype) + ranks.astype(dtype) * dtype(step)
    assert metrics.auroc(labels, scores) == metrics.auroc(labels, ranks)
    assert metrics.average_precision(labels, scores) == metrics.average_precision(labels, ranks)
