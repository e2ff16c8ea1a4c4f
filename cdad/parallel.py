"""One model that several processes train together, each on its part of every batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import _core


@dataclass(frozen=True)
class DataParallel:
    """Process ``rank`` of ``world_size`` that make the same calls with the same configuration and data.

    ``all_reduce(block)`` is called once a training step: it adds up the block, all gradients as float32 [n], over the processes,
    in place. On the host it is an array; on a device a `DeviceArray`, and the sum may be queued on CUDA's default stream. With
    torch.distributed, by gloo or NCCL (with mpi4py: ``block[:] = comm.allreduce(np.asarray(block))``):

    >>> def all_reduce(block):                                                     # doctest: +SKIP
    ...     torch.distributed.all_reduce(torch.from_dlpack(block))
    >>> model = cdad.ContinualModel("small", parallel=cdad.DataParallel(rank, world_size, all_reduce))  # doctest: +SKIP

    A batch of the configuration is cut into ``world_size`` parts, so that the model becomes what one process would make of it, up to
    rounding, and the same in all. What is done once a task, latents, bases and calibrations, each process does for itself. Checkpoints
    are written by rank 0. A loss that is not finite fails in all; a process that ends otherwise leaves the others waiting for as long
    as all_reduce does.
    """

    rank: int
    world_size: int
    all_reduce: Callable[[np.ndarray | _core.DeviceArray], object]

    def __post_init__(self):
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}, expected 0..{self.world_size - 1}")

    def part(self, batch_size: int) -> range:
        """This process's samples of a batch. ValueError: it cannot be cut into equal parts."""
        each, rest = divmod(batch_size, self.world_size)
        if rest or not each:
            raise ValueError(f"a batch of {batch_size} cannot be cut into {self.world_size} equal parts: set training.batch_size")
        return range(self.rank * each, (self.rank + 1) * each)
