"""A small renderer for synthetic products: surfaces of colour, height and gloss under one light.

Shapes are signed distances (negative inside) in coordinates x (right) and y (down) that run from -1 to 1 over
the picture, so a scene looks the same at any size and its edges are smooth.
"""

from __future__ import annotations

import copy

import cv2
import numpy as np

Colour = tuple[float, float, float]

_DIFFERENCE = np.array([[-1, 0, 1]], np.float32)


class Scene:
    """What is painted so far: ``albedo`` [3,S,S], ``height`` [S,S] in units of x and y, ``gloss`` [S,S].

    ``x`` and ``y`` [S,S] are the coordinates in the frame of the product (see `place`).
    """

    def __init__(self, size: int, colour: Colour):
        axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
        self.size = size
        self.pixel = 2 / size
        self.x, self.y = (a.copy() for a in np.meshgrid(axis, axis))
        self.albedo = np.empty((3, size, size), np.float32)  # by planes: NumPy is slow on short rows
        self.albedo[:] = _planes(colour)
        self.height = np.zeros((size, size), np.float32)
        self.gloss = np.zeros((size, size), np.float32)

    def place(self, angle: float, dx: float, dy: float) -> None:
        """Turn the frame of the product by ``angle`` (radians) and move it by (dx, dy)."""
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y = self.x - np.float32(dx), self.y - np.float32(dy)
        self.x, self.y = c * x + s * y, c * y - s * x

    def near(self, cx: float, cy: float, reach: float) -> Scene:
        """The part of the scene within ``reach`` of (cx, cy) in x and y, on the same memory.

        Painting a small shape there costs a fraction. Nothing beyond the part is painted.
        """
        inside = np.maximum(np.abs(self.x - np.float32(cx)), np.abs(self.y - np.float32(cy))) <= reach
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        part = copy.copy(self)
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        for name in ("x", "y", "albedo", "height", "gloss"):
            setattr(part, name, getattr(self, name)[..., *window])
        return part

    def cover(self, distance: np.ndarray, soft: float = 0.0) -> np.ndarray:
        """Coverage 0..1 of the pixels by a shape, its edge one pixel wide, or ``soft`` where that is more."""
        return np.clip(0.5 - distance / max(self.pixel, soft), 0, 1)

    def paint(
        self,
        cover: np.ndarray,
        colour: Colour | np.ndarray,
        *,
        texture: np.ndarray | None = None,
        height: float | np.ndarray | None = None,
        gloss: float | None = None,
    ) -> None:
        """Lay a coat over ``cover``: colour (times ``texture``), and where given another height and gloss."""
        coat = _planes(colour) if texture is None else _planes(colour) * texture
        self.albedo += cover * (coat - self.albedo)
        if height is not None:
            self.height += cover * (np.asarray(height, np.float32) - self.height)
        if gloss is not None:
            self.gloss += cover * (np.float32(gloss) - self.gloss)

    def tint(self, cover: np.ndarray, factor: Colour) -> None:
        """Multiply the colour by ``factor`` over ``cover``, as a liquid or a burn does."""
        self.albedo *= 1 + cover * (_planes(factor) - 1)

    def shade(self, azimuth: float, brightness: float) -> np.ndarray:
        """Light the scene from ``azimuth`` (radians, 0 = right, y down): float32 RGB [S,S,3], not clipped."""
        smooth = cv2.GaussianBlur(self.height, (0, 0), 0.6)
        slope_x, slope_y = (
            cv2.filter2D(smooth, -1, kernel / np.float32(2 * self.pixel))
            for kernel in (_DIFFERENCE, _DIFFERENCE.T)
        )
        norm = 1 / np.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
        light = np.array([np.cos(azimuth) * 0.6, np.sin(azimuth) * 0.6, 0.8], np.float32)
        half = light + np.array((0, 0, 1), np.float32)
        half /= np.linalg.norm(half)
        diffuse = norm * (light[2] - light[0] * slope_x - light[1] * slope_y) / light[2]
        shine = np.maximum(norm * (half[2] - half[0] * slope_x - half[1] * slope_y), 0)
        for _ in range(5):  # to the power of 32: a narrow highlight
            shine *= shine
        # What lies lower than its surroundings gets less of the sky.
        around = _blur(self.height, 0.09 / self.pixel)
        sky = 1 - np.clip(3.0 * (around - self.height), 0, 0.6)
        lit = self.albedo * ((0.4 + 0.6 * np.clip(diffuse, 0, 2)) * sky) + 0.7 * self.gloss * shine
        return cv2.merge(brightness * lit)


def disc(x: np.ndarray, y: np.ndarray, cx: float, cy: float, radius: float) -> np.ndarray:
    """Distance [S,S] to a disc around (cx, cy)."""
    return np.hypot(x - np.float32(cx), y - np.float32(cy)) - np.float32(radius)


def box(
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[float, float],
    half: tuple[float, float],
    rounding: float = 0.0,
    angle: float = 0.0,
) -> np.ndarray:
    """Distance [S,S] to a rectangle with half sides ``half``, turned by ``angle``, with rounded corners."""
    x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
    if angle:
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y = c * x + s * y, c * y - s * x
    qx = np.abs(x) - np.float32(half[0] - rounding)
    qy = np.abs(y) - np.float32(half[1] - rounding)
    outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
    return outside + np.minimum(np.maximum(qx, qy), 0) - np.float32(rounding)


def polyline(x: np.ndarray, y: np.ndarray, points: np.ndarray, width: float) -> np.ndarray:
    """Distance [S,S] to a line of full width ``width`` through ``points`` [K,2] (x, y)."""
    nearest = np.full_like(x, np.inf)
    for (ax, ay), (bx, by) in zip(points[:-1].tolist(), points[1:].tolist(), strict=True):
        dx, dy = bx - ax, by - ay
        px, py = x - np.float32(ax), y - np.float32(ay)
        t = np.clip((px * np.float32(dx) + py * np.float32(dy)) * np.float32(1 / (dx * dx + dy * dy)), 0, 1)
        nearest = np.minimum(nearest, (px - t * np.float32(dx)) ** 2 + (py - t * np.float32(dy)) ** 2)
    return np.sqrt(nearest) - np.float32(width / 2)


def noise(rng: np.random.Generator, size: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth random field [size,size], about -1..1, with ``cells`` (down, across) bumps."""
    grid = rng.uniform(-1, 1, cells).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def clouds(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Sum of three octaves of `noise`, about -1..1."""
    octaves = (noise(rng, size, (cells << k, cells << k)) / np.float32(1 << k) for k in range(3))
    return sum(octaves) / np.float32(1.4)


def streaks(rng: np.random.Generator, size: int, length: float, width: float = 0.0) -> np.ndarray:
    """Random lines along x, [size,size] of unit deviation; ``length`` and ``width`` in units of x and y."""
    # One sample a quarter of the length is enough along x.
    step = max(length * size / 8, 1)
    grain = rng.standard_normal((size, round(size / step) + 8), dtype=np.float32)
    sigma = length * size / 2 / step
    grain = cv2.GaussianBlur(grain, (0, 0), sigmaX=sigma, sigmaY=max(width * size / 2, 0.3))
    grain = cv2.resize(grain[:, 4:-4], (size, size), interpolation=cv2.INTER_CUBIC)
    return grain / grain.std()


def jagged(
    rng: np.random.Generator, start: np.ndarray, end: np.ndarray, roughness: float, k: int
) -> np.ndarray:
    """Points [k+1,2] from ``start`` to ``end`` that stray from the straight line by ``roughness``."""
    t = np.linspace(0, 1, k + 1)[:, None]
    points = start + t * (end - start)
    points[1:-1] += rng.normal(0, roughness, (k - 1, 2))
    return points


def _planes(colour: Colour | np.ndarray) -> np.ndarray:
    return np.asarray(colour, np.float32).reshape(3, 1, 1)


def _blur(field: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur by ``sigma`` >= 4 pixels, made at a quarter of the size."""
    small = cv2.resize(field, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / 4)
    return cv2.resize(small, field.shape[::-1], interpolation=cv2.INTER_LINEAR)
