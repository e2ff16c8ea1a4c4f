"""Who may use a model at once: any number of predictions, or one change of it."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Exclusion:
    """A change waits for the predictions that other threads have begun, and nothing begins while there is one.

    A child of a fork has the forking thread alone: what others were about there is over."""

    def __init__(self):
        self._condition = threading.Condition()
        self._readers: Counter[int] = Counter()  # by thread
        self._writer: int | None = None
        self._process = os.getpid()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """RuntimeError while the model changes."""
        me = threading.get_ident()
        with self._lock():
            if self._writer is not None:
                raise RuntimeError("model is training")
            self._readers[me] += 1
        try:
            yield
        finally:
            with self._lock() as condition:
                self._readers[me] -= 1
                condition.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """RuntimeError while the model changes, and within a prediction of the same thread."""
        me = threading.get_ident()
        with self._lock() as condition:
            if self._writer is not None:
                raise RuntimeError("model is training")
            if self._readers[me]:
                raise RuntimeError("a prediction of this thread is not done: it can change nothing meanwhile")
            self._writer = me
            try:
                while +self._readers:
                    condition.wait()
            except BaseException:
                self._writer = None
                raise
        try:
            yield
        finally:
            with self._lock():
                self._writer = None

    def check_saving(self) -> None:
        """RuntimeError where another thread changes the model: a file would hold the weights of one step and the place of another."""
        with self._lock():
            if self._writer not in (None, threading.get_ident()):
                raise RuntimeError("model is training in another thread: save in fit_task's callback, or let it write checkpoints")

    @contextmanager
    def _lock(self) -> Iterator[threading.Condition]:
        if self._process != os.getpid():
            me, self._process = threading.get_ident(), os.getpid()
            self._condition = threading.Condition()
            self._readers = Counter({me: self._readers[me]})
            if self._writer != me:
                self._writer = None
        with self._condition:
            yield self._condition
