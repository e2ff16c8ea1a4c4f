"""One model that several processes train together, each on its part of every batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core


@dataclass(frozen=True)
class DataParallel:
    """Process ``rank`` of ``world_size`` that make the same calls with the same configuration and data, on equal machines.

    ``all_reduce(block)`` is called once a training step: it adds up the block, the gradients of all that the task moves as float32
    [n], over the processes, in place; and twice a task with 32 numbers, by which processes that begin unequal, or keep other bases,
    are noticed. On the host it is an array; on a device a `DeviceArray`, and the sum may be queued on CUDA's default stream. With
    torch.distributed's gloo, with which it is tested (NCCL and mpi4py, ``block[:] = comm.allreduce(np.asarray(block))``, take the same
    call, and have not been run):

    >>> def all_reduce(block):                                                     # doctest: +SKIP
    ...     torch.distributed.all_reduce(torch.from_dlpack(block))
    >>> model = cdad.ContinualModel("small", parallel=cdad.DataParallel(rank, world_size, all_reduce))  # doctest: +SKIP

    A batch of the configuration is cut into ``world_size`` parts, so that the model becomes what one process would make of it, up to
    rounding, and the same in all. What is done once a task, latents, bases and calibrations, each process does for itself. Of
    `ContinualModel.fit_task`'s ``checkpoint`` only rank 0 writes. A loss that is not finite fails in all; a process that ends
    otherwise leaves the others waiting for as long as all_reduce does.
    """

    rank: int
    world_size: int
    all_reduce: Callable[[np.ndarray | _core.DeviceArray], object]

    def __post_init__(self):
        if self.world_size < 1:
            raise ValueError(f"world_size is {self.world_size}, expected at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}, expected 0..{self.world_size - 1}")
        if not callable(self.all_reduce):
            raise TypeError(f"all_reduce is {self.all_reduce!r}, which cannot be called")

    def part(self, batch_size: int) -> range:
        """This process's samples of a batch. ValueError: it cannot be cut into equal parts."""
        each, rest = divmod(batch_size, self.world_size)
        if rest or not each:
            raise ValueError(f"a batch of {batch_size} cannot be cut into {self.world_size} equal parts: set training.batch_size")
        return range(self.rank * each, (self.rank + 1) * each)

    def check(self, begins: Any, device: str) -> None:
        """That all processes begin with the same (JSON values). RuntimeError, in all of them: they do not."""
        if self.world_size == 1:
            return
        digest = hashlib.sha256(json.dumps(begins, sort_keys=True).encode()).digest()
        mine = np.frombuffer(digest, np.uint8).astype(np.float32)  # whose sums are exact
        block = mine.copy() if device == "cpu" else _core.DeviceArray(mine, device)
        self.all_reduce(block)
        if not np.array_equal(np.asarray(block), self.world_size * mine):
            raise RuntimeError(
                f"the {self.world_size} processes do not go on from the same model with the same configuration and images"
            )
