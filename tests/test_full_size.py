"""The published sizes, by the number of parameters: of shapes alone, no parameter has memory."""

from __future__ import annotations

import math

import pytest

from cdad import _core, preset
from cdad.weights.resnet import RESNETS

SD15 = preset("sd15")


def shapes(*networks: tuple) -> dict[str, tuple[int, ...]]:
    """Of networks (kind, configuration, size) that share their parameters."""
    params = _core.Params()
    for kind, config, size in networks:
        _core.Network(params, kind, config, 1, size)
    with pytest.raises(ValueError, match="not allocated"):
        params[next(iter(params.shapes()))]
    return params.shapes()


def count(shapes: dict[str, tuple[int, ...]], start: str = "", end: str = "") -> int:
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(start) and name.endswith(end))


def test_stable_diffusion_s_unet():
    unet = shapes(("unet", SD15.denoiser(), (32, 32)))
    assert count(unet) == 859_520_964
    assert unet["unet.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"] == (640, 768)


def test_the_masked_network():
    amn = shapes(("condition", SD15.denoiser(), (256, 256)))
    widths = (3, 16, 16, 32, 32, 96, 96, 256, 320)
    assert count(amn, "amn.input_hint_block.") == sum(9 * a * b for a, b in zip(widths, widths[1:]))
    attention, feedforward = 4 * (320 * 320 + 320), 2 * 320 * 1025 + 1025 + 320
    assert count(amn, "amn.encoder.") == 8 * (attention + feedforward + 4 * 320)


def test_controlnet():
    core = SD15.updated({"continual.strategy": "controlnet"}).denoiser()
    both = shapes(("condition", core, (256, 256)), ("unet", core, (32, 32)))
    assert count(both, "unet.") == 859_520_964
    assert count(both, "control.") == 361_279_120
    assert both["control.zero_convs.11.0.weight"] == both["control.middle_block_out.0.weight"] == (1280, 1, 1, 1280)


def test_conditions_exclude_each_other():
    amn, control = (SD15.updated({"continual.strategy": name}).denoiser() for name in ("cdad", "controlnet"))
    with pytest.raises(ValueError, match="either amn or controlnet is None"):
        shapes(("condition", amn | {"controlnet": control["controlnet"]}, (256, 256)))
    with pytest.raises(ValueError, match="no condition"):
        shapes(("condition", amn | {"amn": None}, (256, 256)))
    strides = control["controlnet"] | {"strides": [1, 2]}
    with pytest.raises(ValueError, match="controlnet: 2 strides for 7 hidden widths"):
        shapes(("condition", control | {"controlnet": strides}, (256, 256)))
    strides = control["controlnet"] | {"strides": 7 * [1]}
    with pytest.raises(ValueError, match="controlnet: strides give 256 x 256 features for a latent of 32 x 32"):
        shapes(("condition", control | {"controlnet": strides}, (256, 256)))


def test_stable_diffusion_s_autoencoder():
    config = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4, "norm_groups": 32}
    both = shapes(("vae_encode", config, (64, 64)), ("vae_decode", config, (8, 8)))
    assert count(both) == 83_653_863
    assert both["encoder.mid.attn_1.q.weight"] == (512, 1, 1, 512)


def test_clip_s_text_model():
    text = SD15.text
    config = {"vocab_size": text.vocab_size, "width": SD15.unet.context_dim, "n_layers": text.n_layers}
    config |= {"num_heads": text.num_heads, "dim_feedforward": text.dim_feedforward}
    assert count(shapes(("clip_text", config, (SD15.unet.context_length, 1)))) == 123_060_480


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("wide_resnet50_2", 68_883_240),
    ],
)
def test_resnets(name, published):
    """A folded batch norm is a bias and no scale; the classifier of 1000 classes is left out."""
    resnet = shapes(("resnet", RESNETS[name].core_config(), (64, 64)))
    last = 2048 if RESNETS[name].bottleneck else 512
    assert count(resnet) + count(resnet, end=".bias") + 1000 * last + 1000 == published
