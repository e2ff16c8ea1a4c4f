"""What fewer sampling steps cost in accuracy, and what they save in time.

    python benchmarks/steps.py MODEL --data DIR [--classes NAME ...] [--limit N] [--seeds SEED ...] [--json FILE]

MODEL is a run's folder or one of its tasks/N.safetensors. Its sampler is set to ten, five, three and two whole DDIM
steps (``diffusion.stop = 0``), and to x0 as predicted at the first of ten steps (``stop = 1``), from one noise or from
a noise and its negative. The model stays as it was trained; the calibrations of its scores are measured again for every
setting. The measures are means over the classes and over the seeds of the noise; with ``--limit``, N test images a
class serve, half of them anomalous. Times are medians of predictions of a batch, the settings in turn. The records'
peer is the paper's sampler, ten steps; a ratio above 1 means that the setting is better.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np

import cdad
from cdad.data import Sample, load_images
from cdad.evaluation import evaluate_class
from cdad.data import spread
from cdad.results import format_table
from cdad.run import CHECKPOINT

sys.path.insert(0, str(Path(__file__).parent))
import evidence  # noqa: E402

MEASURES = ("image_auroc", "pixel_auroc", "pixel_aupro")
PEER = "10 steps"
SETTINGS = {PEER: {"diffusion.steps": 10, "diffusion.stop": 0}}
SETTINGS |= {f"{n} steps": {"diffusion.steps": n, "diffusion.stop": 0} for n in (5, 3, 2)}
SETTINGS |= {
    "x0 at the first of 10": {"diffusion.steps": 10, "diffusion.stop": 1, "diffusion.mirrored": False},
    "the same, mirrored": {"diffusion.steps": 10, "diffusion.stop": 1, "diffusion.mirrored": True},
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run's folder, or a checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--classes", nargs="+", help="by default all that the model has learned")
    parser.add_argument("--limit", type=int, help="test images a class, half of them anomalous; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the sampler's noise")
    parser.add_argument("--rounds", type=int, default=5, help="timings of every setting")
    parser.add_argument("--json", help="write the records here")
    arguments = parser.parse_args(argv)

    if arguments.limit is not None and arguments.limit < 2:
        parser.error("--limit: at least 2, a normal and an anomalous image")
    path = Path(arguments.model)
    path = path / CHECKPOINT if path.is_dir() else path
    model = cdad.ContinualModel.load(path)
    dataset = cdad.open_dataset(arguments.data)
    names = arguments.classes or model.classes
    missing = [name for name in names if name not in model.classes or name not in dataset]
    if missing:
        parser.error(f"the model has not learned class {missing[0]!r}, or the data do not hold it")
    classes = [dataclasses.replace(dataset[name], test=chosen(dataset[name].test, arguments.limit)) for name in names]
    for data in classes:
        print(f"{data.name}: {len(data.test)} test images, {sum(s.label for s in data.test)} anomalous", flush=True)

    stored = model.config.updated({"diffusion.skip": 0})
    found = {}
    for name, changes in SETTINGS.items():
        began = time.monotonic()
        found[name] = measured(path, stored.updated(changes), classes, arguments.seeds)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    images = load_images([s.path for s in classes[0].test[: stored.scoring.batch_size]], stored.image_size)
    configs = {name: stored.updated(changes) for name, changes in SETTINGS.items()}
    times = timed(path, configs, images, arguments.rounds)

    rows = []
    for name in SETTINGS:
        row = {"sampler": name}
        for i, measure in enumerate(MEASURES):
            over_seeds = found[name][:, :, i].mean(1)
            row[measure] = f"{over_seeds.mean():.1f} ({np.ptp(over_seeds):.1f})"
        rows.append(row | {"ms an image": times[name]})
    title = f"\nPercent, means of {len(classes)} classes and {len(arguments.seeds)} seeds (range over the seeds):"
    print(format_table(rows, digits=1, title=title))
    for i, measure in enumerate(MEASURES):
        rows = [{"sampler": name} | dict(zip(names, found[name][:, :, i].mean(0), strict=True)) for name in SETTINGS]
        print(format_table(rows, digits=1, title=f"\n{measure} of each class:"))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(records(found, times), indent=1) + "\n")
    return 0


def chosen(samples: tuple[Sample, ...], limit: int | None) -> tuple[Sample, ...]:
    """At most ``limit`` of the samples, half of them anomalous, both halves evenly spread over their order."""
    if limit is None:
        return samples
    normal, anomalous = ([s for s in samples if s.label == label] for label in (0, 1))
    return (*spread(normal, limit - limit // 2), *spread(anomalous, limit // 2))


def measured(path: Path, config: cdad.Config, classes, seeds) -> np.ndarray:
    """Percent [seed, class, measure] of the model with this sampler."""
    values = []
    for seed in seeds:
        model = cdad.ContinualModel.load(path, config.updated({"seed": seed}), predict_only=True)
        if config.scoring.calibrate:
            model.recalibrate(classes)
        results = [evaluate_class(model, data).measures for data in classes]
        values.append([[100 * result[measure] for measure in MEASURES] for result in results])
    return np.array(values)


def timed(path: Path, configs: dict[str, cdad.Config], images, rounds: int) -> dict[str, float]:
    """Milliseconds an image, `images` at once; by uncalibrated scores, as no calibration is of all of these samplers."""
    plain = {name: config.updated({"scoring.calibrate": False}) for name, config in configs.items()}
    models = {name: cdad.ContinualModel.load(path, config, predict_only=True) for name, config in plain.items()}
    times = {name: [] for name in configs}
    for _ in range(rounds):
        for name, model in models.items():
            began = time.perf_counter()
            model.predict(images)
            times[name].append(1e3 * (time.perf_counter() - began) / len(images))
    return {name: float(np.median(values)) for name, values in times.items()}


def records(found: dict[str, np.ndarray], times: dict[str, float]) -> list[dict]:
    """One a setting and measure."""
    result = []
    for name in SETTINGS:
        key = name.replace(",", "").replace(" ", "_")
        values = {measure: (found[name][:, :, i].mean(), found[PEER][:, :, i].mean(), "percent")
                  for i, measure in enumerate(MEASURES)}  # fmt: skip
        values["time"] = (times[name], times[PEER], "ms an image")
        for measure, (value, peer, unit) in values.items():
            ratio = peer / value if measure == "time" else value / peer
            result.append(evidence.record(f"sampler_{key}_{measure}", value, unit, PEER, peer, ratio))
    return result


if __name__ == "__main__":
    sys.exit(main())
