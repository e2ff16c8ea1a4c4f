"""Where the time and the memory of a training step or a prediction go, node by node."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import _core, process_memory
from .autoencoder import Autoencoder
from .config import Config
from .features import FeatureDistance
from .atomic import write_atomically


@dataclass(frozen=True)
class Cost:
    """What one kind of work took in a run, the median over the runs: ``seconds``, ``flops`` of its products, and
    ``bytes`` of its inputs and outputs."""

    name: str
    calls: int
    seconds: float
    flops: float
    bytes: int

    def row(self, total: float, peak: float) -> dict[str, Any]:
        """For a table: ``total`` seconds of a run, ``peak`` operations a second of the machine."""
        rate = self.flops / self.seconds if self.seconds else 0.0
        return {
            "op": self.name,
            "calls": self.calls,
            "ms": 1e3 * self.seconds,
            "share %": 100 * self.seconds / total,
            "GFLOP/s": rate / 1e9 if self.flops else None,
            "of peak %": 100 * rate / peak if self.flops else None,
            "GB/s": self.bytes / self.seconds / 1e9 if self.seconds else None,
        }


@dataclass(frozen=True)
class Profile:
    """A profile: ``seconds`` of a run as a whole (median), ``ops`` and ``nodes`` by falling time, ``events`` of the
    last run as `_core.profile_stop` gives them, ``peak`` (operations a second of NumPy's matrix product on this
    machine), ``planned`` bytes by purpose, and ``measured``, by how much the process grew."""

    seconds: float
    ops: tuple[Cost, ...]
    nodes: tuple[Cost, ...]
    events: tuple[tuple, ...]
    peak: float
    planned: dict[str, int]
    measured: int

    def write_trace(self, path: str | os.PathLike) -> None:
        """The last run's events in the Trace Event Format, which chrome://tracing and Perfetto open."""
        begin = self.events[0][3] if self.events else 0.0
        events = [
            {
                "name": op,
                "cat": "op",
                "ph": "X",
                "ts": 1e6 * (start - begin),
                "dur": 1e6 * seconds,
                "pid": 0,
                "tid": 0,
                "args": {"weight": weight, "shape": shape, "gflop": flops / 1e9, "bytes": size},
            }
            for op, weight, shape, start, seconds, flops, size in self.events
        ]
        write_atomically(Path(path), json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())


def profile_training(config: Config, *, repeats: int = 5, seed: int = 0) -> Profile:
    """One training step of the configuration's batch, on random images; the weights are those of a new model."""
    before = process_memory.held()
    params = _core.Params()
    batch = config.training.batch_size
    trainer = _core.Trainer(params, config.denoiser(), batch, config.optimizer(), seed, **config.batching())
    latents, images, context = _inputs(config, batch, seed)

    def step() -> None:
        trainer.step(latents, images, images, context)

    return _profile(step, repeats, trainer.memory_bytes, before)


def profile_prediction(config: Config, *, repeats: int = 5, seed: int = 0) -> Profile:
    """From a batch of images to feature distances, with random weights of the configuration's networks."""
    before = process_memory.held()
    batch, d = config.scoring.batch_size, config.diffusion
    params = _core.Params()
    autoencoder = Autoencoder(config.autoencoder, config.image_size, batch, load=False, tf32=config.tf32, beside=params)
    sampler = _core.Sampler(params, config.denoiser(), batch)
    params.allocate(seed)
    features = FeatureDistance.of(config, autoencoder, load=False)
    scoring = config.scoring
    whitening = [np.eye(C, dtype=np.float32) for C in features.widths] if scoring.calibrate and scoring.distance == "mahalanobis" else []
    _, images, context = _inputs(config, batch, seed)
    how = {"steps": d.steps, "skip": d.skip}

    def predict() -> None:
        latents = autoencoder.encode(images)
        reference = autoencoder.decode(latents)
        for noise in range(scoring.noise_seeds):
            streams = np.full(batch, noise)
            start, twin = sampler.start(latents, streams, seed, **how), None
            if d.stop and d.mirrored:
                twin = start - 2 * sampler.start(np.zeros_like(latents), streams, seed, **how)
            drawn = sampler.denoise(images, start, context, **how, stop=d.stop, twin=twin)
            features(reference, autoencoder.decode(drawn), whitening)

    planned = {"parameters": params.memory_bytes, "workspace": params.workspace_bytes, "condition": sampler.condition_bytes}
    planned |= autoencoder.memory_bytes | features.memory_bytes
    return _profile(predict, repeats, planned, before)


def _inputs(config: Config, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng, unet, side = np.random.default_rng(seed), config.unet, config.latent_size
    latents = rng.standard_normal((batch, side, side, config.autoencoder.latent_channels), np.float32)
    images = rng.random((batch, config.image_size, config.image_size, 3), np.float32)
    context = None
    if unet.context_dim:
        context = rng.standard_normal((batch, unet.context_length, unet.context_dim), np.float32)
    return latents, images, context


def _profile(run: Callable[[], None], repeats: int, planned: dict[str, int], before: int) -> Profile:
    if repeats < 1:
        raise ValueError(f"{repeats} repeats; at least 1 is wanted")
    run()  # the first run touches memory for the first time
    walls, recorded = [], []
    for _ in range(repeats):
        _core.profile_start()
        try:
            began = time.perf_counter()
            run()
            walls.append(time.perf_counter() - began)
        finally:
            recorded.append(_core.profile_stop())
    measured = process_memory.peak() - before
    return Profile(
        statistics.median(walls),
        _sum(recorded, lambda op, weight, shape: op),
        _sum(recorded, lambda op, weight, shape: f"{op} {shape} {weight}".rstrip()),
        tuple(recorded[-1]),
        _peak(),
        planned,
        measured,
    )


def _sum(recorded: list[list[tuple]], name: Callable[[str, str, str], str]) -> tuple[Cost, ...]:
    runs: list[dict[str, list]] = []
    for events in recorded:
        costs: dict[str, list] = {}
        for op, weight, shape, _, seconds, flops, size in events:
            cost = costs.setdefault(name(op, weight, shape), [0, 0.0, 0.0, 0])
            for i, value in enumerate((1, seconds, flops, size)):
                cost[i] += value
        runs.append(costs)
    found = [
        Cost(key, calls, statistics.median(run[key][1] for run in runs), flops, size)
        for key, (calls, _, flops, size) in runs[-1].items()
    ]
    return tuple(sorted(found, key=lambda cost: -cost.seconds))


def _peak() -> float:
    a = np.ones((1536, 1536), np.float32)
    best = min(_time(lambda: a @ a) for _ in range(5))
    return 2 * 1536**3 / best


def _time(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
