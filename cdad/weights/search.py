"""Which files of some folders hold which models: by content, never by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import FormatError
from .collection import Collection
from .families import FAMILIES
from .folders import components
from .loading import strict_match
from .pieces import part_pieces

_DEPTH = 2  # folders below those that are named
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # files whose damage is told

Shapes = Mapping[str, tuple[int, ...]]


def find_weights(paths: Iterable[str | os.PathLike], wanted: Mapping[str, Shapes]) -> tuple[dict[str, Path], list[str]]:
    """({family: the file or folder of diffusers that holds it}, what is missing, a line each).

    ``paths``: files, and folders that are looked through with those below them. ``wanted``: the shapes of the core's parameters
    of each family (a key of `FAMILIES`): a file has to fit them strictly, as when it is loaded; no value is read. A file that
    holds nothing else goes before a checkpoint of several models: of two autoencoders, kl-f8's before Stable Diffusion's.
    """
    search = _Search(wanted)
    problems = []
    for path in map(Path, paths):
        if path.exists():
            search.look(path.resolve(), _DEPTH)
        else:
            problems.append(f"{path} does not exist")
    found: dict[str, Path] = {}
    for family in wanted:
        fitting = search.alone[family] or search.among[family]
        if len(fitting) == 1:
            found[family] = fitting[0]
        elif fitting:
            files = ", ".join(map(str, fitting))
            problems.append(f"{FAMILIES[family].title} is in {len(fitting)} files, of which one has to be named alone: {files}")
        else:
            reasons = search.unfit[family] or search.unreadable
            problems.append("; ".join([f"no file holds {FAMILIES[family].title}", *reasons]))
    return found, problems


class _Search:
    def __init__(self, wanted: Mapping[str, Shapes]):
        self.wanted = wanted
        self.alone: dict[str, list[Path]] = {family: [] for family in wanted}
        self.among: dict[str, list[Path]] = {family: [] for family in wanted}
        self.unfit: dict[str, list[str]] = {family: [] for family in wanted}
        self.unreadable: list[str] = []
        self.seen: set[Path] = set()

    def look(self, path: Path, depth: int) -> None:
        if not path.is_dir():
            self._open(path)
            return
        models = components(path)
        whole = bool(models) and self._open(path)
        for entry in sorted(path.iterdir()):
            if not entry.name.startswith(".") and not (whole and entry in models):
                if not entry.is_dir():
                    self._open(entry)
                elif depth:
                    self.look(entry, depth - 1)

    def _open(self, path: Path) -> bool:
        """Whether there are weights: notes whose they are."""
        if path.resolve() in self.seen:  # once, whatever links to it
            return False
        self.seen.add(path.resolve())
        try:
            collection = Collection(path)
        except (FormatError, OSError) as error:
            if path.name.endswith(_SUFFIXES):
                self.unreadable.append(str(error))
            return False
        with collection:
            held = {part.family for part, _ in collection.parts}
            for family in self.wanted.keys() & held:
                try:
                    part, file = collection.find(family)
                    strict_match(self.wanted[family], part_pieces(part, file), what=FAMILIES[family].title, path=path)
                except FormatError as error:
                    self.unfit[family].append(str(error))
                else:
                    (self.alone if len(held) == 1 else self.among)[family].append(path)
        return True
