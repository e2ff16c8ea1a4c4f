"""The models in plain PyTorch, as peers of the benchmarks: functions of a dict of parameters with the core's names.

Layout and semantics are those of the original code (LDM's U-Net and autoencoder; the paper's anomaly-masked network):
images and latents [N,C,H,W], attention by `scaled_dot_product_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from cdad import Config

Params = dict[str, torch.Tensor]


def to_torch(
    array: np.ndarray | torch.Tensor, device: str = "cpu", layout: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    """Images [N,H,W,C] as [N,C,H,W], in the order of memory ``layout``; anything else as it is."""
    tensor = torch.as_tensor(array, device=device)
    return tensor.permute(0, 3, 1, 2).contiguous(memory_format=layout) if tensor.ndim == 4 else tensor


def from_core(
    weights: Mapping[str, np.ndarray | torch.Tensor],
    device: str = "cpu",
    layout: torch.memory_format = torch.contiguous_format,
) -> Params:
    """The core's parameters as leaves that want gradients; convolutions from [O,R,S,C] to [O,C,R,S]."""
    return {name: to_torch(w, device, layout).requires_grad_() for name, w in weights.items()}


def conv(p: Params, name: str, x: torch.Tensor, stride: int = 1, padding: int = 0) -> torch.Tensor:
    return F.conv2d(x, p[f"{name}.weight"], p.get(f"{name}.bias"), stride, padding)


def linear(p: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def group_norm(p: Params, name: str, x: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    return F.group_norm(x, groups, p[f"{name}.weight"], p[f"{name}.bias"], eps)


def layer_norm(p: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """q [N,T,C], k and v [N,S,C] -> [N,T,C]; ``mask`` [T,S] is true where a query sees a key."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def image_of(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).reshape(like.shape)


# ---- U-Net ------------------------------------------------------------------------------------------------


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(dim // 2, dtype=torch.float32, device=t.device) / (dim // 2))
    angles = t[:, None].float() * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def res_block(p: Params, name: str, x: torch.Tensor, emb: torch.Tensor, groups: int) -> torch.Tensor:
    h = conv(p, f"{name}.in_layers.2", F.silu(group_norm(p, f"{name}.in_layers.0", x, groups, 1e-5)), padding=1)
    h = h + linear(p, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
    h = conv(p, f"{name}.out_layers.3", F.silu(group_norm(p, f"{name}.out_layers.0", h, groups, 1e-5)), padding=1)
    if f"{name}.skip_connection.weight" in p:
        x = conv(p, f"{name}.skip_connection", x)
    return x + h


def spatial_transformer(p: Params, name: str, x: torch.Tensor, context: torch.Tensor | None, c: dict) -> torch.Tensor:
    h = tokens(conv(p, f"{name}.proj_in", group_norm(p, f"{name}.norm", x, c["norm_groups"], 1e-6)))
    block = f"{name}.transformer_blocks.0"
    for attn, norm, other in (("attn1", "norm1", None), ("attn2", "norm2", context)):
        if f"{block}.{attn}.to_q.weight" not in p:
            continue
        y = layer_norm(p, f"{block}.{norm}", h)
        source = y if other is None else other
        q = linear(p, f"{block}.{attn}.to_q", y)
        k, v = (linear(p, f"{block}.{attn}.to_{side}", source) for side in "kv")
        h = h + linear(p, f"{block}.{attn}.to_out.0", attend(q, k, v, c["num_heads"]))
    y = linear(p, f"{block}.ff.net.0.proj", layer_norm(p, f"{block}.norm3", h))
    value, gate = y.chunk(2, dim=-1)
    h = h + linear(p, f"{block}.ff.net.2", value * F.gelu(gate))
    return x + conv(p, f"{name}.proj_out", image_of(h, x))


def unet_encode(
    p: Params, root: str, c: dict, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor | None, first: torch.Tensor | float
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """(embedding of t, the input blocks' outputs, the middle block's); ``first`` is added to the first convolution's."""
    emb = linear(p, f"{root}.time_embed.0", timestep_embedding(t, c["model_channels"]).to(x.dtype))
    emb = linear(p, f"{root}.time_embed.2", F.silu(emb))
    h = conv(p, f"{root}.input_blocks.0.0", x, padding=1) + first
    skips, index, scale = [h], 0, 1
    for level in range(len(c["channel_mult"])):
        for _ in range(c["num_res_blocks"]):
            index += 1
            h = unet_block(p, f"{root}.input_blocks.{index}", h, emb, context, c, scale in c["attention_resolutions"])
            skips.append(h)
        if level < len(c["channel_mult"]) - 1:
            index += 1
            h = conv(p, f"{root}.input_blocks.{index}.0.op", h, stride=2, padding=1)
            skips.append(h)
            scale *= 2
    h = unet_block(p, f"{root}.middle_block", h, emb, context, c, True)
    return emb, skips, res_block(p, f"{root}.middle_block.2", h, emb, c["norm_groups"])


def unet_block(
    p: Params, name: str, h: torch.Tensor, emb: torch.Tensor, context: torch.Tensor | None, c: dict, attention: bool
) -> torch.Tensor:
    h = res_block(p, f"{name}.0", h, emb, c["norm_groups"])
    return spatial_transformer(p, f"{name}.1", h, context, c) if attention else h


def unet(
    p: Params,
    c: dict,
    x: torch.Tensor,
    t: torch.Tensor,
    context: torch.Tensor | None,
    control: torch.Tensor | float,
    controls: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """x [N,C,h,w], t [N], context [N,L,d], control [N,model_channels,h,w] or 0 -> prediction [N,C,h,w]; ``controls``: what a
    ControlNet adds to each input block's output, and to the middle block's."""
    levels, depth = len(c["channel_mult"]), c["num_res_blocks"]
    emb, skips, h = unet_encode(p, "unet", c, x, t, context, control)
    if controls is not None:
        *added, middle = controls
        skips, h = [skip + more for skip, more in zip(skips, added, strict=True)], h + middle
    scale = 2 ** (levels - 1)
    for index in range(levels * (depth + 1)):
        name, attention = f"unet.output_blocks.{index}", scale in c["attention_resolutions"]
        h = unet_block(p, name, torch.cat([h, skips.pop()], dim=1), emb, context, c, attention)
        if index % (depth + 1) == depth and scale > 1:
            h = conv(p, f"{name}.{1 + attention}.conv", F.interpolate(h, scale_factor=2.0, mode="nearest"), padding=1)
            scale //= 2
    return conv(p, "unet.out.2", F.silu(group_norm(p, "unet.out.0", h, c["norm_groups"], 1e-5)), padding=1)


# ---- ControlNet -------------------------------------------------------------------------------------------


def controlnet(
    p: Params, c: dict, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor | None, hint: torch.Tensor
) -> list[torch.Tensor]:
    """What is added to the outputs of a U-Net ``c``'s input blocks, and last to its middle block's."""
    _, skips, middle = unet_encode(p, "control", c, x, t, context, hint)
    return [*(conv(p, f"control.zero_convs.{i}.0", h) for i, h in enumerate(skips)), conv(p, "control.middle_block_out.0", middle)]


# ---- anomaly-masked network -------------------------------------------------------------------------------


def position_embedding(height: int, width: int, channels: int, device: torch.device) -> torch.Tensor:
    """DETR's sine embedding [1,H*W,C], normalised to 2 pi, y before x."""
    half = channels // 2
    index = torch.arange(half, device=device)
    y, x = (torch.arange(1, n + 1, dtype=torch.float64, device=device) / (n + 1e-6) * 2 * math.pi for n in (height, width))
    waves = 10000 ** (2 * (index // 2).double() / half)

    def interleaved(position: torch.Tensor) -> torch.Tensor:
        angle = position[:, None] / waves
        return torch.where(index % 2 == 1, angle.cos(), angle.sin())

    grid_y = interleaved(y)[:, None].expand(height, width, half)
    grid_x = interleaved(x)[None].expand(height, width, half)
    return torch.cat([grid_y, grid_x], dim=-1).reshape(1, height * width, channels).float()


def neighbour_mask(height: int, width: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """[H*W,H*W], true where a token sees another: outside its own neighbourhood of ``size``."""
    y, x = (a.flatten() for a in torch.meshgrid(*(torch.arange(n, device=device) for n in (height, width)), indexing="ij"))
    near = ((y[:, None] - y).abs() <= size[0] // 2) & ((x[:, None] - x).abs() <= size[1] // 2)
    return ~near


def hint(p: Params, root: str, c: dict, image: torch.Tensor) -> torch.Tensor:
    """What the masked network (E_lo, root "amn") or a ControlNet ("control") reads of an image [N,3,H,W] in [0,1]:
    [N,C,h,w]."""
    h = 2 * image - 1
    for i, stride in enumerate(c["strides"]):
        h = F.silu(conv(p, f"{root}.input_hint_block.{2 * i}", h, stride, 1))
    return conv(p, f"{root}.input_hint_block.{2 * len(c['strides'])}", h, padding=1)


def amn_local(p: Params, c: dict, image: torch.Tensor) -> torch.Tensor:
    """E_lo: image [N,3,H,W] in [0,1] -> [N,C,h,w]."""
    return hint(p, "amn", c, image)


def amn_nonlocal(p: Params, c: dict, local: torch.Tensor) -> torch.Tensor:
    """E_no: the transformer over E_lo's tokens."""
    (height, width), device = local.shape[2:], local.device
    place = position_embedding(height, width, local.shape[1], device).to(local.dtype)
    mask = neighbour_mask(height, width, c["neighbor"], device)
    x = tokens(local)
    for i in range(c["n_layers"]):
        layer = f"amn.encoder.layers.{i}"
        q, k = (linear(p, f"{layer}.self_attn.{side}_proj", x + place) for side in "qk")
        v = linear(p, f"{layer}.self_attn.v_proj", x)
        x = layer_norm(p, f"{layer}.norm1", x + linear(p, f"{layer}.self_attn.out_proj", attend(q, k, v, c["num_heads"], mask)))
        y = linear(p, f"{layer}.linear2", F.relu(linear(p, f"{layer}.linear1", x)))
        x = layer_norm(p, f"{layer}.norm2", x + y)
    return image_of(x, local)


def training_losses(p: Params, config: dict, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L = L_CDM + L_amn, and both (L_amn 0 without the masked network); ``batch``: latent, noise, image, perturbed, t,
    context (or None), and signal and sigma [N,1,1,1] of its timesteps."""
    noised = batch["signal"] * batch["latent"] + batch["sigma"] * batch["noise"]
    seen, amn = (noised, batch["t"], batch["context"]), noised.new_zeros(())
    if config["amn"]:
        local = amn_local(p, config["amn"], batch["image"])
        control = amn_nonlocal(p, config["amn"], amn_local(p, config["amn"], batch["perturbed"]))
        target = local
        if config["amn_target"] == "normalized":
            target = image_of(F.layer_norm(tokens(local), local.shape[1:2], eps=1e-5), local).detach()
        amn = F.mse_loss(control, target)
        prediction = unet(p, config["unet"], *seen, control)
    elif config["controlnet"]:
        control = hint(p, "control", config["controlnet"], batch["perturbed"])
        prediction = unet(p, config["unet"], *seen, 0.0, controlnet(p, config["unet"], *seen, control))
    else:
        prediction = unet(p, config["unet"], *seen, 0.0)
    wanted = batch["noise"]
    if config["prediction"] == "v":
        wanted = batch["signal"] * batch["noise"] - batch["sigma"] * batch["latent"]
    cdm = F.mse_loss(prediction, wanted)
    return cdm + amn, cdm, amn


def adamw(p: Params, config: Config) -> torch.optim.Optimizer:
    t = config.training
    kernels = {"fused": True} if next(iter(p.values())).is_cuda else {"foreach": True}
    return torch.optim.AdamW(list(p.values()), t.lr, (t.beta1, t.beta2), t.eps, t.weight_decay, **kernels)


def training_step(
    p: Params, config: Config, optimizer: torch.optim.Optimizer, compiled: Callable = lambda f: f
) -> Callable[[dict], float]:
    """A step for a batch that `training_losses` takes; it returns the loss. ``compiled``: what is done with the losses,
    `torch.compile` or nothing."""
    core, kind = config.denoiser(), next(iter(p.values())).device.type

    @compiled
    def losses(batch: dict) -> tuple[torch.Tensor, ...]:
        with torch.autocast(kind, torch.bfloat16, enabled=config.precision == "bfloat16"):
            return training_losses(p, core, batch)

    def step(batch: dict) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = losses(batch)[0]
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


# ---- sampler ----------------------------------------------------------------------------------------------


def ddim(predict: Callable, x: torch.Tensor, timesteps: Sequence[int], signal: Sequence[float]) -> torch.Tensor:
    """DDIM (eta 0) of ``predict(x, t)``, the noise, down from x at the first of the timesteps, to timestep 0. ``signal``:
    sqrt(alpha_bar) of all timesteps."""
    for t, after in zip(timesteps, [*timesteps[1:], 0], strict=True):
        noise = predict(x, torch.full((len(x),), t, device=x.device))
        (s, n), (s_after, n_after) = ((signal[i], math.sqrt(1 - signal[i] ** 2)) for i in (t, after))
        x = s_after * (x - n * noise) / s + n_after * noise
    return x


# ---- KL autoencoder ---------------------------------------------------------------------------------------


def vae_block(p: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    h = conv(p, f"{name}.conv1", F.silu(group_norm(p, f"{name}.norm1", x, 32, 1e-6)), padding=1)
    h = conv(p, f"{name}.conv2", F.silu(group_norm(p, f"{name}.norm2", h, 32, 1e-6)), padding=1)
    return h + (conv(p, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in p else x)


def vae_middle(p: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    x = vae_block(p, f"{name}.block_1", x)
    h = group_norm(p, f"{name}.attn_1.norm", x, 32, 1e-6)
    q, k, v = (tokens(conv(p, f"{name}.attn_1.{side}", h)) for side in "qkv")
    x = x + conv(p, f"{name}.attn_1.proj_out", image_of(attend(q, k, v, 1), x))
    return vae_block(p, f"{name}.block_2", x)


def vae_encode(p: Params, c: dict, image: torch.Tensor) -> torch.Tensor:
    """image [N,3,H,W] in [-1,1] -> moments [N,2*z_channels,H/f,W/f]."""
    h = conv(p, "encoder.conv_in", image, padding=1)
    for level in range(len(c["ch_mult"])):
        for i in range(c["num_res_blocks"]):
            h = vae_block(p, f"encoder.down.{level}.block.{i}", h)
        if level < len(c["ch_mult"]) - 1:
            h = conv(p, f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = vae_middle(p, "encoder.mid", h)
    h = conv(p, "encoder.conv_out", F.silu(group_norm(p, "encoder.norm_out", h, 32, 1e-6)), padding=1)
    return conv(p, "quant_conv", h)


def vae_decode(p: Params, c: dict, latent: torch.Tensor) -> torch.Tensor:
    """latent [N,z_channels,h,w] -> image [N,3,h*f,w*f] in [-1,1]."""
    h = conv(p, "decoder.conv_in", conv(p, "post_quant_conv", latent), padding=1)
    h = vae_middle(p, "decoder.mid", h)
    for level in reversed(range(len(c["ch_mult"]))):
        for i in range(c["num_res_blocks"] + 1):
            h = vae_block(p, f"decoder.up.{level}.block.{i}", h)
        if level > 0:
            h = conv(p, f"decoder.up.{level}.upsample.conv", F.interpolate(h, scale_factor=2.0, mode="nearest"), padding=1)
    return conv(p, "decoder.conv_out", F.silu(group_norm(p, "decoder.norm_out", h, 32, 1e-6)), padding=1)


# ---- CLIP's text transformer ------------------------------------------------------------------------------


def clip_text(p: Params, c: dict, ids: torch.Tensor) -> torch.Tensor:
    """ids [N,L] -> [N,L,width], all tokens after the last norm."""
    x = p["text_model.embeddings.token_embedding.weight"][ids] + p["text_model.embeddings.position_embedding.weight"]
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    for i in range(c["n_layers"]):
        layer = f"text_model.encoder.layers.{i}"
        y = layer_norm(p, f"{layer}.layer_norm1", x)
        q, k, v = (linear(p, f"{layer}.self_attn.{side}_proj", y) for side in "qkv")
        x = x + linear(p, f"{layer}.self_attn.out_proj", attend(q, k, v, c["num_heads"], mask))
        y = linear(p, f"{layer}.mlp.fc1", layer_norm(p, f"{layer}.layer_norm2", x))
        x = x + linear(p, f"{layer}.mlp.fc2", y * torch.sigmoid(1.702 * y))
    return layer_norm(p, "text_model.final_layer_norm", x)


# ---- ResNet -----------------------------------------------------------------------------------------------


def resnet(p: Params, c: dict, image: torch.Tensor) -> list[torch.Tensor]:
    """Features after layer1 to layer4, then the stem's, of torchvision's parameters and statistics; batch norms as in
    evaluation, or, where there are none, folded into the convolutions."""

    def conv_norm(conv_name: str, norm: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        x = conv(p, conv_name, x, stride, p[f"{conv_name}.weight"].shape[-1] // 2)
        if f"{norm}.running_mean" not in p:
            return x
        statistics = (p[f"{norm}.running_mean"], p[f"{norm}.running_var"])
        return F.batch_norm(x, *statistics, p[f"{norm}.weight"], p[f"{norm}.bias"], eps=1e-5)

    stem = F.relu(conv_norm("conv1", "bn1", image, 2))
    h, features = F.max_pool2d(stem, 3, 2, 1), []
    for stage, blocks in enumerate(c["blocks"]):
        for i in range(blocks):
            name, stride, x = f"layer{stage + 1}.{i}", 2 if stage > 0 and i == 0 else 1, h
            strides = (1, stride, 1) if c["bottleneck"] else (stride, 1)
            for k, s in enumerate(strides, 1):
                h = conv_norm(f"{name}.conv{k}", f"{name}.bn{k}", h, s)
                h = F.relu(h) if k < len(strides) else h
            if f"{name}.downsample.0.weight" in p:
                x = conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", x, stride)
            h = F.relu(h + x)
        features.append(h)
    return [*features, stem]


# ---- image to score -----------------------------------------------------------------------------------------


def dct_encode(basis: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """``basis`` [C,3,p,p]: orthonormal patches."""
    return F.conv2d(image, basis, stride=basis.shape[-1])


def dct_decode(basis: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    return F.conv_transpose2d(latent, basis, stride=basis.shape[-1]).clamp(0, 1)


def same_padded(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """TensorFlow's SAME padding: an odd rest goes to the end."""
    height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def efficientnet_lite0(p: Params, image: torch.Tensor) -> list[torch.Tensor]:
    """Features at strides 4, 8 and 16; batch norms are folded."""
    h = F.relu6(conv(p, "stem", same_padded(image, 3, 2), 2))
    features, block = [], 0
    for repeats, kernel, stride, expand, out, kept in (
        (1, 3, 1, 1, 16, False), (2, 3, 2, 6, 24, True), (2, 5, 2, 6, 40, True), (3, 3, 2, 6, 80, False),
        (3, 5, 1, 6, 112, True),
    ):  # fmt: skip
        for k in range(repeats):
            name, x, s = f"blocks.{block}", h, stride if k == 0 else 1
            if expand > 1:
                h = F.relu6(conv(p, f"{name}.expand", h))
            depthwise = p[f"{name}.depthwise.weight"].permute(2, 0, 1)[:, None]
            h = F.relu6(F.conv2d(same_padded(h, kernel, s), depthwise, p[f"{name}.depthwise.bias"], s, groups=len(depthwise)))
            h = conv(p, f"{name}.project", h)
            h = h + x if s == 1 and x.shape[1] == out else h
            block += 1
        if kept:
            features.append(h)
    return features


def blurred(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing of [N,1,H,W]; as many taps as OpenCV takes."""
    radius = (round(8 * sigma + 1) | 1) // 2
    taps = torch.exp(-(torch.arange(-radius, radius + 1.0, device=maps.device) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    maps = F.pad(maps, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(maps, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))


def scores(features: list[torch.Tensor], size: Sequence[int], sigma: float, top: float) -> torch.Tensor:
    """Scores [N] of features of n references, then of as many drawings, a layer; of maps of ``size``."""
    n = len(features[0]) // 2
    distances = [((f[:n] - f[n:]) ** 2).sum(1, keepdim=True) for f in features]
    maps = sum(F.interpolate(d, size, mode="bilinear", align_corners=False) for d in distances) / len(distances)
    flat = blurred(maps, sigma).flatten(1)
    highest = flat.topk(max(1, round(top * flat.shape[1])), 1).values.mean(1)
    middle = flat.shape[1] // 2  # of an even number of pixels: the median is the mean of two
    return highest - 0.5 * (flat.kthvalue(middle, 1).values + flat.kthvalue(middle + 1, 1).values)


def image_scores(p: Params, config: dict, backbone: Params, given: dict, image: torch.Tensor) -> torch.Tensor:
    """Scores [N] of images [N,3,H,W] by a one-step reconstruction from ``noise`` and its mirror at timestep T - 1, where
    nothing of the image is left. ``given``: noise [1,C,h,w], basis, scale, shift of the latents, mean and std of the
    backbone's input, sigma and top of the score."""
    n = len(image)
    control = amn_nonlocal(p, config["amn"], amn_local(p, config["amn"], image))
    noise = given["noise"].expand(n, -1, -1, -1)
    t = torch.full((2 * n,), config["num_train_timesteps"] - 1.0)
    v = unet(p, config["unet"], torch.cat([noise, -noise]), t, None, torch.cat([control, control]))
    x0 = -0.5 * (v[:n] + v[n:])
    drawn = dct_decode(given["basis"], x0 * given["scale"] + given["shift"])
    reference = dct_decode(given["basis"], dct_encode(given["basis"], image))
    pairs = efficientnet_lite0(backbone, (torch.cat([reference, drawn]) - given["mean"]) / given["std"])
    return scores(pairs, image.shape[2:], given["sigma"], given["top"])
