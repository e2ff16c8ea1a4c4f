"""Agreement with the numbers of the authors' own code (float32 PyTorch): see the golden files' README."""

from __future__ import annotations

import json

import numpy as np
import pytest
from layouts import to_original
from paths import golden_file
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cdad import _core
from cdad.weights import load_part

TOLERANCE = 1e-4


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / (np.linalg.norm(wanted) + 1e-30))


def image_in_unit(array: np.ndarray) -> np.ndarray:
    """The core maps images from [0,1] to [-1,1]; the golden images are what the networks see."""
    return nhwc(array) * 0.5 + 0.5


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, np.ndarray]]:
    return {part: load_file(golden_file(f"cdad_tiny_{part}")) for part in ("io", "grads", "ddim")}


@pytest.fixture(scope="module")
def config() -> dict:
    with safe_open(golden_file("cdad_tiny_weights"), "numpy") as file:
        meta = {k: json.loads(v) for k, v in file.metadata().items()}
    return {
        "image_size": [128, 128],
        "latent_size": [meta["latent"], meta["latent"]],
        "context_length": 7,
        "precision": "float32",
        "prediction": "epsilon",
        "amn_target": "as_written",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "zero_terminal_snr": False,
        "focus": 0.0,
        "focus_low": 0,
        "unet": {
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": meta["model_channels"],
            "channel_mult": meta["channel_mult"],
            "num_res_blocks": meta["num_res_blocks"],
            "attention_resolutions": meta["attention_resolutions"],
            "num_heads": meta["num_heads"],
            "context_dim": meta["context_dim"],
            "norm_groups": 32,
        },
        "amn": {
            "channels": meta["model_channels"],
            "hidden": [16, 16, 32, 32, 96, 96, 256],
            "strides": [1, 1, 2, 1, 2, 1, 2],
            "n_layers": meta["amn_layers"],
            "num_heads": meta["amn_heads"],
            "dim_feedforward": meta["amn_dim_feedforward"],
            "neighbor": meta["amn_neighbor"],
            "keep_variance": False,
        },
        "controlnet": None,
    }


@pytest.fixture(scope="module")
def optimizer() -> dict:
    return {
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "moments": "float32",
        "ema_decay": 0.0,
        "projection": "update",
    }


@pytest.fixture(scope="module")
def trainer(config, optimizer):
    params = _core.Params()
    trainer = _core.Trainer(params, config, 2, optimizer, 0)
    for part in ("unet", "amn"):
        load_part(params, golden_file("cdad_tiny_weights"), part)
    return params, trainer


@pytest.fixture(scope="module")
def step(golden, trainer):
    io = golden["io"]
    return trainer[1].gradients(
        nhwc(io["z"]),
        image_in_unit(io["image"]),
        image_in_unit(io["perturbed"]),
        nhwc(io["noise"]),
        io["t"],
        context=io["context"],
    )


def test_losses(golden, step):
    loss, cdm, amn, _ = step
    assert cdm == pytest.approx(float(golden["io"]["loss_simple"][0]), rel=TOLERANCE)
    assert amn == pytest.approx(float(golden["io"]["loss_amn"][0]), rel=TOLERANCE)
    assert loss == pytest.approx(cdm + amn, rel=1e-6)


def test_every_gradient(golden, step):
    found = to_original(step[3])
    wanted = {k.removeprefix("grad."): v for k, v in golden["grads"].items()}
    assert set(found) == set(wanted)
    largest = max(float(np.linalg.norm(v)) for v in wanted.values())
    for name, gradient in wanted.items():
        if np.linalg.norm(gradient) < 1e-7 * largest:
            # zero in exact arithmetic (a constant before a norm): both sides hold rounding noise
            assert np.linalg.norm(found[name]) < 1e-7 * largest, name
        else:
            assert relative(found[name], gradient) < TOLERANCE, name


def test_condition_and_eps(golden, trainer, config):
    io, (params, _) = golden["io"], trainer
    condition = _core.Network(params, "condition", config, 2, (128, 128))
    (tau,) = condition.run(image_in_unit(io["perturbed"]))
    assert relative(tau, nhwc(io["amn_out"])) < TOLERANCE
    unet = _core.Network(params, "unet", config, 2, (16, 16))
    (eps,) = unet.run(nhwc(io["x_t"]), io["t"].astype(np.float32), tau, io["context"])
    assert relative(eps, nhwc(io["eps"])) < TOLERANCE


def test_the_whole_ddim_path(golden, trainer, config):
    ddim, (params, _) = golden["ddim"], trainer
    sampler = _core.Sampler(params, config, 2)
    out, xs, x0s = sampler.denoise(
        image_in_unit(ddim["image"]),
        nhwc(ddim["x_T"]),
        context=ddim["context"],
        steps=10,
        uncond=ddim["uncond_context"],
        guidance=3.0,
        trace=True,
    )
    assert relative(out, nhwc(ddim["sample"])) < TOLERANCE
    for i in range(10):
        assert relative(xs[i], nhwc(ddim[f"x_step{i + 1}"])) < TOLERANCE, i
        assert relative(x0s[i], nhwc(ddim[f"x0_step{i + 1}"])) < TOLERANCE, i


def test_kl_autoencoder(tmp_path):
    tensors = load_file(golden_file("vae_tiny_vae"))
    config = {"ch": 32, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, "z_channels": 4, "norm_groups": 32}
    params = _core.Params()
    encode = _core.Network(params, "vae_encode", config, 2, (64, 64))
    decode = _core.Network(params, "vae_decode", config, 2, (8, 8))
    params.allocate(0)
    save_file({name: array for name, array in tensors.items() if not name.startswith("io.")}, tmp_path / "vae.safetensors")
    load_part(params, tmp_path / "vae.safetensors", "vae")
    (moments,) = encode.run(nhwc(tensors["io.image"]))
    assert relative(moments, nhwc(tensors["io.moments"])) < TOLERANCE
    assert relative(moments[..., :4], nhwc(tensors["io.mean"])) < TOLERANCE
    logvar = nhwc(tensors["io.logvar"])
    assert relative(moments[..., 4:], logvar) < TOLERANCE
    z = moments[..., :4] + np.exp(0.5 * moments[..., 4:]) * nhwc(tensors["io.eps"])
    assert relative(z, nhwc(tensors["io.z"])) < TOLERANCE
    (image,) = decode.run(nhwc(tensors["io.z"]))
    assert relative(image, nhwc(tensors["io.reconstruction"])) < TOLERANCE
