"""What a basis of features costs: processor time, memory, rank and energy of each way to make one, in a process of its own.

The ways take the features [rows, d] of a file in n blocks of rows, one after the other, as a sampler gives them, and make
the basis U [d, rank] that keeps a share gamma of their energy. Time is the processor's, of all threads, without reading the
blocks; memory is how far the process's peak lies above what it held before the first block, the block included (Linux).
"Energy" is the share of all features that the basis holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import cdad
from cdad import _core, process_memory

sys.path.insert(0, str(Path(__file__).parent))
import evidence  # noqa: E402

STREAMS = ("isvd", "exact", "auto")  # methods of `cdad._core.Stream`


def measure(method: str, path: str, d: int, n: int, gamma: float, threads: int) -> dict[str, Any]:
    """{"seconds", "bytes", "rank", "energy"}. ``method``: one of `STREAMS`, "svd", one SVD of everything by LAPACK, or
    "published", Algorithm 1 of the paper in PyTorch."""
    here = str(Path(cdad.__file__).resolve().parents[1])  # the worker measures the package that this process has
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    work = {"method": method, "path": path, "d": d, "n": n, "gamma": gamma, "threads": threads}
    command = [sys.executable, __file__, json.dumps(work)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | limits | {"PYTHONPATH": here}, text=True)
    return json.loads(done.stdout.splitlines()[-1])


class Blocks:
    """The rows of a file of features [rows, d], or the first ``rows``, in n blocks, each read when its turn comes; ``reading``
    is the processor time that took."""

    def __init__(self, path: str, d: int, n: int, rows: int | None = None):
        self.path, self.d, self.n, self.reading = path, d, n, 0.0
        self.rows = rows or os.path.getsize(path) // (4 * d)

    def __iter__(self) -> Iterator[np.ndarray]:
        bounds = np.linspace(0, self.rows, self.n + 1).astype(int)
        for first, last in zip(bounds, bounds[1:]):
            began = time.process_time()
            read = np.fromfile(self.path, np.float32, (last - first) * self.d, offset=4 * int(first) * self.d)
            self.reading += time.process_time() - began
            yield read.reshape(-1, self.d)
            del read  # the next block comes in its place


def streamed(method: str, blocks: Blocks, gamma: float) -> np.ndarray:
    stream = _core.Stream(blocks.d, method, gamma, columns=blocks.rows)
    for block in blocks:
        stream.add(block)
        del block
    return stream.basis()[0]


def whole(blocks: Blocks, gamma: float) -> np.ndarray:
    X, filled = np.empty((blocks.rows, blocks.d), np.float32), 0
    for block in blocks:
        X[filled : filled + len(block)] = block
        filled += len(block)
        del block
    return evidence.one_svd(X, gamma)


def published(blocks: Blocks, gamma: float) -> np.ndarray:
    import significant_representation
    import torch

    def columns() -> Iterator:
        for block in blocks:
            turned = np.ascontiguousarray(block.T)
            del block
            yield torch.from_numpy(turned)
            del turned

    return significant_representation.algorithm_1(torch, columns(), gamma).numpy()


def _ways() -> dict[str, Callable[[Blocks, float], np.ndarray]]:
    streams = {m: lambda blocks, gamma, m=m: streamed(m, blocks, gamma) for m in STREAMS}
    return {"svd": whole, "published": published} | streams


def _measured(method: str, path: str, d: int, n: int, gamma: float, threads: int) -> dict[str, Any]:
    make, blocks = _ways()[method], Blocks(path, d, n)
    _core.set_threads(threads)
    make(Blocks(path, 8, 2, rows=64), gamma)  # what a first call sets up is not the method's
    before, began = process_memory.held(), time.process_time()
    process_memory.forget_peak()
    U = make(blocks, gamma)
    seconds, grown = time.process_time() - began - blocks.reading, process_memory.peak() - before
    inside = everything = 0.0
    for X in blocks:
        inside += float(np.sum(np.square(X @ U), dtype=np.float64))
        everything += float(np.sum(np.square(X), dtype=np.float64))
    return {"seconds": seconds, "bytes": grown, "rank": U.shape[1], "energy": inside / everything}


if __name__ == "__main__":
    print(json.dumps(_measured(**json.loads(sys.argv[1]))))
