"""Batches that lie on a device: joined and scaled there, as NumPy does on the host."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from . import _core

# What is computed from it lies where it does.
Array = TypeVar("Array", bound="np.ndarray | _core.DeviceArray")


def join(parts: Sequence[Array]) -> Array:
    """The parts one after the other, copied."""
    return _core.DeviceArray.join(parts) if isinstance(parts[0], _core.DeviceArray) else np.concatenate(parts)


class Scaling:
    """x [N,...,C] -> x[..., :channels] * a + b on a device, with a and b numbers or float32 [channels]; ``clip``: cut to
    [0,1]. One program a shape."""

    def __init__(self, device: str):
        self._device = device
        self._programs: dict[tuple, tuple[_core.Program, tuple[int, ...]]] = {}
        self._lock = threading.Lock()

    def __call__(
        self,
        x: _core.DeviceArray,
        a: float | np.ndarray,
        b: float | np.ndarray,
        *,
        channels: int | None = None,
        clip: bool = False,
    ) -> _core.DeviceArray:
        key = (x.shape, channels or x.shape[-1], clip)
        with self._lock:
            if key not in self._programs:
                self._programs[key] = self._compile(*key)
            program, inputs = self._programs[key]
        factors = (np.broadcast_to(np.asarray(v, np.float32), key[1]) for v in (a, b))
        return program.run(dict(zip(inputs, (x, *factors), strict=True)))[0]

    def _compile(self, shape: tuple[int, ...], channels: int, clip: bool) -> tuple[_core.Program, tuple[int, ...]]:
        graph = _core.Graph()
        inputs = graph.input("x", shape), graph.input("a", channels), graph.input("b", channels)
        y = inputs[0]
        if channels < shape[-1]:
            (y,) = graph.op("slice", [y], begin=0, end=channels)
        (y,) = graph.op("add", [graph.op("mul", [y, inputs[1]])[0], inputs[2]])
        if clip:  # max(y, 0) - max(y - 1, 0): y itself up to 1, and exactly 1 above
            above = graph.op("relu", graph.op("affine", [y], b=-1.0))[0]
            (y,) = graph.op("sub", [graph.op("relu", [y])[0], above])
        return graph.compile([y], self._device), inputs
