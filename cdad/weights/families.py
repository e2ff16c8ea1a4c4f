"""What a weight file holds: the families of models, and their names elsewhere beside the originals.

The core keeps the originals' names (CompVis' for Stable Diffusion, torchvision's for ResNet). A table a family turns the
names of diffusers and transformers into them; which one a file uses is seen by its tensors' names alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

# In a table a name is a pattern; its replacement is a template, or a function of the match and of the number of
# residual blocks a level (diffusers) or of levels, from which the originals' block numbers follow.
Table = tuple[tuple[str, str | Callable[[re.Match, int], str]], ...]

_RES_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _res(match: re.Match) -> str:
    return _RES_BLOCK.get(match["inner"], match["inner"])


_RESNET_BLOCK = r"resnets\.(?P<j>\d+)\.(?P<inner>\w+)\.(?P<end>weight|bias)"
_TRANSFORMER = r"attentions\.(?P<j>\d+)\.(?P<rest>.+)"

# UNet2DConditionModel, and the encoder of ControlNetModel. n is the number of residual blocks a level.
_UNET: Table = (
    (r"conv_in\.(?P<end>\w+)", r"input_blocks.0.0.\g<end>"),
    (r"time_embedding\.linear_(?P<i>[12])\.(?P<end>\w+)", lambda m, n: f"time_embed.{2 * int(m['i']) - 2}.{m['end']}"),
    (rf"down_blocks\.(?P<i>\d+)\.{_RESNET_BLOCK}", lambda m, n: f"input_blocks.{_down(m, n)}.0.{_res(m)}.{m['end']}"),
    (rf"down_blocks\.(?P<i>\d+)\.{_TRANSFORMER}", lambda m, n: f"input_blocks.{_down(m, n)}.1.{m['rest']}"),
    (
        r"down_blocks\.(?P<i>\d+)\.downsamplers\.0\.conv\.(?P<end>\w+)",
        lambda m, n: f"input_blocks.{(int(m['i']) + 1) * (n + 1)}.0.op.{m['end']}",
    ),
    (rf"mid_block\.{_RESNET_BLOCK}", lambda m, n: f"middle_block.{2 * int(m['j'])}.{_res(m)}.{m['end']}"),
    (r"mid_block\.attentions\.0\.(?P<rest>.+)", r"middle_block.1.\g<rest>"),
    (rf"up_blocks\.(?P<i>\d+)\.{_RESNET_BLOCK}", lambda m, n: f"output_blocks.{_up(m, n)}.0.{_res(m)}.{m['end']}"),
    (rf"up_blocks\.(?P<i>\d+)\.{_TRANSFORMER}", lambda m, n: f"output_blocks.{_up(m, n)}.1.{m['rest']}"),
    # Behind a block without attention the upsampling is module 1, else 2: `_rename` sees which.
    (
        r"up_blocks\.(?P<i>\d+)\.upsamplers\.0\.conv\.(?P<end>\w+)",
        lambda m, n: f"output_blocks.{int(m['i']) * (n + 1) + n}.UP.conv.{m['end']}",
    ),
    (r"conv_norm_out\.(?P<end>\w+)", r"out.0.\g<end>"),
    (r"conv_out\.(?P<end>\w+)", r"out.2.\g<end>"),
)
_CONTROLNET: Table = (
    (r"controlnet_cond_embedding\.conv_in\.(?P<end>\w+)", r"input_hint_block.0.\g<end>"),
    (
        r"controlnet_cond_embedding\.blocks\.(?P<i>\d+)\.(?P<end>\w+)",
        lambda m, n: f"input_hint_block.{2 * int(m['i']) + 2}.{m['end']}",
    ),
    (r"controlnet_cond_embedding\.conv_out\.(?P<end>\w+)", r"input_hint_block.14.\g<end>"),
    (r"controlnet_down_blocks\.(?P<i>\d+)\.(?P<end>\w+)", r"zero_convs.\g<i>.0.\g<end>"),
    (r"controlnet_mid_block\.(?P<end>\w+)", r"middle_block_out.0.\g<end>"),
    *_UNET,
)


def _down(match: re.Match, n: int) -> int:
    return int(match["i"]) * (n + 1) + int(match["j"]) + 1


def _up(match: re.Match, n: int) -> int:
    return int(match["i"]) * (n + 1) + int(match["j"])


_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    # diffusers before 0.17
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
# AutoencoderKL. n is the number of levels: the decoder's are counted from the other end.
_VAE: Table = (
    (r"(?P<side>encoder|decoder)\.conv_norm_out\.(?P<end>\w+)", r"\g<side>.norm_out.\g<end>"),
    (
        rf"encoder\.down_blocks\.(?P<i>\d+)\.{_RESNET_BLOCK}",
        lambda m, n: f"encoder.down.{m['i']}.block.{m['j']}.{_shortcut(m)}.{m['end']}",
    ),
    (
        r"encoder\.down_blocks\.(?P<i>\d+)\.downsamplers\.0\.conv\.(?P<end>\w+)",
        r"encoder.down.\g<i>.downsample.conv.\g<end>",
    ),
    (
        rf"decoder\.up_blocks\.(?P<i>\d+)\.{_RESNET_BLOCK}",
        lambda m, n: f"decoder.up.{n - 1 - int(m['i'])}.block.{m['j']}.{_shortcut(m)}.{m['end']}",
    ),
    (
        r"decoder\.up_blocks\.(?P<i>\d+)\.upsamplers\.0\.conv\.(?P<end>\w+)",
        lambda m, n: f"decoder.up.{n - 1 - int(m['i'])}.upsample.conv.{m['end']}",
    ),
    (
        rf"(?P<side>encoder|decoder)\.mid_block\.{_RESNET_BLOCK}",
        lambda m, n: f"{m['side']}.mid.block_{int(m['j']) + 1}.{_shortcut(m)}.{m['end']}",
    ),
    (
        rf"(?P<side>encoder|decoder)\.mid_block\.attentions\.0\.(?P<inner>{'|'.join(map(re.escape, _VAE_ATTENTION))})"
        r"\.(?P<end>\w+)",
        lambda m, n: f"{m['side']}.mid.attn_1.{_VAE_ATTENTION[m['inner']]}.{m['end']}",
    ),
)


def _shortcut(match: re.Match) -> str:
    return "nin_shortcut" if match["inner"] == "conv_shortcut" else match["inner"]


# transformers 5 left the first part of the names out.
_CLIP_TEXT: Table = ((r"(?P<rest>(?:embeddings|encoder|final_layer_norm)\..+)", r"text_model.\g<rest>"),)


@dataclass(frozen=True)
class Family:
    """A kind of model. ``root``: what its original names begin with in a checkpoint of several models; ``ignored``: what
    files hold beside the weights that are used."""

    title: str
    root: str
    ignored: str = r"(?!)"


FAMILIES = {
    "unet": Family("Stable Diffusion's U-Net", "model.diffusion_model."),
    "controlnet": Family("ControlNet", "control_model."),
    "amn": Family("anomaly-masked network", "control_model."),
    "vae": Family("KL autoencoder", "first_stage_model.", r"loss\..+|model_ema\..+|discriminator\..+"),
    "clip_text": Family(
        "CLIP's text model",
        "cond_stage_model.transformer.",
        r"(text_model\.)?embeddings\.position_ids|text_projection\.weight|vision_model\..+|visual_projection\.weight|logit_scale",
    ),
    "resnet": Family("ResNet", "", r"fc\.(weight|bias)|.+\.num_batches_tracked"),
    # Features end with the last block of stride 16.
    "efficientnet_lite0": Family(
        "EfficientNet-Lite0", "", r"_blocks\.1[1-5]\..+|(_conv_head|_bn1|_fc)\..+|.+\.num_batches_tracked"
    ),
    "tiny_encoder": Family("tiny autoencoder's encoder", ""),
    "tiny_decoder": Family("tiny autoencoder's decoder", ""),
}

# What a file's names may begin with: the roots of the originals, and those of published tensors of this model.
_ROOTS = {
    "model.diffusion_model.": "model.diffusion_model.",
    "diffusion_model.": "model.diffusion_model.",
    "unet.": "model.diffusion_model.",
    "control_model.": "control_model.",
    "amn.": "control_model.",
    "first_stage_model.": "first_stage_model.",
    "cond_stage_model.transformer.": "cond_stage_model.transformer.",
}
_WRAPPERS = ("state_dict.", "module.", "model.", "backbone.")  # Lightning's and data-parallel training's
_EMA = "model_ema."
# Constants of the noise schedule, and of training, that a LatentDiffusion module keeps among its weights.
_BUFFERS = re.compile(
    r"betas|(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod|alphas_cumprod_prev"
    r"|posterior_variance|posterior_log_variance_clipped|posterior_mean_coef[12]|lvlb_weights|scale_factor|logvar"
    r"|model_ema\.(decay|num_updates)"
)

# A family and naming is known by tensors that no other has; the first line that fits counts.
_MARKS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("controlnet", "CompVis", ("zero_convs.0.0.weight", "input_blocks.0.0.weight")),
    ("controlnet", "diffusers", ("controlnet_cond_embedding.conv_in.weight", "conv_in.weight")),
    ("amn", "CompVis", ("input_hint_block.0.weight", "encoder.layers.0.self_attn.in_proj_weight")),
    ("unet", "CompVis", ("input_blocks.0.0.weight", "time_embed.0.weight")),
    ("unet", "diffusers", ("conv_in.weight", "time_embedding.linear_1.weight")),
    ("vae", "CompVis", ("encoder.conv_in.weight", "encoder.mid.block_1.conv1.weight")),
    ("vae", "diffusers", ("encoder.conv_in.weight", "encoder.mid_block.resnets.0.conv1.weight")),
    ("clip_text", "CompVis and transformers", ("text_model.embeddings.token_embedding.weight",)),
    ("clip_text", "transformers 5", ("embeddings.token_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight")),
    ("resnet", "torchvision and timm", ("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight")),
    ("efficientnet_lite0", "efficientnet_pytorch", ("_conv_stem.weight", "_bn0.running_mean", "_blocks.0._depthwise_conv.weight")),
    ("tiny_encoder", "TAESD", ("0.weight", "1.conv.0.weight", "2.weight", "14.weight")),
    ("tiny_decoder", "TAESD", ("1.weight", "3.conv.0.weight", "7.weight", "19.weight")),
)
_TABLES: dict[tuple[str, str], Table] = {
    ("unet", "diffusers"): _UNET,
    ("controlnet", "diffusers"): _CONTROLNET,
    ("vae", "diffusers"): _VAE,
    ("clip_text", "transformers 5"): _CLIP_TEXT,
}


@dataclass(frozen=True)
class Part:
    """A model that was found among a file's tensors. ``names`` and ``ema``: {original name, without its root: name in the
    file}; names that the tables do not know stay as they are there, and a strict load refuses them."""

    family: str
    naming: str
    prefix: str
    names: dict[str, str]
    ema: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def find_parts(names: Iterable[str]) -> tuple[list[Part], list[str], list[str]]:
    """(parts, ignored, unknown): the models among a file's tensors, the tensors that belong to none but are known, and
    those that nobody knows."""
    left = dict.fromkeys(names)
    wrapper = ""
    while found := next((w for w in _WRAPPERS if left and all(n.startswith(wrapper + w) for n in left)), ""):
        wrapper += found
    parts: list[Part] = []
    for root in [*_ROOTS, ""]:
        prefix = wrapper + root
        inner = {name.removeprefix(prefix): name for name in left if name.startswith(prefix)}
        if not root:  # what a whole checkpoint has beside its parts is no part
            inner = {short: name for short, name in inner.items() if not short.startswith(_EMA) and not _BUFFERS.fullmatch(short)}
        part = _identify(inner, prefix)
        if part is not None and not (parts and not root):
            parts.append(part)
            for name in inner.values():
                del left[name]
    averages = {name.removeprefix(wrapper + _EMA): name for name in left if name.startswith(wrapper + _EMA)}
    for part in parts:
        part.ema.update(_averages(part, averages))
        for name in part.ema.values():
            del left[name]
    ignored = [name for name in left if _BUFFERS.fullmatch(name.removeprefix(wrapper))]
    return parts, ignored, [name for name in left if name not in set(ignored)]


def _identify(inner: Mapping[str, str], prefix: str) -> Part | None:
    for family, naming, marks in _MARKS:
        if all(mark in inner for mark in marks):
            skip = re.compile(FAMILIES[family].ignored)
            kept = {short: name for short, name in inner.items() if not skip.fullmatch(short)}
            ignored = tuple(name for short, name in inner.items() if skip.fullmatch(short))
            return Part(family, naming, prefix, _rename(kept, family, naming), ignored=ignored)
    return None


def _rename(inner: Mapping[str, str], family: str, naming: str) -> dict[str, str]:
    table = _TABLES.get((family, naming))
    if table is None:
        return dict(inner)
    patterns = [(re.compile(pattern), new) for pattern, new in table]
    counted = r"encoder\.down_blocks\.(\d+)\..+" if family == "vae" else r"down_blocks\.0\.resnets\.(\d+)\..+"
    n = 1 + max((int(match[1]) for match in map(re.compile(counted).fullmatch, inner) if match), default=0)
    result: dict[str, str] = {}
    for short, name in inner.items():
        for pattern, new in patterns:
            match = pattern.fullmatch(short)
            if match:
                short = match.expand(new) if isinstance(new, str) else new(match, n)
                break
        # Two names for one tensor (old and new attention) would hide one: the second stays as it is, unexpected.
        result[short if short not in result else name] = name
    attended = {name.split(".1.norm.")[0] for name in result if ".1.norm." in name}
    return {
        name.replace(".UP.", ".2." if name.split(".UP.")[0] in attended else ".1."): value for name, value in result.items()
    }


def _averages(part: Part, averages: Mapping[str, str]) -> dict[str, str]:
    """The exponential moving averages of a part's tensors: LDM names them without the points, which may make two
    names one; then they are left unknown."""
    if part.family != "unet":
        return {}
    flat: dict[str, str | None] = {}
    for name in part.names:
        short = f"diffusion_model{name.replace('.', '')}"
        flat[short] = None if short in flat else name
    return {flat[short]: name for short, name in averages.items() if flat.get(short) is not None}
