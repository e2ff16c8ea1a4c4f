"""A- and FM over gamma, the share of the old tasks' energy that the bases protect (the paper's Fig. 5).

    python benchmarks/gamma.py --data DIR --weights WEIGHTS --out RUNS [--protocol real-5] [--gammas G ...] [--first CHECKPOINT]
                               [--png FILE] [--json FILE]
    python benchmarks/gamma.py --quick --out RUNS                                            # synthetic products, `tiny`

Every gamma goes on from one first task, learned once, or from ``--first`` (tasks/0.safetensors of another run of the
protocol). Gamma 0 protects nothing: it is plain fine-tuning. Called again with the same arguments, it goes on where it
stood; finished runs are only read, and keep their results, but without ``--keep`` none of their checkpoints. With
``--weights`` (a folder with taef2_encoder.safetensors and taef2_decoder.safetensors) the autoencoder is the tiny one,
else the fixed DCT. The records' peer is gamma 0; a ratio above 1 means that the protection is better.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import cdad
from cdad.atomic import write_atomically
from cdad.metrics import MEASURES
from cdad.results import format_table

sys.path.insert(0, str(Path(__file__).parent))
import evidence  # noqa: E402
import runs  # noqa: E402

GAMMAS = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)
PEER = "gamma 0"
KINDS = {"average": "A-", "forgetting": "FM"}
DRAWN = ("image_auroc", "pixel_auroc", "pixel_aupro")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the images")
    parser.add_argument("--weights", help="folder of the tiny autoencoder's weights")
    parser.add_argument("--out", required=True)
    parser.add_argument("--protocol", default="real-5")
    parser.add_argument("--gammas", type=float, nargs="+", default=list(GAMMAS))
    parser.add_argument("--first", help="checkpoint after the first task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finished runs")
    parser.add_argument("--quick", action="store_true", help="synthetic products and a few steps: plumbing only")
    parser.add_argument("--png", default="gamma.png", help="the picture")
    parser.add_argument("--json", help="write the records here")
    a = parser.parse_args(argv)
    if a.png:
        evidence.figure(1, 1, (1, 1))  # not after the work: is matplotlib here?
    out = Path(a.out)
    if a.quick:
        dataset = cdad.open_dataset(runs.products(out / "data", ("cloth", "gear", "steel")))
        a.protocol, a.preset = "cloth,gear/steel", "tiny"
    elif a.data:
        dataset = cdad.open_dataset(a.data)
    else:
        parser.error("--data is wanted, or --quick")
    config = cdad.preset(a.preset).updated({"seed": a.seed} | runs.changes(a))
    protocol = cdad.protocol(a.protocol, list(dataset))
    folder = out / a.protocol.replace("/", "_").replace(",", "+") / f"gamma-seed{a.seed}"
    first = Path(a.first) if a.first else runs.first_task(config, dataset, protocol, folder / "first", "finetune")
    found = {}
    for gamma in a.gammas:
        changes = {"continual.strategy": "cdad", "continual.gamma": gamma} if gamma > 0 else {"continual.strategy": "finetune"}
        run = folder / f"{gamma:g}"
        found[gamma] = runs.learn(config.updated(changes), dataset, protocol, run, first).summary()
        for path in run.rglob("*.safetensors") if not a.keep else ():
            path.unlink()
    rows = [
        {"gamma": f"{gamma:g}"} | {f"{m} {short}": 100 * summary[m][kind] for m in MEASURES for kind, short in KINDS.items()}
        for gamma, summary in found.items()
    ]
    print(format_table(rows, digits=1, title=f"\n{a.protocol}, seed {a.seed}; percent:"))
    info = cdad.build_info()
    print(f"{platform.processor() or platform.machine()}, {info['threads']} threads, {info['isa']}, Python {platform.python_version()}")
    if a.png:
        _draw(found, a)
    if a.json:
        write_atomically(a.json, (json.dumps(_records(found, a.protocol), indent=1) + "\n").encode())
    return 0


def _records(found: dict[float, dict], protocol: str) -> list[dict]:
    if 0 not in found:
        return []
    records = []
    for gamma, summary in found.items():
        for measure in MEASURES if gamma > 0 else ():
            for kind in KINDS:
                value, peer = (100 * float(s[measure][kind]) for s in (summary, found[0]))
                # Forgetting may be below zero; there is no ratio then.
                ratio = evidence.better(value, peer) if kind == "forgetting" else evidence.better(peer, value)
                records.append(evidence.record(f"{protocol}_gamma_{gamma:g}_{measure}_{kind}", value, "percent", PEER, peer, ratio))
    return records


def _draw(found: dict[float, dict], a: argparse.Namespace) -> None:
    fig, axes = evidence.figure(1, len(KINDS), (10, 4))
    for axis, (kind, short) in zip(axes[0], KINDS.items(), strict=True):
        for measure in DRAWN:
            axis.plot(range(len(found)), [100 * s[measure][kind] for s in found.values()], "o-", label=measure.replace("_", " "))
        axis.set_xticks(range(len(found)), [f"{gamma:g}" for gamma in found])
        axis.set_xlabel("gamma")
        axis.set_title(f"{short}, percent", loc="left", fontsize=10)
        axis.grid(True, alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    fig.suptitle(f"{a.protocol}, seed {a.seed}")
    fig.savefig(a.png, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
