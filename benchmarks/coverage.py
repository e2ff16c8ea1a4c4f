"""How much of the features of normal images that were never seen lies outside of the protected bases.

    python benchmarks/coverage.py --model RUNS/real-5/seed0/first/tasks/0.safetensors --data DIR [--images N ...] [--gamma G ...] [--json FILE]

The first task's model is taken as it is; its bases are collected again for every number of images and gamma. What they
leave of the features of the classes' normal test images, weight by weight, is what later tasks may overwrite. The peer
of a record is the first combination.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

import cdad
from cdad.results import format_table

sys.path.insert(0, str(Path(__file__).parent))
import evidence  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint after the first task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[8, 24, 64])
    parser.add_argument("--gamma", type=float, nargs="+", default=[0.999, 0.9999])
    parser.add_argument("--json", help="write the records here")
    arguments = parser.parse_args()

    model, dataset = cdad.ContinualModel.load(arguments.model), cdad.open_dataset(arguments.data)
    seen = [dataset[name] for name in model.classes]
    unseen = [dataclasses.replace(c, train=tuple(t.path for t in c.test if not t.label)) for c in seen]
    config, rows, records = model.config, [], []
    for images in arguments.images:
        for gamma in arguments.gamma:
            model.config, model.strategy.bases = config.updated({"continual.images": images, "continual.gamma": gamma}), {}
            bases = model.collect_bases(seen)
            model.strategy.bases = {name: np.ascontiguousarray(U) for name, (U, _, _) in bases.items()}
            # With so small a gamma nothing is added: the share kept is what the old bases hold of the new features.
            as_they_are = {"training.light": 0.0, "training.perturb_share": 0.0}
            model.config = config.updated({"continual.images": 8, "continual.gamma": 1e-9} | as_they_are)
            outside = [1 - share for _, share, _ in model.collect_bases(unseen).values()]
            rank = np.mean([U.shape[1] / U.shape[0] for U in model.bases.values()])
            rows.append({"images a class": images, "gamma": str(gamma), "mean": np.mean(outside), "median": np.median(outside),
                         "90 %": np.quantile(outside, 0.9), "maximum": np.max(outside), "rank share": rank})  # fmt: skip
            first = rows[0]["mean"]
            peer = f"{arguments.images[0]} images, gamma {arguments.gamma[0]}"
            share, name = float(np.mean(outside)), f"unprotected_energy_{images}_{gamma}"
            records.append(evidence.record(name, share, "share", peer, first, first / share))
    print(format_table(rows, digits=5, title="\nShare of the energy of unseen normal images' features outside of the bases:"))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(records, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
