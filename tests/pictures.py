"""Pictures to test with, and files of them."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def random_image(height=40, width=48, seed=0, channels=3):
    """Smooth noise, uint8 [H,W,C]: compresses without much loss and has gradients for Poisson editing."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 6, channels)).astype(np.uint8)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, channels)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.squeeze(pixels))
    image.save(path, **options)
    return path
