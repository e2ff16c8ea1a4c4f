"""What increments change of what a model did with its old images, layer by layer (the paper's Eq. 8).

    python benchmarks/drift.py --model RUNS/real-5/seed0/first/tasks/0.safetensors --data DIR --increments CLASS [CLASS ...]
                               [--steps N] [--images N] [--unseen] [--gamma G] [--png FILE] [--json FILE]
    python benchmarks/drift.py --quick                                                      # synthetic products, `tiny`

The model has learned its classes; then each increment, one class, is learned three times from the same state: with the
update projected off the bases (the default), with only the gradient projected, before AdamW (the paper's text), and with no
projection (fine-tuning). After each, for every linear map and convolution that has a basis (what is frozen
in increments has none), with weights W and then W + dW, features X of the old images in the old model and Y of the same
images, under the same noise, in the new model, and the basis U that was protected:

    in the basis     |X U U^T dW| / |X W|        what the theory holds at 0
    old features     |X dW| / |X W|              with what the threshold leaves out of the basis
    whole network    |Y (W + dW) - X W| / |X W|  with what the layers before it have changed; biases are left out
    output           the relative change of the latents that the model draws

A basis as wide as its features leaves a weight no update; that drift, 0, has no place in the picture, whose scale is a
logarithm.

The old images are of those that the bases were made of, under the same noise; with ``--unseen``, normal test images. The
records' peer is fine-tuning; a ratio above 1 means a smaller drift.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import cdad
from cdad.atomic import write_atomically
from cdad.data.records import ClassData
from cdad.results import format_table
from cdad.strategies import make_strategy

sys.path.insert(0, str(Path(__file__).parent))
import evidence  # noqa: E402
import runs  # noqa: E402

PEER = "no projection"
VARIANTS = {
    "update projected": {"continual.strategy": "cdad", "continual.projection": "update"},
    "gradient projected": {"continual.strategy": "cdad", "continual.projection": "gradient"},
    PEER: {"continual.strategy": "finetune"},
}
MEASURES = ("in the basis", "old features", "whole network")
GROUP = 16  # weights whose features are held at once


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint after the first task")
    parser.add_argument("--data", help="folder of the images")
    parser.add_argument("--increments", nargs="+", metavar="CLASS", help="classes to learn, one after the other")
    parser.add_argument("--steps", type=int, help="of an increment; by default the model's own number")
    parser.add_argument("--images", type=int, default=32, help="old images that the drift is measured on")
    parser.add_argument("--unseen", action="store_true", help="measure it on normal test images")
    parser.add_argument("--gamma", type=float, help="collect the bases again, with this share of the energy")
    parser.add_argument("--quick", action="store_true", help="synthetic products and a few steps: plumbing only")
    parser.add_argument("--png", default="drift.png", help="the picture")
    parser.add_argument("--json", help="write the records here")
    a = parser.parse_args(argv)
    if not a.quick and not (a.model and a.data and a.increments):
        parser.error("--model, --data and --increments are wanted, or --quick")
    if a.png:
        evidence.figure(1, 1, (1, 1))  # not after the work: is matplotlib here?
    with tempfile.TemporaryDirectory() as folder:
        if a.quick:
            a.model, a.data, a.increments, a.steps, a.images = _quick(Path(folder))
        old, variants = _models(a)
        dataset = cdad.open_dataset(a.data)
        missing = [name for name in (*a.increments, *old.classes) if name not in dataset]
        if missing:
            parser.error(f"the data hold no class {missing[0]!r}")
        return _measure(a, old, variants, dataset)


def _quick(folder: Path) -> tuple[Path, Path, list[str], int, int]:
    dataset = cdad.open_dataset(runs.products(folder / "data", ("gear", "cloth", "steel")))
    model = cdad.ContinualModel(cdad.preset("tiny").updated(runs.QUICK))
    model.fit_task([dataset[name] for name in ("gear", "cloth")], progress=False)
    model.save(folder / "first.safetensors")
    return folder / "first.safetensors", folder / "data", ["steel"], 10, 8


def _models(a: argparse.Namespace) -> tuple[cdad.ContinualModel, dict[str, cdad.ContinualModel]]:
    """The model as it was, and one for each variant, with the same bases; none keeps a moving average."""
    config = cdad.ContinualModel.load(a.model).config.updated({"training.ema_decay": 0.0, "scoring.calibrate": False})
    if a.steps is not None:
        config = config.updated({"training.increment_steps": a.steps})
    if a.gamma is not None:
        config = config.updated({"continual.gamma": a.gamma})
    variants = {
        name: cdad.ContinualModel.load(a.model, config.updated(changes)) for name, changes in VARIANTS.items()
    }
    old = cdad.ContinualModel.load(a.model, config.updated({"continual.strategy": "cdad"}))
    if a.gamma is not None or not old.strategy.ready:
        old.strategy = make_strategy(old.config.continual)  # which keeps nothing yet
        dataset = cdad.open_dataset(a.data)
        old.consolidate([dataset[name] for name in old.classes], progress=sys.stderr.isatty())
    for model in variants.values():
        if model.config.continual.strategy == "cdad":
            model.strategy.restore(old.strategy.tensors(), {})
    return old, variants


def _measure(a: argparse.Namespace, old: cdad.ContinualModel, variants: dict[str, cdad.ContinualModel], dataset) -> int:
    seen = [dataset[name] for name in old.classes]
    if a.unseen:
        seen = [dataclasses.replace(c, train=tuple(s.path for s in c.test if not s.label)) for c in seen]
    rank = np.mean([U.shape[1] / U.shape[0] for U in old.bases.values()])
    print(f"{len(old.bases)} weights, bases of {rank:.2f} of their widths; gamma {old.config.continual.gamma:g}, "
          f"{old.config.training.increment_steps} steps an increment", flush=True)
    records, layers = [], {}
    for k, name in enumerate(a.increments):
        for variant, model in variants.items():
            began = time.monotonic()
            model.fit_task(dataset[name], progress=sys.stderr.isatty())
            print(f"{name}, {variant}: learned in {time.monotonic() - began:.0f} s", flush=True)
        layers, outputs = drifts(old, variants, seen, a.images)
        after = "" if len(a.increments) == 1 else f"_after{k + 1}"
        rows = []
        for variant in variants:
            row = {"increment": variant}
            for measure in MEASURES:
                values = layers[variant][measure]
                row[measure] = f"{np.mean(values):.1e} ({np.max(values):.1e})"
            rows.append(row | {"output": f"{outputs[variant]:.1e}"})
        kind = "normal test images" if a.unseen else "old images"
        print(format_table(rows, title=f"\nDrift on {kind} after {', '.join(a.increments[: k + 1])}; mean (maximum) over the weights:"))
        for variant, found in layers.items():
            worst = int(np.argmax(found["whole network"]))
            print(f"{variant}: greatest in the whole network at {_measured(old)[worst]}")
        records += _records(layers, outputs, after)
    if a.png:
        _draw(layers, _measured(old), a)
    info = cdad.build_info()
    print(f"{platform.processor() or platform.machine()}, {info['threads']} threads, {info['isa']}, Python {platform.python_version()}")
    if a.json:
        write_atomically(a.json, (json.dumps(records, indent=1) + "\n").encode())
    return 0


def drifts(
    old: cdad.ContinualModel, variants: dict[str, cdad.ContinualModel], classes: Sequence[ClassData], images: int
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """{variant: {measure: [weights]}} in the order of the parameters, and {variant: drift of the output}."""
    names = _measured(old)
    before = {name: _matrix(old, name) for name in names}
    changes = {v: {name: _matrix(model, name) - before[name] for name in names} for v, model in variants.items()}
    of_old = dict.fromkeys(names, 0.0)
    squares = {v: {measure: dict.fromkeys(names, 0.0) for measure in MEASURES} for v in variants}
    drawn_by_old, outputs = 0.0, dict.fromkeys(variants, 0.0)
    for first in range(0, len(names), GROUP):
        group = names[first : first + GROUP]
        for batch, latents in evidence.batches(old, classes, images):
            X, drawn = evidence.recorded(old, group, batch, latents)
            output = {name: X[name] @ before[name].T for name in group}
            inside = {name: X[name] @ old.bases[name] for name in group}
            for name in group:
                of_old[name] += _square(output[name])
            drawn_by_old += _square(drawn)
            for v, model in variants.items():
                Y, drawn_now = evidence.recorded(model, group, batch, latents)
                outputs[v] += _square(drawn_now - drawn)
                for name in group:
                    dW, found = changes[v][name], squares[v]
                    found["in the basis"][name] += _square(inside[name] @ (dW @ old.bases[name]).T)
                    found["old features"][name] += _square(X[name] @ dW.T)
                    found["whole network"][name] += _square(Y[name] @ (before[name] + dW).T - output[name])
    silent = [name for name in names if not of_old[name]]
    if silent:
        raise ValueError(f"the old model's {silent[0]} gives nothing on these images: there is nothing to relate its drift to")
    layers = {
        v: {m: np.sqrt([found[m][name] / of_old[name] for name in names]) for m in MEASURES} for v, found in squares.items()
    }
    return layers, {v: float(np.sqrt(square / drawn_by_old)) for v, square in outputs.items()}


def _measured(old: cdad.ContinualModel) -> list[str]:
    return [name for name in evidence.weights(old) if name in old.bases]


def _matrix(model: cdad.ContinualModel, name: str) -> np.ndarray:
    """A copy [O, d] of a weight."""
    weight = np.array(model.params[name])
    return weight.reshape(len(weight), -1)


def _square(a: np.ndarray) -> float:
    return float(np.sum(np.square(a), dtype=np.float64))


def _records(layers: dict, outputs: dict[str, float], after: str) -> list[dict]:
    values = {
        v: {f"{m.replace(' ', '_')}_{k}": float(f(found[m])) for m in MEASURES for k, f in (("mean", np.mean), ("max", np.max))}
        | {"output": outputs[v]}
        for v, found in layers.items()
    }
    return [
        evidence.record(f"drift_{v.replace(' ', '_')}_{key}{after}", value, "relative", PEER, values[PEER][key],
                        evidence.better(value, values[PEER][key]))
        for v in layers if v != PEER for key, value in values[v].items()
    ]  # fmt: skip


def _draw(layers: dict[str, dict[str, np.ndarray]], names: list[str], a: argparse.Namespace) -> None:
    fig, axes = evidence.figure(len(MEASURES), 1, (11, 9))
    for axis, measure in zip(axes[:, 0], MEASURES, strict=True):
        for variant, found in layers.items():
            values = np.where(found[measure] > 0, found[measure], np.nan)  # a logarithm
            axis.semilogy(range(len(names)), values, ".-", linewidth=0.8, label=variant)
        axis.set_title(f"drift, {measure}", loc="left", fontsize=10)
        axis.grid(True, alpha=0.3)
    axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(layers), fontsize=9)
    axes[-1, 0].set_xlabel(f"weights, from {names[0]} to {names[-1]}")
    fig.suptitle(f"Relative change of layers' outputs after {', '.join(a.increments)}")
    fig.savefig(a.png, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
