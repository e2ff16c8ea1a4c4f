"""The models in a weight file or folder, and loading one of them."""

from __future__ import annotations

import os

from ..errors import FormatError
from .families import FAMILIES, Part, find_parts
from .folders import open_all
from .loading import Store, fill
from .pieces import SCOPES, part_pieces
from .tensor_file import TensorFile


class Collection:
    """A weight file or folder that is open: ``parts`` are the models in it, each with the file that holds it; ``ignored``
    and ``unknown`` are tensors that belong to none. A context manager."""

    def __init__(self, path: str | os.PathLike, variant: str = ""):
        self.path = path
        self.files = open_all(path, variant)
        self.parts: list[tuple[Part, TensorFile]] = []
        self.ignored: list[str] = []
        self.unknown: list[str] = []
        for file in self.files:
            parts, ignored, unknown = find_parts(file.tensors)
            self.parts += [(part, file) for part in parts]
            self.ignored += ignored
            self.unknown += unknown

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *_) -> None:
        for file in self.files:
            file.close()

    def find(self, family: str) -> tuple[Part, TensorFile]:
        """The one part of a family; FormatError where there is none, or more than one."""
        found = [item for item in self.parts if item[0].family == family]
        if len(found) == 1:
            return found[0]
        title = FAMILIES[family].title
        if found:
            raise FormatError(f"holds {len(found)} times {title}: {', '.join(repr(part.prefix) for part, _ in found)}", self.path)
        held = ", ".join(FAMILIES[part.family].title for part, _ in self.parts) or "nothing that is known"
        raise FormatError(f"holds no {title}, but {held}", self.path)


def load_part(
    store: Store,
    path: str | os.PathLike,
    family: str,
    *,
    ema: bool = False,
    variant: str = "",
    prefix: str = "",
    what: str = "",
    allow_nonfinite: bool = False,
) -> None:
    """Load one model of a weight file or folder into ``store``, every parameter, one at a time.

    ``family``: a key of `FAMILIES`; its parameters are those of ``store`` whose names begin with its scope (`SCOPES`).
    ``ema``: the moving averages (Stable Diffusion's ``model_ema.*``) instead of the weights. ``variant``: of files in a
    folder. ``prefix``: of the core's names, behind the scope: only these are loaded, and all others stay.
    ``what``: the model's name in errors.

    FormatError: the file is damaged, holds no such model, or does not fit, with every missing, unexpected and mis-shaped
    tensor named; FileNotFoundError.
    """
    wanted = SCOPES[family] + prefix
    with Collection(path, variant) as collection:
        part, file = collection.find(family)
        pieces = part_pieces(part, file, ema=ema)
        if prefix:
            pieces = {name: piece for name, piece in pieces.items() if name.startswith(wanted)}
        what = what or FAMILIES[family].title
        fill(store, pieces, what=what, path=path, prefix=wanted, allow_nonfinite=allow_nonfinite)
