"""What a checkpoint holds: configuration, classes, step, sizes, and whether it is whole."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from .checkpoint import Checkpoint
from .config import Config
from .errors import CheckpointError
from .results import format_table


def describe_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Plain values: ``config``, ``ledger`` (a learned task each), ``progress`` within a task, ``steps``, ``parts`` with their
    tensors and bytes, and ``damaged``, the tensors whose checksum is wrong. CheckpointError: the header is damaged, or what it
    says is no checkpoint of a model."""
    with Checkpoint(path) as checkpoint:
        damaged = []
        for name in checkpoint.tensors:
            try:
                checkpoint.check(name)
            except CheckpointError:
                damaged.append(name)
        state, parts = checkpoint.state, {}
        for name, info in checkpoint.tensors.items():
            part = parts.setdefault(_part(name), {"tensors": 0, "values": 0, "bytes": 0, "types": Counter()})
            part["tensors"] += 1
            part["values"] += info.count
            part["bytes"] += info.bytes
            part["types"][info.dtype] += 1
        try:
            return {
                "path": os.fspath(path),
                "version": checkpoint.version,
                "config": Config.from_dict(state["config"], whole=True).to_dict(),
                "ledger": [{"classes": list(map(str, task["classes"])), "steps": int(task["steps"])} | task for task in state["ledger"]],
                "progress": {"classes": list(map(str, state["progress"]["classes"]))} | state["progress"] if state["progress"] else {},
                "steps": int(state["steps"]),
                "parts": {name: part | {"types": dict(part["types"])} for name, part in sorted(parts.items())},
                "damaged": damaged,
            }
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise CheckpointError(f"no checkpoint of a model: {type(error).__name__}: {error}", path) from error


def _part(name: str) -> str:
    """What a tensor belongs to: networks of the model apart."""
    scope, _, rest = name.partition("/")
    return f"{scope}/{rest.split('.')[0]}" if scope == "model" else scope


def format_checkpoint(found: dict[str, Any]) -> str:
    """`describe_checkpoint`'s values as text."""
    config, progress = Config.from_dict(found["config"]), found["progress"]
    size = sum(part["bytes"] for part in found["parts"].values())
    lines = [
        f"{found['path']}: checkpoint of cdad (version {found['version']}), {size / 2**20:.1f} MiB",
        f"preset {config.preset}, {config.image_size} pixels, autoencoder {config.autoencoder.kind}, condition {config.condition}, "
        f"strategy {config.continual.strategy}, seed {config.seed}; {found['steps']} steps in all",
    ]
    for number, task in enumerate(found["ledger"], 1):
        lines.append(f"task {number} learned: {', '.join(task['classes'])} ({task['steps']} steps)")
    if progress:
        lines.append(f"task {len(found['ledger']) + 1}, at step {progress.get('step')}: {', '.join(progress['classes'])}")
    rows = [
        {
            "part": name,
            "tensors": part["tensors"],
            "M values": part["values"] / 1e6,
            "MiB": part["bytes"] / 2**20,
            "types": ", ".join(part["types"]),
        }
        for name, part in found["parts"].items()
    ]
    lines.append("\n" + format_table(rows, digits=2) + "\n")
    damaged = found["damaged"]
    lines.append(f"damaged: {len(damaged)} tensors: {', '.join(damaged[:8])}" if damaged else "every tensor is whole")
    return "\n".join(lines)
