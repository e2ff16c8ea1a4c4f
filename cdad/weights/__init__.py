"""Reading weight files: safetensors, and PyTorch's formats without PyTorch."""

from .collection import Collection, load_part
from .files import load_tensors, open_tensors
from .loading import fill, strict_match
from .names import (
    denoiser_from_original,
    denoiser_to_original,
    from_channels_last,
    to_channels_last,
)

__all__ = [
    "Collection",
    "denoiser_from_original",
    "denoiser_to_original",
    "fill",
    "from_channels_last",
    "load_part",
    "load_tensors",
    "open_tensors",
    "strict_match",
    "to_channels_last",
]
