"""Strict loading: what a model wants and what a file has are compared before any value is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import FormatError

_SHOWN = 8  # names of each list in a message


@dataclass(frozen=True, slots=True)
class Piece:
    """A parameter that a file has, in the core's layout: its shape, and its values when they are asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class Store(Protocol):
    """Where parameters go: `_core.Params`, or a dict of arrays behind the same methods."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def __setitem__(self, name: str, value: np.ndarray, /) -> None: ...


def strict_match(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, Shaped],
    *,
    what: str,
    path: str | os.PathLike | None = None,
) -> None:
    """Raise one FormatError that lists missing, unexpected and mis-shaped tensors."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    problems = [_listed(items, kind) for kind, items in lists if items]
    if problems:
        raise FormatError(f"the weights do not fit the {what}; " + "; ".join(problems), path)


def fill(
    store: Store,
    found: Mapping[str, Piece | np.ndarray],
    *,
    what: str,
    path: str | os.PathLike | None = None,
    prefix: str = "",
    allow_nonfinite: bool = False,
) -> None:
    """Set the parameters of ``store`` whose names begin with ``prefix``, every one, one at a time.

    FormatError: names or shapes do not fit (nothing was changed then), or values that are not finite, or all zero;
    ValueError: there is no such parameter.
    """
    expected = {name: shape for name, shape in store.shapes().items() if name.startswith(prefix)}
    if prefix and not expected:
        raise ValueError(f"no parameter's name begins with {prefix!r}")
    strict_match(expected, found, what=what, path=path)
    bad, nothing = [], True
    for name in expected:
        low, high = _set(store, name, found[name])
        nothing = nothing and not low and not high
        if not (np.isfinite(low) and np.isfinite(high)):
            bad.append(name)
    if bad and not allow_nonfinite:
        raise FormatError(f"the weights do not fit the {what}; {_listed(bad, 'with values that are not finite')}", path)
    if expected and nothing:
        raise FormatError(f"the weights do not fit the {what}; every value is zero", path)


def _set(store: Store, name: str, item: Piece | np.ndarray) -> tuple[np.float32, np.float32]:
    """Set a parameter; the least and the largest of its values, a nan both where there is one."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        values = np.asarray(item.read() if isinstance(item, Piece) else item, np.float32, order="C")
    store[name] = values
    return (values.min(), values.max()) if values.size else (np.float32(0), np.float32(0))  # no array of flags is made


def _listed(items: list[str], kind: str) -> str:
    return f"{len(items)} {kind}: {', '.join(items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''}"
