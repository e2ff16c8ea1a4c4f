"""Weight files: the format is decided by content, and every malformed file is a FormatError."""

from __future__ import annotations

import os
from pathlib import Path

from .safetensors_file import SafetensorsFile, is_safetensors
from .tensor_file import TensorFile, open_regular
from .torch_files import open_torch


def open_tensors(path: str | os.PathLike) -> TensorFile:
    """Open a weight file, safetensors or PyTorch's formats, by its content.

    FileNotFoundError: there is none; FormatError: another format, or a damaged or hostile file; LimitError: over a limit.
    """
    path = Path(path)
    file = open_regular(path)
    try:
        magic = file.read(512)
        if is_safetensors(magic):
            return SafetensorsFile(path, file)
        return open_torch(path, file, magic)
    except BaseException:
        file.close()
        raise
