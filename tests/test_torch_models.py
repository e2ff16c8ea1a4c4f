"""The models, losses and gradients against the same models in plain PyTorch (benchmarks/torch_models.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from cdad import _core, preset
from cdad.weights.efficientnet import find_efficientnet_lite0

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TOLERANCE = 2e-5


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


peer, speed = load("torch_models"), load("run")


def randomize(params: _core.Params, rng: np.random.Generator) -> None:
    """Every parameter random, so that nothing hides behind an initial zero."""
    for name, shape in params.shapes().items():
        if len(shape) == 1:
            params[name] = rng.normal(float(name.endswith("weight")), 0.1, shape)
        else:
            params[name] = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)


def to_torch(array: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array))


def to_core(tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / (np.linalg.norm(wanted) + 1e-30))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"diffusion.prediction": "epsilon", "diffusion.zero_terminal_snr": False, "amn.target": "as_written"},
        {"unet.context_dim": 12, "unet.context_length": 5, "unet.channel_mult": [1, 1, 2], "unet.num_res_blocks": 2},
    ],
    ids=["v, normalized target", "epsilon, target as written", "three levels, context"],
)
def test_losses_and_every_gradient(changes):
    config, rng, n = preset("tiny").updated(changes), np.random.default_rng(0), 2
    core, unet, side = config.denoiser(), config.unet, config.latent_size
    params = _core.Params()
    trainer = _core.Trainer(params, core, n, config.optimizer(), 0)
    randomize(params, rng)
    latent, noise = rng.standard_normal((2, n, side, side, config.autoencoder.latent_channels)).astype(np.float32)
    image, perturbed = rng.random((2, n, config.image_size, config.image_size, 3)).astype(np.float32)
    context = None
    if unet.context_dim:
        context = rng.standard_normal((n, unet.context_length, unet.context_dim)).astype(np.float32)
    timesteps = np.array([3, 640])
    found = trainer.gradients(latent, image, perturbed, noise, timesteps, context)

    betas = np.linspace(config.diffusion.beta_start**0.5, config.diffusion.beta_end**0.5, 1000) ** 2
    signal = np.sqrt(np.cumprod(1 - betas))
    if config.diffusion.zero_terminal_snr:
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    weights = peer.from_core({name: params[name] for name in params.shapes()})
    batch = {"latent": latent, "noise": noise, "image": image, "perturbed": perturbed}
    batch = {name: to_torch(array) for name, array in batch.items()} | {"t": torch.from_numpy(timesteps)}
    batch["context"] = None if context is None else torch.from_numpy(context)
    for name, values in (("signal", signal), ("sigma", np.sqrt(1 - signal**2))):
        batch[name] = torch.from_numpy(values[timesteps].astype(np.float32)).reshape(n, 1, 1, 1)
    losses = peer.training_losses(weights, core, batch)
    losses[0].backward()

    assert found[:3] == pytest.approx([loss.item() for loss in losses], rel=1e-5)
    largest = max(float(w.grad.norm()) for w in weights.values())
    for name, gradient in found[3].items():
        wanted = to_core(weights[name].grad)
        if np.linalg.norm(wanted) < 1e-6 * largest:  # zero in exact arithmetic: both hold rounding noise
            assert np.linalg.norm(gradient) < 1e-6 * largest, name
        else:
            assert error(gradient, wanted) < 5 * TOLERANCE, name


def test_kl_autoencoder():
    config = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 3, "norm_groups": 32}
    rng, params = np.random.default_rng(1), _core.Params()
    encode = _core.Network(params, "vae_encode", config, 2, (24, 16))
    decode = _core.Network(params, "vae_decode", config, 2, (12, 8))
    params.allocate(0)
    randomize(params, rng)
    weights = peer.from_core({name: params[name] for name in params.shapes()})
    image, latent = rng.standard_normal((2, 24, 16, 3)), rng.standard_normal((2, 12, 8, 3))
    image, latent = image.astype(np.float32), latent.astype(np.float32)
    with torch.no_grad():
        assert error(encode.run(image)[0], to_core(peer.vae_encode(weights, config, to_torch(image)))) < TOLERANCE
        assert error(decode.run(latent)[0], to_core(peer.vae_decode(weights, config, to_torch(latent)))) < TOLERANCE


@pytest.mark.parametrize("name", ["conv3x3_1280x8", "attention_1024x320", "group_norm_silu", "vae_decode", "amn_forward"])
def test_both_sides_of_a_benchmark_compute_the_same(name):
    sides = {side: speed.BENCHMARKS[name]()(side)() for side in ("cdad", "torch")}
    assert error(sides["cdad"][0], to_core(sides["torch"])) < 5 * TOLERANCE


@pytest.mark.skipif(find_efficientnet_lite0() is None, reason="the backbone's weights are not installed")
def test_image_to_score_computes_the_same():
    mine, theirs = (speed.image_to_score(2)(side)() for side in ("cdad", "torch"))
    assert mine == pytest.approx(theirs.numpy(), rel=1e-3)


def test_a_benchmark_writes_its_records(tmp_path, monkeypatch):
    out = tmp_path / "records.json"
    monkeypatch.setattr("sys.argv", ["run.py", "--quick", "--only", "group_norm_silu", "--json", str(out)])
    assert speed.main() == 0
    (record,) = json.loads(out.read_text())
    assert set(record) == {"name", "value", "unit", "peer", "peer_value", "ratio", "command"}
    assert record["name"] == "group_norm_silu" and record["value"] > 0 and record["peer_value"] > 0
    assert record["ratio"] == pytest.approx(record["peer_value"] / record["value"])
