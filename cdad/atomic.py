"""Files that are replaced as a whole: a crash at any moment leaves the old content or the new."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


_writing = threading.local()  # .paths: the files that this thread writes now


def write_atomically(path: str | os.PathLike, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Replace a file as a whole: a crash leaves the old content or the new, never a part. ``content`` may come in parts.

    Raises:
        OSError: writing, syncing or renaming failed; the old file is untouched and no temporary one stays.
    """
    with replacing(path) as file:
        file.writelines([content] if isinstance(content, bytes) else content)


@contextmanager
def replacing(path: str | os.PathLike, previous: str | os.PathLike | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when the block ends, whole and on the disk. Until then it is a
    temporary one beside it, which the next writer takes over if a crash leaves it; of two writers one waits. A symbolic link stays
    one: the file that it shows is replaced, by one of the same permissions.
    ``previous``: where the file that is replaced is kept, in the place of the one that was kept there before.

    Raises:
        OSError: writing, syncing or renaming failed; the old file is untouched and no temporary one stays.
    """
    path = Path(os.path.realpath(path))
    paths = _writing.__dict__.setdefault("paths", [])
    # A signal's handler may write what this very thread is writing: waiting for it would never end.
    within = paths.count(path)
    temporary = path.with_name(f".{path.name}{f'.{within}' if within else ''}.tmp")
    paths.append(path)
    try:
        with _replaced(path, temporary, previous) as file:
            yield file
    finally:
        paths.remove(path)


@contextmanager
def _replaced(path: Path, temporary: Path, previous: str | os.PathLike | None) -> Iterator[BinaryIO]:
    try:
        opened = _locked(temporary)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    with opened as file:
        try:
            yield file
            file.flush()
            with suppress(OSError):  # there is none, or a file system has no such thing
                os.fchmod(file.fileno(), os.stat(path).st_mode & 0o7777)
            os.fsync(file.fileno())
            if previous is not None:
                _keep(path, Path(previous))
            os.replace(temporary, path)
        except BaseException as error:
            with suppress(OSError):  # what is left in its buffer fails again
                file.close()
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno and error.filename is None:  # of writing, as on a full disk
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
    if os.name == "posix":  # the rename itself is durable only once the folder is synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _locked(path: Path) -> BinaryIO:
    """An empty file that this writer alone has open."""

    def as_it_is(path: Path, flags: int) -> int:  # another writer may be at it
        return os.open(path, flags & ~os.O_TRUNC | os.O_NOFOLLOW, 0o666)

    while True:
        file = open(path, "wb", opener=as_it_is)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):  # who had it before has renamed or removed it
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    file.truncate(0)
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _keep(path: Path, previous: Path) -> None:
    """Make ``previous`` a second name of the file ``path``, if there is one, so that ``path`` is there at every moment."""
    link = previous.with_name(f".{previous.name}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except FileNotFoundError:
        return
    except OSError as error:  # a file system without hard links, or another one
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is in the place of the file", str(path)) from None
        if error.errno != errno.EXDEV:
            os.replace(path, previous)
            return
        shutil.copy2(path, link)
    try:
        os.replace(link, previous)
    finally:
        link.unlink(missing_ok=True)  # it is still there where both were names of one file already
