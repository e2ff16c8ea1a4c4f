"""What the scripts of the paper's own evidence share: feature matrices, real and made up, pictures, and records, which others write too."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import cdad
from cdad import _core
from cdad.data import Batch, spread
from cdad.data.records import ClassData


def figure(rows: int, columns: int, size: tuple[float, float]):
    """A matplotlib figure and its axes, without a window. SystemExit where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit('pictures want matplotlib: pip install matplotlib; without it, --png ""')
    fig = Figure(figsize=size, layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False)


def made_up_features(rows: int, d: int, groups: int = 10, seed: int = 0) -> np.ndarray:
    """Features [rows, d] as a layer has them over several products, one product after the other: their mean square is 1,
    singular values fall like 1/j, and every second direction is one of the product's own; under them lies white noise of
    a thousandth of the energy."""
    rng = np.random.default_rng(seed)
    n = max(2, d // 4)
    scale = (1 / np.arange(1, n + 1)).astype(np.float32)
    common = _directions(rng, n, d)
    X = np.empty((rows, d), np.float32)
    for part in np.array_split(np.arange(rows), groups):
        own = np.where(np.arange(n)[:, None] % 2, _directions(rng, n, d), common)
        z = rng.standard_normal((len(part), n), np.float32) * scale
        X[part[0] : part[-1] + 1] = z @ own
    X /= np.sqrt(np.mean(X * X, dtype=np.float64))
    for part in np.array_split(np.arange(rows), groups):
        X[part[0] : part[-1] + 1] += np.float32(0.001**0.5) * rng.standard_normal((len(part), d), np.float32)
    return X


def _directions(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return np.ascontiguousarray(np.linalg.qr(rng.standard_normal((d, n), np.float32))[0].T)


def one_svd(X: np.ndarray, gamma: float) -> np.ndarray:
    """Eq. 6 on all features X [rows, d] at once, by LAPACK alone: U [d, rank], the smallest rank that reaches gamma."""
    _, s, V = np.linalg.svd(X, full_matrices=False)
    energy = np.cumsum(np.square(s, dtype=np.float64))
    return np.ascontiguousarray(V[: int(np.searchsorted(energy / energy[-1], gamma)) + 1].T)


def batches(model: cdad.ContinualModel, classes: Sequence[ClassData], images: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Whole batches of about ``images`` of the samples that `ContinualModel.collect_bases` takes of these classes, evenly
    spread, and their latents: what `recorded` gives of them is what the model's bases were made of."""
    chosen = model.representative_batches(classes)
    steps = set(spread(range(len(chosen)), max(1, images // chosen.batch_size)))
    for batch in chosen.epoch(0):
        if batch.step in steps:
            yield batch, model.autoencoder.encode(batch.image)


def recorded(model: cdad.ContinualModel, names: Sequence[str], batch: Batch, latents: np.ndarray
             ) -> tuple[dict[str, np.ndarray], np.ndarray]:  # fmt: skip
    """The input features {weight: [rows, d]} of a whole batch, and what the model draws, as latents."""
    recorder = _core.Recorder(model.drawing.samplers.whole, names)
    drawn = model.drawing.denoise(batch.perturbed, latents, batch.step)
    return recorder.take(), drawn


def layer_features(model: cdad.ContinualModel, classes: Sequence[ClassData], name: str, rows: int) -> np.ndarray:
    """About ``rows`` input features [rows, d] of one weight, class after class, in equal numbers; fewer where the images
    of `collect_bases` give no more."""
    parts = []
    for data in classes:
        found, wanted = [], rows // len(classes)
        for batch, latents in batches(model, [data], 1 << 30):
            found.append(recorded(model, [name], batch, latents)[0][name])
            if sum(map(len, found)) >= wanted:
                break
        parts.append(np.concatenate(found)[:wanted])
    return np.concatenate(parts)


def weights(model: cdad.ContinualModel) -> list[str]:
    """The names of the weights that have features: those of linear maps and convolutions."""
    return [name for name, shape in model.params.shapes().items() if len(shape) > 1]


def better(value: float, peer: float) -> float | None:
    """How many times smaller than the peer's; None where one of them is 0."""
    return peer / value if value > 0 and peer > 0 else None


def record(name: str, value: float, unit: str, peer: str, peer_value: float, ratio: float | None) -> dict[str, Any]:
    command = shlex.join(["python", *sys.argv])
    return {"name": name, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio,
            "command": command}  # fmt: skip
