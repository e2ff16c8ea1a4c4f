"""Configurations: frozen records, presets, and TOML in and out.

A `Config` holds everything that fixes a run apart from the images. Sections are dataclasses; an unknown key is
an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .config_checks import check


@dataclass(frozen=True)
class AutoencoderConfig:
    """The frozen autoencoder E, D.

    ``kind``: "tiny" (TAESD family), "dct" (a fixed transform that needs no weights) or "vae" (LDM's KL autoencoder).
    ``weights``: files to load ("tiny": encoder, decoder; "vae": one file or folder that holds it, docs/WEIGHTS.md). ``shift_scale``: "standardize" measures
    mean and spread a latent channel on the first task; a number is a fixed scale (0.18215 for Stable Diffusion).
    ``latent_channels``: of a latent, each of whose places stands for ``downsampling`` x ``downsampling`` pixels. ``channels``: the
    width of "tiny" and "vae"; ``midblock``: of "tiny", taef2 has it and TAESD has not; ``ch_mult``, ``num_res_blocks``: the levels
    of "vae".
    """

    kind: str = "dct"
    weights: tuple[str, ...] = ()
    latent_channels: int = 32
    downsampling: int = 8
    channels: int = 64
    midblock: bool = True
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    shift_scale: str | float = "standardize"


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser (Stable Diffusion 1.x's U-Net). ``context_dim`` 0: no cross-attention; else the width of the context,
    ``context_length`` tokens that the text encoder gives (`TextConfig`). ``weights``: a file or folder that holds it
    (docs/WEIGHTS.md), from which training starts; ``ema``: its moving averages, where the file has them. ``model_channels`` times
    ``channel_mult`` are the widths of its levels, each of half the side of the one before, with ``num_res_blocks`` blocks; those
    levels attend whose downsampling of the latent (1, 2, 4, ...) is in ``attention_resolutions``, with ``num_heads``.
    ``norm_groups``: of its norms."""

    model_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 3)
    num_res_blocks: int = 1
    attention_resolutions: tuple[int, ...] = (1, 2)
    num_heads: int = 4
    context_dim: int = 0
    context_length: int = 0
    norm_groups: int = 32
    weights: str = ""
    ema: bool = False


@dataclass(frozen=True)
class TextConfig:
    """The text encoder (CLIP ViT-L/14's by default), whose embedding of the empty prompt is the context where
    ``unet.context_dim`` is not 0: computed once, when a model is made, and kept in its checkpoints. ``weights``: its file,
    alone or within a whole checkpoint of Stable Diffusion 1.x; the others are its sizes."""

    weights: str = ""
    vocab_size: int = 49408
    n_layers: int = 12
    num_heads: int = 12
    dim_feedforward: int = 3072


@dataclass(frozen=True)
class AMNConfig:
    """The anomaly-masked network (paper, section 3.3). ``target`` "as_written" is Eq. 12; "normalized" takes a
    normalised target without a gradient, which does not collapse when training from scratch. ``weights``: a checkpoint of
    the authors' code that holds the network, from which training starts. ``enabled``: false takes the network away, an
    ablation: the denoiser has no condition and its loss no L_amn. ``hidden``, ``strides``: of the convolutions that read the image;
    ``n_layers``, ``num_heads``, ``dim_feedforward``: of the transformer after them, in which no place sees the window ``neighbor``
    around it (odd sides, in places of the latent; [0, 0]: it sees all). ``keep_variance``: initial values of the convolutions for
    training from scratch."""

    enabled: bool = True
    hidden: tuple[int, ...] = (16, 16, 32, 32, 96, 96, 256)
    strides: tuple[int, ...] = (1, 1, 2, 1, 2, 1, 2)
    n_layers: int = 4
    num_heads: int = 8
    dim_feedforward: int = 256
    neighbor: tuple[int, int] = (7, 7)
    keep_variance: bool = True
    target: str = "normalized"
    weights: str = ""


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule, prediction type and sampler.

    ``num_train_timesteps``, ``beta_start``, ``beta_end``: the schedule, Stable Diffusion's by default. ``prediction``: of the U-Net,
    "v" or "epsilon", the noise. ``steps``: of the sampler (DDIM).
    ``zero_terminal_snr``: the last timestep is noise alone, and sampling starts there (Lin et al. 2024); without it x0
    as predicted from that timestep carries a tenth of the noise. ``skip``: noisiest sampling steps to leave out.
    ``stop``: run so many steps and take the x0 predicted there; 0 runs all, as the paper does. A model trained from
    scratch draws a cleaner normal image in one step (its posterior mean) than in ten, at a tenth of the cost, or a fifth where
    it is ``mirrored``: benchmarks/RESULTS.md. ``mirrored``: where ``stop`` is not 0, take the mean of what is predicted from a noise and
    from its negative (antithetic variates): what the network lets through of its input noise cancels to first order.
    """

    prediction: str = "v"
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = True
    steps: int = 10
    skip: int = 0
    stop: int = 1
    mirrored: bool = True

    @property
    def evaluations(self) -> int:
        """Of the U-Net for an image's drawing."""
        return (self.stop or self.steps - self.skip) * (2 if self.stop and self.mirrored else 1)


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation. ``batch_size``: images of a step. ``steps`` / ``increment_steps``: training steps of the first task / of a later one, for each
    class of the task. ``epochs`` / ``increment_epochs``: passes over the task's images instead, where they are not 0:
    as many steps of whole batches, of which "replay" fills a part with old images.
    ``lr`` / ``increment_lr``: the learning rate of the first task / of later ones; ``beta1``, ``beta2``, ``eps``, ``weight_decay``:
    AdamW's others. ``ema_decay``: of a moving average of the weights, which draws in their place, at step t of a task no more than
    t / (9 + t), so that it is of that task's steps however few they are; 0: none.
    ``warmup``: steps of linear warm-up of the learning rate; ``decay``: the share of a task's
    steps, at its end, over which it falls to zero by a cosine. ``clip_norm``: the largest norm of the whole gradient; 0
    does not clip, and each gradient is used as soon as it is there, which saves the memory of all of them (as much as
    the weights take). ``recompute``: the backward pass runs the networks' blocks again instead of keeping their activations
    (gradient checkpointing, Chen et al. 2016): the same bits in a quarter more time, and a seventh of the activations' memory
    for "sd15" at its batch of 12. ``accumulate``: the equal parts in which a step runs its batch, for the activations of one
    part at a time; their gradients are added up, and so are held all at once, whatever ``clip_norm`` says. Losses are means
    over the whole batch, a sample's noise does not depend on the part, and results differ by rounding alone.
    ``moments``: how AdamW's are kept: "float32", 8 bytes a weight; "bfloat16", the first one in half of
    that; "8bit", both, by blocks (Dettmers et al. 2022), 2 bytes a weight, but for parameters of less than 4096 elements.
    ``timestep_focus``: the share of training timesteps drawn from the noise levels that the sampler visits; the others are
    uniform. ``perturb_share``: of the training images, that are perturbed for the condition (NSA). ``light``: by how much of
    themselves the brightness and the contrast of training images vary, so that a model draws a part under the light in which
    it is shown."""

    batch_size: int = 8
    steps: int = 800
    increment_steps: int = 800
    epochs: int = 0
    increment_epochs: int = 0
    lr: float = 4e-4
    increment_lr: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    moments: str = "float32"
    recompute: bool = False
    accumulate: int = 1
    ema_decay: float = 0.0
    warmup: int = 50
    decay: float = 0.5
    perturb_share: float = 0.5
    light: float = 0.15
    timestep_focus: float = 0.8

    def task_steps(self, index: int, n_classes: int, n_images: int) -> int:
        """Steps of the task ``index`` (0: the first) of so many classes with so many training images in all."""
        epochs = self.increment_epochs if index else self.epochs
        if epochs:
            return epochs * -(-n_images // self.batch_size)
        return (self.increment_steps if index else self.steps) * n_classes


@dataclass(frozen=True)
class ContinualConfig:
    """What is done against forgetting (cdad/strategies). ``strategy``: "cdad", the paper's; "finetune" or "without_cdm",
    nothing; "joint"; "replay"; "ewc"; "si"; "mas"; "distill"; "without_amn", the paper's without its condition;
    "controlnet", the paper's with a ControlNet for its condition.

    Significant representations (paper, Eqs. 6 to 9): ``method``: how features are accumulated: "exact", "incremental",
    "sketch", "isvd" (the published rule), or "auto", which is "exact" for layers of width up to 4096 unless ``gamma`` is so
    close to 1 that it could not tell, and else chooses by width and number of features, all within ``memory`` MiB (0: no bound)
    (`_core.Collector.plan` shows it). ``gamma``: the share of the energy that bases keep; ``projection``: "update" (default)
    or "gradient" (the paper's text). ``free_gamma``: of "update": the share of the energy of a new task's features that the
    bases and the directions in which it may move weights hold together; 1: it may use every direction off the bases. ``images``: images of each class that the representations are collected on: of too
    few, the basis misses directions that other normal images of the same class use, and nothing keeps later tasks from
    changing what is done with them (benchmarks/RESULTS.md). "ewc" and "mas" measure importances on as many.
    ``max_rank_share``: no basis grows beyond this share of its width; of a task's new directions those with the most energy
    stay, and the ledger tells what the others held. ``max_directions``: a new task may move a weight in so many directions at most,
    those that its features have the most energy in beside the bases (0: in as many as ``free_gamma`` asks for; where that is 1,
    under "gradient" and without a condition nothing is counted); what it learns with then grows with this, not with the width, as an adapter's rank does, and so
    does what projection costs. ``basis_dtype``: "float32", "float16" or "bfloat16", of the bases in
    checkpoints; what is used is what a checkpoint gives back. ``frozen``: parts of the networks, by the beginnings of their
    weights' names up to a dot, that "cdad" trains in the first task alone: they get no bases, and later tasks no gradients there. With
    "amn" among them nothing is differentiated below the U-Net's output blocks, and an increment takes two thirds of the time. ``tether``: of
    "cdad": after each step of a later task, what it moves goes back towards what it was when the task began, by the learning rate times
    so much of the way (Li et al. 2018, L2-SP, decoupled as AdamW's decay is), and the U-Net's last layer by ten times as much; 0:
    nothing does.

    ``strength``: of the penalty of "ewc" (lambda), "si" (c), "mas" (lambda), or of the term of "distill".
    ``importance_decay``: what is kept of earlier importances when a task's are added (1: all). ``si_damping``: xi of "si".
    ``replay_images``: stored images a class, ``replay_share``: of a batch, of "replay"."""

    strategy: str = "cdad"
    method: str = "auto"
    memory: int = 8192
    gamma: float = 0.99
    projection: str = "update"
    free_gamma: float = 0.999
    images: int = 64
    max_rank_share: float = 1.0
    max_directions: int = 0
    basis_dtype: str = "float32"
    frozen: tuple[str, ...] = ("unet.time_embed", "unet.input_blocks", "unet.middle_block")
    tether: float = 5.0
    strength: float = 1.0
    importance_decay: float = 1.0
    si_damping: float = 1e-3
    replay_images: int = 20
    replay_share: float = 0.5


@dataclass(frozen=True)
class ScoringConfig:
    """Anomaly maps (paper, Eqs. 1 and 2). ``backbone``: "resnet18", "resnet34", "resnet50" (the paper's), "resnet101",
    "wide_resnet50_2", "efficientnet_lite0", "autoencoder" (the autoencoder's own features) or "auto" (EfficientNet-Lite0
    where its weights are installed, else the autoencoder). ``weights``: the file of the backbone's weights, which a ResNet
    wants (torchvision's or timm's); "": those that are installed. ``layers``: of the backbone's features, finest first; of
    a ResNet 0 to 3 are layer1 to layer4, and 4 is the stem. ``sigma``: Gaussian smoothing in pixels at
    256 pixels image size. ``top``: the share of a map's pixels, the highest, whose mean is the image's score; 0 gives
    the map's maximum, the paper's score. ``subtract_median``: from an image's score, its map's median: what most of an image
    shares is another light or camera, not a defect. ``calibrate``: compare maps with those of the class's normal training images.
    ``distance``: of features, "euclidean", the paper's, or "mahalanobis", which weighs the features' directions by how far
    apart in them the class's normal training images and their drawings are; it wants ``calibrate``.
    ``memory_bank``: of each class so many normal features are kept (a PatchCore's coreset), whose distance from an image's own
    features counts as much as that of what is drawn, and which later tasks do not change; it wants ``calibrate``. 0: none, as the
    paper's maps. ``noise_seeds``: draws whose distances are averaged. ``calibration_images``: normal images of each class.
    ``batch_size``: images that are drawn and compared at once."""

    backbone: str = "auto"
    weights: str = ""
    layers: tuple[int, ...] = (0, 1, 2)
    sigma: float = 5.0
    top: float = 0.1
    subtract_median: bool = True
    calibrate: bool = True
    distance: str = "mahalanobis"
    memory_bank: int = 2048
    calibration_images: int = 64
    noise_seeds: int = 1
    batch_size: int = 8


@dataclass(frozen=True)
class Config:
    """A whole run. `PRESETS` holds the ready ones; ``updated(PAPER_RECIPE)`` gives the paper's text where the default
    parts from it (docs/PITFALLS.md). ``preset``: what it began as. ``image_size``: the side, in pixels, to which images are resized.
    ``seed``: of first weights, noise and order. ``precision``: "bfloat16" rounds the factors of the denoiser's linear maps and
    convolutions to bfloat16 and, on a CUDA device, its attention's, in training and sampling, and sums in float32; weights and all
    else stay float32. "tf32" lets a CUDA device round factors to TF32, in all networks, and so does "bfloat16" for what it leaves; the
    CPU then computes in float32. Where either rounds, so it does with updates of confined weights, within the directions that these
    may take."""

    preset: str = "small"
    image_size: int = 128
    precision: str = "float32"
    seed: int = 0
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    text: TextConfig = field(default_factory=TextConfig)
    amn: AMNConfig = field(default_factory=AMNConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    continual: ContinualConfig = field(default_factory=ContinualConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)

    def __post_init__(self) -> None:
        for f in fields(self):  # a list is no key of a set or dict, which a configuration can be
            section = getattr(self, f.name)
            if dataclasses.is_dataclass(section):
                values = {key.name: getattr(section, key.name) for key in fields(section)}
                if lists := {name: tuple(value) for name, value in values.items() if isinstance(value, list)}:
                    object.__setattr__(self, f.name, replace(section, **lists))
        check(self)

    @property
    def tf32(self) -> bool:
        """Whether a GPU may round factors to TF32 where nothing else says how."""
        return self.precision != "float32"

    @property
    def latent_size(self) -> int:
        """Side of a latent in elements."""
        return self.image_size // self.autoencoder.downsampling

    @property
    def condition(self) -> str:
        """By what the denoiser is told of the image: "amn", "controlnet" or "none"."""
        if self.continual.strategy == "controlnet":
            return "controlnet"
        return "amn" if self.amn.enabled and self.continual.strategy != "without_amn" else "none"

    def denoiser(self) -> dict[str, Any]:
        """The denoiser's configuration as the core takes it."""
        unet, amn, diffusion = self.unet, self.amn, self.diffusion
        return {
            "image_size": [self.image_size, self.image_size],
            "latent_size": [self.latent_size, self.latent_size],
            "context_length": unet.context_length,
            "prediction": diffusion.prediction,
            "amn_target": amn.target,
            "precision": self.precision,
            "num_train_timesteps": diffusion.num_train_timesteps,
            "beta_start": diffusion.beta_start,
            "beta_end": diffusion.beta_end,
            "zero_terminal_snr": diffusion.zero_terminal_snr,
            "focus": self.training.timestep_focus,
            "focus_low": self.lowest_sampled_timestep,
            "unet": {
                "in_channels": self.autoencoder.latent_channels,
                "out_channels": self.autoencoder.latent_channels,
                "model_channels": unet.model_channels,
                "channel_mult": list(unet.channel_mult),
                "num_res_blocks": unet.num_res_blocks,
                "attention_resolutions": list(unet.attention_resolutions),
                "num_heads": unet.num_heads,
                "context_dim": unet.context_dim,
                "norm_groups": unet.norm_groups,
            },
            "amn": {
                "channels": unet.model_channels,
                "hidden": list(amn.hidden),
                "strides": list(amn.strides),
                "n_layers": amn.n_layers,
                "num_heads": amn.num_heads,
                "dim_feedforward": amn.dim_feedforward,
                "neighbor": list(amn.neighbor),
                "keep_variance": amn.keep_variance,
            }
            if self.condition == "amn"
            else None,
            # Zhang et al.'s hint block, with the widths and strides that E_lo took over from it
            "controlnet": {
                "hidden": list(amn.hidden),
                "strides": list(amn.strides),
                "keep_variance": amn.keep_variance,
            }
            if self.condition == "controlnet"
            else None,
        }

    @property
    def lowest_sampled_timestep(self) -> int:
        """Half a stride below the last timestep that the sampler visits: it goes down by T / steps."""
        d = self.diffusion
        stride = d.num_train_timesteps // d.steps
        last = d.steps - d.skip - d.stop if d.stop else 0
        visited = (last + 1) * d.num_train_timesteps // d.steps - 1 if d.zero_terminal_snr else last * stride + 1
        return max(0, visited - stride // 2)

    def optimizer(self) -> dict[str, Any]:
        """The optimiser's configuration as the core takes it."""
        t = self.training
        return {
            "lr": t.lr,
            "beta1": t.beta1,
            "beta2": t.beta2,
            "eps": t.eps,
            "weight_decay": t.weight_decay,
            "clip_norm": t.clip_norm,
            "ema_decay": t.ema_decay,
            "projection": self.continual.projection,
            "moments": t.moments,
        }

    def batching(self) -> dict[str, Any]:
        """How a training step goes through its batch, as the core's trainer takes it."""
        return {"accumulate": self.training.accumulate, "recompute": self.training.recompute}

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values (tuples as lists), fit for JSON and TOML."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, whole: bool = False) -> Config:
        """The inverse of `to_dict`; missing keys take their defaults, unknown ones raise ValueError. ``whole``: every key was there
        that the build knew which wrote it: what is missing is newer, and stands for what that build did."""
        return _build(cls, _completed(_renamed(values)) if whole else _renamed(values), "config")

    def updated(self, changes: dict[str, Any]) -> Config:
        """A copy with dotted keys replaced, e.g. ``{"training.lr": 1e-4, "seed": 3}``. A table for a section, as in
        ``{"training": {"lr": 1e-4}}``, changes the keys that it names."""
        tree = self.to_dict()
        for key, value in changes.items():
            value = _plain(value)
            *sections, last = key.split(".")
            node = tree
            for name in sections:
                if not isinstance(node.get(name), dict):
                    raise ValueError(f"unknown key {key!r}{_nearest(name, node)}")
                node = node[name]
            if last not in node:
                raise ValueError(f"unknown key {key!r}{_nearest(last, node)}")
            whole = isinstance(node[last], dict) and isinstance(value, dict)
            node[last] = node[last] | {name: _plain(item) for name, item in value.items()} if whole else value
        return Config.from_dict(tree)

    def to_toml(self) -> str:
        """The configuration as a TOML document."""
        lines, sections = [], []
        for key, value in self.to_dict().items():
            if isinstance(value, dict):
                sections.append(f"\n[{key}]")
                sections += [f"{name} = {_toml_value(item)}" for name, item in value.items()]
            else:
                lines.append(f"{key} = {_toml_value(value)}")
        return "\n".join(lines + sections) + "\n"

    @classmethod
    def from_toml(cls, path: str | os.PathLike, *, whole: bool = False, base: Config | None = None) -> Config:
        """Read a TOML file. A ``preset`` key names the preset that the other keys change. ``whole``: as in `from_dict`. ``base``: what
        they change instead, and of that preset; ValueError where the file names another one."""
        try:
            values = tomllib.loads(Path(path).read_text("utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error
        if base is None:
            base = preset(values.pop("preset", "small"))
        elif (name := values.pop("preset", "small")) != base.preset:
            raise ValueError(f"{os.fspath(path)}: its preset is {name!r}, and what it goes on with has {base.preset!r}")
        flat = {}
        for key, value in (_completed(_renamed(values)) if whole else _renamed(values)).items():
            if isinstance(value, dict):
                flat.update({f"{key}.{name}": item for name, item in value.items()})
            else:
                flat[key] = value
        return base.updated(flat)


# What checkpoints and runs of earlier versions call a key.
_OLD_NAMES = {"training": {"first_moment": "moments"}}
# What they did where they have no such key, and today's default is another.
_BEFORE = {"continual": {"frozen": [], "tether": 0.0, "max_directions": 0}, "scoring": {"memory_bank": 0}}


def _renamed(values: Any) -> Any:
    """The table with today's names of its keys."""
    if not isinstance(values, dict):
        return values
    return {
        section: {_OLD_NAMES.get(section, {}).get(key, key): item for key, item in value.items()}
        if isinstance(value, dict)
        else value
        for section, value in values.items()
    }


def _completed(values: Any) -> Any:
    """The table of an earlier version with the keys that it had none of."""
    if not isinstance(values, dict):
        return values
    return {section: _BEFORE.get(section, {}) | value if isinstance(value, dict) else value for section, value in values.items()}


def _toml_value(value: Any) -> str:
    # JSON's scalars and arrays are TOML's; floats keep a point so that they come back as floats. Of text, TOML knows no pairs of
    # surrogates, and wants one more character escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    """Python's own of NumPy's, as sweeps give them, and of paths."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _nearest(name: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: a table is wanted, not {values!r}")
    known = {f.name: f for f in fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{_nearest(key, known)}")
        default = known[key].default_factory() if known[key].default is dataclasses.MISSING else known[key].default
        arguments[key] = _convert(value, default, f"{where}.{key}")
    return cls(**arguments)


def _convert(value: Any, default: Any, where: str) -> Any:
    """What lists and whole numbers become where a tuple or a float stands; all else is left to `check`."""
    if dataclasses.is_dataclass(default):
        return _build(type(default), value, where)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(default, float) and type(value) is int and abs(value) < 1 << 127:
        return float(value)
    return value


_TINY = Config(
    preset="tiny",
    image_size=64,
    autoencoder=AutoencoderConfig(kind="dct", latent_channels=16, downsampling=8),
    unet=UNetConfig(model_channels=32, channel_mult=(1, 2), attention_resolutions=(1,), num_heads=2, norm_groups=8),
    amn=AMNConfig(hidden=(16, 16, 16, 32, 32, 64, 64), n_layers=2, num_heads=4, dim_feedforward=64, neighbor=(3, 3)),
    training=TrainingConfig(batch_size=8, steps=60, increment_steps=60, lr=1e-3, increment_lr=1e-3, warmup=10),
    continual=ContinualConfig(images=4, frozen=(), tether=0.0),
    scoring=ScoringConfig(calibration_images=8),
)

_SMALL = Config()

# What the demo trains: small pictures, so that two whole runs end within minutes on two cores.
_DEMO = replace(
    _TINY,
    preset="demo",
    autoencoder=AutoencoderConfig(kind="dct", latent_channels=32, downsampling=8),
    image_size=128,
    continual=ContinualConfig(frozen=(), tether=0.0),
    unet=UNetConfig(model_channels=48, channel_mult=(1, 2), attention_resolutions=(1, 2), num_heads=3, norm_groups=16),
    amn=AMNConfig(hidden=(16, 16, 16, 32, 32, 64, 96), n_layers=3, num_heads=4, dim_feedforward=128),
    training=TrainingConfig(batch_size=8, steps=160, increment_steps=160, lr=1e-3, increment_lr=1e-3),
)

_SD15 = Config(
    preset="sd15",
    image_size=256,
    autoencoder=AutoencoderConfig(kind="vae", latent_channels=4, channels=128, shift_scale=0.18215),
    unet=UNetConfig(
        model_channels=320,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        attention_resolutions=(1, 2, 4),
        num_heads=8,
        context_dim=768,
        context_length=77,
    ),
    amn=AMNConfig(n_layers=8, dim_feedforward=1025, keep_variance=False, target="as_written"),
    diffusion=DiffusionConfig(prediction="epsilon", zero_terminal_snr=False, stop=0),
    training=TrainingConfig(
        batch_size=12,
        lr=1e-5,
        increment_lr=1e-5,
        clip_norm=0.0,
        recompute=True,
        warmup=0,
        decay=0.0,
        timestep_focus=0.0,
        light=0.0,
    ),
    continual=ContinualConfig(frozen=(), tether=0.0, max_directions=1024),
    scoring=ScoringConfig(memory_bank=0),
)

PRESETS: dict[str, Config] = {
    "tiny": _TINY,
    "demo": _DEMO,
    "small": _SMALL,
    "small256": replace(_SMALL, preset="small256", image_size=256),
    "sd15": _SD15,
}


# The paper's text, key by key, where the default parts from it.
PAPER_RECIPE: dict[str, Any] = {
    "amn.target": "as_written",
    "amn.keep_variance": False,
    "diffusion.prediction": "epsilon",
    "diffusion.zero_terminal_snr": False,
    "diffusion.stop": 0,
    "diffusion.mirrored": False,
    "training.timestep_focus": 0.0,
    "training.light": 0.0,
    "continual.method": "isvd",
    "continual.gamma": 0.999,
    "continual.projection": "gradient",
    "continual.max_directions": 0,
    "continual.frozen": (),
    "continual.tether": 0.0,
    "scoring.calibrate": False,
    "scoring.distance": "euclidean",
    "scoring.memory_bank": 0,
    "scoring.top": 0.0,
    "scoring.subtract_median": False,
}


def preset(name: str) -> Config:
    """The preset of that name: "tiny" (CI), "demo" (what `cdad demo` trains), "small" and "small256" (what a laptop trains),
    "sd15" (the paper's sizes)."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}{_nearest(name, PRESETS)}")
    return PRESETS[name]
