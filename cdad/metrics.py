"""Measures of anomaly detection, and of what continual learning forgets.

Image and pixel level: area under the ROC curve (AUROC), average precision (AP; the paper's "AUPR") and area
under the per-region overlap curve (AUPRO). All are exact: every distinct score is a threshold, and one ranking
of the scores serves all of them. Over tasks: the average after the last task, the forgetting measure and backward
transfer.

A measure that is not defined, because only one class is present, is nan with a ``RuntimeWarning``.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from . import _core

#: What :func:`evaluate_scores` returns, in the order of tables and files.
MEASURES = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_aupro")

# Regions are 8-connected inside an image of a stack [N,H,W] and never reach into the next image.
_CONNECTIVITY = np.zeros((3, 3, 3), dtype=bool)
_CONNECTIVITY[1] = True


class _Ranking(NamedTuple):
    """What is above each distinct score of an anomalous element, highest first. Between two of these every curve here
    is a straight line, so the normal elements, nearly all pixels, are not sorted but counted."""

    order: np.ndarray    # [p] places of the anomalous elements among themselves, highest first
    ends: np.ndarray     # [k] place in `order` of the last element of each run of equal scores
    above: np.ndarray    # [k] normal elements that score higher, float64
    at_least: np.ndarray  # [k] normal elements that score as high or higher, float64
    n_normal: int

    @property
    def n_anomalous(self) -> int:
        return self.order.size

    @property
    def hits(self) -> np.ndarray:
        """[k] anomalous elements that score as high or higher."""
        return self.ends + 1.0

    def corners(self, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x, y): where the curve bends whose height is ``heights`` [k] at the distinct scores, over the number of
        normal elements: level up to a score, rising with those elements that share it, level to the end."""
        x = np.append(np.stack([self.above, self.at_least], 1).ravel(), self.n_normal)
        y = np.append(np.stack([np.append(0.0, heights[:-1]), heights], 1).ravel(), heights[-1])
        return x, y

    def defined(self, measure: str, unit: str) -> bool:
        """Whether both classes are present; warns where they are not."""
        if self.n_normal > 0 and self.n_anomalous > 0:
            return True
        warnings.warn(
            f"{measure} is undefined with {self.n_normal} normal and {self.n_anomalous} anomalous "
            f"{unit}: both classes are needed", RuntimeWarning, stacklevel=4)
        return False


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, the chance that an anomalous element outscores a normal one.

    AUROC = P(s+ > s-) + P(s+ = s-) / 2, the trapezoid rule over (FPR, TPR) at every distinct score;
    equals scikit-learn's ``roc_auc_score``.

    Args:
        labels: 0 (normal) or 1 (anomalous), bool or number, of any shape.
        scores: finite numbers of the same shape; higher is more anomalous.

    Returns:
        A value in 0..1, or nan with a ``RuntimeWarning`` where only one class is present.

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, or a score is not finite.
        TypeError: labels or scores are not real numbers.
    """
    return _auroc(_rank(*_checked(labels, scores, "labels", "scores")), "auroc", "elements")


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision, the step-wise area under the precision-recall curve.

    AP = sum_k (recall_k - recall_{k-1}) * precision_k over the distinct scores, highest first, without
    interpolation; equals scikit-learn's ``average_precision_score``. It is the estimator behind what the
    papers of the field call AUPR. Arguments, result and errors are those of :func:`auroc`.
    """
    ranking = _rank(*_checked(labels, scores, "labels", "scores"))
    return _average_precision(ranking, "average_precision", "elements")


def f1_max(labels: ArrayLike, scores: ArrayLike) -> float:
    """The largest F1 = 2 precision recall / (precision + recall) that any threshold gives.

    The threshold is chosen on what it is judged by, so this is a bound of what decisions can be: those of a threshold that
    was chosen before are `cdad.evaluation.Decisions`. Equals the maximum over scikit-learn's ``precision_recall_curve``.
    Arguments, result and errors are those of :func:`auroc`.
    """
    return _f1_max(_rank(*_checked(labels, scores, "labels", "scores")), "f1_max", "elements")


def aupro(masks: ArrayLike, maps: ArrayLike, fpr_limit: float = 0.3) -> float:
    """Area under the per-region overlap curve up to a false positive rate (Bergmann et al., MVTec AD, 2021).

    PRO(t) = mean over all regions C of |C and {S >= t}| / |C|, where the regions are the 8-connected parts of
    the masks, over FPR(t) = share of the normal pixels of all images with S >= t. The curve has one point for
    each distinct score, starts at (0, 0), is interpolated linearly, integrated from 0 to `fpr_limit` and
    divided by `fpr_limit`.

    A pixel of a region of area |C| adds 1/|C| to the sum of overlaps once the threshold reaches its score, so
    a running sum over the sorted pixels is the whole curve.

    Args:
        masks: [N,H,W] or [H,W], 0 (normal) or 1 (anomalous).
        maps: anomaly maps S of the same shape, finite.
        fpr_limit: end of the integral, in (0, 1].

    Returns:
        A value in 0..1, or nan with a ``RuntimeWarning`` where there is no anomalous or no normal pixel.

    Raises:
        ValueError: shapes differ or are not [N,H,W] or [H,W], a mask value is not 0 or 1, a score is not
            finite, or `fpr_limit` is outside (0, 1].
        TypeError: masks or maps are not real numbers.
    """
    if not 0.0 < fpr_limit <= 1.0:
        raise ValueError(f"fpr_limit must be in (0, 1], got {fpr_limit!r}")
    masks, maps = _checked_maps(masks, maps)
    return _aupro(masks, _rank(masks, maps), fpr_limit, "aupro")


def average_last(task_matrix: ArrayLike) -> float:
    """Average over the tasks after the last one was learned, A- = (1/N) sum_i R[N, i].

    Args:
        task_matrix: R [N,N], R[b, i] the measure of task i after learning task b; what lies above the
            diagonal (tasks not learned yet) is ignored, nan there is usual.

    Returns:
        The mean of the last row; nan where that row holds one.

    Raises:
        ValueError: the matrix is not square or is empty.
    """
    return float(square_task_matrix(task_matrix)[-1].mean())


def forgetting(task_matrix: ArrayLike) -> float:
    """Forgetting measure ("One-for-More", CVPR 2025), how far the old tasks fell from their best.

    FM = mean over tasks i < N of max over b in i..N-1 of (R[b, i] - R[N, i]). The mean is over the N-1 old
    tasks: the last task cannot have been forgotten. Negative where old tasks got better than ever before.

    Args:
        task_matrix: R [N,N] as in :func:`average_last`.

    Returns:
        The measure in the unit of R; nan where an entry that it needs is nan; nan with a ``RuntimeWarning``
        for a single task.

    Raises:
        ValueError: the matrix is not square or is empty.
    """
    matrix = square_task_matrix(task_matrix)
    n_old = len(matrix) - 1
    if n_old == 0:
        warnings.warn("forgetting is undefined with a single task", RuntimeWarning, stacklevel=2)
        return float("nan")
    learned = np.tri(n_old, dtype=bool)  # R[b, i] counts from b = i on
    best = np.where(learned, matrix[:-1, :-1], -np.inf).max(axis=0)
    return float((best - matrix[-1, :-1]).mean())


def backward_transfer(task_matrix: ArrayLike) -> float:
    """Backward transfer (Lopez-Paz & Ranzato, NeurIPS 2017, Eq. 3), what later tasks did to the old ones since each was learned.

    BWT = mean over tasks i < N of R[N, i] - R[i, i]. Below zero where they were forgotten; -FM wherever each old task was at its
    best just after it was learned, else above it. Their forward transfer (Eq. 4) needs tests on tasks that are not learned yet,
    R[i-1, i], which runs do not make.

    Args:
        task_matrix: R [N,N] as in :func:`average_last`.

    Returns:
        The measure in the unit of R; nan where an entry that it needs is nan; nan with a ``RuntimeWarning``
        for a single task.

    Raises:
        ValueError: the matrix is not square or is empty.
    """
    matrix = square_task_matrix(task_matrix)
    if len(matrix) == 1:
        warnings.warn("backward transfer is undefined with a single task", RuntimeWarning, stacklevel=2)
        return float("nan")
    return float((matrix[-1, :-1] - matrix.diagonal()[:-1]).mean())


def evaluate_scores(labels: ArrayLike, scores: ArrayLike, masks: ArrayLike | None = None,
                    maps: ArrayLike | None = None) -> dict[str, float]:
    """All measures of one test set; the pixels are sorted once for the three pixel measures.

    Args:
        labels: [N] image labels, 0 (normal) or 1 (anomalous).
        scores: [N] image scores, finite.
        masks: [N,H,W] ground truth, 0 or 1, or None.
        maps: [N,H,W] anomaly maps, finite, or None.

    Returns:
        A value for each of :data:`MEASURES`. The pixel measures are nan where masks or maps are None, and any
        measure is nan, with a ``RuntimeWarning``, where only one class is present.

    Raises:
        ValueError, TypeError: as :func:`auroc` and :func:`aupro`; also where labels and maps differ in N.
    """
    labels, scores = _checked(labels, scores, "labels", "scores")
    images = _rank(labels, scores)
    result = dict.fromkeys(MEASURES, float("nan"))
    result["image_auroc"] = _auroc(images, "image_auroc", "images")
    result["image_ap"] = _average_precision(images, "image_ap", "images")
    if masks is None or maps is None:
        return result
    masks, maps = _checked_maps(masks, maps)
    if len(maps) != labels.size:
        raise ValueError(f"{labels.size} image labels but {len(maps)} maps: "
                         f"labels {labels.shape}, maps {maps.shape}")
    pixels = _rank(masks, maps)
    result["pixel_auroc"] = _auroc(pixels, "pixel_auroc", "pixels")
    result["pixel_ap"] = _average_precision(pixels, "pixel_ap", "pixels")
    result["pixel_aupro"] = _aupro(masks, pixels, 0.3, "pixel_aupro")
    return result


def _auroc(ranking: _Ranking, measure: str, unit: str) -> float:
    if not ranking.defined(measure, unit):
        return float("nan")
    return _area(*ranking.corners(ranking.hits)) / (ranking.n_normal * ranking.n_anomalous)


def _average_precision(ranking: _Ranking, measure: str, unit: str) -> float:
    if not ranking.defined(measure, unit):
        return float("nan")
    hits = ranking.hits
    precision = hits / (hits + ranking.at_least)
    return float(np.dot(np.diff(hits, prepend=0.0), precision) / ranking.n_anomalous)


def _f1_max(ranking: _Ranking, measure: str, unit: str) -> float:
    if not ranking.defined(measure, unit):
        return float("nan")
    hits = ranking.hits
    return float((2 * hits / (hits + ranking.at_least + ranking.n_anomalous)).max())


def _aupro(masks: np.ndarray, ranking: _Ranking, fpr_limit: float, measure: str) -> float:
    if not ranking.defined(measure, "pixels"):
        return float("nan")
    defective = masks[masks.any((1, 2))]
    regions = ndimage.label(defective, structure=_CONNECTIVITY)[0][defective]
    weights = 1.0 / np.bincount(regions, minlength=1).clip(1)
    overlap = np.cumsum(weights[regions[ranking.order]])[ranking.ends]
    overlap /= overlap[-1]  # the whole sum is the number of regions, here with its own rounding
    x, y = ranking.corners(overlap)
    x /= ranking.n_normal

    below = int(np.searchsorted(x, fpr_limit, side="right"))
    if below < x.size:  # the segment that crosses the limit; it starts at (0, 0) when it is the first
        x0, y0 = (x[below - 1], y[below - 1]) if below else (0.0, 0.0)
        share = (fpr_limit - x0) / (x[below] - x0)
        crossing = y0 + share * (y[below] - y0)
        x, y = np.append(x[:below], fpr_limit), np.append(y[:below], crossing)
    return _area(x, y) / fpr_limit


def _area(x: np.ndarray, y: np.ndarray) -> float:
    """Trapezoid rule through (0, 0) and the points (x, y)."""
    width = np.diff(x, prepend=0.0)
    return 0.5 * float(np.dot(width, y) + np.dot(width[1:], y[:-1]))


def _rank(labels: np.ndarray, scores: np.ndarray) -> _Ranking:
    """labels is bool of the shape of scores."""
    labels, scores = labels.ravel(), scores.ravel()
    anomalous = scores[labels].astype(np.float64)
    order = np.argsort(anomalous)[::-1]
    falling = anomalous[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], [True] * (falling.size > 0)))
    counts = _core.count_places(scores, labels, falling[ends][::-1])
    reached = np.cumsum(counts[::-1]).astype(np.float64)  # from above: above a score, with those that share it, ...
    return _Ranking(order, ends, reached[:-1:2], reached[1::2], int(reached[-1]))


def _checked(labels: ArrayLike, scores: ArrayLike, labels_name: str,
             scores_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels as bool and scores as they are (their order is what counts), or ValueError/TypeError."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.shape != scores.shape:
        raise ValueError(f"{labels_name} and {scores_name} differ in shape: "
                         f"{labels.shape} and {scores.shape}")
    for name, array in ((labels_name, labels), (scores_name, scores)):
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if scores.dtype.kind == "f" and not np.isfinite(scores).all():
        bad = scores.size - int(np.isfinite(scores).sum())
        raise ValueError(f"{scores_name} hold {bad} of {scores.size} values that are not finite")
    if not _fits_float64(scores):  # by rank
        scores = np.unique(scores, return_inverse=True)[1].reshape(scores.shape)
    if labels.dtype.kind == "b":
        return labels, scores
    anomalous = labels != 0
    other = anomalous & (labels != 1)
    if other.any():
        raise ValueError(f"{labels_name} must be 0 or 1, found {labels[other][0]}")
    return anomalous, scores


def _fits_float64(scores: np.ndarray) -> bool:
    """Whether it tells all of them apart."""
    if scores.dtype.kind == "f" or scores.dtype.itemsize < 8 or not scores.size:
        return scores.dtype.itemsize <= 8
    return -(2**53) <= int(scores.min()) and int(scores.max()) <= 2**53


def _checked_maps(masks: ArrayLike, maps: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Masks (bool) and maps as stacks [N,H,W]."""
    masks, maps = _checked(masks, maps, "masks", "maps")
    if maps.ndim not in (2, 3):
        raise ValueError(f"masks and maps must be [N,H,W] or [H,W], got shape {maps.shape}")
    return (masks, maps) if maps.ndim == 3 else (masks[None], maps[None])


def square_task_matrix(task_matrix: ArrayLike) -> np.ndarray:
    """The matrix as float64 [N,N]; ValueError where it is not square or is empty."""
    matrix = np.asarray(task_matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"a task matrix must be square [N,N] with N >= 1, got shape {matrix.shape}")
    return matrix
