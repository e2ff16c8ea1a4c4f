"""The synthetic circuit board: eight parts on tracks, each of which can be missing or twisted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .scene import Colour, Scene, box, clouds, disc, jagged, polyline

_GOLD: Colour = (0.83, 0.66, 0.28)
_SILVER: Colour = (0.74, 0.75, 0.77)
_BLACK: Colour = (0.11, 0.11, 0.12)
_WHITE: Colour = (0.86, 0.89, 0.86)
_BOARD = 0.06  # height of the bare board

_CHIP = (-0.10, -0.14)
_LEGS = (-0.195, -0.065, 0.065, 0.195)  # down the chip's sides
_LEG_X = 0.265
_REACH = 0.42  # a part, turned in any way, is no larger


@dataclass(frozen=True)
class _Seat:
    """Where a part sits: its frame ``x``, ``y`` [S,S], how far its body is turned, its brightness."""

    x: np.ndarray
    y: np.ndarray
    turn: float
    shade: float
    empty: bool

    def body(self, half: tuple[float, float], rounding: float = 0.02, dx: float = 0.0) -> np.ndarray:
        """Distance to a rectangle of the body, which turns around the part's centre."""
        centre = (dx * np.cos(self.turn), dx * np.sin(self.turn))
        return box(self.x, self.y, centre, half, rounding, self.turn)


def draw_circuit(size: int, rng: np.random.Generator, defect: str | None, how: np.random.Generator) -> Scene:
    """Circuit board with eight parts. Defects: missing, twisted, bridge, scratch.

    ``rng`` makes the specimen vary as normal ones do; the defect is drawn with ``how`` alone.
    """
    s = Scene(size, (0.40, 0.39, 0.40))
    s.albedo *= 1 + 0.04 * clouds(rng, size, 16)
    s.place(*rng.uniform((-0.05, -0.02, -0.02), (0.05, 0.02, 0.02)))
    board = s.cover(box(s.x, s.y, (0, 0), (0.91, 0.91), 0.06))
    varnish = 1 + 0.05 * clouds(rng, size, 6)
    s.paint(board, (0.05, 0.34, 0.21), texture=varnish, height=_BOARD, gloss=0.2)
    for points in map(np.array, _TRACKS):
        centre = (points.min(axis=0) + points.max(axis=0)) / 2
        part = s.near(*centre, np.abs(points - centre).max() + 0.05)
        track = polyline(part.x, part.y, points, 0.035)
        part.paint(part.cover(track), (0.12, 0.50, 0.30), height=_BOARD + 0.004)
    for cx, cy in ((-0.77, -0.77), (0.77, -0.77), (-0.77, 0.77), (0.77, 0.77)):
        _ring(s, cx, cy, 0.09, 0.05)
    for cx, cy in _VIAS:
        _ring(s, cx, cy, 0.035, 0.014)

    at_fault = how.integers(len(_PARTS)) if defect in ("missing", "twisted") else -1
    for k, (draw, cx, cy) in enumerate(_PARTS):
        # A machine of limited precision places the parts.
        dx, dy, shade = rng.normal(0, (0.006, 0.006, 0.06))
        turn = how.uniform(0.35, 0.8) * how.choice((-1, 1)) if defect == "twisted" and k == at_fault else 0.0
        part = s.near(cx, cy, _REACH)
        x, y = part.x - np.float32(cx + dx), part.y - np.float32(cy + dy)
        draw(part, _Seat(x, y, turn, 1 + shade, defect == "missing" and k == at_fault))

    if defect == "bridge":
        gap, side = how.integers(len(_LEGS) - 1), how.choice((-1, 1))
        x, y = _CHIP[0] + side * _LEG_X, _CHIP[1] + (_LEGS[gap] + _LEGS[gap + 1]) / 2
        half = (how.uniform(0.045, 0.065), how.uniform(0.085, 0.11))
        blob = box(s.x, s.y, (x, y), half, 0.04) + 0.015 * clouds(how, size, 12)
        lump = _BOARD + 0.03 + 0.6 * np.clip(-blob, 0, 0.06)
        s.paint(s.cover(blob), (0.78, 0.79, 0.81), height=lump, gloss=0.8)
    elif defect == "scratch":
        start = how.uniform((-0.7, 0.16), (-0.3, 0.36))
        end = start + how.uniform((0.45, 0.05), (0.8, 0.42))
        d = polyline(s.x, s.y, jagged(how, start, end, 0.02, 5), how.uniform(0.03, 0.045))
        s.paint(s.cover(d - 0.015), (0.55, 0.58, 0.42))
        s.paint(s.cover(d), (0.84, 0.55, 0.33))
    return s


def _ring(board: Scene, cx: float, cy: float, outer: float, inner: float) -> None:
    s = board.near(cx, cy, outer + 0.02)
    radius = disc(s.x, s.y, cx, cy, 0)
    s.paint(s.cover(radius - outer), _GOLD, height=_BOARD + 0.004, gloss=0.4)
    s.paint(s.cover(radius - inner), (0.08, 0.09, 0.09), height=0.0, gloss=0)


def _print(s: Scene, outline: np.ndarray) -> None:
    """White lettering's line around a part's place."""
    s.paint(0.8 * s.cover(np.abs(outline) - 0.007), _WHITE)


def _pads(s: Scene, seat: _Seat, places: tuple[tuple[float, float], ...], half: tuple[float, float]) -> None:
    pads = np.minimum.reduce([box(seat.x, seat.y, place, half, 0.01) for place in places])
    s.paint(s.cover(pads), _SILVER, height=_BOARD + 0.008, gloss=0.5)


def _scaled(colour: Colour, factor: float) -> np.ndarray:
    return np.array(colour, np.float32) * np.float32(factor)


def _draw_chip(s: Scene, seat: _Seat) -> None:
    _pads(s, seat, tuple((side * _LEG_X, leg) for side in (-1, 1) for leg in _LEGS), (0.06, 0.032))
    if seat.empty:
        return
    legs = np.minimum.reduce(
        [
            box(seat.x, seat.y, (np.cos(seat.turn) * side * 0.22 - np.sin(seat.turn) * leg,
                                 np.sin(seat.turn) * side * 0.22 + np.cos(seat.turn) * leg),
                (0.055, 0.02), 0.01, seat.turn)
            for side in (-1, 1)
            for leg in _LEGS
        ]
    )  # fmt: skip
    s.paint(s.cover(legs), _SILVER, height=_BOARD + 0.05, gloss=0.6)
    body = seat.body((0.19, 0.27))
    s.paint(s.cover(body), _scaled(_BLACK, seat.shade), height=_BOARD + 0.10, gloss=0.15)
    c, q = np.cos(seat.turn), np.sin(seat.turn)
    dot = disc(seat.x, seat.y, -0.12 * c + 0.20 * q, -0.12 * q - 0.20 * c, 0.03)
    s.paint(s.cover(dot), (0.30, 0.30, 0.31), height=_BOARD + 0.09)
    for dx, length in ((-0.03, 0.13), (0.04, 0.10)):
        s.paint(0.8 * s.cover(seat.body((0.012, length), 0, dx)), (0.62, 0.63, 0.62))


def _draw_resistor(s: Scene, seat: _Seat) -> None:
    _print(s, box(seat.x, seat.y, (0, 0), (0.115, 0.185), 0.02))
    _pads(s, seat, ((0, -0.11), (0, 0.11)), (0.07, 0.05))
    if seat.empty:
        return
    s.paint(s.cover(seat.body((0.062, 0.13))), _SILVER, height=_BOARD + 0.05, gloss=0.5)
    s.paint(s.cover(seat.body((0.064, 0.085), 0)), _scaled(_BLACK, 1.3 * seat.shade), gloss=0.1)
    s.paint(0.85 * s.cover(seat.body((0.016, 0.05), 0)), _WHITE)


def _draw_can(s: Scene, seat: _Seat) -> None:
    """Electrolytic capacitor seen from above: an aluminium can, the minus side marked dark."""
    _print(s, disc(seat.x, seat.y, 0, 0, 0.245))
    _pads(s, seat, ((-0.09, 0), (0.09, 0)), (0.04, 0.04))
    if seat.empty:
        return
    radius = disc(seat.x, seat.y, 0, 0, 0)
    along = np.cos(seat.turn) * seat.x + np.sin(seat.turn) * seat.y
    s.paint(s.cover(radius - 0.21), _scaled((0.16, 0.17, 0.22), seat.shade), height=_BOARD + 0.14, gloss=0.3)
    top = radius - 0.175
    s.paint(s.cover(top), _scaled((0.72, 0.73, 0.75), seat.shade), height=_BOARD + 0.15, gloss=0.5)
    s.paint(s.cover(np.maximum(top, along + 0.075)), (0.14, 0.15, 0.20))


def _draw_crystal(s: Scene, seat: _Seat) -> None:
    _pads(s, seat, ((0, -0.20), (0, 0.20)), (0.06, 0.06))
    if seat.empty:
        return
    body = seat.body((0.12, 0.23), 0.11)
    lid = _BOARD + 0.10 - 0.04 * s.cover(np.abs(body + 0.03) - 0.006)
    s.paint(s.cover(body), _scaled((0.70, 0.71, 0.73), seat.shade), height=lid, gloss=0.6)
    s.paint(0.6 * s.cover(seat.body((0.012, 0.11), 0)), (0.35, 0.36, 0.38))


def _draw_lamp(s: Scene, seat: _Seat) -> None:
    """Light-emitting diode: a white frame around an orange lens."""
    _pads(s, seat, ((-0.12, 0), (0.12, 0)), (0.05, 0.07))
    if seat.empty:
        return
    s.paint(s.cover(seat.body((0.13, 0.09))), _scaled(_WHITE, seat.shade), height=_BOARD + 0.06, gloss=0.2)
    s.paint(s.cover(seat.body((0.085, 0.06), 0.05)), (0.90, 0.48, 0.10), height=_BOARD + 0.08, gloss=0.8)


_PARTS: tuple[tuple[Callable[[Scene, _Seat], None], float, float], ...] = (
    (_draw_chip, *_CHIP),
    (_draw_crystal, -0.62, -0.14),
    (_draw_can, 0.55, -0.34),
    (_draw_resistor, -0.52, 0.50),
    (_draw_resistor, -0.22, 0.50),
    (_draw_resistor, 0.08, 0.50),
    (_draw_lamp, 0.52, 0.16),
    (_draw_lamp, 0.52, 0.50),
)
_TRACKS = (
    ((-0.62, -0.34), (-0.45, -0.34), (-0.37, -0.335)),
    ((-0.62, 0.06), (-0.45, -0.075), (-0.37, -0.075)),
    ((-0.37, 0.055), (-0.52, 0.20), (-0.52, 0.39)),
    ((0.17, 0.055), (0.08, 0.20), (0.08, 0.39)),
    ((0.17, -0.075), (0.30, 0.05), (0.30, 0.16), (0.40, 0.16)),
    ((0.17, -0.205), (0.30, -0.34), (0.46, -0.34)),
    ((0.17, -0.335), (0.25, -0.60), (-0.30, -0.60), (-0.50, -0.72)),
    ((0.64, -0.34), (0.78, -0.20), (0.78, 0.50), (0.64, 0.50)),
    ((-0.22, 0.61), (-0.22, 0.76), (0.36, 0.76), (0.36, 0.50), (0.40, 0.50)),
    ((-0.22, 0.39), (-0.22, 0.24), (-0.10, 0.20)),
    ((-0.52, 0.61), (-0.62, 0.70), (-0.62, 0.74)),
    ((0.08, 0.61), (0.20, 0.64), (0.26, 0.64)),
)
_VIAS = (
    (-0.50, -0.72), (-0.10, 0.20), (0.26, 0.64), (-0.78, 0.30), (-0.78, -0.50), (0.30, -0.76), (0.0, -0.48),
)  # fmt: skip
