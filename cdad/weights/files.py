"""Weight files: the format is decided by content, and every malformed file is a FormatError."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import FormatError

_MAX_HEADER = 100_000_000  # bytes: the safetensors format's own limit


def _open_safetensors(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"not a readable safetensors file: {error}", path) from error


def read_magic(path: Path) -> bytes:
    """The first 16 bytes of a regular file; FileNotFoundError, or FormatError for what is no file."""
    if not path.exists():
        raise FileNotFoundError(f"there is no weight file {path}")
    if not path.is_file():
        raise FormatError("not a regular file", path)
    with open(path, "rb") as file:
        return file.read(16)


def is_safetensors(magic: bytes) -> bool:
    """Whether a file that begins so can be safetensors: a header length, then a JSON object."""
    return len(magic) > 8 and int.from_bytes(magic[:8], "little") <= _MAX_HEADER and magic[8:9] == b"{"


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata. bfloat16 becomes float32."""
    path = Path(path)
    if not is_safetensors(read_magic(path)):
        raise FormatError("not a safetensors file", path, 0)
    with _open_safetensors(path) as file:
        tensors = {}
        for name in file.keys():
            try:
                tensors[name] = file.get_tensor(name)
            except (SafetensorError, TypeError, ValueError) as error:
                if file.get_slice(name).get_dtype() != "BF16":
                    raise FormatError(f"tensor {name}: {error}", path) from error
                tensors[name] = _read_bfloat16(path, name)
        return tensors, dict(file.metadata() or {})


def _read_bfloat16(path: Path, name: str) -> np.ndarray:
    # NumPy has no bfloat16: its bits are the upper half of a float32's.
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + length + begin)
        raw = np.frombuffer(file.read(end - begin), "<u2")
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def load_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a weight file, safetensors or PyTorch's formats, by its content."""
    path = Path(path)
    if is_safetensors(read_magic(path)):
        return read_safetensors(path)[0]
    from .torch_files import read_torch  # which itself uses this module

    return read_torch(path)


def strict_match(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray], *, what: str
) -> None:
    """Raise one FormatError that lists missing, unexpected and mis-shaped tensors, or those that are not finite."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    problems = [
        f"{len(items)} {kind}: {', '.join(items[:8])}{', ...' if len(items) > 8 else ''}"
        for kind, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if items
    ]
    if not problems:
        bad = [name for name in expected if not np.isfinite(found[name]).all()]
        if bad:
            problems.append(f"{len(bad)} with values that are not finite: {', '.join(bad[:8])}")
    if problems:
        raise FormatError(f"the weights do not fit the {what}; " + "; ".join(problems))
