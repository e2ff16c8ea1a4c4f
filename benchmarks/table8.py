"""Memory and time of the paper's iSVD, by the number of blocks n and the threshold e, beside the exact stream (the paper's
Tables 1 and 8).

    python benchmarks/table8.py [--width D] [--rows N] [--blocks N ...] [--thresholds E ...] [--threads N] [--png FILE] [--json FILE]
    python benchmarks/table8.py --quick

The features [rows, d], 50000 x 1280 by default, are those of `evidence.made_up_features`; n blocks of rows come one after
the other, as a sampler gives them, and a basis that keeps the share e of their energy is made of them: by iSVD, of which
n = 1 is one SVD of everything; and by the exact stream, which gives that one's subspace for every n. Every measurement runs
in a process of its own (Linux). Its memory is how far the process's peak lies above what it held before the first block, the
block included; its time leaves out reading the blocks. "Energy" is the share of all features that the basis holds. A ratio above
1 means that the exact stream takes less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import cdad
from cdad import _core
from cdad.results import format_table, write_atomically

sys.path.insert(0, str(Path(__file__).parent))
import evidence  # noqa: E402

METHODS = {"isvd": "iSVD", "exact": "exact stream"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--rows", type=int, default=50000)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 5, 10, 50])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.9, 0.98, 0.999])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="256 x 5000, few blocks")
    parser.add_argument("--png", default="table8.png", help="the picture")
    parser.add_argument("--json", help="write the records here")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.quick:
        a.width, a.rows, a.blocks, a.thresholds = 256, 5000, [1, 5], [0.98]
    if a.worker:
        print(json.dumps(_work(a, *a.worker)))
        return 0
    if a.png:
        evidence.figure(1, 1, (1, 1))  # not after the work: is matplotlib here?
    found: dict[tuple[int, float], dict[str, dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "features.f32")
        _spawn(a, "make", path)
        for n in a.blocks:
            for e in a.thresholds:
                found[n, e] = {method: _spawn(a, method, path, str(n), str(e)) for method in METHODS}
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


def _spawn(a: argparse.Namespace, *work: str) -> dict[str, Any]:
    here = str(Path(cdad.__file__).resolve().parents[1])  # the workers measure the package that this process has
    command = [sys.executable, __file__, "--width", str(a.width), "--rows", str(a.rows), "--threads", str(a.threads)]
    threads = {name: str(a.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = os.environ | threads | {"PYTHONPATH": here}
    done = subprocess.run([*command, "--worker", *work], stdout=subprocess.PIPE, check=True, env=environment, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _work(a: argparse.Namespace, method: str, path: str, n: str = "1", e: str = "1") -> dict[str, Any]:
    """In a worker: make the features, or make a basis of them."""
    _core.set_threads(a.threads)
    if method == "make":
        evidence.made_up_features(a.rows, a.width).tofile(path)
        return {}
    bounds = np.linspace(0, a.rows, int(n) + 1).astype(int)

    def block(i: int) -> np.ndarray:
        first, last = bounds[i : i + 2]
        read = np.fromfile(path, np.float32, (last - first) * a.width, offset=4 * int(first) * a.width)
        return read.reshape(-1, a.width)

    for warm in METHODS:  # what a first call sets up is not the method's
        stream = _core.Stream(4, method=warm)
        stream.add(np.eye(4, dtype=np.float32))
        stream.basis()
    before, seconds = _resident("VmRSS"), 0.0
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    stream = _core.Stream(a.width, method=method, gamma=float(e))
    for i in range(int(n)):
        X = block(i)
        began = time.perf_counter()
        stream.add(X)
        seconds += time.perf_counter() - began
        del X
    began = time.perf_counter()
    U, _ = stream.basis()
    seconds += time.perf_counter() - began
    grown = _resident("VmHWM") - before
    inside = everything = 0.0
    for i in range(int(n)):
        X = block(i)
        inside += float(np.sum(np.square(X @ U), dtype=np.float64))
        everything += float(np.sum(np.square(X), dtype=np.float64))
    return {"seconds": seconds, "bytes": grown, "rank": U.shape[1], "energy": inside / everything}


def _resident(field: str) -> int:
    """Bytes in memory: "VmRSS" now, "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


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
