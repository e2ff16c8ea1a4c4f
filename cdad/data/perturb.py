"""Natural Synthetic Anomalies: normal images perturbed by blended patches of other normal images.

Source: Schlüter et al., "Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and Localization"
(ECCV 2022), as One-for-More uses it to make x~ from x.
"""

from __future__ import annotations

import cv2
import numpy as np

from .images import unit_float

# NSA draws sides from a Gamma distribution above the lower bound: many small patches, a few large ones.
_GAMMA_SHAPE, _GAMMA_SCALE = 2.0, 0.05
# Of what seamlessClone is given it takes the gradients except for a border of 4 pixels, and changes pixels
# except for a border of 2; what is cut out is larger than the patch by this much on every side.
_MARGIN = 4
_UNCHANGED = 2
_MIN_SIDE = 2
# A patch that changes no pixel by as much as this, of 255 (background on background), is drawn anew.
_VISIBLE = 12
# The solver's own rounding: no change at all.
_ROUNDING = 1
_ATTEMPTS = 20


def perturbation_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one sample: a function of (seed, epoch, image index) alone.

    Counter-based (Philox), so neither the order of the samples nor the worker that makes them matters.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch, index))))


def perturb(
    image: np.ndarray,
    source: np.ndarray,
    rng: np.random.Generator,
    *,
    n_patches: tuple[int, int] = (1, 4),
    side: tuple[float, float] = (0.03, 0.4),
) -> tuple[np.ndarray, np.ndarray]:
    """Blend patches of ``source`` into ``image``; neither is written.

    ``image`` and ``source``: float32 [H,W,3] in [0, 1], at least 10x10, of one shape. ``n_patches``: least
    and greatest number of patches. ``side``: bounds of a patch's sides in parts of the image's; a side is the
    lower bound plus Gamma(2, 0.05), cut at the upper bound. Each patch lands at another place than it was
    cut from, by Poisson editing with the patch's gradients or, as often, the stronger of both gradients.

    Returns the perturbed image and a mask, uint8 [H,W], which is 1 on the rectangles that were blended: the
    patches and 2 pixels around. All other pixels keep their bits. A patch that would change nothing visibly
    is drawn again, up to 20 times; then the draw that changed most counts. Only where none changed anything
    (two empty pictures) is the patch left out.
    """
    _check(image, source, n_patches, side)
    height, width = image.shape[:2]
    result, mask = image.copy(), np.zeros((height, width), np.uint8)
    source8 = _to_uint8(source)
    for _ in range(rng.integers(n_patches[0], n_patches[1], endpoint=True)):
        canvas8 = _to_uint8(result)
        best, place, content = _ROUNDING, np.s_[:0, :0], canvas8[:0, :0]
        for _ in range(_ATTEMPTS):
            h, w = _draw_side(rng, side, height), _draw_side(rng, side, width)
            from_y, from_x, y, x = _draw_places(rng, height - h + 1, width - w + 1)
            flag = (cv2.NORMAL_CLONE, cv2.MIXED_CLONE)[rng.integers(2)]
            patch = source8[from_y : from_y + h, from_x : from_x + w]
            blended = _blend(patch, canvas8, y, x, flag)
            inner = np.s_[y + _UNCHANGED : y + h - _UNCHANGED, x + _UNCHANGED : x + w - _UNCHANGED]
            change = int(cv2.absdiff(blended[inner], canvas8[inner]).max())
            if change > best:
                best, place, content = change, inner, blended[inner]
                if change >= _VISIBLE:
                    break
        result[place], mask[place] = unit_float(content), 1
    return result, mask


def _check(
    image: np.ndarray, source: np.ndarray, n_patches: tuple[int, int], side: tuple[float, float]
) -> None:
    for name, array in (("image", image), ("source", source)):
        if array.dtype != np.float32 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, expected float32 [H,W,3]")
    if image.shape != source.shape:
        raise ValueError(f"image is {list(image.shape)}, source {list(source.shape)}: expected one shape")
    least = _MIN_SIDE + 2 * _MARGIN
    if min(image.shape[:2]) < least:
        raise ValueError(f"image is {list(image.shape)}, expected at least {least} pixels a side")
    if not 1 <= n_patches[0] <= n_patches[1]:
        raise ValueError(f"n_patches is {n_patches}, expected 1 <= least <= greatest")
    if not 0 < side[0] <= side[1] <= 1:
        raise ValueError(f"side is {side}, expected 0 < lower <= upper <= 1")


def _draw_side(rng: np.random.Generator, side: tuple[float, float], length: int) -> int:
    """Pixels of a patch's side together with the margin on both ends."""
    part = min(side[0] + rng.gamma(_GAMMA_SHAPE, _GAMMA_SCALE), side[1])
    return min(max(round(part * length), _MIN_SIDE) + 2 * _MARGIN, length)


def _draw_places(rng: np.random.Generator, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Top left corners (y, x) of a patch in the source and in the image, of rows x columns places each."""
    places = rows * columns
    origin = int(rng.integers(places))
    # Any place but the origin, all equally likely.
    target = (origin + int(rng.integers(1, max(places, 2)))) % places
    return origin // columns, origin % columns, target // columns, target % columns


def _blend(patch: np.ndarray, canvas: np.ndarray, y: int, x: int, flag: int) -> np.ndarray:
    h, w = patch.shape[:2]
    everywhere, centre = np.full((h, w), 255, np.uint8), (x + w // 2, y + h // 2)
    try:
        return cv2.seamlessClone(np.ascontiguousarray(patch), canvas, everywhere, centre, flag)
    except cv2.error:  # a patch that leaves OpenCV's solver no unknowns
        return _paste_feathered(patch, canvas, y, x)


def _paste_feathered(patch: np.ndarray, canvas: np.ndarray, y: int, x: int) -> np.ndarray:
    h, w = patch.shape[:2]
    alpha = np.minimum.outer(_ramp(h), _ramp(w))[..., None]
    result, place = canvas.copy(), np.s_[y : y + h, x : x + w]
    result[place] = np.rint(alpha * patch + (1 - alpha) * canvas[place]).astype(np.uint8)
    return result


def _ramp(n: int) -> np.ndarray:
    """Weights [n]: 0 at both ends, 1 from a quarter of the length on."""
    distance = np.minimum(np.arange(n), np.arange(n)[::-1])
    return np.minimum(distance / max(n / 4, 1), 1)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
