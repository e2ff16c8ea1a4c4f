"""One atomic checkpoint file: tensors and a JSON state in safetensors, with a digest.

The file is written beside its target, flushed to the disk and renamed: a crash at any moment leaves either the old
checkpoint or the new one. Bits of float16, float32, float64, int64, uint16 and uint8 arrays come back exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError, FormatError
from .weights.files import open_tensors
from .weights.safetensors_file import write_safetensors
from .weights.tensor_file import DTYPES, TensorInfo

FORMAT, VERSION = "cdad-checkpoint", 1


def save_checkpoint(path: str | os.PathLike, tensors: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``state``; OSError leaves the old file as it was. Arrays are written from where
    they are: a checkpoint is not held in memory a second time."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    text = json.dumps(state, sort_keys=True, allow_nan=False)
    metadata = {"format": FORMAT, "version": str(VERSION), "state": text, "digest": _digest(arrays, text)}
    types = {np.dtype(raw).str: name for name, raw in DTYPES.items() if name != "BF16"}
    described = {n: (TensorInfo(types[a.dtype.str], a.shape), lambda a=a: a) for n, a in arrays.items()}
    write_safetensors(path, described, metadata)


def load_checkpoint(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_checkpoint` wrote. CheckpointError: truncated, changed, of another kind or a newer version."""
    path = Path(path)
    try:
        with open_tensors(path) as file:
            tensors, metadata = {name: file.read(name) for name in file.tensors}, file.metadata
    except FormatError as error:
        raise CheckpointError(error.reason, path, error.offset) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError("not a cdad checkpoint", path)
    if not re.fullmatch("[0-9]{1,9}", metadata.get("version", "")) or int(metadata["version"]) > VERSION:
        raise CheckpointError(
            f"checkpoint version {metadata.get('version')!r}; this cdad reads up to {VERSION}", path
        )
    text = metadata.get("state", "")
    if _digest(tensors, text) != metadata.get("digest"):
        raise CheckpointError("the digest does not match: the file was changed or is damaged", path)
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the state is no readable JSON: {error}", path) from None
    if not isinstance(state, dict):
        raise CheckpointError("the state is no JSON object", path)
    return tensors, state


def _digest(tensors: dict[str, np.ndarray], text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
