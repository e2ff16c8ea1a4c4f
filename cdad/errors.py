"""The exceptions that cdad raises beside Python's own.

``ValueError``/``TypeError``/``MemoryError`` are raised for wrong arguments and exhausted memory;
the classes here say more precisely what is wrong with a file or a run.
"""

from __future__ import annotations

import os


class FormatError(ValueError):
    """A file is not what it claims to be: truncated, corrupt, hostile or of an unknown format.

    Attributes: ``path`` (str or None; of an image in memory what it is called), ``offset`` (byte offset in the file, or None), ``reason``.
    """

    def __init__(self, reason: str, path: str | os.PathLike | None = None, offset: int | None = None):
        self.reason = reason
        self.path = None if path is None else os.fspath(path)
        self.offset = offset
        where = "" if self.path is None else f"{self.path}: "
        at = "" if offset is None else f" (at byte {offset})"
        super().__init__(f"{where}{reason}{at}")


class LimitError(FormatError):
    """A file asks for more than the documented limits allow (size, dimensions, nesting)."""


class ImageError(FormatError):
    """An image cannot be decoded, or does not fit its mask."""


class DataError(ValueError):
    """A data set's layout is wrong: a missing folder, a class without normal images, a missing mask."""


class CheckpointError(FormatError):
    """A checkpoint is damaged, or belongs to another model or a newer version."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss or gradient is not finite."""
