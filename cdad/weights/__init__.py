"""Reading weight files: safetensors, and PyTorch's formats without PyTorch."""

from .collection import Collection, load_part
from .files import open_tensors
from .loading import fill, strict_match

__all__ = ["Collection", "fill", "load_part", "open_tensors", "strict_match"]
