"""One atomic checkpoint file: tensors and a JSON state in safetensors, with a digest.

The file is written beside its target, flushed to the disk and renamed: a crash at any moment leaves either the old
checkpoint or the new one. Bits of float16, float32, float64, int64, uint16 and uint8 arrays come back exactly.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError, FormatError
from .results import write_atomically
from .weights.files import read_safetensors

FORMAT, VERSION = "cdad-checkpoint", 1

# safetensors' names of the types that a checkpoint holds
_DTYPES = {"<f2": "F16", "<f4": "F32", "<f8": "F64", "<i8": "I64", "<u2": "U16", "|u1": "U8"}


def save_checkpoint(path: str | os.PathLike, tensors: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``state``; OSError leaves the old file as it was. Arrays are written from where
    they are: a checkpoint is not held in memory a second time."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    text = json.dumps(state, sort_keys=True, allow_nan=False)
    metadata = {"format": FORMAT, "version": str(VERSION), "state": text, "digest": _digest(arrays, text)}
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # every array is aligned to its items
    header, end = {"__metadata__": metadata}, 0
    for name in names:
        begin, end = end, end + arrays[name].nbytes
        kind = _DTYPES[arrays[name].dtype.str]
        header[name] = {"dtype": kind, "shape": arrays[name].shape, "data_offsets": (begin, end)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    data = (arrays[name].reshape(-1).view(np.uint8).data for name in names)
    write_atomically(path, itertools.chain([len(encoded).to_bytes(8, "little"), encoded], data))


def load_checkpoint(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_checkpoint` wrote. CheckpointError: truncated, changed, of another kind or a newer version."""
    path = Path(path)
    try:
        tensors, metadata = read_safetensors(path)
    except FormatError as error:
        raise CheckpointError(error.reason, path, error.offset) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError("not a cdad checkpoint", path)
    if not metadata.get("version", "").isdigit() or int(metadata["version"]) > VERSION:
        raise CheckpointError(
            f"checkpoint version {metadata.get('version')!r}; this cdad reads up to {VERSION}", path
        )
    text = metadata.get("state", "")
    if _digest(tensors, text) != metadata.get("digest"):
        raise CheckpointError("the digest does not match: the file was changed or is damaged", path)
    return tensors, json.loads(text)


def _digest(tensors: dict[str, np.ndarray], text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
