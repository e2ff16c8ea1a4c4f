"""Synthetic products with defects: data for a demonstration and for tests, without a download.

Six products are rendered, three textures and three objects. Normal specimens differ in place, angle, light,
colour, grain and sensor noise. A defective specimen is rendered twice, sound and defective, from the same
random numbers; its mask is where the two pictures differ.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import DataError
from .circuit import draw_circuit
from .parts import draw_gear, draw_gelcap
from .records import check_classes
from .scene import Scene
from .textures import draw_cloth, draw_plank, draw_steel

Draw = Callable[[int, np.random.Generator, "str | None", np.random.Generator], Scene]

# Rendered larger and averaged down, against jagged detail.
_OVERSAMPLING = 1.5
# A pixel belongs to the mask where a channel differs by more than this before noise.
_VISIBLE = 8 / 255


@dataclass(frozen=True)
class Product:
    """How a product is drawn, and the kinds of defects it can have."""

    draw: Draw
    defects: tuple[str, ...]


PRODUCTS: dict[str, Product] = {
    "circuit": Product(draw_circuit, ("bridge", "missing", "scratch", "twisted")),
    "cloth": Product(draw_cloth, ("hair", "hole", "pull", "stain")),
    "gear": Product(draw_gear, ("plugged", "rust", "scratch", "tooth")),
    "gelcap": Product(draw_gelcap, ("bleached", "crack", "dent", "misprint", "specks")),
    "plank": Product(draw_plank, ("burn", "gouge", "hole", "ink")),
    "steel": Product(draw_steel, ("dent", "rust", "scratch")),
}


def render(
    name: str, seed: int, index: int, defect: str | None = None, size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Specimen ``index`` of a product: image uint8 RGB [S,S,3] and mask uint8 [S,S] of 0/1.

    A function of its arguments alone; the specimen of equal (name, seed, index) without a defect is the same
    one, sound. Raises DataError for an unknown product or defect, ValueError for ``size`` outside 32..1024.
    """
    check_classes([name], PRODUCTS)
    product = PRODUCTS[name]
    if defect is not None and defect not in product.defects:
        raise DataError(f"{name!r} has no defect {defect!r}, known: {', '.join(product.defects)}")
    if not 32 <= size <= 1024:
        raise ValueError(f"size is {size}, expected 32..1024")
    key = (list(PRODUCTS).index(name), index)
    sound, camera = _picture(product, size, seed, key, None)
    if defect is None:
        return _expose(sound, camera), np.zeros((size, size), np.uint8)
    picture, camera = _picture(product, size, seed, key, defect)
    differs = (np.abs(picture.clip(0, 1) - sound.clip(0, 1)).max(axis=2) > _VISIBLE).astype(np.uint8)
    # Inside a defect some pixels happen to keep their colour; they belong to it.
    mask = cv2.morphologyEx(differs, cv2.MORPH_CLOSE, np.ones((max(size // 25, 3),) * 2, np.uint8))
    return _expose(picture, camera), mask


def write_dataset(
    root: str | os.PathLike,
    *,
    classes: Sequence[str] | None = None,
    size: int = 128,
    n_train: int = 40,
    n_good: int = 8,
    n_defect: int = 4,
    seed: int = 0,
) -> Path:
    """Write products (all by default) to ``root`` in MVTec layout as PNG; return the root.

    Each gets ``n_train`` training images, ``n_good`` normal test images and ``n_defect`` of every defect.
    Equal arguments write equal bytes, and a class does not depend on which others are written. A class is
    complete or absent: it is written beside its place and then renamed.

    Raises DataError for an unknown product or where a class's folder exists already.
    """
    classes = (classes,) if isinstance(classes, str) else tuple(dict.fromkeys(PRODUCTS if classes is None else classes))
    check_classes(classes, PRODUCTS)
    if n_train < 1 or n_good < 0 or n_defect < 0:
        raise ValueError(
            f"n_train, n_good, n_defect are {n_train}, {n_good}, {n_defect}, expected at least 1, 0, 0"
        )
    root = Path(root)
    for name in classes:
        if (root / name).exists():
            raise DataError(f"class folder {root / name} exists already")
    root.mkdir(parents=True, exist_ok=True)
    for name in classes:
        unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
        try:
            _write_class(unfinished, name, size, n_train, n_good, n_defect, seed)
            unfinished.chmod(0o755)  # mkdtemp's are private
            unfinished.rename(root / name)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return root


def _write_class(
    folder: Path, name: str, size: int, n_train: int, n_good: int, n_defect: int, seed: int
) -> None:
    index = 0
    for part, defect, count in (
        ("train/good", None, n_train),
        ("test/good", None, n_good),
        *((f"test/{defect}", defect, n_defect) for defect in PRODUCTS[name].defects),
    ):
        (folder / part).mkdir(parents=True)
        if defect is not None:
            (folder / "ground_truth" / defect).mkdir(parents=True)
        for number in range(count):
            image, mask = render(name, seed, index, defect, size)
            index += 1
            _write_png(folder / part / f"{number:03d}.png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            if defect is not None:
                _write_png(folder / "ground_truth" / defect / f"{number:03d}_mask.png", mask * 255)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def _picture(
    product: Product, size: int, seed: int, key: tuple[int, int], defect: str | None
) -> tuple[np.ndarray, np.random.Generator]:
    """The specimen as light on the sensor, float32 [S,S,3], and the random numbers of the sensor's noise."""
    specimen, light, camera, how = (
        np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(*key, stream))))
        for stream in range(4)
    )
    scene = product.draw(round(size * _OVERSAMPLING), specimen, defect, how)
    picture = scene.shade(light.normal(-2.2, 0.12), light.normal(1.0, 0.04))
    picture *= light.normal(1.0, 0.012, 3).astype(np.float32)  # white balance
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), camera


def _expose(picture: np.ndarray, camera: np.random.Generator) -> np.ndarray:
    """Noise of the sensor and 8 bits: uint8 [S,S,3]."""
    noise = camera.standard_normal(picture.shape, dtype=np.float32)
    return np.rint(np.clip(picture + 0.008 * noise, 0, 1) * 255).astype(np.uint8)
