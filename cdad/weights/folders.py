"""Weights in several files: diffusers' folders, and files that are cut into shards with an index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import FormatError, LimitError
from .files import open_tensors
from .tensor_file import TensorFile, TensorInfo, open_regular, read_exactly

_COMPONENTS = ("unet", "vae", "text_encoder", "controlnet")
_MAX_INDEX = 1 << 21  # bytes
_MAX_SHARDS = 1000
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)")
_INDEX = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)\.(?P<kind>safetensors|bin)\.index(\.(?P<variant>\w+))?\.json"
)
_NAME = re.compile(r"[\w.-]{1,255}")


class ShardedFile(TensorFile):
    """The tensors of several files, as an index of diffusers or transformers lists them; the index and the files have to
    agree on every tensor."""

    kind = "shards"

    def __init__(self, index: Path):
        self.path, self.metadata = index, {}
        self.tensors: dict[str, TensorInfo] = {}
        self._shards: dict[str, TensorFile] = {}
        self._where: dict[str, TensorFile] = {}
        try:
            stated = _read_index(index)
            for shard in sorted(set(stated.values())):
                self._shards[shard] = file = open_tensors(index.parent / shard)
                for name, info in file.tensors.items():
                    if stated.get(name) != shard:
                        raise FormatError(f"{shard} has the tensor {name!r}, which the index places elsewhere", index)
                    self.tensors[name], self._where[name] = info, file
            missing = stated.keys() - self.tensors.keys()
            if missing:
                raise FormatError(f"{len(missing)} tensors of the index are in no shard: {', '.join(sorted(missing)[:8])}", index)
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> np.ndarray:
        return self._where[name].read(name)

    @property
    def paths(self) -> list[Path]:
        return [file.path for file in self._shards.values()]

    def close(self) -> None:
        for file in self._shards.values():
            file.close()


def _read_index(path: Path) -> dict[str, str]:
    """{tensor: file's name}"""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_INDEX:
            raise LimitError(f"an index of {size} bytes, at most {_MAX_INDEX} are read", path)
        raw = bytearray(size)
        read_exactly(file, 0, memoryview(raw), path)
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a readable index: {error}", path) from None
    stated = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(stated, dict) or not stated:
        raise FormatError("an index without a weight_map", path)
    files = set(map(str, stated.values()))
    if len(files) > _MAX_SHARDS:
        raise LimitError(f"an index of {len(files)} files, at most {_MAX_SHARDS} are read", path)
    for name in sorted(files):
        if not _NAME.fullmatch(name) or name.startswith("."):
            raise FormatError(f"the index names the file {name!r}, which is no plain name", path)
    return {name: str(file) for name, file in stated.items()}


def open_all(path: str | os.PathLike, variant: str = "") -> list[TensorFile]:
    """The weight files of ``path``: a file, an index of shards, a folder of one model, or a folder of diffusers with one
    folder a model.

    ``variant``: of files whose names have one ("fp16", "non_ema"); "" takes the plain ones, or, where a folder has one
    variant alone, that. FileNotFoundError: there is none of that variant; FormatError: see `open_tensors`.
    """
    path = Path(path)
    if not path.is_dir():
        return [ShardedFile(path) if _INDEX.fullmatch(path.name) else open_tensors(path)]
    folders = components(path)
    opened: list[TensorFile] = []
    try:
        for choose in [_choose(folder, variant) for folder in folders or [path]]:
            opened.append(choose())
    except BaseException:
        for file in opened:
            file.close()
        raise
    return opened


def components(folder: Path) -> list[Path]:
    """The folders of a pipeline of diffusers, one a model."""
    return [folder / name for name in _COMPONENTS if (folder / name).is_dir()]


def _choose(folder: Path, variant: str) -> Callable[[], TensorFile]:
    """What opens the weights in a folder of one model: safetensors before PyTorch's, one file before shards."""
    found: dict[str, list[tuple[str, bool, str]]] = {}
    for name in sorted(entry.name for entry in folder.iterdir()):
        match = _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name)
        if match:
            found.setdefault(match["variant"] or "", []).append((match["kind"], name.endswith(".json"), name))
    if not variant and "" not in found and len(found) == 1:
        (variant,) = found
    if variant not in found:
        wanted = f"of the variant {variant!r}" if variant else "without a variant"
        have = f"; there is {', '.join(repr(name) for name in found)}" if found else ""
        raise FileNotFoundError(f"there is no weight file {wanted} in {folder}{have}")
    _, is_index, name = min(found[variant], key=lambda item: (item[0] != "safetensors", item[1]))
    return lambda: ShardedFile(folder / name) if is_index else open_tensors(folder / name)
