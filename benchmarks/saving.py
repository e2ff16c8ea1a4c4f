"""What streaming saves of memory and time beside one SVD of everything, in theory and measured, over the number of images
and over the widths of layers (the paper's Fig. 7).

    python benchmarks/saving.py [--width D] [--images N ...] [--widths D ...] [--at N] [--steps T] [--threads N] [--png FILE] [--json FILE]
    python benchmarks/saving.py --quick

A layer of width d gives m features an image: its positions in a picture of 256 x 256 pixels in Stable Diffusion's U-Net,
times the sampler's steps; convolutions are unfolded to d = C k k. N images come one after the other, and the basis that
keeps gamma of the energy is made of their N m features by

    one SVD      of everything, by LAPACK
    Algorithm 1  the paper's, image by image, in PyTorch (where that is installed): the published way, for one layer at a time
    iSVD         the same rule in the core
    exact        a Gram matrix and one eigensolve; left out for layers wider than 6144, where that takes minutes
    auto         what the core's plan chooses for d, gamma and N m

In theory, with k directions kept (the rank that was found), s the smaller and l the larger side of what is decomposed:

                 memory, bytes                      time, in multiplications, up to a constant
    one SVD      4 d N m                            l s^2,          s, l = d, N m
    iSVD         4 d (k + m)                        N l s^2,        s, l = d, k + m
    exact        4 d^2 + 4 d m; 12 d^2 to solve     d^2 N m + d^3
    auto         as exact; a weighted basis: 4 d min(2 k, N m) + 4 d m, and d N m k + N m k^2

which are for one SVD and iSVD what is decomposed and the cost of a dense SVD of it; "exact" holds half of a Gram matrix in
double beside a block, then the whole of it. A saving is one SVD's memory or time over the method's: constants of theory are in
neither, those of programs in what is measured. Time, memory and energy are those of `costs`.

The figure is not at hand here. That it compares the theoretical and the practical saving of iSVD is known; which layers,
numbers of images and units it shows is not, nor whether its theory has these terms. The published program holds the features
of all layers of an image at once, and twice; that is not in its memory here, which is one layer's. The features are those of
`evidence.made_up_features`. The records compare `auto` with one SVD and with Algorithm 1; a ratio above 1 means that `auto`
takes less.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
from pathlib import Path

import cdad
from cdad import _core
from cdad.atomic import write_atomically
from cdad.results import format_table

sys.path.insert(0, str(Path(__file__).parent))
import costs  # noqa: E402
import evidence  # noqa: E402

EXACT_WIDEST = 6144  # beyond, an eigensolve takes minutes, and the plan never chooses it
PEERS = {"svd": "one SVD", "published": "Algorithm 1, PyTorch"}
METHODS = PEERS | {"isvd": "iSVD", "exact": "exact", "auto": "auto"}
MEASURES = {"memory": ("bytes", 2**-20, "MiB"), "time": ("seconds", 1, "s")}
# width: positions. Attention at three resolutions; 3x3 convolutions of 320, 640 and 1280 channels.
POSITIONS = {320: 1024, 640: 256, 1280: 64, 2880: 1024, 5760: 256, 11520: 64}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1280, choices=POSITIONS, help="of the layer, over the number of images")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--widths", type=int, nargs="+", default=list(POSITIONS), choices=POSITIONS)
    parser.add_argument("--at", type=int, default=4, help="images, over the widths")
    parser.add_argument("--steps", type=int, default=10, help="of the sampler")
    parser.add_argument("--gamma", type=float, default=0.999, help="share of the energy to keep")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few images, narrow layers, one step")
    parser.add_argument("--png", default="saving.png", help="the picture")
    parser.add_argument("--json", help="write the records here")
    a = parser.parse_args(argv)
    if a.quick:
        a.width, a.images, a.widths, a.at, a.steps = 320, [4], [320, 640], 4, 1
    if a.png:
        evidence.figure(1, 1, (1, 1))  # not after the work: is matplotlib here?
    methods = [m for m in METHODS if m != "published" or importlib.util.find_spec("torch")]
    if "published" not in methods:
        print(f"{PEERS['published']}: left out, PyTorch is not installed")
    found: dict[tuple[int, int], dict[str, dict]] = {}
    for d, n in dict.fromkeys([(a.width, n) for n in a.images] + [(d, a.at) for d in a.widths]):
        m = POSITIONS[d] * a.steps
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "features.f32")
            evidence.made_up_features(n * m, d, groups=min(n, 10)).tofile(path)
            found[d, n] = {x: costs.measure(x, path, d, n, a.gamma, a.threads) for x in methods if x != "exact" or d <= EXACT_WIDEST}
        for method, f in found[d, n].items():
            f["theory"] = dict(zip(MEASURES, theory(method, d, n, m, f["rank"], a.gamma)))
        print(f"width {d}, {n} images of {m} features: " + "; ".join(
            f"{METHODS[x]} {f['seconds']:.2f} s, {f['bytes'] / 2**20:.0f} MiB" for x, f in found[d, n].items()), flush=True)  # fmt: skip
    rows = [
        {"width": d, "images": n, "method": METHODS[method], "rank": f["rank"], "energy": f"{f['energy']:.4f}",
         "MiB": f["bytes"] / 2**20, "s": f["seconds"]}
        | {f"{what}, {how}": saving(sides, method, what, how) for what in MEASURES for how in ("theory", "measured")}
        for (d, n), sides in found.items() for method, f in sides.items()
    ]  # fmt: skip
    print(format_table(rows, digits=2, title=f"\nHow many times less than one SVD, gamma {a.gamma:g}, {a.steps} sampler steps:"))
    print(f"{platform.processor() or platform.machine()}, {a.threads} threads, {cdad.build_info()['isa']}, Python {platform.python_version()}")
    if a.png:
        _draw(found, a)
    if a.json:
        write_atomically(a.json, (json.dumps(_records(found), indent=1) + "\n").encode())
    return 0


def theory(method: str, d: int, n: int, m: int, k: int, gamma: float) -> tuple[int, int]:
    """Bytes and multiplications, up to a constant, of a basis of rank k of n images of m features of width d; see above."""
    if method == "auto":
        method = _core.Stream(d, "auto", gamma, columns=n * m).method
    if method == "svd":
        return 4 * d * n * m, _svd(d, n * m)
    if method in ("isvd", "published"):
        return 4 * d * (k + m), n * _svd(d, k + m)
    if method == "exact":
        return max(4 * d * d + 4 * d * m, 12 * d * d), d * d * n * m + d**3
    return 4 * d * min(2 * k, n * m) + 4 * d * m, d * n * m * k + n * m * k * k


def _svd(rows: int, columns: int) -> int:
    return max(rows, columns) * min(rows, columns) ** 2


def saving(sides: dict[str, dict], method: str, what: str, how: str) -> float:
    """One SVD's memory or time over the method's."""
    key = MEASURES[what][0]
    values = [sides[x]["theory"][what] if how == "theory" else sides[x][key] for x in ("svd", method)]
    return values[0] / values[1]


def _records(found: dict[tuple[int, int], dict[str, dict]]) -> list[dict]:
    return [
        evidence.record(f"saving_{what}_{d}x{n}{'' if peer == 'svd' else '_' + peer}", sides["auto"][key] * scale, unit, PEERS[peer],
                        sides[peer][key] * scale, evidence.better(sides["auto"][key], sides[peer][key]))
        for (d, n), sides in found.items() for peer in PEERS if peer in sides
        for what, (key, scale, unit) in MEASURES.items()
    ]  # fmt: skip


def _draw(found: dict[tuple[int, int], dict[str, dict]], a: argparse.Namespace) -> None:
    fig, axes = evidence.figure(len(MEASURES), 2, (11, 8))
    sweeps = ((a.images, [(a.width, n) for n in a.images], f"images, at width {a.width}"),
              (a.widths, [(d, a.at) for d in a.widths], f"width, {a.at} images"))  # fmt: skip
    for row, what in zip(axes, MEASURES):
        for axis, (at, cases, title) in zip(row, sweeps):
            for k, method in enumerate(method for method in METHODS if method != "svd"):
                for how, line in (("measured", "o-"), ("theory", "--")):
                    shown = [(x, saving(found[case], method, what, how)) for x, case in zip(at, cases) if method in found[case]]
                    if shown:
                        axis.plot(*zip(*shown), line, color=f"C{k}", linewidth=1, label=f"{METHODS[method]}, {how}")
            axis.axhline(1, color="0.6", linewidth=0.8)
            axis.set(xscale="log", yscale="log", xlabel=title)
            axis.set_xticks(at, [str(x) for x in at])
            axis.minorticks_off()
            axis.set_title(what, loc="left", fontsize=10)
            axis.grid(True, alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    fig.suptitle("How many times less memory and time than one SVD of everything")
    fig.savefig(a.png, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
