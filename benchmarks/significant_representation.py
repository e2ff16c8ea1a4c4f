"""Significant representations: the core's streams beside the paper's Algorithm 1 in PyTorch, on the same features.

    python benchmarks/significant_representation.py [--only NAME ...] [--quick] [--rounds N] [--threads N] [--json FILE]

Features are synthetic: normal, the spread of direction i falling as 1/i, turned by signs and a cosine transform; they
come in 10 blocks. The core takes `Stream(d, method="auto")`; Algorithm 1 is `torch.linalg.svd` of [U, block] for each
block at gamma = 0.999, with the published count of directions. Every measurement of a basis runs in a process of its own; the
sides take turns, and medians over the rounds are shown. A ratio above 1 means that the core is better.
``--quick`` measures once, and the narrowest layers only. Algorithm 1 takes half an hour of a core for each of the two widest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft

import cdad
from cdad import _core, process_memory
from cdad.planning import OWN_SHARE
from cdad.results import format_table

sys.path.insert(0, str(Path(__file__).parent))

SEED, GAMMA, BLOCKS = 0, 0.999, 10
# width: feature vectors in all: the paper's Fig. 4, and as many of a Stable-Diffusion U-Net's 3x3 convolutions of 320, 640 and 1280 channels.
SHAPES = dict.fromkeys((1280, 2880, 5760, 11520), 50000)


def features(d: int, rows: int, block: int) -> np.ndarray:
    """Float32 [rows,d]: block `block` of the task's features."""
    x = _core.random_normal((rows, d), SEED, block) / np.arange(1, d + 1, dtype=np.float32)
    return scipy.fft.dct(x, axis=1, norm="ortho") * np.where(_core.random_normal((d,), SEED, 1000) > 0, 1, -1).astype(np.float32)


def algorithm_1(torch, blocks: Iterable, gamma: float = GAMMA) -> Any:
    """U [d,k] after all blocks [d,columns] (paper, Algorithm 1; the rank as the published code counts it)."""
    basis = None
    for block in blocks:
        matrix = block if basis is None else torch.cat([basis, block], dim=1)
        u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
        share = torch.cumsum(s**2, 0) / torch.sum(s**2)
        basis = u[:, : max(1, int((share < gamma).sum()))]
    return basis


# ---- what a worker measures -----------------------------------------------------------------------------------


def basis_worker(d: int, side: str, check: bool) -> dict[str, Any]:
    """Seconds for all blocks and the basis; the share of the energy that the basis keeps, where it is wanted."""
    rows = SHAPES[d] // BLOCKS
    blocks = [features(d, rows, i) for i in range(BLOCKS)]
    found: dict[str, Any] = {}
    if side == "cdad":
        _core.Stream(d, "auto", columns=rows).add(blocks[0][:64])  # threads are there
        began, busy = time.perf_counter(), time.process_time()
        stream = _core.Stream(d, "auto", GAMMA, columns=SHAPES[d])
        for block in blocks:
            stream.add(block)
        added = time.perf_counter()
        U, said = stream.basis()
        found |= {"method": stream.method, "adding": added - began, "said": said}
    else:
        import torch

        tensors = [torch.from_numpy(np.ascontiguousarray(block.T)) for block in blocks]
        torch.linalg.svd(tensors[0][:64, :64])
        began, busy = time.perf_counter(), time.process_time()
        U = algorithm_1(torch, tensors).numpy()
    found |= {"seconds": time.perf_counter() - began, "busy": time.process_time() - busy, "rank": U.shape[1]}
    if check:
        gram = np.zeros((d, d))
        for block in blocks:
            wide = block.astype(np.float64)
            gram += wide.T @ wide
        values = np.linalg.eigvalsh(gram)[::-1]
        total = values.sum()
        U = np.linalg.qr(U.astype(np.float64))[0]
        k = int(np.searchsorted(np.cumsum(values) / total, GAMMA)) + 1
        found |= {"kept": float(np.sum(U * (gram @ U)) / total), "best": float(values[:k].sum() / total), "best_rank": k}
    return found


def memory_worker(blocks: int) -> dict[str, Any]:
    """Peak memory over that many blocks: 512 features of width 1280 each, and 64 of two wide layers by other methods."""
    streams = [_core.Stream(1280, "auto"), _core.Stream(5760, "incremental"), _core.Stream(23040, "sketch", rank=64)]
    data = [[features(s.d, 512 if s.method == "exact" else 64, i) for i in range(3)] for s in streams]
    for i in range(blocks):
        for stream, three in zip(streams, data, strict=True):
            stream.add(three[i % 3])
    return {"peak": process_memory.peak()}


def projection_worker(preset: str, repeats: int, precision: str, batch: int, device: str) -> dict[str, list[float]]:
    """Seconds, once a repeat, of a training step of a preset, its updates in turn "plain"; "cdad": in as many
    directions as new products get on real images (`cdad.planning.OWN_SHARE`), and no more than the preset allows; "whole": in all off
    d/4 protected ones; "increment_plain" and "increment": as plain and cdad, without what the preset has frozen in increments. And the peer, "torch":
    what forming U U^T of those adds there. All in one process, one after the other, as the machine has slow moments."""
    config = cdad.preset(preset).updated({"training.batch_size": batch, "precision": precision})
    n = config.latent_size
    params = _core.Params(device)
    trainer = _core.Trainer(params, config.denoiser(), batch, config.optimizer(), SEED)
    latent = _core.random_normal((batch, n, n, config.autoencoder.latent_channels), SEED, 0)
    image = _core.random_normal((batch, config.image_size, config.image_size, 3), SEED, 1) * 0.2 + 0.5
    unet = config.unet
    context = _core.random_normal((batch, unet.context_length, unet.context_dim), SEED, 2) if unet.context_dim else None
    weights = {name: (shape[0], int(np.prod(shape[1:]))) for name, shape in params.shapes().items() if len(shape) > 1}
    sides = {"plain": None, "cdad": OWN_SHARE}
    if preset != "sd15":
        sides |= {"whole": 0.75, "increment_plain": None, "increment": OWN_SHARE, "torch": 0.25}
    most = config.continual.max_directions or max(d for _, d in weights.values())
    ranks = {d: [max(1, min(int((share or 0) * d), most if share == OWN_SHARE else d)) for share in sides.values()]
             for d in {d for _, d in weights.values()}}  # fmt: skip
    rows = {d: dict(zip(sides, (np.ascontiguousarray(V.T) for V in orthonormal_columns(d, ranks[d])), strict=True)) for d in ranks}

    def step(side: str) -> Callable[[], Any]:
        for name in params.shapes():  # as the strategy does: what has no features is frozen
            left = side in ("increment_plain", "increment") and name.startswith(config.continual.frozen)
            if sides[side] is None or left or name not in weights:
                trainer.protect(name, frozen=left or sides[side] is not None)
            else:
                trainer.confine(name, rows[weights[name][1]][side])
        trainer.step(latent, image, image, context)  # plans for it, and takes its memory
        return lambda: trainer.step(latent, image, image, context)

    def torch_projection(_: str) -> Callable[[], Any]:
        import torch

        pairs = [(torch.randn(o, d, device=device), torch.from_numpy(rows[d]["torch"]).to(device).T) for o, d in weights.values()]

        def run() -> None:
            for gradient, basis in pairs:
                gradient -= gradient @ (basis @ basis.T)
            if device != "cpu":
                torch.cuda.synchronize()

        return run

    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, seconds in times.items():
            run = (torch_projection if side == "torch" else step)(side)
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    return times


def added(longer: list[float], shorter: list[float]) -> float:
    """By which share the one takes longer than the other: median over the repeats, whose own slow moments touch both."""
    return statistics.median(a / b for a, b in zip(longer, shorter, strict=True)) - 1


def orthonormal_columns(d: int, counts: list[int]) -> list[np.ndarray]:
    """The first columns of one orthogonal matrix [d,d], once for each count: a cosine transform with signs, as wide layers are
    no matter of minutes that way."""
    sign = np.where(_core.random_normal((d,), SEED, 1000) > 0, 1, -1).astype(np.float32)
    columns = scipy.fft.dct(np.eye(d, max(counts), dtype=np.float32), axis=0, norm="ortho") * sign[:, None]
    return [np.ascontiguousarray(columns[:, :count]) for count in counts]


# ---- what is reported -----------------------------------------------------------------------------------------


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.command = shlex.join(["python", *sys.argv])

    def spawn(self, *work: str) -> dict[str, Any]:
        threads = str(self.arguments.threads)
        command = [sys.executable, __file__, "--threads", threads, "--worker", *work]
        here = str(Path(cdad.__file__).resolve().parents[1])  # the workers measure the package that this process has
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": here}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    def rounds(self, *works: tuple[str, ...]) -> list[list[dict[str, Any]]]:
        """What each work found; they take turns in each round, in which one may be named more than once."""
        found: dict[tuple[str, ...], list[dict[str, Any]]] = {work: [] for work in works}
        for _ in range(1 if self.arguments.quick else self.arguments.rounds):
            for work in works:
                first = work[0] == "basis" and not found[work] and int(work[1]) < 6000
                found[work].append(self.spawn(*work, *(["check"] if first else [])))
        return list(found.values())

    def record(self, name: str, value: float, unit: str, peer: str, peer_value: float, ratio: float | None = None) -> dict:
        ratio = peer_value / value if ratio is None else ratio
        return {"name": name, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio,
                "command": self.command}  # fmt: skip

    def basis(self, d: int) -> list[dict]:
        # Ours takes seconds beside minutes: before and after them, so that both see more of the same machine.
        ours, theirs = self.rounds(("basis", str(d), "cdad"), ("basis", str(d), "torch"), ("basis", str(d), "cdad"))
        seconds = [statistics.median(run["seconds"] for run in runs) for runs in (ours, theirs)]
        name, peer = f"{d}x{SHAPES[d]}", "Algorithm 1, PyTorch"
        busy = [statistics.median(run["busy"] for run in runs) for runs in (ours, theirs)]
        print(f"{name}: {ours[0]['method']}, rank {ours[0]['rank']} (Algorithm 1: {theirs[0]['rank']}), "
              f"{statistics.median(run['adding'] for run in ours):.3f} of {seconds[0]:.3f} s adding; "
              f"processor time {busy[0]:.3f} s, Algorithm 1 {busy[1]:.3f} s", flush=True)  # fmt: skip
        records = [self.record(f"basis_{name}", seconds[0], "s", peer, seconds[1])]
        if "kept" in ours[0]:
            a, b = ours[0], theirs[0]
            print(f"  kept {a['kept']:.6f} (said {a['said']:.6f}), Algorithm 1 {b['kept']:.6f}, one decomposition in float64 "
                  f"{a['best']:.6f} by rank {a['best_rank']}", flush=True)  # fmt: skip
            errors = [max(abs(run["kept"] - run["best"]), 1e-9) for run in (a, b)]
            records.append(self.record(f"basis_energy_error{'' if d == 1280 else f'_{name}'}", errors[0], "share", peer, errors[1]))
        return records

    def memory(self) -> list[dict]:
        few, many = 10, 100 if self.arguments.quick else 1000
        peaks = [self.spawn("memory", str(blocks))["peak"] / 2**20 for blocks in (few, many)]
        stored = (many - few) * 512 * 1280 * 4 / 2**20  # what holding the narrow features alone would add
        growth = max(peaks[1] - peaks[0], 0.0)
        print(f"memory: {peaks[0]:.1f} MiB after {few} blocks, {peaks[1]:.1f} after {many}", flush=True)
        return [self.record("basis_memory_growth", growth, "MiB", "features held", stored, stored / max(growth, 1.0))]

    def projection_sd15(self) -> list[dict]:
        batch = str(self.arguments.batch)
        a = self.arguments
        times = self.spawn("projection", "sd15", str(min(3, a.rounds)), a.precision, batch, a.device)
        plain, ours = statistics.median(times["plain"]), statistics.median(times["cdad"])
        print(f"sd15, a step of {batch} images: {1e3 * plain:.0f} ms, projected {1e3 * ours:.0f} ms", flush=True)
        over = added(times["cdad"], times["plain"])
        return [self.record("projection_overhead_sd15", 100 * over, "%", "the step without it", 0.0, 1 / (1 + over))]

    def projection(self) -> list[dict]:
        repeats = str(3 if self.arguments.quick else 5 * self.arguments.rounds)
        runs = self.spawn("projection", "small", repeats, self.arguments.precision, "8", self.arguments.device)
        times = {side: statistics.median(seconds) for side, seconds in runs.items()}
        plain, peer = times["plain"], times["torch"]
        print(f"step: {1e3 * plain:.0f} ms, projected {1e3 * times['cdad']:.0f} ms, on all that is free {1e3 * times['whole']:.0f} ms; "
              f"an increment's {1e3 * times['increment']:.0f} ms, {1e3 * times['increment_plain']:.0f} ms without projection; "
              f"by U U^T in PyTorch {1e3 * peer:.0f} ms more", flush=True)  # fmt: skip
        found = [self.record(name, 100 * added(runs[side], runs[bare]), "%", "U U^T formed, PyTorch", 100 * peer / plain,
                             peer / max(added(runs[side], runs[bare]) * times[bare], 1e-3 * plain))
                 for name, side, bare in (("projection_overhead", "cdad", "plain"), ("projection_overhead_whole", "whole", "plain"),
                                          ("projection_overhead_increment", "increment", "increment_plain"))]  # fmt: skip
        return [*found, self.record("increment_step", 1e3 * times["increment"], "ms", "the step without projection, of all weights",
                                    1e3 * plain, plain / times["increment"])]  # fmt: skip


BENCHMARKS: dict[str, Callable[[Bench], list[dict]]] = {
    **{f"basis_{d}x{rows}": lambda bench, d=d: bench.basis(d) for d, rows in SHAPES.items()},
    "basis_memory_growth": Bench.memory,
    "projection_overhead": Bench.projection,
    "projection_overhead_sd15": Bench.projection_sd15,
}
SLOW = {f"basis_{d}x{rows}" for d, rows in SHAPES.items() if d > 3000} | {"projection_overhead_sd15"}


def worker(work: list[str], threads: int) -> dict[str, Any]:
    _core.set_threads(threads)
    if work[0] == "projection" or "torch" in work:
        import torch

        torch.set_num_threads(threads)
    if work[0] == "basis":
        return basis_worker(int(work[1]), work[2], "check" in work)
    return memory_worker(int(work[1])) if work[0] == "memory" else projection_worker(
        work[1], int(work[2]), work[3], int(work[4]), work[5]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="of the steps that projection makes longer")
    parser.add_argument("--device", default="cpu", help="of those steps: cpu or cuda")
    parser.add_argument("--batch", type=int, default=12, help="images of a step of sd15 (default: the preset's 12, some 14 GiB)")
    parser.add_argument("--json")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.worker, arguments.threads)))
        return 0
    bench, records = Bench(arguments), []
    for name in arguments.only or [n for n in BENCHMARKS if not (arguments.quick and n in SLOW)]:
        found = BENCHMARKS[name](bench)
        records += found
        for r in found:
            print(f"{r['name']}: {r['value']:.4g} {r['unit']}, {r['peer']} {r['peer_value']:.4g}, ratio {r['ratio']:.2f}", flush=True)
        if arguments.json:  # after each: what an interrupted run has measured is not lost
            Path(arguments.json).write_text(json.dumps(records, indent=1) + "\n")
    columns = ["name", "value", "unit", "peer", "peer_value", "ratio"]
    print("\n" + format_table(records, columns, digits=6))
    info = _core.build_info()
    print(f"{platform.machine()}, {arguments.threads} threads, {info['isa']}, Python {platform.python_version()}, NumPy {np.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
