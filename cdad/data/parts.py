"""The synthetic parts: a brass gear and a two-part capsule.

Each function draws one specimen. ``rng`` makes it vary as normal specimens do; a ``defect`` is drawn with
``how`` alone, so that the same ``rng`` without it gives the same specimen, sound.
"""

from __future__ import annotations

import numpy as np

from .scene import Scene, box, clouds, disc, jagged, noise, polyline

_TEETH = 14
_BORES = 6
_AXIS = np.array(((-0.42, 0.0), (0.42, 0.0)))  # of the capsule


def draw_gear(size: int, rng: np.random.Generator, defect: str | None, how: np.random.Generator) -> Scene:
    """Brass gear with six bores and a keyway, on slate. Defects: tooth, scratch, rust, plugged."""
    s = Scene(size, (0.23, 0.27, 0.32))
    s.albedo *= 1 + 0.05 * clouds(rng, size, 10) + 0.03 * noise(rng, size, (2, 2))
    s.place(*rng.uniform((-0.09, -0.03, -0.03), (0.09, 0.03, 0.03)))
    radius, angle = np.hypot(s.x, s.y), np.arctan2(s.y, s.x)

    tooth = np.clip(1.6 * np.cos(_TEETH * angle) + 0.5, 0, 1)
    if defect == "tooth":
        first, count = how.integers(_TEETH), how.integers(1, 3)
        number = np.rint(angle * _TEETH / (2 * np.pi)).astype(int)
        chipped = 0.25 * np.clip(clouds(how, size, 12), 0, 1)
        tooth = np.where((number - first) % _TEETH < count, chipped * tooth, tooth)
    body = radius - (0.66 + 0.17 * tooth)
    turned = np.interp(radius, np.linspace(0, 1.5, 160), rng.standard_normal(160)).astype(np.float32)
    sheen = 0.5 + 0.5 * np.cos(2 * (angle - rng.uniform(0.6, 1.0)))  # turned metal shines in two fans
    polish = 0.86 + 0.05 * turned + 0.26 * sheen
    rim = 0.11 * np.clip(-body / 0.05, 0, 1)
    groove = s.cover(np.abs(radius - 0.42) - 0.14, 0.04)
    s.paint(s.cover(body), (0.78, 0.61, 0.30), texture=polish, height=rim - 0.05 * groove, gloss=0.5)
    plugged = how.integers(_BORES) if defect == "plugged" else -1
    for k in range(_BORES):
        turn = 2 * np.pi * (k + 0.5) / _BORES
        cx, cy = 0.42 * np.cos(turn), 0.42 * np.sin(turn)
        part = s.near(cx, cy, 0.14)
        bore = disc(part.x, part.y, cx, cy, 0.085)
        _bore(part, bore)
        if k == plugged:
            part.paint(part.cover(bore - 0.01), (0.50, 0.49, 0.47), height=0.08, gloss=0.2)
    part = s.near(0, 0, 0.26)
    keyway = box(part.x, part.y, (0, -0.16), (0.045, 0.07))
    _bore(part, np.minimum(disc(part.x, part.y, 0, 0, 0.155), keyway))

    metal = np.clip(s.height / 0.02, 0, 1)  # 0 in the bores
    turn, reach = how.uniform(0, 2 * np.pi), how.uniform(0.45, 0.6)
    spot = reach * np.array((np.cos(turn), np.sin(turn)))
    if defect == "scratch":
        end = spot + 0.45 * np.array((np.cos(turn + 2.2), np.sin(turn + 2.2)))
        d = polyline(s.x, s.y, jagged(how, spot, end, 0.015, 4), how.uniform(0.025, 0.04))
        s.paint(metal * s.cover(d - 0.012), (0.30, 0.22, 0.10), height=s.height - 0.02)
        s.paint(metal * s.cover(d), (0.97, 0.90, 0.70))
    elif defect == "rust":
        d = disc(s.x, s.y, *spot, how.uniform(0.15, 0.22)) + 0.16 * clouds(how, size, 6)
        grain = 1 + 0.3 * clouds(how, size, 16)
        s.paint(metal * s.cover(d, 0.06), (0.20, 0.42, 0.33), texture=grain, gloss=0)  # brass rusts green
    return s


def draw_gelcap(size: int, rng: np.random.Generator, defect: str | None, how: np.random.Generator) -> Scene:
    """Two-part capsule with a printed mark. Defects: crack, dent, specks, misprint, bleached."""
    s = Scene(size, (0.74, 0.76, 0.79))
    s.albedo *= 1 + 0.015 * clouds(rng, size, 16) + 0.03 * noise(rng, size, (2, 2))
    s.place(*rng.uniform((-0.55, -0.04, -0.04), (-0.35, 0.04, 0.04)))
    shadow = polyline(s.x - 0.05, s.y - 0.07, _AXIS, 0.66)
    s.tint(0.55 * s.cover(shadow, 0.22), (0.45, 0.47, 0.52))

    join = s.x - 0.06
    left = s.cover(join)  # the cap, pushed over the body
    shell = polyline(s.x, s.y, _AXIS, 0.62) + 0.02 * (1 - left)
    if defect == "dent":
        at, side = how.uniform(-0.5, 0.5), how.choice((-1, 1))
        shell += 0.16 * np.exp(-(((s.x - at) / 0.15) ** 2) - ((s.y - 0.31 * side) / 0.2) ** 2)
    dome = np.sqrt(np.clip(1 - (1 + np.minimum(shell, 0) / 0.31) ** 2, 0, 1))
    hue = 1 + 0.03 * rng.standard_normal(3)
    cap, base = np.array((0.10, 0.42, 0.56)) * hue, np.array((0.93, 0.87, 0.74)) * hue
    if defect == "bleached":
        cap = cap + how.uniform(0.35, 0.6) * (np.array((0.80, 0.78, 0.62)) - cap)
    inside = s.cover(shell)
    s.paint(inside, base, height=0.26 * dome, gloss=0.9)
    s.paint(inside * left, cap)
    s.tint(inside * s.cover(np.abs(join - 0.012) - 0.012), (0.72, 0.72, 0.75))

    _print_mark(s, defect == "misprint", how)
    if defect == "crack":
        at = how.uniform(-0.35, 0.4)
        start, end = np.array((at, -0.3)), np.array((at + how.uniform(-0.2, 0.2), how.uniform(0, 0.3)))
        d = polyline(s.x, s.y, jagged(how, start, end, 0.03, 7), how.uniform(0.02, 0.03))
        s.paint(inside * s.cover(d), (0.16, 0.10, 0.08), height=s.height - 0.06, gloss=0)
    elif defect == "specks":
        cluster = how.uniform((-0.35, -0.12), (0.4, 0.12))
        for _ in range(how.integers(3, 7)):
            d = disc(s.x, s.y, *(cluster + how.normal(0, 0.09, 2)), how.uniform(0.025, 0.055))
            s.paint(inside * s.cover(d + 0.02 * noise(how, size, (32, 32))), (0.14, 0.09, 0.07), gloss=0.1)
    return s


def _bore(s: Scene, distance: np.ndarray) -> None:
    """Cut through the part: a bright chamfer, then the shaded ground below."""
    s.paint(s.cover(distance - 0.018), (0.90, 0.76, 0.46))
    s.paint(s.cover(distance), (0.13, 0.15, 0.18), height=0.0, gloss=0.0)


def _print_mark(capsule: Scene, faulty: bool, how: np.random.Generator) -> None:
    """Three bars and a ring in white on the cap; a faulty print is torn and its ring displaced."""
    mark_x = -0.32
    s = capsule.near(mark_x, 0, 0.34)
    slip_x, slip_y = how.uniform(0.06, 0.13, 2) * how.choice((-1, 1), 2) if faulty else (0, 0)
    bars = [box(s.x, s.y, (mark_x + dx, 0), (0.018, 0.10)) for dx in (-0.13, -0.06, 0.01)]
    ring = np.abs(disc(s.x, s.y, mark_x + 0.14 + slip_x, slip_y, 0.065)) - 0.018
    mark = np.minimum.reduce([*bars, ring])
    if faulty:
        mark = np.maximum(mark, -disc(s.x, s.y, mark_x - 0.1, how.choice((-0.1, 0.1)), 0.14))
    s.paint(s.cover(mark), (0.92, 0.93, 0.95))
