"""What a configuration may hold: the type of every key, the range of every key, and what must hold between keys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .weights.resnet import RESNETS

if TYPE_CHECKING:
    from .config import Config, DiffusionConfig

# What preset may be: the names of PRESETS, which are configurations themselves.
PRESET_NAMES = ("tiny", "demo", "small", "small256", "sd15")
# What continual.strategy may be: see cdad/strategies.
STRATEGIES = ("cdad", "finetune", "joint", "replay", "ewc", "si", "mas", "distill", "without_amn", "without_cdm", "controlnet")

# csrc/python/config.c, csrc/models/models.h, csrc/diffusion/schedule.h
_MOST, _MAX_LEVELS, _MAX_SKIPS, _MAX_TIMESTEPS = 1 << 24, 8, 64, 4096
# By the annotation of a field (of a list, of its entries): how a message calls the type, and whether a value has it.
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", lambda x: isinstance(x, bool)),
    "int": ("int", lambda x: isinstance(x, int) and not isinstance(x, bool)),
    "float": ("float", lambda x: isinstance(x, int | float) and not isinstance(x, bool)),
    "str": ("str", lambda x: isinstance(x, str)),
    "str | float": ("'standardize' or a number", lambda x: isinstance(x, str | int | float) and not isinstance(x, bool)),
}

# Of a value: what is wanted instead, or "".
_Rule = Callable[[Any], str]


def _where(holds: Callable[[Any], bool], wanted: str) -> _Rule:
    return lambda x: "" if holds(x) else wanted


def _from(low: int, high: int = _MOST) -> _Rule:
    return lambda x: f"at least {low}" if x < low else f"at most {high}" if x > high else ""


def _one_of(*allowed: str) -> _Rule:
    return _where(lambda x: x in allowed, f"one of {', '.join(allowed)}")


def _entries(least: int, most: int, low: int) -> _Rule:
    wanted = f"a list of {least} to {most} numbers, each {low} to {_MOST},"
    return _where(lambda x: least <= len(x) <= most and all(low <= item <= _MOST for item in x), wanted)


_anything = _where(lambda x: True, "")
_positive = _where(lambda x: x > 0, "more than 0")
_below_one = _where(lambda x: 0 <= x < 1 - 2.0**-25, "0 <= x < 1, as float32 has it,")  # a decay of 1 never decays
_share = _where(lambda x: 0 <= x <= 1, "0 to 1")

# The range of every key but switches, which have none.
_RULES: dict[str, _Rule] = {
    key: rule
    for rule, keys in (
        (_anything, "autoencoder.weights unet.weights text.weights amn.weights scoring.weights"),
        (_one_of(*PRESET_NAMES), "preset"),
        (_one_of("float32", "bfloat16", "tf32"), "precision"),
        (_one_of("tiny", "dct", "vae"), "autoencoder.kind"),
        (_one_of("as_written", "normalized"), "amn.target"),
        (_one_of("epsilon", "v"), "diffusion.prediction"),
        (_one_of("float32", "bfloat16", "8bit"), "training.moments"),
        (_one_of(*STRATEGIES), "continual.strategy"),
        (_one_of("auto", "exact", "incremental", "sketch", "isvd"), "continual.method"),
        (_one_of("update", "gradient"), "continual.projection"),
        (_one_of("float32", "float16", "bfloat16"), "continual.basis_dtype"),
        (_one_of("auto", "efficientnet_lite0", "autoencoder", *RESNETS), "scoring.backbone"),
        (_one_of("euclidean", "mahalanobis"), "scoring.distance"),
        (_from(1, 65_535), "image_size"),  # as cdad/data resizes images
        (_from(0, (1 << 64) - 1), "seed"),
        (_from(1), "autoencoder.latent_channels autoencoder.downsampling autoencoder.channels autoencoder.num_res_blocks"),
        (_from(1), "unet.model_channels unet.num_res_blocks unet.num_heads unet.norm_groups"),
        (_from(0), "unet.context_dim unet.context_length"),
        (_from(2), "text.vocab_size"),  # it ends with the start and the end of a text
        (_from(1), "text.n_layers text.num_heads text.dim_feedforward amn.n_layers amn.num_heads amn.dim_feedforward"),
        (_from(1), "training.batch_size training.steps training.increment_steps training.accumulate"),
        (_from(0), "training.epochs training.increment_epochs training.warmup"),
        (_from(1), "continual.images continual.replay_images"),
        (_from(0), "continual.memory continual.max_directions"),  # 0: as much, or as many, as it takes
        (_where(all, "a list of names without empty ones"), "continual.frozen"),
        (_from(0), "scoring.memory_bank"),
        (_from(1), "scoring.calibration_images scoring.noise_seeds scoring.batch_size"),
        (_from(2, _MAX_TIMESTEPS), "diffusion.num_train_timesteps"),
        (_from(1), "diffusion.steps"),
        (_from(0), "diffusion.skip diffusion.stop"),
        (_entries(1, _MAX_LEVELS, 1), "unet.channel_mult autoencoder.ch_mult"),
        (_entries(0, _MAX_LEVELS, 1), "unet.attention_resolutions amn.hidden amn.strides"),
        (_entries(1, _MAX_LEVELS, 0), "scoring.layers"),
        (
            _where(
                lambda x: len(x) == 2 and (not any(x) or all(0 < side <= _MOST and side % 2 for side in x)),
                "a list of two odd numbers, or of two zeros,",
            ),
            "amn.neighbor",
        ),
        (
            # A latent's spread: one beyond these is a slip, and would leave float32 where latents are divided by it.
            _where(lambda x: x == "standardize" or not isinstance(x, str) and 1e-6 <= x <= 1e6, "'standardize' or 1e-06 to 1e+06"),
            "autoencoder.shift_scale",
        ),
        (_positive, "diffusion.beta_start diffusion.beta_end training.lr training.eps continual.si_damping"),
        (_where(lambda x: x >= 0, "at least 0"), "training.increment_lr training.weight_decay training.clip_norm continual.strength continual.tether"),
        (_share, "training.decay training.perturb_share training.timestep_focus continual.importance_decay scoring.top"),
        (_below_one, "training.beta1 training.beta2 training.ema_decay training.light"),
        (_where(lambda x: 0 < x <= 1, "0 < x <= 1"), "continual.gamma continual.free_gamma continual.max_rank_share"),
        (_where(lambda x: 0 < x < 1, "0 < x < 1"), "continual.replay_share"),
        (_where(lambda x: 0 <= x <= 64, "0 to 64, a quarter of an image,"), "scoring.sigma"),  # time grows with it
    )
    for key in keys.split()
}


def check(config: Config) -> None:
    """Raise ValueError, naming the key, its value and what is wanted, where a configuration cannot work."""
    for f in fields(config):
        section = getattr(config, f.name)
        if f.default_factory is dataclasses.MISSING:
            _check_value(f.name, section, f.type)
            continue
        if not isinstance(section, f.default_factory):
            raise ValueError(f"{f.name}: a {f.type} is wanted, not {section!r}")
        for key in fields(section):
            _check_value(f"{f.name}.{key.name}", getattr(section, key.name), key.type)
    for holds, message in _relations(config):
        if not holds:
            raise ValueError(message)


def _check_value(key: str, value: Any, annotation: str) -> None:
    called, fits = _TYPES[annotation.removeprefix("tuple[").split(",")[0]]
    shown = list(value) if isinstance(value, tuple) else value
    if annotation.startswith("tuple["):
        if not (isinstance(value, list | tuple) and all(map(fits, value))):
            raise ValueError(f"{key}: a list of {called} is wanted, not {shown!r}")
    elif not fits(value):
        raise ValueError(f"{key}: {called} is wanted, not {shown!r}")
    # NaN is in no range. The core computes in float32, in which other numbers are infinite or 0.
    if "float" in annotation and not isinstance(value, str) and value != 0 and not 2.0**-126 <= abs(value) < 2.0**128:
        raise ValueError(f"{key} is {value!r}; a finite number, of float32's range, is wanted")
    wanted = annotation != "bool" and _RULES[key](value)
    if wanted:
        raise ValueError(f"{key} is {shown!r}; {wanted} is wanted")


def _relations(config: Config) -> Iterator[tuple[bool, str]]:
    """What must hold between keys that are of their type and range: whether it does, and what is said where it does not."""
    a, u, amn, d, t, c, s = (
        config.autoencoder, config.unet, config.amn, config.diffusion, config.training, config.continual, config.scoring
    )  # fmt: skip

    # The autoencoder
    if a.kind == "dct":
        yield a.downsampling <= 64, f"autoencoder.downsampling is {a.downsampling}; at most 64 is wanted of the kind 'dct'"
        most = 3 * a.downsampling**2
        yield a.latent_channels <= most, f"autoencoder.latent_channels is {a.latent_channels}; at most 3 downsampling^2 = {most} is wanted"
    else:
        factor, why = (8, "of the kind 'tiny'") if a.kind == "tiny" else (1 << (len(a.ch_mult) - 1), "by autoencoder.ch_mult")
        yield a.downsampling == factor, f"autoencoder.downsampling is {a.downsampling}; {factor} is wanted {why}"
    if a.kind == "vae":
        yield a.channels % 32 == 0, f"autoencoder.channels is {a.channels}; a multiple of 32 is wanted of the kind 'vae'"

    # The U-Net
    levels = len(u.channel_mult)
    factor = a.downsampling << (levels - 1)
    yield config.image_size % factor == 0, f"image_size is {config.image_size}; a multiple of {factor} is wanted"
    yield (
        levels * (u.num_res_blocks + 1) <= _MAX_SKIPS,
        f"unet.num_res_blocks is {u.num_res_blocks}; at most {_MAX_SKIPS // levels - 1} is wanted for {levels} levels",
    )
    yield u.model_channels % 2 == 0, f"unet.model_channels is {u.model_channels}; an even number is wanted"
    yield (
        u.model_channels % u.norm_groups == 0,
        f"unet.norm_groups is {u.norm_groups}; a divisor of unet.model_channels = {u.model_channels} is wanted",
    )
    # What is deeper than the network is let through where all of its levels attend: a whole network's list, of its first levels.
    there, attending = {1 << level for level in range(levels)}, set(u.attention_resolutions)
    yield (
        attending <= there or there <= attending <= {1 << level for level in range(_MAX_LEVELS)},
        f"unet.attention_resolutions is {list(u.attention_resolutions)}; some of {sorted(there)}, by unet.channel_mult, is wanted",
    )
    for level, mult in enumerate(u.channel_mult):
        if 1 << level in attending or level == levels - 1:  # the middle block always attends
            width = mult * u.model_channels
            yield width % u.num_heads == 0, f"unet.num_heads is {u.num_heads}; a divisor of {width}, the width of a level, is wanted"
    if u.context_dim > 0:
        yield u.context_length > 0, f"unet.context_length is 0; at least 1 is wanted for unet.context_dim = {u.context_dim}"
        yield (
            not config.text.weights or u.context_dim % config.text.num_heads == 0,
            f"text.num_heads is {config.text.num_heads}; a divisor of unet.context_dim = {u.context_dim} is wanted",
        )

    # What the U-Net is told
    if config.condition != "none":
        yield (
            len(amn.strides) == len(amn.hidden),
            f"amn.strides is {list(amn.strides)}; {len(amn.hidden)} entries, as many as amn.hidden has, is wanted",
        )
        side = config.image_size
        for stride in amn.strides:
            side = -(-side // stride)
        yield (
            side == config.latent_size,
            f"amn.strides is {list(amn.strides)}, which turns {config.image_size} pixels into {side}; {config.latent_size} is wanted",
        )
    if config.condition == "amn":
        yield u.model_channels % 4 == 0, f"unet.model_channels is {u.model_channels}; a multiple of 4 is wanted by the masked network"
        yield (
            u.model_channels % amn.num_heads == 0,
            f"amn.num_heads is {amn.num_heads}; a divisor of unet.model_channels = {u.model_channels} is wanted",
        )

    # Diffusion
    yield (
        not (d.zero_terminal_snr and d.prediction == "epsilon"),
        "diffusion.zero_terminal_snr wants diffusion.prediction 'v': noise alone tells nothing of x0",
    )
    yield (
        d.steps < d.num_train_timesteps,
        f"diffusion.steps is {d.steps}; less than diffusion.num_train_timesteps = {d.num_train_timesteps} is wanted",
    )
    yield d.skip < d.steps, f"diffusion.skip is {d.skip} of {d.steps} steps; less is wanted"
    yield (
        d.stop <= d.steps - d.skip,
        f"diffusion.stop is {d.stop} of {d.steps} steps; at most {d.steps - d.skip}, those that are not skipped, is wanted",
    )
    yield (
        d.beta_start <= d.beta_end < 1,
        f"diffusion.beta_start is {d.beta_start} and beta_end {d.beta_end}; 0 < beta_start <= beta_end < 1 is wanted",
    )
    signal = _signal(d)
    yield (
        d.prediction == "v" or signal > 2.0**-23,
        f"diffusion.beta_end is {d.beta_end}; less is wanted of diffusion.prediction 'epsilon': sampling would begin without a signal",
    )
    yield not d.zero_terminal_snr or signal < 1, f"diffusion.beta_end is {d.beta_end}; more is wanted: there would be no noise"

    # Training
    yield (
        t.batch_size % t.accumulate == 0,
        f"training.accumulate is {t.accumulate}; a divisor of training.batch_size = {t.batch_size} is wanted",
    )
    yield (
        c.max_rank_share == 1 or c.method != "isvd",
        "continual.max_rank_share wants another continual.method: 'isvd' forgets energies",
    )
    yield (
        c.max_directions == 0 or c.method != "isvd" or c.strategy not in ("cdad", "controlnet") or c.projection == "gradient" or c.free_gamma == 1,
        f"continual.max_directions is {c.max_directions}; 0 is wanted of continual.method 'isvd', which forgets energies",
    )
    yield (
        c.strategy != "replay" or t.batch_size >= 2,
        "continual.strategy 'replay' wants training.batch_size >= 2: old and new images in a batch",
    )

    # Scores
    if s.backbone in RESNETS:
        yield bool(s.weights), f"scoring.weights: the backbone {s.backbone!r} wants the file of its weights"
    last = 4 if s.backbone in RESNETS else 2
    yield max(s.layers) <= last, f"scoring.layers is {list(s.layers)}; 0 to {last} each is wanted of the backbone {s.backbone!r}"
    if s.backbone == "autoencoder" and a.kind != "tiny":
        yield 0 in s.layers, f"scoring.layers is {list(s.layers)}; 0 among them is wanted: an autoencoder {a.kind!r} has no other layer"


def _signal(d: DiffusionConfig) -> float:
    """What the noisiest timestep that is used leaves of the signal, before ``zero_terminal_snr`` takes that from the last one."""
    n = d.num_train_timesteps
    low, high = math.sqrt(d.beta_start), math.sqrt(d.beta_end)
    first = n - 1 if d.zero_terminal_snr else (d.steps - d.skip - 1) * (n // d.steps) + 1
    return math.sqrt(math.prod(1 - (low + (high - low) * i / (n - 1)) ** 2 for i in range(first + 1)))
