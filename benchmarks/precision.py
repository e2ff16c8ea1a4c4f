"""Training with products in bfloat16 beside float32: the same batches, noise and first weights, step by step in turn.

    python benchmarks/precision.py [--preset demo] [--steps 400] [--data DIR --classes NAME ...] [--set KEY=VALUE ...] [--json FILE]

Without ``--data``, two synthetic products are drawn. Shown are the means of the denoising loss over eighths of the run, and of
the time of a step. The losses of one run scatter from window to window; what matters is that the two do so together. A
ratio above 1 means that bfloat16 is better.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import cdad
from cdad import _core
from cdad.autoencoder import Autoencoder
from cdad.data import TrainingBatches, load_images, write_dataset
from cdad.model import learning_rate_scale
from cdad.results import format_table

PRECISIONS = ("float32", "bfloat16")
WINDOWS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--data", help="a data set in MVTec layout")
    parser.add_argument("--classes", nargs="+", help="of the data set; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in cdad train")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if arguments.steps < WINDOWS:
        parser.error(f"--steps: at least {WINDOWS}")
    changes = {key: json.loads(value) for key, _, value in (item.partition("=") for item in arguments.set)}
    configs = {p: cdad.preset(arguments.preset).updated(changes | {"precision": p}) for p in PRECISIONS}
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.data:
            write_dataset(folder, classes=["gear", "cloth"], size=configs["float32"].image_size, n_train=64, seed=0)
        dataset = cdad.open_dataset(arguments.data or folder)
        classes = [dataset[name] for name in arguments.classes or dataset]
        losses, seconds = train(configs, classes, arguments.steps)

    windows = {p: [float(np.mean(part)) for part in np.array_split(losses[p], WINDOWS)] for p in PRECISIONS}
    rows = [
        {"steps": f"{i * arguments.steps // WINDOWS} to {(i + 1) * arguments.steps // WINDOWS}",
         **{p: windows[p][i] for p in PRECISIONS}, "difference %": 100 * (windows["bfloat16"][i] / windows["float32"][i] - 1)}
        for i in range(WINDOWS)
    ]  # fmt: skip
    print(format_table(rows, digits=4, title=f"L_CDM of {arguments.preset}, mean over these steps:"))
    medians = {p: 1e3 * float(np.median(seconds[p])) for p in PRECISIONS}
    print(f"a step: float32 {medians['float32']:.1f} ms, bfloat16 {medians['bfloat16']:.1f} ms "
          f"({_core.get_threads()} threads, {_core.build_info()['isa']})")
    if arguments.json:
        command = shlex.join(["python", *sys.argv])
        records = [
            {"name": f"bf16_{name}", "value": value["bfloat16"], "unit": unit, "peer": "float32",
             "peer_value": value["float32"], "ratio": value["float32"] / value["bfloat16"], "command": command}
            for name, unit, value in (("train_step", "ms", medians), ("final_loss", "L_CDM", {p: windows[p][-1] for p in PRECISIONS}))
        ]  # fmt: skip
        Path(arguments.json).write_text(json.dumps(records, indent=1) + "\n")
    return 0


def train(configs: dict[str, cdad.Config], classes: list, steps: int) -> tuple[dict[str, list], dict[str, list]]:
    """L_CDM and seconds of every step, by precision; the two take turns at going first."""
    config = configs["float32"]
    t = config.training
    autoencoder = Autoencoder(config.autoencoder, config.image_size, config.scoring.batch_size)
    batches = TrainingBatches(
        classes, image_size=config.image_size, batch_size=t.batch_size, seed=config.seed, perturb_share=t.perturb_share
    )
    images = load_images(batches.paths, config.image_size)
    autoencoder.measure(images)
    latents = autoencoder.encode(images)
    trainers = {
        p: _core.Trainer(_core.Params(), c.denoiser(), t.batch_size, c.optimizer(), c.seed) for p, c in configs.items()
    }
    losses, seconds = {p: [] for p in configs}, {p: [] for p in configs}
    for step, batch in enumerate(batches.steps(0, steps)):
        scale = learning_rate_scale(step, steps, t.warmup, t.decay)
        for p in PRECISIONS if step % 2 else PRECISIONS[::-1]:
            began = time.perf_counter()
            result = trainers[p].step(latents[batch.index], batch.image, batch.perturbed, lr_scale=scale)
            seconds[p].append(time.perf_counter() - began)
            losses[p].append(result[1])
    return losses, seconds


if __name__ == "__main__":
    sys.exit(main())
