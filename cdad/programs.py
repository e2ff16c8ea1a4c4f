"""One network's programs for batches of fixed sizes, and how any number of samples is cut into these."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np

from . import _core
from .device_arrays import Array, join

P = TypeVar("P", bound="Planned")


class Planned(Protocol):
    """What is compiled: `_core.Network` or `_core.Sampler`."""

    @property
    def memory_bytes(self) -> int: ...


class Programs(Generic[P]):
    """A network compiled for batches of ``batch_size``, ``whole``, and, when it is first wanted, for one sample: a few
    samples do not pay for a whole batch. A sample's result does not depend on what stands beside it.

    ``make(n)`` compiles the network for batches of n.
    """

    def __init__(self, make: Callable[[int], P], batch_size: int):
        self.batch_size = batch_size
        self.whole = make(batch_size)
        self.make, self._single, self._lock = make, None, threading.RLock()  # a signal's handler may predict, too

    @property
    def single(self) -> P:
        """The program for one sample."""
        with self._lock:
            if self._single is None:
                self._single = self.whole if self.batch_size == 1 else self.make(1)
        return self._single

    @property
    def compiled(self) -> tuple[P, ...]:
        """The programs that are compiled by now."""
        return (self.whole,) if self._single is None or self._single is self.whole else (self.whole, self._single)

    @property
    def memory_bytes(self) -> int:
        """Bytes that they take of their parameters' workspace, where they run one at a time."""
        return max(program.memory_bytes for program in self.compiled)

    def run(self, fn: Callable[..., Array], *arrays: np.ndarray | _core.DeviceArray) -> Array:
        """``fn(program, *parts)`` of consecutive parts of the arrays, joined. The rest after the last whole batch goes
        one by one, or, where it is more than half a batch, as a batch filled up with its last sample."""
        n, size = len(arrays[0]), self.batch_size
        parts: list[Array] = []
        start = 0
        while start < n:
            if n - start > size // 2:
                batch = [_fill(a[start : start + size], size) for a in arrays]
                parts.append(fn(self.whole, *batch)[: n - start])
                start += size
            else:
                parts.append(fn(self.single, *(a[start : start + 1] for a in arrays)))
                start += 1
        return join(parts)


def _fill(array: Array, size: int) -> Array:
    missing = size - len(array)
    return array if missing == 0 else join([array, *[array[-1:]] * missing])
