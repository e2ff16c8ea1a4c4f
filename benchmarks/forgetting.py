"""Strategies against forgetting, side by side: A- and FM of every measure on protocols of images.

    python benchmarks/forgetting.py --data DIR --weights WEIGHTS --out RUNS --tune                  # strengths first
    python benchmarks/forgetting.py --data DIR --weights WEIGHTS --out RUNS [--protocols real-5 ...] [--seeds 0 1 ...]
    python benchmarks/forgetting.py --quick --out RUNS                                              # a minute's smoke run

Every strategy goes on from one first task, learned once a protocol and seed (under SI, which has to follow it and does
not change it); only ``without_amn`` and ``controlnet``, other networks, learn their own. A benchmark that was interrupted goes on where it
stood when it is called again with the same arguments; runs that are finished are only read, and keep their results but,
without ``--keep``, none of their checkpoints. With ``--weights`` (a folder
with taef2_encoder.safetensors and taef2_decoder.safetensors) the autoencoder is the tiny one, else the fixed DCT.

``--tune`` chooses the strengths of EWC, SI, MAS and distillation without a test image: of every class each fifth training
image is held out; a short first task and a short increment are learned on the rest, and the strength with the lowest
denoising error on what was held out, as the mean over old and new classes of what it is relative to plain fine-tuning's, is
written to RUNS/PROTOCOL/strengths.json, which later calls read. Without that file `continual.strength` is 1.

The records' peer is fine-tuning; a ratio above 1 means that the strategy is better.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from pathlib import Path

import numpy as np

import cdad
from cdad import process_memory
from cdad.atomic import write_atomically
from cdad.config_checks import STRATEGIES
from cdad.metrics import MEASURES
from cdad.results import format_table

sys.path.insert(0, str(Path(__file__).parent))
import evidence  # noqa: E402
import runs  # noqa: E402

TUNED = {
    "ewc": (1e2, 1e4, 1e6),
    "si": (1e-2, 1e0, 1e2),
    "mas": (1e-2, 1e0, 1e2),
    "distill": (0.1, 1.0, 10.0),
}
BEYOND = 3  # further strengths, while the best one is the first or the last; then one on each side of it


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the images")
    parser.add_argument("--weights", help="folder of the tiny autoencoder's weights")
    parser.add_argument("--out", required=True)
    parser.add_argument("--protocols", nargs="+", default=["real-5"])
    parser.add_argument("--strategies", nargs="+", default=[s for s in STRATEGIES if s != "without_cdm"], choices=STRATEGIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--tune", action="store_true", help="choose strengths, and stop")
    parser.add_argument("--tune-steps", type=int, default=200, help="steps a class while strengths are chosen")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finished runs")
    parser.add_argument("--quick", action="store_true", help="synthetic products and a few steps: plumbing only")
    parser.add_argument("--json", help="write the records here")
    a = parser.parse_args(argv)
    out = Path(a.out)
    if a.quick:
        a.data = runs.products(out / "data", ("cloth", "gear", "plank", "steel"))
        a.protocols, a.preset, a.tune_steps = ["gear,cloth/steel/plank"], "tiny", 4
    elif not a.data:
        parser.error("--data is wanted, or --quick")
    config = cdad.preset(a.preset).updated(runs.changes(a))
    dataset = cdad.open_dataset(a.data)
    records, text = [], []
    for name in a.protocols:
        protocol = cdad.protocol(name, list(dataset))
        folder = out / name.replace("/", "_").replace(",", "+")
        if a.tune:
            _tune(config, dataset, protocol, folder, a)
            continue
        summaries = {
            strategy: [_run(config, dataset, protocol, folder, strategy, seed, a.keep) for seed in a.seeds] for strategy in a.strategies
        }
        text.append(_table(name, summaries, a.seeds))
        records += _records(name, summaries)
        print(text[-1], flush=True)
    info, peak = cdad.build_info(), process_memory.peak() >> 20
    print(f"peak {peak} MiB; {platform.processor() or platform.machine()}, {info['threads']} threads, {info['isa']}, "
          f"Python {platform.python_version()}")
    if text:
        write_atomically(out / "table.txt", ("\n\n".join(text) + "\n").encode())
    if a.json:
        write_atomically(a.json, (json.dumps(records, indent=1) + "\n").encode())
    return 0


def _strengths(folder: Path) -> dict[str, float]:
    path = folder / "strengths.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _run(config, dataset, protocol, folder: Path, strategy: str, seed: int, keep: bool) -> dict[str, dict[str, float]]:
    """The summary of a strategy's run."""
    folder, strengths = folder / f"seed{seed}", _strengths(folder)
    mine = config.updated({"seed": seed, "continual.strategy": strategy})
    if strategy in strengths:
        mine = mine.updated({"continual.strength": strengths[strategy]})
    elif strategy in TUNED:
        print(f"{strategy}: no tuned strength, {mine.continual.strength:g} is used: see --tune", flush=True)
    first = None
    if mine.condition == "amn":
        # Under SI, which has to follow the weights from the start, and leaves them as any other strategy does.
        first = runs.first_task(config.updated({"seed": seed}), dataset, protocol, folder / "first", "si")
    results = runs.learn(mine, dataset, protocol, folder / strategy, first)
    if not keep:
        for path in (folder / strategy).rglob("*.safetensors"):
            path.unlink()
    return results.summary()


# ---- choosing strengths ---------------------------------------------------------------------------------------------


def _tune(config, dataset, protocol, folder: Path, a: argparse.Namespace) -> None:
    """Write the strengths of a protocol; each trial's errors are kept, so that an interrupted search goes on."""
    path = folder / "tuning.json"
    tried = json.loads(path.read_text()) if path.exists() else {}
    kept, held = {}, {}
    for name in protocol.seen(1):
        train = dataset[name].train
        kept[name] = dataclasses.replace(dataset[name], train=tuple(p for i, p in enumerate(train) if i % 5), test=())
        held[name] = train[::5]
    old, new = ([kept[name] for name in task] for task in protocol.tasks[:2])
    steps = {"training.steps": a.tune_steps, "training.increment_steps": a.tune_steps, "seed": a.seeds[0]}
    first = folder / "tuning.safetensors"
    if not first.exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = cdad.ContinualModel(config.updated({**steps, "continual.strategy": "si"}))
        model.fit_task(old, progress=sys.stderr.isatty())
        model.save(first)

    def errors(strategy: str, strength: float) -> dict[str, float]:
        key = f"{strategy} {strength:g}"
        if key not in tried:
            changes = {**steps, "continual.strategy": strategy, "continual.strength": strength}
            model = cdad.ContinualModel.load(first, config.updated(changes))
            if not model.strategy.ready:
                model.consolidate(old, progress=sys.stderr.isatty())
            model.fit_task(new, progress=sys.stderr.isatty())
            tried[key] = {name: model.denoising_error(paths) for name, paths in held.items()}
            write_atomically(path, (json.dumps(tried, indent=1) + "\n").encode())
        return tried[key]

    plain, rows, chosen = errors("finetune", 1.0), [], {}  # a strength means nothing to fine-tuning
    for strategy in (s for s in a.strategies if s in TUNED):
        scores: dict[float, float] = {}

        def score(strength: float, strategy=strategy, scores=scores) -> None:
            relative = {name: error / plain[name] for name, error in errors(strategy, strength).items()}
            means = [float(np.mean([relative[d.name] for d in part])) for part in (old, new)]
            scores[strength] = float(np.mean(means))
            rows.append({"strategy": strategy, "strength": f"{strength:g}", "old": means[0], "new": means[1],
                         "mean": scores[strength]})  # fmt: skip
            print(f"{strategy} {strength:g}: old {means[0]:.3f}, new {means[1]:.3f} of fine-tuning's error", flush=True)

        for strength in TUNED[strategy]:
            score(strength)
        for _ in range(BEYOND):
            tried_now, best = sorted(scores), min(scores, key=scores.__getitem__)
            if best == tried_now[-1]:
                score(best * (best / tried_now[-2]))
            elif best == tried_now[0]:
                score(best * (best / tried_now[1]))
            else:
                break
        best = min(scores, key=scores.__getitem__)
        for neighbour in [s for s in sorted(scores) if s < best][-1:] + [s for s in sorted(scores) if s > best][:1]:
            score(float(np.sqrt(best * neighbour)))
        chosen[strategy] = min(scores, key=scores.__getitem__)
    title = f"\n{protocol.name}: denoising error on held-out training images over plain fine-tuning's"
    print(format_table(rows, digits=3, title=title))
    write_atomically(folder / "strengths.json", (json.dumps(_strengths(folder) | chosen, indent=1) + "\n").encode())
    print(f"chosen: {chosen}")


# ---- what comes out ---------------------------------------------------------------------------------------------------


def _percent(summaries: list[dict], measure: str, kind: str) -> np.ndarray:
    """One value a seed."""
    return np.array([100 * s[measure][kind] for s in summaries])


def _table(name: str, summaries: dict[str, list[dict]], seeds: list[int]) -> str:
    def cell(seeds: list[dict], measure: str, kind: str) -> str:
        values = _percent(seeds, measure, kind)
        spread = f" +-{(values.max() - values.min()) / 2:.1f}" if len(values) > 1 else ""
        return f"{values.mean():.1f}{spread}"

    rows = [
        {"strategy": strategy} | {f"{m} {short}": cell(seeds, m, kind) for m in MEASURES for kind, short in
                                  (("average", "A-"), ("forgetting", "FM"))}
        for strategy, seeds in summaries.items()
    ]  # fmt: skip
    title = f"{name}, seeds {', '.join(map(str, seeds))}; percent, mean and half the range over seeds:"
    return format_table(rows, title=title)


def _records(name: str, summaries: dict[str, list[dict]]) -> list[dict]:
    if "finetune" not in summaries:
        return []
    records = []
    for strategy, seeds in summaries.items():
        for measure in MEASURES if strategy != "finetune" else ():
            for kind in ("average", "forgetting"):
                value, peer = (float(_percent(s, measure, kind).mean()) for s in (seeds, summaries["finetune"]))
                better = (value, peer) if kind == "average" else (peer, value)
                ratio = better[0] / better[1] if min(better) > 0 else None  # forgetting may be below zero
                title = f"{name}_{strategy}_{measure}_{kind}"
                records.append(evidence.record(title, value, "percent", "fine-tuning", peer, ratio))
    return records


if __name__ == "__main__":
    sys.exit(main())
