"""How far the core's models are from others' code: one table.

    python benchmarks/parity.py [--full-size] [--json FILE] [--markdown docs/PARITY.md]

Every weight is random, so that nothing hides behind an initial zero. The peers compute in float64. ``--full-size`` adds the
preset `sd15` at its 859.5M parameters, beside PyTorch in float32: some 16 GiB and a few minutes. An error is
|found - wanted| / |wanted|, by norm; of several outputs, and of the gradients of all parameters, the largest counts. Peers
are plain PyTorch (benchmarks/torch_models.py) and, where they are installed, diffusers and transformers;
tests/test_parity.py runs the same comparisons.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from cdad import Config, _core, preset
from cdad.atomic import write_atomically
from cdad.text import empty_prompt
from cdad.weights import load_part
from cdad.weights.resnet import IMAGENET_MEAN, IMAGENET_STD, RESNETS

sys.path.insert(0, str(Path(__file__).parent))
import evidence  # noqa: E402
import torch_models as peer  # noqa: E402

BOUND = 3e-5  # what every error is below; 1e-4 is what is wanted
FULL_SIZE_BOUND, FULL_SIZE_UPDATES = 1e-4, 2e-4  # where both sides round; AdamW's quotients may double it


@dataclass(frozen=True)
class Row:
    model: str
    config: str
    what: str
    error: float
    against: str
    bound: float = BOUND


@dataclass(frozen=True)
class Case:
    """A comparison that needs the packages ``needs`` beside PyTorch."""

    compare: Callable[[], Iterator[Row]]
    name: str
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [package for package in self.needs if importlib.util.find_spec(package) is None]


def against(package: str) -> str:
    return f"{package} {version(package)}"


PYTORCH = against("torch").replace("torch", "PyTorch", 1)


def randomize(params: _core.Params, rng: np.random.Generator) -> None:
    """Every parameter random, of a scale that keeps activations near one: SiLU, of the convolutions that read an image one
    after another, takes away more than half of theirs."""
    for name, shape in params.shapes().items():
        if len(shape) == 1:
            params[name] = rng.normal(float(name.endswith("weight")), 0.1, shape)
        else:
            gain = 1.7 if "input_hint_block" in name else 1.0
            params[name] = rng.normal(0, gain / np.sqrt(np.prod(shape[1:])), shape)


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Images [N,H,W,C] as [N,C,H,W], anything else as it is, in float64."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array, np.float64))


def to_core(tensor: torch.Tensor) -> np.ndarray:
    """The inverse of `to_torch`."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def leaves(params: _core.Params) -> peer.Params:
    """The parameters, conv weights [O,C,R,S], as leaves that want gradients, in float64."""
    return {name: to_torch(params[name]).requires_grad_() for name in params.shapes()}


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / (np.linalg.norm(wanted) + 1e-30))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


# ---- ResNet -----------------------------------------------------------------------------------------------


def random_resnet(config: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters and statistics of all layers, by torchvision's names, a classifier among them."""
    state: dict[str, np.ndarray] = {}

    def layer(conv: str, norm: str, out: int, inside: int, kernel: int) -> int:
        scale = 1 / np.sqrt(inside * kernel * kernel)
        state[f"{conv}.weight"] = rng.normal(0, scale, (out, inside, kernel, kernel))
        state[f"{norm}.weight"], state[f"{norm}.bias"] = rng.uniform(0.5, 1.5, out), rng.normal(0, 0.2, out)
        state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = rng.normal(0, 0.2, out), rng.uniform(0.5, 2, out)
        state[f"{norm}.num_batches_tracked"] = np.array(7)
        return out

    width = layer("conv1", "bn1", config["channels"], 3, 7)
    for stage, blocks in enumerate(config["blocks"]):
        planes = config["channels"] << stage
        for i in range(blocks):
            name, start = f"layer{stage + 1}.{i}", width
            if config["bottleneck"]:
                width = layer(f"{name}.conv1", f"{name}.bn1", planes * config["widening"], width, 1)
                width = layer(f"{name}.conv2", f"{name}.bn2", width, width, 3)
                width = layer(f"{name}.conv3", f"{name}.bn3", 4 * planes, width, 1)
            else:
                width = layer(f"{name}.conv1", f"{name}.bn1", planes, width, 3)
                width = layer(f"{name}.conv2", f"{name}.bn2", planes, width, 3)
            if i == 0 and (stage > 0 or start != width):
                layer(f"{name}.downsample.0", f"{name}.downsample.1", width, start, 1)
    state["fc.weight"], state["fc.bias"] = rng.normal(size=(10, width)), rng.normal(size=10)
    return {k: np.asarray(v, np.int64 if v.ndim == 0 else np.float32) for k, v in state.items()}


def resnet(name: str, package: str) -> Iterator[Row]:
    """Features of a file as torchvision writes it, of an eighth of the real widths."""
    config, rng = replace(RESNETS[name], channels=8).core_config(), np.random.default_rng(0)
    state = random_resnet(config, rng)
    params = _core.Params()
    network = _core.Network(params, "resnet", config, 2, (64, 48))
    params.allocate(0)
    with tempfile.TemporaryDirectory() as folder:
        torch.save({k: torch.from_numpy(v) for k, v in state.items()}, Path(folder, "weights.pth"))
        load_part(params, Path(folder, "weights.pth"), "resnet")
    image = (rng.random((2, 64, 48, 3), np.float32) - IMAGENET_MEAN) / IMAGENET_STD
    with torch.no_grad():
        wanted = peer.resnet({k: torch.from_numpy(v).double() for k, v in state.items()}, config, to_torch(image))
    errors = [error(a, to_core(b)) for a, b in zip(network.run(image), wanted, strict=True)]
    yield Row(name, "8 channels, 64 x 48", "features of stem, layer1 to layer4, batch norms folded", float(np.max(errors)), package)


# ---- CLIP's text transformer ------------------------------------------------------------------------------

TEXT = {"vocab_size": 99, "width": 32, "n_layers": 3, "num_heads": 4, "dim_feedforward": 48}
TOKENS = 77


def text_network(config: dict, n: int) -> tuple[_core.Network, _core.Params, np.ndarray]:
    """A network with random weights, and ids [n, TOKENS]: of the empty prompt, then random ones."""
    params, rng = _core.Params(), np.random.default_rng(2)
    network = _core.Network(params, "clip_text", config, n, (TOKENS, 1))
    params.allocate(0)
    randomize(params, rng)
    ids = rng.integers(config["vocab_size"], size=(n, TOKENS)).astype(np.float32)
    ids[0] = empty_prompt(config["vocab_size"], TOKENS)
    return network, params, ids


def text(theirs: Callable[[dict, _core.Params, torch.Tensor], torch.Tensor], package: str) -> Iterator[Row]:
    network, params, ids = text_network(TEXT, 3)
    with torch.no_grad():
        wanted = theirs(TEXT, params, torch.from_numpy(ids).long())
    what = f"3 layers, width 32, {TOKENS} tokens"
    yield Row("CLIP text transformer", what, "last hidden state", error(network.run(ids)[0], to_core(wanted)), package)


def text_in_torch(config: dict, params: _core.Params, ids: torch.Tensor) -> torch.Tensor:
    return peer.clip_text(leaves(params), config, ids)


def text_in_transformers(config: dict, params: _core.Params, ids: torch.Tensor) -> torch.Tensor:
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["width"],
            intermediate_size=config["dim_feedforward"],
            num_hidden_layers=config["n_layers"],
            num_attention_heads=config["num_heads"],
            max_position_embeddings=TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=config["vocab_size"] - 2,
            eos_token_id=config["vocab_size"] - 1,
        )
    )
    prefix = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
    state = {prefix + name.removeprefix("text_model."): value for name, value in leaves(params).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and not [name for name in missing if not name.endswith("position_ids")]
    return model.double().eval()(ids).last_hidden_state


# ---- denoiser ---------------------------------------------------------------------------------------------

Losses = Callable[[peer.Params, dict, dict], tuple[torch.Tensor, ...]]
CONTEXT = {"unet.context_dim": 12, "unet.context_length": 5}
THREE_LEVELS = CONTEXT | {"unet.channel_mult": [1, 1, 2], "unet.num_res_blocks": 2}
EPSILON = {"diffusion.prediction": "epsilon", "diffusion.zero_terminal_snr": False, "amn.target": "as_written"}
# Widths that follow ControlNet's own pattern, which diffusers knows alone.
CONTROLNET = {"continual.strategy": "controlnet", "amn.hidden": [4, 4, 8, 8, 12, 12, 16]}


def config_of(changes: dict) -> Config:
    return preset("tiny").updated(changes)


def schedule(config: Config) -> np.ndarray:
    """sqrt(alpha_bar) of all timesteps."""
    d = config.diffusion
    signal = np.sqrt(np.cumprod(1 - np.linspace(d.beta_start**0.5, d.beta_end**0.5, d.num_train_timesteps) ** 2))
    return (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1]) if d.zero_terminal_snr else signal


def denoiser_batch(config: Config, n: int, rng: np.random.Generator) -> dict[str, np.ndarray | None]:
    """What `_core.Trainer.gradients` takes."""
    unet, side, size = config.unet, config.latent_size, config.image_size
    return {
        "latent": normal(rng, n, side, side, config.autoencoder.latent_channels),
        "image": rng.random((n, size, size, 3), np.float32),
        "perturbed": rng.random((n, size, size, 3), np.float32),
        "noise": normal(rng, n, side, side, config.autoencoder.latent_channels),
        "timesteps": np.array([3, 640, 999, 77])[:n],
        "context": normal(rng, n, unet.context_length, unet.context_dim) if unet.context_dim else None,
    }


def in_torch(config: Config, batch: dict[str, np.ndarray | None]) -> dict[str, torch.Tensor | None]:
    """The same batch as `torch_models.training_losses` takes it."""
    given = {name: to_torch(array) for name, array in batch.items() if array is not None and name != "timesteps"}
    t = torch.from_numpy(batch["timesteps"])
    signal = torch.from_numpy(schedule(config))[t].reshape(-1, 1, 1, 1)
    return {"context": None, **given, "t": t, "signal": signal, "sigma": (1 - signal**2).sqrt()}


def gradient_error(found: dict[str, np.ndarray], wanted: peer.Params) -> float:
    """The largest over the parameters. Those whose gradients are zero in exact arithmetic (a constant before a norm) hold
    rounding noise on both sides, and must hold no more."""
    largest = max(float(w.grad.norm()) for w in wanted.values())
    errors = []
    for name, gradient in found.items():
        theirs = to_core(wanted[name].grad)
        if np.linalg.norm(theirs) < 1e-6 * largest:
            errors.append(0.0 if np.linalg.norm(gradient) < 1e-6 * largest else np.inf)
        else:
            errors.append(error(gradient, theirs))
    return float(np.max(errors))  # NaN where one is


STEPS = (0.0, 1.0)  # of the learning rate: the first fills the moments, so that the second is no mere sign of a gradient
SMALL = 0.1  # of a parameter's gradient, by norm: elements that stay below have their rounding made as large as the others' gradients
LR = 1e-2  # so large that an update is well above the rounding of the weight that takes it


def trained(params: _core.Params, config: Config, n: int, batch: dict) -> list[dict]:
    """Training steps; their batches, with the noise and timesteps that they drew."""
    trainer, batches = _core.Trainer(params, config.denoiser(), n, config.optimizer(), 0), []
    for scale in STEPS:
        trainer.step(batch["latent"], batch["image"], batch["perturbed"], batch["context"], lr_scale=scale)
        batches.append(batch | dict(zip(("noise", "timesteps"), trainer.drawn(), strict=True)))
    return batches


def update_error(found: Callable[[str], np.ndarray], weights: peer.Params, config: Config, losses: Losses, batches: list[dict]) -> float:
    """The largest error of what PyTorch's AdamW changes in the same steps, one parameter's moments at a time; ``found``: a
    parameter after ours. Parameters and elements whose gradients are rounding noise are left out."""
    t, core, gradients = config.training, config.denoiser(), []
    for batch in batches:
        losses(weights, core, batch)[0].backward()
        if t.clip_norm:
            torch.nn.utils.clip_grad_norm_(weights.values(), t.clip_norm)
        gradients.append({name: w.grad for name, w in weights.items()})
        for w in weights.values():
            w.grad = None
    largest, errors = max(float(g.norm()) for g in gradients[-1].values()), []
    for name, w in weights.items():
        before = to_core(w).copy()
        optimizer = torch.optim.AdamW([w], t.lr, (t.beta1, t.beta2), t.eps, t.weight_decay)
        for scale, each in zip(STEPS, gradients, strict=True):
            optimizer.param_groups[0]["lr"], w.grad = scale * t.lr, each[name]
            optimizer.step()
        if float(gradients[-1][name].norm()) > 1e-6 * largest:
            squares = to_core(optimizer.state[w]["exp_avg_sq"])
            told = squares > SMALL**2 * squares.mean()
            errors.append(error((found(name) - before)[told], (to_core(w) - before)[told]))
    return float(np.max(errors))


def denoiser(model: str, label: str, changes: dict, losses: Losses, package: str) -> Iterator[Row]:
    config, rng, n = config_of({"training.lr": LR} | changes), np.random.default_rng(0), 2
    core, params = config.denoiser(), _core.Params()
    trainer = _core.Trainer(params, core, n, config.optimizer(), 0)
    randomize(params, rng)
    batch = denoiser_batch(config, n, rng)
    *values, gradients = trainer.gradients(**batch)
    weights = leaves(params)
    theirs = losses(weights, core, in_torch(config, batch))
    theirs[0].backward()
    wanted = [float(value.detach()) for value in theirs]
    yield Row(model, label, "losses", error(np.array(values), np.array(wanted)), package)
    yield Row(model, label, f"gradients of {len(gradients)} parameters", gradient_error(gradients, weights), package)
    batches = trained(params, config, n, batch)
    weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
    found = update_error(params.__getitem__, weights, config, losses, [in_torch(config, b) for b in batches])
    yield Row(model, label, f"AdamW's updates of {len(weights)} parameters", found, package)


def full_size(package: str) -> Iterator[Row]:
    """A forward pass and training steps of `sd15`, one image, both sides in float32. Each side's memory is given back before the
    other takes its own."""
    config, rng = preset("sd15").updated({"training.lr": LR}), np.random.default_rng(0)
    core, params = config.denoiser(), _core.Params()
    trainer = _core.Trainer(params, core, 1, config.updated({"training.moments": "8bit"}).optimizer(), 0)
    randomize(params, rng)
    batch = denoiser_batch(config, 1, rng)
    *values, gradients = trainer.gradients(**batch)
    del trainer
    noised, t, control = batch["latent"], batch["timesteps"], normal(rng, 1, config.latent_size, config.latent_size, 320)
    network = _core.Network(params, "unet", core, 1, (config.latent_size, config.latent_size))
    found = network.run(noised, t.astype(np.float32), control, batch["context"])[0]
    weights = peer.from_core({name: np.array(params[name]) for name in params.shapes()})
    del network
    label = "sd15, one image, float32"

    def single(batch: dict) -> dict:
        return {name: None if x is None else x.float() if x.is_floating_point() else x for name, x in in_torch(config, batch).items()}

    theirs = single(batch)
    with torch.no_grad():
        wanted = peer.unet(weights, core["unet"], theirs["latent"], theirs["t"], theirs["context"], to_torch(control).float())
    yield Row("U-Net", label, "prediction", error(found, to_core(wanted)), package, FULL_SIZE_BOUND)
    losses = peer.training_losses(weights, core, theirs)
    losses[0].backward()
    wanted = np.array([float(value.detach()) for value in losses])
    yield Row("U-Net and AMN", label, "losses", error(np.array(values), wanted), package, FULL_SIZE_BOUND)
    what = f"gradients of {len(gradients)} parameters"
    yield Row("U-Net and AMN", label, what, gradient_error(gradients, weights), package, FULL_SIZE_BOUND)
    del losses, gradients
    for w in weights.values():
        w.grad = None
    batches = trained(params, config, 1, batch)
    with tempfile.TemporaryDirectory() as folder:
        for name in params.shapes():
            np.save(Path(folder, name), params[name])
        del params
        worst = update_error(
            lambda name: np.load(Path(folder, f"{name}.npy")), weights, config, PLAIN, [single(each) for each in batches]
        )
    yield Row("U-Net and AMN", label, f"AdamW's updates of {len(weights)} parameters", worst, package, FULL_SIZE_UPDATES)


def diffusers_unet(core: dict) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=core["unet"]["in_channels"],
        out_channels=core["unet"]["out_channels"],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(attention_kinds(core))],
        **diffusers_shape(core),
    ).eval()


def attention_kinds(core: dict) -> list[str]:
    """Of each level: with attention or without."""
    unet = core["unet"]
    return ["CrossAttn" if 2**i in unet["attention_resolutions"] else "" for i in range(len(unet["channel_mult"]))]


def diffusers_shape(core: dict) -> dict:
    unet = core["unet"]
    return {
        "down_block_types": [f"{kind}DownBlock2D" for kind in attention_kinds(core)],
        "block_out_channels": [m * unet["model_channels"] for m in unet["channel_mult"]],
        "layers_per_block": unet["num_res_blocks"],
        "attention_head_dim": unet["num_heads"],  # diffusers' name for the number of heads
        "cross_attention_dim": unet["context_dim"],
        "norm_num_groups": unet["norm_groups"],
    }


def renamed(weights: peer.Params, scope: str, root: str) -> dict[str, torch.Tensor]:
    """The tensors of a scope under the name that the original checkpoints begin with."""
    return {root + name.removeprefix(scope): w for name, w in weights.items() if name.startswith(scope)}


def predict_in_diffusers(weights: peer.Params, core: dict, x, t, context, **how) -> torch.Tensor:
    """By diffusers' own conversion of the original names; gradients go into ``weights``."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    model = diffusers_unet(core)
    names = convert_ldm_unet_checkpoint(renamed(weights, "unet.", "model.diffusion_model."), model.config)
    assert set(names) == set(dict(model.named_parameters()))
    return torch.func.functional_call(model, names, (x, t, context), how).sample


def losses_in_diffusers(weights: peer.Params, core: dict, batch: dict) -> tuple[torch.Tensor, ...]:
    """L_CDM of eps-prediction, with a ControlNet where there is one."""
    noised, how = batch["signal"] * batch["latent"] + batch["sigma"] * batch["noise"], {}
    if core["controlnet"]:
        from diffusers import ControlNetModel
        from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

        hidden = core["controlnet"]["hidden"]
        model = ControlNetModel(
            in_channels=core["unet"]["in_channels"],
            conditioning_embedding_out_channels=(hidden[0], hidden[2], hidden[4], hidden[6]),
            **diffusers_shape(core),
        ).eval()
        names = convert_controlnet_checkpoint(renamed(weights, "control.", "control_model."), model.config)
        assert set(names) == set(dict(model.named_parameters()))
        given = (noised, batch["t"], batch["context"], 2 * batch["perturbed"] - 1)
        controls = torch.func.functional_call(model, names, given)
        how = {
            "down_block_additional_residuals": controls.down_block_res_samples,
            "mid_block_additional_residual": controls.mid_block_res_sample,
        }
    prediction = predict_in_diffusers(weights, core, noised, batch["t"], batch["context"], **how)
    loss = torch.nn.functional.mse_loss(prediction, batch["noise"])
    return loss, loss, torch.zeros(())


def ddim(label: str, changes: dict) -> Iterator[Row]:
    """The whole path of diffusers' scheduler with diffusers' U-Net."""
    from diffusers import DDIMScheduler

    config, rng, n, steps = config_of(CONTEXT | {"amn.enabled": False} | changes), np.random.default_rng(1), 2, 10
    core, params, d = config.denoiser(), _core.Params(), config.diffusion
    sampler = _core.Sampler(params, core, n)
    params.allocate(0)
    randomize(params, rng)
    batch = denoiser_batch(config, n, rng)
    drawn, path, _ = sampler.denoise(batch["image"], batch["latent"], batch["context"], steps=steps, trace=True)
    scheduler = DDIMScheduler(
        num_train_timesteps=d.num_train_timesteps,
        beta_start=d.beta_start,
        beta_end=d.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=0 if d.zero_terminal_snr else 1,
        timestep_spacing="trailing" if d.zero_terminal_snr else "leading",
        rescale_betas_zero_snr=d.zero_terminal_snr,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[d.prediction],
    )
    scheduler.set_timesteps(steps)
    weights, context = leaves(params), to_torch(batch["context"])
    x, errors = to_torch(batch["latent"]), []
    with torch.no_grad():
        for t, found in zip(scheduler.timesteps, path, strict=True):
            x = scheduler.step(predict_in_diffusers(weights, core, x, t, context), t, x).prev_sample
            errors.append(error(found, to_core(x)))
    assert np.array_equal(path[-1], drawn)
    yield Row("DDIM sampler", label, f"x after each of {steps} steps", float(np.max(errors)), against("diffusers"))


# ---- KL autoencoder ---------------------------------------------------------------------------------------

VAE = {"ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 2, "z_channels": 3, "norm_groups": 32}


def autoencoder(theirs: Callable[[peer.Params, torch.Tensor, torch.Tensor], tuple], package: str) -> Iterator[Row]:
    rng, params = np.random.default_rng(1), _core.Params()
    encode = _core.Network(params, "vae_encode", VAE, 2, (24, 16))
    decode = _core.Network(params, "vae_decode", VAE, 2, (6, 4))
    params.allocate(0)
    randomize(params, rng)
    image, latent = normal(rng, 2, 24, 16, 3), normal(rng, 2, 6, 4, 3)
    with torch.no_grad():
        wanted = theirs(leaves(params), to_torch(image), to_torch(latent))
    label = "three levels, 32 channels"
    for what, found, other in zip(("moments", "image"), (encode.run(image)[0], decode.run(latent)[0]), wanted, strict=True):
        yield Row("KL autoencoder", label, what, error(found, to_core(other)), package)


def autoencoder_in_torch(weights: peer.Params, image: torch.Tensor, latent: torch.Tensor) -> tuple:
    return peer.vae_encode(weights, VAE, image), peer.vae_decode(weights, VAE, latent)


def autoencoder_in_diffusers(weights: peer.Params, image: torch.Tensor, latent: torch.Tensor) -> tuple:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    levels = len(VAE["ch_mult"])
    model = AutoencoderKL(
        down_block_types=levels * ["DownEncoderBlock2D"],
        up_block_types=levels * ["UpDecoderBlock2D"],
        block_out_channels=[m * VAE["ch"] for m in VAE["ch_mult"]],
        layers_per_block=VAE["num_res_blocks"],
        latent_channels=VAE["z_channels"],
        norm_num_groups=VAE["norm_groups"],
    ).double().eval()
    model.load_state_dict(convert_ldm_vae_checkpoint(renamed(weights, "", "first_stage_model."), model.config))
    return model.encode(image).latent_dist.parameters, model.decode(latent).sample


def case(compare: Callable[..., Iterator[Row]], name: str, *given, needs: tuple[str, ...] = ()) -> Case:
    """With ``given`` and, last, the version of the first package that it needs, or PyTorch's."""
    return Case(lambda: compare(*given, against(needs[0]) if needs else PYTORCH), name, needs)


DIFFUSERS, TRANSFORMERS = ("diffusers",), ("transformers",)
PLAIN, EPSILON_ALONE = peer.training_losses, EPSILON | {"amn.enabled": False}
CASES = (
    case(denoiser, "U-Net and AMN, v", "U-Net and AMN", "v, normalised target", {}, PLAIN),
    case(denoiser, "U-Net and AMN, epsilon", "U-Net and AMN", "epsilon, target as written", EPSILON, PLAIN),
    case(denoiser, "U-Net and AMN, three levels", "U-Net and AMN", "three levels, context", THREE_LEVELS, PLAIN),
    case(denoiser, "ControlNet", "U-Net and ControlNet", "v, three levels, context", THREE_LEVELS | CONTROLNET, PLAIN),
    case(autoencoder, "KL autoencoder", autoencoder_in_torch),
    case(text, "CLIP text", text_in_torch),
    *(case(resnet, name, name) for name in RESNETS),
    case(
        denoiser,
        "U-Net, diffusers",
        "U-Net",
        "epsilon, three levels, context",
        THREE_LEVELS | EPSILON_ALONE,
        losses_in_diffusers,
        needs=DIFFUSERS,
    ),
    case(
        denoiser,
        "ControlNet, diffusers",
        "U-Net and ControlNet",
        "epsilon, three levels, context",
        THREE_LEVELS | EPSILON | CONTROLNET,
        losses_in_diffusers,
        needs=DIFFUSERS,
    ),
    case(autoencoder, "KL autoencoder, diffusers", autoencoder_in_diffusers, needs=DIFFUSERS),
    Case(lambda: ddim("epsilon, from timestep 901", EPSILON), "DDIM, epsilon", DIFFUSERS),
    Case(lambda: ddim("v, from noise alone", {}), "DDIM, v", DIFFUSERS),
    case(text, "CLIP text, transformers", text_in_transformers, needs=TRANSFORMERS),
)

FULL_SIZE = case(full_size, "sd15")


# ---- table ------------------------------------------------------------------------------------------------


def markdown(rows: list[Row], skipped: list[str]) -> str:
    lines = [
        "# Parity",
        "The core's models beside others' code, every weight random. Errors are relative, by norm; of several outputs, and of",
        "all parameters' gradients, the largest. The others compute in float64, unless a configuration says otherwise. Updates are",
        "compared where the gradient is above a tenth of its parameter's: AdamW divides by it, and makes the rounding of smaller",
        "ones as large as the others'.",
        "",
        "    python benchmarks/parity.py --full-size --markdown docs/PARITY.md",
        "",
        "| model | configuration | what | largest relative error | against |",
        "|---|---|---|---|---|",
        *(f"| {r.model} | {r.config} | {r.what} | {r.error:.1e} | {r.against} |" for r in rows),
    ]
    lines += [f"\nNot run: {', '.join(skipped)}."] if skipped else []
    return "\n".join(lines) + "\n"


def record(row: Row) -> dict:
    """A row as the other benchmarks' records are: the ratio says how many times below its bound an error is."""
    name, ratio = f"{row.model}, {row.config}: {row.what}", evidence.better(row.error, row.bound)
    return evidence.record(name, row.error, "relative error", row.against, row.bound, ratio)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-size", action="store_true", help="sd15 too")
    parser.add_argument("--json", help="write the rows here, as records")
    parser.add_argument("--markdown", help="write the table here")
    a = parser.parse_args(argv)
    rows, skipped, failed = [], [], False
    for case in (*CASES, *([FULL_SIZE] if a.full_size else [])):
        if case.missing:
            skipped.append(f"{case.name} ({', '.join(case.missing)} is not installed)")
            continue
        for row in case.compare():
            rows.append(row)
            failed |= not row.error < row.bound
            print(f"{row.error:.1e}  {row.model}, {row.config}: {row.what}; {row.against}", flush=True)
    if a.markdown:
        write_atomically(a.markdown, markdown(rows, skipped).encode())
    if a.json:
        write_atomically(a.json, (json.dumps([record(row) for row in rows], indent=1) + "\n").encode())
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
