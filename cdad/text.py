"""The text encoder, CLIP's: what the U-Net is told is its embedding of the empty prompt, a constant."""

from __future__ import annotations

import numpy as np

from . import _core
from .config import TextConfig
from .weights import load_tensors, strict_match

# Stable Diffusion's own checkpoints; transformers before version 5, and from it on.
_PREFIXES = ("cond_stage_model.transformer.text_model.", "text_model.", "")
_CONSTANT = "embeddings.position_ids"


def empty_prompt(vocab_size: int, length: int) -> np.ndarray:
    """The tokens of the empty prompt [1,length]: CLIP's vocabulary ends with the start and the end of a text, and a text is
    filled up with its end."""
    ids = np.full((1, length), vocab_size - 1, np.float32)
    ids[0, 0] = vocab_size - 2
    return ids


def empty_prompt_context(config: TextConfig, width: int, length: int) -> np.ndarray:
    """The embedding [length, width] of the empty prompt by the text encoder of ``config.weights``.

    ValueError: no weights are named; FormatError: the file is damaged, or another model's.
    """
    if not config.weights:
        raise ValueError(
            f"text.weights: the U-Net wants a context of width {width}, and no file names the weights of the text encoder "
            "that gives it (CLIP ViT-L/14's for Stable Diffusion 1.x)"
        )
    core = {
        "vocab_size": config.vocab_size,
        "width": width,
        "n_layers": config.n_layers,
        "num_heads": config.num_heads,
        "dim_feedforward": config.dim_feedforward,
    }
    params = _core.Params()
    network = _core.Network(params, "clip_text", core, 1, (length, 1))
    tensors = load_tensors(config.weights)
    prefix = next(p for p in _PREFIXES if any(name.startswith(p) for name in tensors) or not p)
    tensors = {f"text_model.{n.removeprefix(prefix)}": v for n, v in tensors.items() if n.startswith(prefix)}
    tensors.pop(f"text_model.{_CONSTANT}", None)
    strict_match(params.shapes(), tensors, what="text encoder")
    params.allocate(0)
    for name, tensor in tensors.items():
        params[name][...] = tensor
    return network.run(empty_prompt(config.vocab_size, length))[0][0]
