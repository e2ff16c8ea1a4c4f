"""Training with narrower numbers beside float32: the same batches, noise and first weights, step by step in turn.

    python benchmarks/precision.py [--of precision | moments] [--preset demo] [--steps 400] [--data DIR --classes NAME ...]
        [--set KEY=VALUE ...] [--json FILE]

``--of precision``: products in bfloat16; ``--of moments``: AdamW's moments, the first one in bfloat16, and both in 8 bit. Without
``--data``, two synthetic products are drawn. Shown are the means of the denoising loss over eighths of the run, and of the
time of a step. The losses of one run scatter from window to window; what matters is that all do so together. A ratio above 1
means that the narrower one is better.
"""

from __future__ import annotations

import argparse
import json
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

sys.path.insert(0, str(Path(__file__).parent))
import evidence  # noqa: E402

# The key that is changed, and its values: the first is what the others are compared with.
KINDS = {
    "precision": ("precision", ("float32", "bfloat16")),
    "moments": ("training.moments", ("float32", "bfloat16", "8bit")),
}
NAMES = {"precision": {"bfloat16": "bf16"}, "moments": {"bfloat16": "bf16_moment", "8bit": "8bit_moments"}}  # of records
WINDOWS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=list(KINDS), default="precision")
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
    key, kinds = KINDS[arguments.of]
    wide, narrow = kinds[0], kinds[1:]
    configs = {kind: cdad.preset(arguments.preset).updated(changes | {key: kind}) for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.data:
            write_dataset(folder, classes=["gear", "cloth"], size=configs[wide].image_size, n_train=64, seed=0)
        dataset = cdad.open_dataset(arguments.data or folder)
        classes = [dataset[name] for name in arguments.classes or dataset]
        losses, seconds = train(configs, classes, arguments.steps)

    windows = {kind: np.array([np.mean(part) for part in np.array_split(losses[kind], WINDOWS)]) for kind in kinds}
    far = {kind: 100 * (windows[kind] / windows[wide] - 1) for kind in narrow}
    rows = [
        {"steps": f"{i * arguments.steps // WINDOWS} to {(i + 1) * arguments.steps // WINDOWS}",
         **{kind: windows[kind][i] for kind in kinds}, **{f"{kind}: difference %": far[kind][i] for kind in narrow}}
        for i in range(WINDOWS)
    ]  # fmt: skip
    print(format_table(rows, digits=4, title=f"L_CDM of {arguments.preset} by {arguments.of}, mean over these steps:"))
    for kind in narrow:
        print(f"{kind}: mean of the differences' sizes {np.mean(np.abs(far[kind])):.2f} %, largest {np.abs(far[kind]).max():.2f} %")
    medians = {kind: 1e3 * float(np.median(seconds[kind])) for kind in kinds}
    print("a step: " + ", ".join(f"{kind} {medians[kind]:.1f} ms" for kind in kinds)
          + f" ({_core.get_threads()} threads, {_core.build_info()['isa']})")  # fmt: skip
    if arguments.json:
        records = [
            evidence.record(f"{NAMES[arguments.of][kind]}_{name}", value[kind], unit, wide, value[wide], value[wide] / value[kind])
            for kind in narrow
            for name, unit, value in (
                ("train_step", "ms", medians), ("final_loss", "L_CDM", {k: float(windows[k][-1]) for k in kinds}))
        ]  # fmt: skip
        Path(arguments.json).write_text(json.dumps(records, indent=1) + "\n")
    return 0


def train(configs: dict[str, cdad.Config], classes: list, steps: int) -> tuple[dict[str, list], dict[str, list]]:
    """L_CDM and seconds of every step, by configuration; they take turns at going first."""
    config = next(iter(configs.values()))
    t = config.training
    autoencoder = Autoencoder(config.autoencoder, config.image_size, config.scoring.batch_size)
    batches = TrainingBatches(
        classes, image_size=config.image_size, batch_size=t.batch_size, seed=config.seed, perturb_share=t.perturb_share
    )
    images = load_images(batches.sources, config.image_size)
    autoencoder.measure(images)
    latents = autoencoder.encode(images)
    trainers = {
        k: _core.Trainer(_core.Params(), c.denoiser(), t.batch_size, c.optimizer(), c.seed) for k, c in configs.items()
    }
    losses, seconds = {k: [] for k in configs}, {k: [] for k in configs}
    kinds = list(configs)
    for step, batch in enumerate(batches.steps(0, steps)):
        scale = learning_rate_scale(step, steps, t.warmup, t.decay)
        for kind in kinds if step % 2 else kinds[::-1]:
            began = time.perf_counter()
            result = trainers[kind].step(latents[batch.index], batch.image, batch.perturbed, lr_scale=scale)
            seconds[kind].append(time.perf_counter() - began)
            losses[kind].append(result[1])
    return losses, seconds


if __name__ == "__main__":
    sys.exit(main())
