"""The synthetic textures: woven cloth, brushed steel, a wooden plank.

Each function draws one specimen. ``rng`` makes it vary as normal specimens do; a ``defect`` is drawn with
``how`` alone, so that the same ``rng`` without it gives the same specimen, sound.
"""

from __future__ import annotations

import numpy as np

from .scene import Scene, clouds, disc, jagged, noise, polyline, streaks

_THREADS = 7.5  # a unit of length, each way


def draw_cloth(size: int, rng: np.random.Generator, defect: str | None, how: np.random.Generator) -> Scene:
    """Plain weave of sand-coloured warp and blue weft. Defects: hole, stain, pull, hair."""
    s = Scene(size, (0.10, 0.10, 0.12))
    s.place(*rng.uniform((-0.04, -0.07, -0.07), (0.04, 0.07, 0.07)))
    warp_shade, weft_shade = 1 + 0.10 * rng.standard_normal((2, 64)).astype(np.float32)
    u = _THREADS * (s.x + 0.015 * noise(rng, size, (4, 4))) + 32
    v = _THREADS * (s.y + 0.015 * noise(rng, size, (4, 4))) + 32
    column, row = np.floor(u).astype(int) % 64, np.floor(v).astype(int) % 64
    across, along = u % 1 - 0.5, v % 1 - 0.5
    over = np.where((column + row) % 2, -1, 1).astype(np.float32)  # 1 where the warp is on top
    warp = np.sqrt(np.maximum(1 - (2.1 * across) ** 2, 0))
    weft = np.sqrt(np.maximum(1 - (2.1 * along) ** 2, 0))
    if defect == "pull":
        # One or two warp threads are gone for a stretch; only the weft is left there.
        first, top, length = how.integers(28, 35), how.uniform(-0.6, 0.0), how.uniform(0.5, 0.8)
        gone = (column >= first) & (column <= first + how.integers(2)) & (s.y > top) & (s.y < top + length)
        warp = np.where(gone, 0, warp)
    warp_height = np.where(warp > 0, warp + over * np.cos(np.pi * along), -1)
    weft_height = np.where(weft > 0, weft - over * np.cos(np.pi * across), -1)
    on_top = warp_height > weft_height
    twist = 1 + 0.10 * np.sin(2 * np.pi * np.where(on_top, 3 * v + 2 * across, 3 * u + 2 * along))
    for seen, colour, shade in (
        (on_top, (0.80, 0.72, 0.58), warp_shade[column]),
        (~on_top & (weft_height > -1), (0.26, 0.40, 0.60), weft_shade[row]),
    ):
        s.paint(seen.astype(np.float32), colour, texture=shade * twist)
    s.height = 0.028 * np.maximum(np.maximum(warp_height, weft_height), -1)
    if defect == "pull":
        s.tint(gone.astype(np.float32), (0.72, 0.72, 0.74))  # the dark ground shines through

    centre = how.uniform(-0.5, 0.5, 2)
    if defect == "hole":
        fray = 0.06 * clouds(how, size, 9)
        cover = s.cover(disc(s.x, s.y, *centre, how.uniform(0.13, 0.22)) + fray)
        s.paint(cover, (0.05, 0.045, 0.05), height=-0.12)
    elif defect == "stain":
        d = disc(s.x, s.y, *centre, how.uniform(0.20, 0.32)) + 0.12 * clouds(how, size, 4)
        s.tint(s.cover(d, 0.05), (0.62, 0.47, 0.34))
        s.tint(s.cover(np.abs(d) - 0.015, 0.03), (0.75, 0.68, 0.6))
    elif defect == "hair":
        start, end = centre + how.uniform(-0.45, -0.25, 2), centre + how.uniform(0.25, 0.45, 2)
        d = polyline(s.x, s.y, _curl(jagged(how, start, end, 0.12, 4)), 0.035)
        s.paint(s.cover(d), (0.42, 0.05, 0.07), height=0.12)
    return s


def draw_steel(size: int, rng: np.random.Generator, defect: str | None, how: np.random.Generator) -> Scene:
    """Brushed steel sheet. Defects: scratch, dent, rust."""
    s = Scene(size, (0.97, 1.0, 1.04))
    s.place(rng.uniform(-0.03, 0.03), 0, 0)
    brushed = 0.6 * streaks(rng, size, 0.5) + 0.4 * streaks(rng, size, 0.12)
    band = np.exp(-(((s.y - rng.uniform(-0.3, 0.1)) / 0.55) ** 2))
    s.albedo *= 0.50 + 0.07 * brushed + 0.16 * band + 0.03 * noise(rng, size, (3, 3))
    s.height = 0.0016 * brushed
    s.gloss[:] = 0.12

    centre = how.uniform(-0.45, 0.45, 2)
    if defect == "scratch":
        for _ in range(how.integers(1, 4)):
            angle, reach = how.uniform(0.5, 2.2), how.uniform(0.25, 0.6)
            tip = reach * np.array((np.cos(angle), np.sin(angle)))
            points = _curl(jagged(how, centre - tip, centre + tip, 0.03, 3))
            d = polyline(s.x, s.y, points, how.uniform(0.016, 0.03))
            s.paint(s.cover(d - 0.012), (0.30, 0.31, 0.33), height=-0.015)
            s.paint(s.cover(d), (0.93, 0.95, 0.97))
            centre = centre + how.uniform(-0.12, 0.12, 2)
    elif defect == "dent":
        wide, tall = how.uniform(0.10, 0.18, 2)
        bowl = np.exp(-(((s.x - centre[0]) / wide) ** 2) - ((s.y - centre[1]) / tall) ** 2)
        s.height -= 0.13 * bowl.astype(np.float32)
    elif defect == "rust":
        d = disc(s.x, s.y, *centre, how.uniform(0.16, 0.26)) + 0.22 * clouds(how, size, 5)
        grain = 1 + 0.3 * clouds(how, size, 16)
        s.paint(0.6 * s.cover(d - 0.04, 0.12), (0.62, 0.42, 0.24))
        s.paint(s.cover(d, 0.04), (0.46, 0.23, 0.09), texture=grain, height=0.006 * grain, gloss=0)
    return s


def draw_plank(size: int, rng: np.random.Generator, defect: str | None, how: np.random.Generator) -> Scene:
    """Planed wood with its grain along x. Defects: hole, gouge, ink, burn."""
    s = Scene(size, (0.80, 0.60, 0.38))
    s.place(rng.uniform(-0.04, 0.04), 0, rng.uniform(-1, 1))
    bend = 0.5 * noise(rng, size, (3, 2)) + 0.12 * noise(rng, size, (6, 3))
    phase = 3.2 * s.y + bend
    year = phase % 1
    ring = year**2.2 * np.clip((1 - year) / 0.12, 0, 1)  # late wood ends sharply
    pores = np.clip(streaks(rng, size, 0.10) - 1.3, 0, 1)
    tone = 0.45 * ring + 0.05 * streaks(rng, size, 0.5, 0.01) + 0.35 * pores
    s.paint(np.clip(tone, -0.2, 1), (0.47, 0.28, 0.14))
    s.height = -0.006 * pores
    s.gloss[:] = 0.04

    s.y += how.uniform(-0.4, 0.4) - s.y.mean()  # defects fall inside the picture however the grain is shifted
    centre = np.array((how.uniform(-0.55, 0.55), how.uniform(-0.15, 0.15)))
    if defect == "hole":
        for _ in range(how.integers(1, 4)):
            d = disc(s.x, s.y, *centre, how.uniform(0.055, 0.10))
            s.paint(s.cover(d - 0.03, 0.03), (0.60, 0.40, 0.22))
            s.paint(s.cover(d), (0.07, 0.04, 0.03), height=-0.10, gloss=0)
            centre = centre + how.uniform(-0.3, 0.3, 2)
    elif defect == "gouge":
        tip = np.array((how.uniform(0.15, 0.3), how.uniform(0.2, 0.4) * how.choice((-1, 1))))
        points = jagged(how, centre - tip, centre + tip, 0.025, 6)
        d = polyline(s.x, s.y, points, how.uniform(0.05, 0.08)) + 0.02 * clouds(how, size, 14)
        fibre = 1 + 0.12 * streaks(how, size, 0.06)
        s.paint(s.cover(d), (0.93, 0.80, 0.60), texture=fibre, height=-0.03)
    elif defect == "ink":
        tip = how.uniform((0.25, -0.25), (0.45, 0.25))
        points = _curl(jagged(how, centre - tip, centre + tip, 0.13, 5))
        s.tint(s.cover(polyline(s.x, s.y, points, how.uniform(0.04, 0.06))), (0.20, 0.28, 0.62))
    elif defect == "burn":
        d = disc(s.x, s.y, *centre, how.uniform(0.16, 0.24)) + 0.10 * clouds(how, size, 5)
        s.tint(s.cover(d - 0.05, 0.2), (0.72, 0.60, 0.50))
        s.tint(s.cover(d, 0.14), (0.25, 0.20, 0.18))
    return s


def _curl(points: np.ndarray) -> np.ndarray:
    """Round a line's corners off: cut each twice (Chaikin)."""
    for _ in range(2):
        a, b = points[:-1], points[1:]
        cut = np.stack((0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b), axis=1).reshape(-1, 2)
        points = np.concatenate((points[:1], cut, points[-1:]))
    return points
