"""The text encoder's constant: from its file into a model, and into the model's checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from layouts import load_checkpoint
from safetensors.numpy import save_file

from cdad import CheckpointError, ContinualModel, FormatError, _core
from cdad.checkpoint import save_checkpoint
from cdad.config import TextConfig
from cdad.text import empty_prompt, empty_prompt_context

WIDTH, LENGTH = 8, 5
SMALL = {"vocab_size": 11, "n_layers": 2, "num_heads": 2, "dim_feedforward": 12}


@pytest.fixture(scope="module")
def encoder():
    """(its embedding of the empty prompt, its weights by transformers' names)"""
    params = _core.Params()
    network = _core.Network(params, "clip_text", {**SMALL, "width": WIDTH}, 1, (LENGTH, 1))
    params.allocate(3)
    rng = np.random.default_rng(0)
    for name, shape in params.shapes().items():
        params[name] = rng.standard_normal(shape)
    weights = {name.removeprefix("text_model."): params[name].copy() for name in params.shapes()}
    return network.run(np.float32([[9, 10, 10, 10, 10]]))[0][0], weights


def saved(path, weights: dict[str, np.ndarray], prefix: str, **others: np.ndarray) -> TextConfig:
    save_file({prefix + name: value for name, value in weights.items()} | others, path)
    return TextConfig(weights=str(path), **SMALL)


def test_the_empty_prompt():
    """The published constant of CLIP's tokenizer: start, then ends."""
    assert empty_prompt(49408, 77).tolist() == [[49406] + 76 * [49407]]


@pytest.mark.parametrize("prefix", ["cond_stage_model.transformer.text_model.", "text_model.", ""])
def test_files_under_each_name(encoder, tmp_path, prefix):
    context, weights = encoder
    others = {f"{prefix}embeddings.position_ids": np.arange(LENGTH)[None]}
    if prefix.startswith("cond"):
        others["model.diffusion_model.out.2.bias"] = np.zeros(4, np.float32)
    found = empty_prompt_context(saved(tmp_path / "text.safetensors", weights, prefix, **others), WIDTH, LENGTH)
    assert np.array_equal(found, context) and found.std() > 0.1


def test_files_are_checked(encoder, tmp_path):
    _, weights = encoder
    config = saved(tmp_path / "text.safetensors", weights, "text_model.")
    with pytest.raises(FormatError, match="text encoder.*position_embedding.weight is"):
        empty_prompt_context(config, WIDTH, LENGTH + 1)
    with pytest.raises(FormatError, match="unexpected"):
        empty_prompt_context(TextConfig(config.weights, **SMALL | {"n_layers": 1}), WIDTH, LENGTH)
    with pytest.raises(ValueError, match="text.weights: .* context of width 8"):
        empty_prompt_context(TextConfig(), WIDTH, LENGTH)


def test_ids_are_checked(encoder):
    params = _core.Params()
    network = _core.Network(params, "clip_text", {**SMALL, "width": WIDTH}, 1, (LENGTH, 1))
    params.allocate(0)
    with pytest.raises(ValueError, match="token_embedding.*0 .. 10"):
        network.run(np.float32([[9, 10, 11, 10, 10]]))
    with pytest.raises(ValueError, match=r"\(tokens, 1\) is wanted"):
        _core.Network(params, "clip_text", {**SMALL, "width": WIDTH}, 1, (LENGTH, 2))


@pytest.mark.parametrize("strategy", ["cdad", "ewc"])
def test_a_model_learns_with_it_and_keeps_it(encoder, tmp_path, products, quick_config, strategy):
    context, weights = encoder
    path = tmp_path / "text.safetensors"
    saved(path, weights, "text_model.")
    changes = {f"text.{key}": value for key, value in SMALL.items()}
    changes |= {"unet.context_dim": WIDTH, "unet.context_length": LENGTH, "text.weights": str(path)}
    changes |= {"continual.strategy": strategy, "training.steps": 2}
    model = ContinualModel(quick_config.updated(changes))
    assert np.array_equal(model.drawing.context, context)
    model.fit_task([products["gear"]], progress=False)
    model.save(tmp_path / "model.safetensors")
    path.unlink()
    again = ContinualModel.load(tmp_path / "model.safetensors")
    images = [s.path for s in products["gear"].test[:2]]
    assert np.array_equal(again.drawing.context, context)
    wanted = model.predict(images).maps
    assert np.array_equal(again.predict(images).maps, wanted)
    again.drawing.context = again.drawing.context + 1
    assert not np.array_equal(again.predict(images).maps, wanted)

    tensors, state = load_checkpoint(tmp_path / "model.safetensors")
    save_checkpoint(tmp_path / "old.safetensors", {k: v for k, v in tensors.items() if k != "context"}, state)
    with pytest.raises(CheckpointError, match=r"no context of \[5, 8\]"):
        ContinualModel.load(tmp_path / "old.safetensors")
