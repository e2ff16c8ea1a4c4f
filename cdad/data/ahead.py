"""Work made ahead of its consumer on background threads, and cut into chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(
    make: Callable[[Item], Made], items: Iterable[Item], *, prefetch: int = 1, workers: int = 1
) -> Iterator[Made]:
    """Yield ``make(item)`` in the items' order, ``prefetch`` of them ahead, made on ``workers`` threads.

    What a worker raises is raised here, at its item. Leaving early ends the workers after the items they are at.
    """
    rest = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cdad-data")
    try:
        window = deque(pool.submit(make, item) for item in islice(rest, prefetch))
        while window:
            made = window.popleft().result()
            # Refill before handing over: the consumer is about to be busy.
            window.extend(pool.submit(make, item) for item in islice(rest, 1))
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def chunked(items: Iterable[Item], n: int) -> Iterator[list[Item]]:
    """Lists of ``n`` items, the last of what is left; of an iterator no more is taken than is asked for."""
    rest = iter(items)
    while part := list(islice(rest, n)):
        yield part
