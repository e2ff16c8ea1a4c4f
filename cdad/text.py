"""The text encoder, CLIP's: what the U-Net is told is its embedding of the empty prompt, a constant."""

from __future__ import annotations

import numpy as np

from . import _core
from .config import TextConfig
from .weights import load_part


def empty_prompt(vocab_size: int, length: int) -> np.ndarray:
    """The tokens of the empty prompt [1,length]: CLIP's vocabulary ends with the start and the end of a text, and a text is
    filled up with its end."""
    ids = np.full((1, length), vocab_size - 1, np.float32)
    ids[0, 0] = vocab_size - 2
    return ids


def empty_prompt_context(config: TextConfig, width: int, length: int, device: str | None = None) -> np.ndarray:
    """The embedding [length, width] of the empty prompt by the text encoder of ``config.weights``, which runs on ``device``.

    ValueError: no weights are named; FormatError: the file is damaged, or another model's.
    """
    if not config.weights:
        raise ValueError(
            f"text.weights: the U-Net wants a context of width {width}, and no file names the weights of the text encoder "
            "that gives it (CLIP ViT-L/14's for Stable Diffusion 1.x)"
        )
    params = _core.Params(device)
    network = text_network(params, config, width, length)
    params.allocate(0)
    load_part(params, config.weights, "clip_text", what="text encoder")
    return network.run(empty_prompt(config.vocab_size, length))[0][0]


def text_network(params: _core.Params, config: TextConfig, width: int, length: int) -> _core.Network:
    """The text encoder, of width ``width``, for one prompt of ``length`` tokens."""
    core = {
        "vocab_size": config.vocab_size,
        "width": width,
        "n_layers": config.n_layers,
        "num_heads": config.num_heads,
        "dim_feedforward": config.dim_feedforward,
    }
    return _core.Network(params, "clip_text", core, 1, (length, 1))
