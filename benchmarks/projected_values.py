"""The values of features before and after their projection onto bases made in several ways (the paper's Fig. 4).

    python benchmarks/projected_values.py [--width D] [--rows N] [--gamma G] [--blocks N ...] [--png FILE] [--json FILE]
    python benchmarks/projected_values.py --model RUN/tasks/0.safetensors --data DIR --layer WEIGHT [...]
    python benchmarks/projected_values.py --quick

Features X [rows, d], 50000 x 1280 by default, are projected onto the basis U that keeps gamma (0.98) of their energy: of
one SVD of everything; of the paper's iSVD over n blocks of rows, in order; and of the exact stream over the most blocks.
What is left is X U U^T: its values' mean and standard deviation, its share of the energy, and the error
|X - X U U^T| / |X|. "Overlap" is what the histogram shares with the original one.

By default the features are made up: products one after the other, singular values that fall like 1/j, half of the
directions a product's own (`evidence.made_up_features`); ``--shuffle`` puts their rows in random order, so that every block
is like the whole, which is where iSVD loses least. With ``--model`` they are the input features of one of its
weights while it draws images of its classes, class after class. The records' value is the exact stream's error; a ratio
above 1 means that the peer's is larger.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import cdad
from cdad import _core
from cdad.atomic import write_atomically
from cdad.results import format_table

sys.path.insert(0, str(Path(__file__).parent))
import evidence  # noqa: E402

BINS = 200
CHUNK = 4096  # rows projected at once


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--rows", type=int, default=50000)
    parser.add_argument("--gamma", type=float, default=0.98, help="share of the energy to keep")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 5, 10, 50], help="of iSVD")
    parser.add_argument("--model", help="checkpoint: the features of one of its weights")
    parser.add_argument("--data", help="folder of its images")
    parser.add_argument("--layer", metavar="WEIGHT", help="whose features")
    parser.add_argument("--shuffle", action="store_true", help="rows in random order")
    parser.add_argument("--quick", action="store_true", help="256 x 5000")
    parser.add_argument("--png", default="projected_values.png", help="the picture")
    parser.add_argument("--json", help="write the records here")
    a = parser.parse_args(argv)
    if a.png:
        evidence.figure(1, 1, (1, 1))  # not after the work: is matplotlib here?
    if a.quick:
        a.width, a.rows, a.blocks = 256, 5000, [1, 5, 10]
    X = _features(a, parser) if a.model else evidence.made_up_features(a.rows, a.width)
    if a.shuffle:
        X = X[np.random.default_rng(0).permutation(len(X))]
    print(f"features {X.shape[0]} x {X.shape[1]}, gamma {a.gamma:g}", flush=True)
    limit = 6 * float(np.sqrt(np.mean(X * X, dtype=np.float64)))
    edges = np.linspace(-limit, limit, BINS + 1)
    found = {"original": values(X, None, edges)}
    for name, make in bases(a.gamma, a.blocks).items():
        found[name] = values(X, make(X), edges)
        print(f"{name}: rank {found[name]['rank']}", flush=True)
    shared = {name: float(np.minimum(f["histogram"], found["original"]["histogram"]).sum()) for name, f in found.items()}
    rows = [{"basis": name, "rank": f["rank"], "mean": f["mean"], "std": f["std"], "energy": f["energy"], "error": f["error"],
             "overlap": shared[name]} for name, f in found.items()]  # fmt: skip
    print(format_table(rows, digits=5, title="\nValues of the features after the projection:"))
    if a.png:
        _draw(found, edges, a)
    if a.json:
        error = found["exact stream"]["error"]
        records = [
            evidence.record(f"projection_error_{name.replace(',', '').replace(' ', '_')}", error, "share", name, f["error"],
                            evidence.better(error, f["error"]))
            for name, f in found.items() if name not in ("original", "exact stream")
        ]  # fmt: skip
        write_atomically(a.json, (json.dumps(records, indent=1) + "\n").encode())
    return 0


def _features(a: argparse.Namespace, parser: argparse.ArgumentParser) -> np.ndarray:
    if not a.data:
        parser.error("--model wants --data")
    model, dataset = cdad.ContinualModel.load(a.model), cdad.open_dataset(a.data)
    widths = {name: int(np.prod(model.params.shapes()[name][1:])) for name in evidence.weights(model)}
    if a.layer not in widths:
        parser.error("--layer: one of " + ", ".join(f"{name} ({d})" for name, d in widths.items()))
    missing = [name for name in model.classes if name not in dataset]
    if missing:
        parser.error(f"the data hold no class {missing[0]!r}")
    return evidence.layer_features(model, [dataset[name] for name in model.classes], a.layer, a.rows)


def bases(gamma: float, blocks: list[int]) -> dict:
    """{name: a function of X [rows, d] that gives U [d, rank]}."""

    def streamed(X: np.ndarray, method: str, n: int) -> np.ndarray:
        stream = _core.Stream(X.shape[1], method=method, gamma=gamma)
        for block in np.array_split(X, n):
            stream.add(block)
        return stream.basis()[0]

    named = {"one SVD": lambda X: evidence.one_svd(X, gamma)}
    named |= {f"iSVD, n = {n}": lambda X, n=n: streamed(X, "isvd", n) for n in blocks}
    return named | {"exact stream": lambda X: streamed(X, "exact", max(blocks))}


def values(X: np.ndarray, U: np.ndarray | None, edges: np.ndarray) -> dict:
    """The distribution of the values of X U U^T (None: of X), and what of X is lost; a share of the values a bin, those
    beyond the edges in the outermost."""
    histogram, total, squares, lost, energy = np.zeros(len(edges) - 1), 0.0, 0.0, 0.0, 0.0
    for first in range(0, len(X), CHUNK):
        part = X[first : first + CHUNK]
        left = part if U is None else (part @ U) @ U.T
        histogram += np.histogram(np.clip(left, edges[0], edges[-1]), edges)[0]
        total += float(np.sum(left, dtype=np.float64))
        squares += _square(left)
        lost += _square(part - left)
        energy += _square(part)
    mean = total / X.size
    return {"histogram": histogram / X.size, "mean": mean, "std": float(np.sqrt(squares / X.size - mean * mean)),
            "energy": squares / energy, "error": float(np.sqrt(lost / energy)),
            "rank": X.shape[1] if U is None else U.shape[1]}  # fmt: skip


def _square(a: np.ndarray) -> float:
    return float(np.sum(np.square(a), dtype=np.float64))


def _draw(found: dict[str, dict], edges: np.ndarray, a: argparse.Namespace) -> None:
    names = [name for name in found if name != "original"]
    columns = min(4, len(names))
    fig, axes = evidence.figure(-(-len(names) // columns), columns, (3.4 * columns, 3 * -(-len(names) // columns)))
    middle = 0.5 * (edges[:-1] + edges[1:])
    for axis, name in zip(axes.ravel(), names):
        axis.fill_between(middle, found["original"]["histogram"], color="0.8", step="mid", label="original")
        axis.step(middle, found[name]["histogram"], where="mid", linewidth=1, label=name)
        axis.set_yscale("log")
        axis.set_title(f"{name}: rank {found[name]['rank']}, error {found[name]['error']:.3f}", fontsize=9)
        axis.legend(fontsize=7)
    for axis in axes.ravel()[len(names) :]:
        axis.set_axis_off()
    fig.suptitle(f"Values of features projected onto their bases, gamma {a.gamma:g}: share of all values a bin")
    fig.savefig(a.png, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
