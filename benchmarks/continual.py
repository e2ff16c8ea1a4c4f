"""CDAD beside plain fine-tuning on a protocol of real images: A- and FM of every measure.

    python benchmarks/continual.py --data DIR --protocol real-5 --out RUNS [--weights DIR] [--json FILE] [--seed N]

Both strategies share the first task. An interrupted benchmark goes on where it stood when it is called again. With
``--weights`` (a folder with taef2_encoder.safetensors and taef2_decoder.safetensors) the autoencoder is the tiny one,
else the fixed DCT. The records' peer is fine-tuning; a ratio above 1 means that CDAD is better.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from pathlib import Path

import cdad
from cdad.results import compare_summaries, format_table
from cdad.run import CHECKPOINT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--protocol", default="real-5")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--weights", help="folder of the tiny autoencoder's weights")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--json", help="write the records here")
    arguments = parser.parse_args()

    changes = {"seed": arguments.seed}
    if arguments.weights:
        files = [str(Path(arguments.weights) / f"taef2_{side}.safetensors") for side in ("encoder", "decoder")]
        changes |= {"autoencoder.kind": "tiny", "autoencoder.weights": files}
    for item in arguments.set:
        key, _, value = item.partition("=")
        changes[key] = json.loads(value)
    dataset = cdad.open_dataset(arguments.data)
    protocol = cdad.protocol(arguments.protocol, list(dataset))
    summaries, seconds = {}, {}
    for label, strategy in (("CDAD", "cdad"), ("fine-tuning", "finetune")):
        out = Path(arguments.out) / strategy
        began = time.monotonic()
        results = cdad.run_protocol(
            cdad.preset(arguments.preset).updated({**changes, "continual.strategy": strategy}),
            dataset,
            protocol,
            out,
            resume=(out / CHECKPOINT).exists(),
            start_from=Path(arguments.out) / "cdad" / "tasks" / "0.safetensors" if strategy == "finetune" else None,
            progress=sys.stderr.isatty(),
            tell=lambda text: print(text, flush=True),
        )
        seconds[label] = time.monotonic() - began
        summaries[label] = results.summary()

    print(format_table(compare_summaries(summaries), title=f"\n{protocol.name}, seed {arguments.seed}:"))
    rows = [
        {"measure": m, "CDAD A-": 100 * summaries["CDAD"][m]["average"], "FM": 100 * summaries["CDAD"][m]["forgetting"],
         "fine-tuning A-": 100 * summaries["fine-tuning"][m]["average"],
         "FM ": 100 * summaries["fine-tuning"][m]["forgetting"]}
        for m in summaries["CDAD"]
    ]  # fmt: skip
    print(format_table(rows, digits=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    info = cdad.build_info()
    print(f"{ {k: round(v) for k, v in seconds.items()} } s, peak {peak} MiB; {platform.processor() or platform.machine()}, "
          f"{info['threads']} threads, {info['isa']}, Python {platform.python_version()}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(_records(protocol.name, summaries), indent=1) + "\n")
    return 0


def _records(name: str, summaries: dict) -> list[dict]:
    command = " ".join(["python", *sys.argv])
    records = []
    for measure, ours in summaries["CDAD"].items():
        for kind in ("average", "forgetting"):
            value, peer = 100 * ours[kind], 100 * summaries["fine-tuning"][measure][kind]
            if kind == "average":
                ratio = value / peer
            else:
                ratio = peer / value if value > 0 else None
            records.append({"name": f"{name}_{measure}_{kind}", "value": value, "unit": "percent", "peer": "fine-tuning",
                            "peer_value": peer, "ratio": ratio, "command": command})  # fmt: skip
    return records


if __name__ == "__main__":
    sys.exit(main())
