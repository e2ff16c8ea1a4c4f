"""Reading weight files: safetensors, and PyTorch's formats without PyTorch."""

from .files import load_tensors, read_safetensors, strict_match
from .names import (
    denoiser_from_original,
    denoiser_to_original,
    from_channels_last,
    to_channels_last,
)

__all__ = [
    "denoiser_from_original",
    "denoiser_to_original",
    "from_channels_last",
    "load_tensors",
    "read_safetensors",
    "strict_match",
    "to_channels_last",
]
