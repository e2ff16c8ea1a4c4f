"""Memory and time of the paper's iSVD, by the number of blocks n and the threshold e, beside the exact stream (the paper's
Tables 1 and 8).

    python benchmarks/table8.py [--width D] [--rows N] [--blocks N ...] [--thresholds E ...] [--threads N] [--png FILE] [--json FILE]
    python benchmarks/table8.py --quick

The features [rows, d], 50000 x 1280 by default, are those of `evidence.made_up_features`; n blocks of rows come one after
the other, as a sampler gives them, and a basis that keeps the share e of their energy is made of them: by iSVD, of which
n = 1 is one SVD of everything; and by the exact stream, which gives that one's subspace for every n. Time, memory and
energy are those of `costs`: processor time, and the peak of a process of its own. A ratio above 1 means that the exact
stream takes less.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import cdad
from cdad.atomic import write_atomically
from cdad.results import format_table

sys.path.insert(0, str(Path(__file__).parent))
import costs  # noqa: E402
import evidence  # noqa: E402

METHODS = {"isvd": "iSVD", "exact": "exact stream"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--rows", type=int, default=50000)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 5, 10, 50])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.9, 0.98, 0.999])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="256 x 5000, few blocks")
    parser.add_argument("--png", default="table8.png", help="the picture")
    parser.add_argument("--json", help="write the records here")
    a = parser.parse_args(argv)
    if a.quick:
        a.width, a.rows, a.blocks, a.thresholds = 256, 5000, [1, 5], [0.98]
    if a.png:
        evidence.figure(1, 1, (1, 1))  # not after the work: is matplotlib here?
    found: dict[tuple[int, float], dict[str, dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "features.f32")
        evidence.made_up_features(a.rows, a.width).tofile(path)
        for n in a.blocks:
            for e in a.thresholds:
                found[n, e] = {method: costs.measure(method, path, a.width, n, e, a.threads) for method in METHODS}
                print(f"n = {n}, e = {e:g}: " + "; ".join(f"{METHODS[m]} {f['seconds']:.2f} s, {f['bytes'] / 2**20:.0f} MiB"
                                                          for m, f in found[n, e].items()), flush=True)  # fmt: skip
    rows = [
        {"n": n, "e": f"{e:g}"} | {f"{METHODS[m]} {key}": value for m, f in sides.items() for key, value in
                                   (("s", f["seconds"]), ("MiB", f["bytes"] / 2**20), ("rank", f["rank"]), ("energy", f["energy"]))}
        for (n, e), sides in found.items()
    ]  # fmt: skip
    print(format_table(rows, title=f"\n{a.rows} x {a.width}, one process each:"))
    print(f"{platform.processor() or platform.machine()}, {a.threads} threads, {cdad.build_info()['isa']}, Python {platform.python_version()}")
    if a.png:
        _draw(found, a)
    if a.json:
        write_atomically(a.json, (json.dumps(_records(found), indent=1) + "\n").encode())
    return 0


def _records(found: dict[tuple[int, float], dict[str, dict]]) -> list[dict]:
    return [
        evidence.record(f"basis_{what}_n{n}_e{e:g}", sides["exact"][key] * scale, unit, METHODS["isvd"], sides["isvd"][key] * scale,
                        evidence.better(sides["exact"][key], sides["isvd"][key]))
        for (n, e), sides in found.items()
        for what, key, scale, unit in (("time", "seconds", 1, "s"), ("memory", "bytes", 2**-20, "MiB"))
    ]  # fmt: skip


def _draw(found: dict[tuple[int, float], dict[str, dict]], a: argparse.Namespace) -> None:
    shown = (("seconds", 1, "time, s"), ("bytes", 2**-20, "memory, MiB"), ("energy", 1, "energy held"))
    fig, axes = evidence.figure(1, len(shown), (13, 4))
    for axis, (key, scale, title) in zip(axes[0], shown, strict=True):
        for method, line in (("isvd", "o-"), ("exact", "s--")):
            for k, e in enumerate(a.thresholds):
                axis.plot(a.blocks, [scale * found[n, e][method][key] for n in a.blocks], line, color=f"C{k}",
                          label=f"{METHODS[method]}, e = {e:g}")  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(a.blocks, [str(n) for n in a.blocks])
        axis.minorticks_off()
        if key != "energy":
            axis.set_yscale("log")
        axis.set_xlabel("blocks n")
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(True, alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    fig.suptitle(f"A basis of {a.rows} x {a.width} features")
    fig.savefig(a.png, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
