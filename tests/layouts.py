"""Miniature weight files in the layouts in which the real ones are published, with their real names."""

from __future__ import annotations

import json
import re
import zlib

import numpy as np
from hostile import archive, call, name, program, storage, tensor
from safetensors.numpy import save_file

from cdad.checkpoint import Checkpoint
from cdad.weights import open_tensors

KINDS = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<f8": "DoubleStorage", "<i8": "LongStorage"}


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Values by name alone, so that a tensor that lands in another's place is seen."""
    return {
        n: np.random.default_rng([seed, zlib.crc32(n.encode())]).standard_normal(shape, np.float32) for n, shape in shapes.items()
    }


def load_tensors(path):
    """{name: array} of a weight file."""
    with open_tensors(path) as file:
        return {n: file.read(n) for n in file.tensors}


def load_checkpoint(path):
    """(tensors, state) of a checkpoint, all at once."""
    with Checkpoint(path) as checkpoint:
        return {n: checkpoint.read(n) for n in checkpoint.tensors}, checkpoint.state


def to_original(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The core's tensors as the originals have them: conv weights OIHW, and q, k and v of the masked network packed."""
    result = {}
    for title, array in tensors.items():
        split = re.fullmatch(r"(.*\.self_attn\.)([qkv])_proj\.(weight|bias)", title)
        if not split:
            result[title] = np.ascontiguousarray(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)
        elif split[2] == "q":
            parts = [tensors[f"{split[1]}{part}_proj.{split[3]}"] for part in "qkv"]
            result[f"{split[1]}in_proj_{split[3]}"] = np.concatenate(parts)
    return result


def torch_zip(path, state, wrap=lambda state: state):
    """What torch.save writes, here without PyTorch: {name: array}, and an object made around it."""
    entries, tensors = {"archive/data.pkl": b"", "archive/byteorder": b"little"}, {}
    for key, (title, array) in enumerate(state.items()):
        array = np.ascontiguousarray(array)
        entries[f"archive/data/{key}"] = array.tobytes()
        stored = storage(KINDS[array.dtype.str], str(key), array.size)
        strides = [stride // array.itemsize for stride in array.strides]
        tensors[title] = tensor(stored, 0, array.shape, tuple(strides))
    entries["archive/data.pkl"] = program(wrap(tensors))
    path.write_bytes(archive(entries))


def lightning(state):
    """A training checkpoint: callbacks of classes that nobody has, the state, an optimiser's."""
    callback = call(name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"))
    loops = {"epoch_loop": {"state_dict": {}, "optim_progress": call(name("pytorch_lightning.loops", "Progress"), 3)}}
    return {"epoch": 3, "global_step": 840000, "callbacks": {"x": callback}, "state_dict": state, "loops": loops}


def with_root(tensors, root):
    return {root + title: array for title, array in tensors.items()}


def moving_averages(tensors):
    """LitEma's names: without points."""
    averages = {f"model_ema.diffusion_model{title.replace('.', '')}": array for title, array in tensors.items()}
    return averages | {"model_ema.decay": np.float32([0.9999]), "model_ema.num_updates": np.int64([7])}


BUFFERS = {
    title: np.ones(4, np.float32)
    for title in (
        "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
        "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    )
}  # fmt: skip


def to_diffusers_unet(title: str, n: int, n_levels: int) -> str:
    """LDM's name -> UNet2DConditionModel's (and ControlNetModel's) of n residual blocks a level."""
    hint = re.fullmatch(r"input_hint_block\.(\d+)\.(\w+)", title)
    if hint:
        i = int(hint[1])
        part = "conv_in" if i == 0 else "conv_out" if i == 14 else f"blocks.{i // 2 - 1}"
        return f"controlnet_cond_embedding.{part}.{hint[2]}"
    for old, new in (
        (r"input_blocks\.0\.0\.", "conv_in."), (r"time_embed\.0\.", "time_embedding.linear_1."),
        (r"time_embed\.2\.", "time_embedding.linear_2."), (r"out\.0\.", "conv_norm_out."), (r"out\.2\.", "conv_out."),
        (r"zero_convs\.(\d+)\.0\.", r"controlnet_down_blocks.\1."), (r"middle_block_out\.0\.", "controlnet_mid_block."),
    ):  # fmt: skip
        if re.match(old, title):
            return re.sub(f"^{old}", new, title)
    side, *numbers, rest = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:(\d+)\.)?(.*)", title).groups()
    if side == "middle_block":
        i = int(numbers[0])
        rest = title.split(".", 2)[2]
        block = "mid_block.attentions.0" if i == 1 else f"mid_block.resnets.{i // 2}"
    elif side == "input_blocks":
        level, j = divmod(int(numbers[0]) - 1, n + 1)
        if j == n:
            return f"down_blocks.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        block = f"down_blocks.{level}.{'attentions' if numbers[1] == '1' else 'resnets'}.{j}"
    else:
        level, j = divmod(int(numbers[0]), n + 1)
        if rest.startswith("conv."):
            return f"up_blocks.{level}.upsamplers.0.{rest}"
        block = f"up_blocks.{level}.{'attentions' if numbers[1] == '1' else 'resnets'}.{j}"
    if "resnets" in block:
        for old, new in (("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"),
                         ("out_layers.0", "norm2"), ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut")):  # fmt: skip
            rest = rest.replace(old, new)
    return f"{block}.{rest}"


def to_diffusers_vae(title: str, array: np.ndarray, n_levels: int, old: bool = False) -> tuple[str, np.ndarray]:
    """LDM's name -> AutoencoderKL's, today's or that before 0.17 (``old``), whose attention has matrices."""
    title = title.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
    title = re.sub(r"down\.(\d+)\.block\.", r"down_blocks.\1.resnets.", title)
    title = re.sub(r"down\.(\d+)\.downsample", r"down_blocks.\1.downsamplers.0", title)
    title = re.sub(r"up\.(\d+)\.block\.", lambda m: f"up_blocks.{n_levels - 1 - int(m[1])}.resnets.", title)
    title = re.sub(r"up\.(\d+)\.upsample", lambda m: f"up_blocks.{n_levels - 1 - int(m[1])}.upsamplers.0", title)
    title = re.sub(r"mid\.block_([12])\.", lambda m: f"mid_block.resnets.{int(m[1]) - 1}.", title)
    found = re.fullmatch(r"(.*)mid\.attn_1\.(\w+)\.(\w+)", title)
    if found:
        names = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
        if old:
            names |= {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}
        title = f"{found[1]}mid_block.attentions.0.{names[found[2]]}.{found[3]}"
        array = array.reshape(array.shape[:2]) if array.ndim == 4 else array
    return title, array


def shards(folder, tensors, parts=3):
    """A file in shards with its index."""
    names, where = sorted(tensors), {}
    for i in range(parts):
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-{parts:05d}.safetensors"
        chosen = names[i::parts]
        save_file({title: tensors[title] for title in chosen}, folder / file)
        where |= dict.fromkeys(chosen, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def clip_shapes(width=8, layers=2) -> dict[str, tuple[int, ...]]:
    """CLIPTextModel's parameters."""
    shapes = {f"text_model.embeddings.{part}_embedding.weight": (rows, width) for part, rows in (("token", 11), ("position", 7))}
    for i in range(layers):
        at = f"text_model.encoder.layers.{i}"
        sizes = {f"self_attn.{p}_proj": (width, width) for p in "kvq"} | {"self_attn.out_proj": (width, width)}
        sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for part, shape in sizes.items():
            shapes |= {f"{at}.{part}.weight": shape, f"{at}.{part}.bias": shape[:1]}
        shapes |= {f"{at}.layer_norm{j}.{end}": (width,) for j in (1, 2) for end in ("weight", "bias")}
    return shapes | {f"text_model.final_layer_norm.{end}": (width,) for end in ("weight", "bias")}


def resnet_tensors(blocks=(1, 2, 1, 1), bottleneck=True, width=4) -> dict[str, np.ndarray]:
    """A ResNet's state as torchvision and timm have it, classifier and counters included."""
    convolutions: dict[str, tuple[int, int, int]] = {"conv1": (width, 3, 7)}
    norms = {"conv1": "bn1"}
    inside, growth = width, 4 if bottleneck else 1
    for stage, count in enumerate(blocks):
        planes = width << stage
        for i in range(count):
            at, out = f"layer{stage + 1}.{i}", planes * growth
            sizes = [(planes, inside, 3), (out, planes, 3)]
            if bottleneck:
                sizes = [(planes, inside, 1), (planes, planes, 3), (out, planes, 1)]
            for j, size in enumerate(sizes, 1):
                convolutions[f"{at}.conv{j}"], norms[f"{at}.conv{j}"] = size, f"{at}.bn{j}"
            if i == 0 and (stage or inside != out):
                convolutions[f"{at}.downsample.0"], norms[f"{at}.downsample.0"] = (out, inside, 1), f"{at}.downsample.1"
            inside = out
    shapes = {f"{c}.weight": (o, i, k, k) for c, (o, i, k) in convolutions.items()}
    ends = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{norms[c]}.{end}": (o,) for c, (o, *_) in convolutions.items() for end in ends}
    tensors = random_tensors(shapes)
    for title in tensors:
        if title.endswith("running_var"):
            tensors[title] = np.abs(tensors[title]) + np.float32(0.5)
    tensors |= {f"{norm}.num_batches_tracked": np.int64(9) for norm in norms.values()}
    return tensors | {"fc.weight": np.ones((10, inside), np.float32), "fc.bias": np.ones(10, np.float32)}


def controlnet_shapes(unet: dict[str, tuple[int, ...]], width=8) -> dict[str, tuple[int, ...]]:
    """LDM's ControlNet beside a U-Net's encoder (original names, OIHW)."""
    shapes = {n: s for n, s in unet.items() if n.startswith(("time_embed", "input_blocks", "middle_block"))}
    sizes = [(3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256), (256, width)]
    for i, (inside, out) in enumerate(sizes):
        shapes |= {f"input_hint_block.{2 * i}.weight": (out, inside, 3, 3), f"input_hint_block.{2 * i}.bias": (out,)}
    n_blocks = 1 + max(int(n.split(".")[1]) for n in shapes if n.startswith("input_blocks"))
    for i in range(n_blocks):
        shapes |= {f"zero_convs.{i}.0.weight": (width, width, 1, 1), f"zero_convs.{i}.0.bias": (width,)}
    return shapes | {"middle_block_out.0.weight": (width, width, 1, 1), "middle_block_out.0.bias": (width,)}
