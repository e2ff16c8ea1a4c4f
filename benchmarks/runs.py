"""Runs of protocols, kept in folders: what the scripts that train have in common."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cdad
from cdad.data import write_dataset
from cdad.results import RunResults
from cdad.run import run_or_resume

QUICK = {
    "training.steps": 6,
    "training.increment_steps": 6,
    "training.warmup": 2,
    "diffusion.steps": 3,
    "scoring.backbone": "autoencoder",
    "scoring.calibration_images": 4,
    "continual.images": 4,
}


def products(folder: Path, names: Sequence[str]) -> Path:
    """A data set of synthetic products: those that are not in the folder yet are drawn."""
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        write_dataset(folder, classes=missing, size=64, n_train=12, n_good=4, n_defect=2, seed=0)
    return folder


def changes(a: argparse.Namespace) -> dict:
    """What ``--quick``, ``--weights`` and ``--set`` change in a configuration."""
    found: dict = dict(QUICK) if a.quick else {}
    if a.weights:
        files = [str(Path(a.weights) / f"taef2_{side}.safetensors") for side in ("encoder", "decoder")]
        found |= {"autoencoder.kind": "tiny", "autoencoder.weights": files}
    for item in a.set:
        key, _, value = item.partition("=")
        found[key] = json.loads(value)
    return found


def learn(config: cdad.Config, dataset, protocol: cdad.Protocol, folder: Path, start_from: Path | None = None) -> RunResults:
    """The results of a run, begun, gone on with or, where it is finished, read. ValueError: it has another configuration."""
    return run_or_resume(
        config,
        dataset,
        protocol,
        folder,
        start_from=start_from,
        progress=sys.stderr.isatty(),
        tell=lambda text: print(f"[{folder.name}] {text}", flush=True),
    )


def first_task(config: cdad.Config, dataset, protocol: cdad.Protocol, folder: Path, strategy: str) -> Path:
    """The checkpoint after the protocol's first task, learned under a strategy."""
    alone = cdad.Protocol(f"{protocol.name}, first task", protocol.tasks[:1])
    learn(config.updated({"continual.strategy": strategy}), dataset, alone, folder)
    return folder / "tasks" / "0.safetensors"
