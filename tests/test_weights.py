"""Weight files in every published layout, in miniature: loading is exact and strict, in little memory; inspecting, converting."""

from __future__ import annotations

import hashlib
import json
import sys
import tracemalloc
import types
from dataclasses import replace

import layouts
import numpy as np
import pytest
from hostile import program, storage, tensor
from layouts import load_checkpoint
from safetensors.numpy import load_file, save_file

from cdad import ContinualModel, _core, preset
from cdad.autoencoder import Autoencoder
from cdad.checkpoint import FORMAT, Checkpoint, _digest, save_checkpoint
from cdad.cli import main
from cdad.config import AutoencoderConfig
from cdad.errors import CheckpointError, FormatError, LimitError
from cdad.weights import Collection, load_part
from cdad.weights.hub import PUBLISHED
from cdad.weights.report import convert

CONFIG = preset("tiny").updated(
    {
        "image_size": 64,
        "unet.model_channels": 8,
        "unet.channel_mult": [1, 1, 2],
        "unet.num_res_blocks": 2,
        "unet.attention_resolutions": [1, 2],
        "unet.num_heads": 2,
        "unet.norm_groups": 4,
        "unet.context_dim": 6,
        "unet.context_length": 3,
        "amn.n_layers": 1,
        "amn.num_heads": 2,
    }
)
VAE = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 4, "norm_groups": 32}
LEVELS = {"unet": 3, "vae": 2}


class Store(dict):
    """Parameters without the core: of models that are known by their shapes."""

    def shapes(self):
        return {title: array.shape for title, array in self.items()}

    def __setitem__(self, title, array):
        self[title][...] = array


def denoiser():
    params = _core.Params()
    _core.Sampler(params, CONFIG.denoiser(), 1)
    params.allocate(0)
    return params


def autoencoder():
    params = _core.Params()
    _core.Network(params, "vae_encode", VAE, 1, (16, 16))
    _core.Network(params, "vae_decode", VAE, 1, (8, 8))
    params.allocate(0)
    return params


@pytest.fixture(scope="module")
def truth():
    """{family: {original name: array in the originals' layout}}"""
    core = layouts.random_tensors(denoiser().shapes())
    original = layouts.to_original(core)
    unet = {n.removeprefix("unet."): a for n, a in original.items() if n.startswith("unet.")}
    vae = layouts.random_tensors(autoencoder().shapes())
    return {
        "unet": unet,
        "amn": {n.removeprefix("amn."): a for n, a in original.items() if n.startswith("amn.")},
        "vae": layouts.to_original(vae),
        "clip_text": layouts.random_tensors(layouts.clip_shapes()),
        "controlnet": layouts.random_tensors(layouts.controlnet_shapes({n: a.shape for n, a in unet.items()})),
    }


def nhwc(tensors, scope=""):
    return {scope + n: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for n, a in tensors.items()}


def empty(family, truth):
    """A store that wants the family's parameters, none of them set."""
    if family in ("unet", "amn"):
        store = denoiser()
    elif family == "vae":
        store = autoencoder()
    else:
        scope = "control." if family == "controlnet" else ""
        store = Store({n: np.empty(a.shape, np.float32) for n, a in nhwc(truth[family], scope).items()})
    for title, shape in store.shapes().items():
        store[title] = np.full(shape, np.nan, np.float32)
    return store


def check(family, truth, path, scale=1.0, dtype=np.float32, **how):
    store = empty(family, truth)
    load_part(store, path, family, **how)
    scope = {"unet": "unet.", "amn": "amn.", "controlnet": "control."}.get(family, "")
    titles = [title for title in store.shapes() if title.startswith(scope)]
    found = {t: store[t] for t in titles}
    if family != "clip_text":  # whose q, k and v are apart in the originals too
        found = layouts.to_original(found)
    assert found.keys() == {scope + title for title in truth[family]}
    for title, array in truth[family].items():
        expected = (np.float32(scale) * array).astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(found[scope + title], expected, err_msg=title)


def stable_diffusion(truth, ema=True):
    """The names of a whole checkpoint."""
    tensors = layouts.with_root(truth["unet"], "model.diffusion_model.") | layouts.with_root(truth["vae"], "first_stage_model.")
    tensors |= layouts.with_root(truth["clip_text"], "cond_stage_model.transformer.") | layouts.BUFFERS
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(7)[None]
    if ema:
        tensors |= layouts.moving_averages({n: 2 * a for n, a in truth["unet"].items()})
    return tensors


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, layouts.lightning])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_stable_diffusion_checkpoints(tmp_path, truth, wrap, dtype):
    path = tmp_path / "weights.safetensors"  # the name has no say
    tensors = {n: a.astype(dtype) if a.dtype == np.float32 else a for n, a in stable_diffusion(truth).items()}
    layouts.torch_zip(path, tensors, wrap)
    for family in ("unet", "vae", "clip_text"):
        check(family, truth, path, dtype=dtype)
    if dtype == np.float32:  # 2x is not exact in half precision where x was rounded up to the next power of two
        check("unet", truth, path, scale=2.0, ema=True)
    layouts.torch_zip(path, stable_diffusion(truth, ema=False))
    with pytest.raises(FormatError, match="no tensor has a moving average"):
        load_part(empty("unet", truth), path, "unet", ema=True)


def test_the_authors_checkpoint(tmp_path, truth):
    path = tmp_path / "last.ckpt"
    tensors = stable_diffusion(truth, ema=False) | layouts.with_root(truth["amn"], "control_model.")
    layouts.torch_zip(path, tensors, layouts.lightning)
    for family in ("unet", "amn", "vae", "clip_text"):
        check(family, truth, path)
    tensors = stable_diffusion(truth, ema=False) | layouts.with_root(truth["controlnet"], "control_model.")
    layouts.torch_zip(path, tensors, layouts.lightning)
    for family in ("unet", "controlnet"):
        check(family, truth, path)


def diffusers_folder(folder, truth, old=False):
    for part in ("unet", "vae", "text_encoder"):
        (folder / part).mkdir(parents=True)
    n = CONFIG.unet.num_res_blocks
    unet = {layouts.to_diffusers_unet(t, n, LEVELS["unet"]): a for t, a in truth["unet"].items()}
    layouts.shards(folder / "unet", unet)
    averages = {title: 2 * array for title, array in unet.items()}
    save_file(averages, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    vae = dict(layouts.to_diffusers_vae(t, a, LEVELS["vae"], old) for t, a in truth["vae"].items())
    save_file({t: a.astype(np.float16) for t, a in vae.items()}, folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    layouts.torch_zip(folder / "text_encoder" / "pytorch_model.bin", truth["clip_text"])
    (folder / "model_index.json").write_text("{}")


@pytest.mark.parametrize("old", [False, True])
def test_diffusers_folders(tmp_path, truth, old):
    diffusers_folder(tmp_path, truth, old)
    check("unet", truth, tmp_path)
    check("vae", truth, tmp_path, dtype=np.float16)
    check("clip_text", truth, tmp_path)
    check("unet", truth, tmp_path / "unet", scale=2.0, variant="non_ema")
    check("unet", truth, tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json")
    with pytest.raises(FileNotFoundError, match="of the variant 'fp16'.*non_ema"):
        load_part(empty("unet", truth), tmp_path / "unet", "unet", variant="fp16")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="no weight file"):
        load_part(empty("unet", truth), tmp_path / "none", "unet")


def test_single_models(tmp_path, truth):
    path = tmp_path / "file"
    n = CONFIG.unet.num_res_blocks
    save_file({layouts.to_diffusers_unet(t, n, 3): a for t, a in truth["controlnet"].items()}, path)
    check("controlnet", truth, path)
    save_file(layouts.with_root(truth["controlnet"], "control_model."), path)
    check("controlnet", truth, path)
    loss = {"loss.logvar": np.float32([0]), "loss.discriminator.main.0.weight": np.ones((4, 3, 4, 4), np.float32)}
    layouts.torch_zip(path, truth["vae"] | loss, lambda s: {"state_dict": s})  # kl-f8
    check("vae", truth, path)
    short = {t.removeprefix("text_model."): a for t, a in truth["clip_text"].items()}  # transformers 5
    save_file(short | {"embeddings.position_ids": np.arange(7)}, path)
    check("clip_text", truth, path)
    whole = {"vision_model.embeddings.class_embedding": np.ones(4, np.float32), "logit_scale": np.float32([1])}
    save_file(truth["clip_text"] | whole, path)  # all of CLIP
    check("clip_text", truth, path)
    save_file(layouts.with_root(truth["unet"], "unet.") | layouts.with_root(truth["amn"], "amn."), path)
    check("unet", truth, path)
    check("amn", truth, path)
    save_file(layouts.with_root(truth["unet"], "module.model.diffusion_model."), path)
    check("unet", truth, path)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("root", ["", "module."])
def test_resnets_are_folded(tmp_path, bottleneck, root):
    raw = layouts.resnet_tensors(bottleneck=bottleneck)
    path = tmp_path / "resnet.pth"
    layouts.torch_zip(path, {root + title: np.asarray(array) for title, array in raw.items()})
    with Collection(path) as collection:
        part, _ = collection.find("resnet")
        assert len(part.ignored) == sum(t.startswith("fc.") or t.endswith("tracked") for t in raw)
    expected = {}
    for title, weight in raw.items():
        if weight.ndim != 4:
            continue
        layer = title.removesuffix(".weight")
        norm = layer[:-1] + "1" if "downsample" in layer else layer.replace("conv", "bn")
        g, b, m, v = (raw[f"{norm}.{end}"].astype(np.float64) for end in ("weight", "bias", "running_mean", "running_var"))
        scale = g / np.sqrt(v + 1e-5)
        expected |= {title: (weight * scale[:, None, None, None]).transpose(0, 2, 3, 1), f"{layer}.bias": b - m * scale}
    store = Store({title: np.full(array.shape, np.nan, np.float32) for title, array in expected.items()})
    load_part(store, path, "resnet")
    for title, array in expected.items():
        np.testing.assert_allclose(store[title], array, rtol=1e-6, atol=1e-7)
    raw.pop("layer2.0.bn1.running_var")
    layouts.torch_zip(path, {title: np.asarray(array) for title, array in raw.items()})
    with pytest.raises(FormatError, match="no convolution with a batch norm: layer2.0.bn1.running_var"):
        load_part(store, path, "resnet")


def test_efficientnet_is_folded(tmp_path, capsys):
    """Under the published names, of which the last blocks and the classifier are not used."""
    params = _core.Params()
    _core.Network(params, "efficientnet_lite0", None, 1, (32, 32))
    params.allocate(0)
    norms, raw, expected = {"expand": 0, "depthwise": 1, "project": 2}, {}, {}
    rng = np.random.default_rng(0)
    for name, shape in params.shapes().items():
        if name.endswith(".bias"):
            continue
        *_, at, kind, _ = ("", *name.split("."))
        conv, norm = ("_conv_stem", "_bn0") if kind == "stem" else (f"_blocks.{at}._{kind}_conv", f"_blocks.{at}._bn{norms[kind]}")
        weight = rng.standard_normal(shape, np.float32)
        channels = shape[2] if kind == "depthwise" else shape[0]
        g, b, m, v = (rng.random(channels, np.float32) + 0.5 for _ in range(4))
        raw[f"{conv}.weight"] = weight.transpose(2, 0, 1)[:, None] if kind == "depthwise" else weight.transpose(0, 3, 1, 2)
        raw |= {f"{norm}.weight": g, f"{norm}.bias": b, f"{norm}.running_mean": m, f"{norm}.running_var": v}
        raw[f"{norm}.num_batches_tracked"] = np.int64(7)
        scale = g.astype(np.float64) / np.sqrt(v.astype(np.float64) + 1e-3)
        shaped = scale if kind == "depthwise" else scale[:, None, None, None]
        expected |= {name: weight * shaped, f"{name.removesuffix('weight')}bias": b - m * scale}
    more = {"_blocks.15._project_conv.weight": np.ones((4, 4, 1, 1), np.float32), "_fc.bias": np.ones(4, np.float32)}
    more |= {"_conv_head.weight": np.ones((4, 4, 1, 1), np.float32), "_bn1.weight": np.ones(4, np.float32)}
    path = tmp_path / "lite0.pth"
    layouts.torch_zip(path, raw | more)
    load_part(params, path, "efficientnet_lite0")
    assert expected.keys() == params.shapes().keys()
    for title, array in expected.items():
        np.testing.assert_allclose(params[title], array, rtol=1e-6, atol=1e-7, err_msg=title)
    assert main(["weights", "inspect", str(path)]) == 0
    assert "EfficientNet-Lite0 (11 blocks)" in capsys.readouterr().out
    del raw["_blocks.3._bn1.running_var"]
    layouts.torch_zip(path, raw)
    with pytest.raises(FormatError, match="no convolution with a batch norm: _blocks.3._bn1.running_var"):
        load_part(params, path, "efficientnet_lite0")


def test_tiny_autoencoders(tmp_path, capsys):
    config = AutoencoderConfig(kind="tiny", channels=8, latent_channels=5)
    tensors = layouts.random_tensors(Autoencoder(config, 64, 1, load=False).params.shapes())
    paths = {side: tmp_path / f"{side}.safetensors" for side in ("encoder", "decoder")}
    for side, path in paths.items():
        save_file(layouts.to_original({n.removeprefix(f"{side}."): a for n, a in tensors.items() if n.startswith(side)}), path)
        assert main(["weights", "inspect", str(path)]) == 0
        found = capsys.readouterr().out
        assert f"tiny autoencoder's {side} (8 channels, 5 latent channels, f8, pooled branches)" in found and "unknown" not in found
        assert main(["weights", "convert", str(path), str(tmp_path / "out")]) == 0
        assert load_file(tmp_path / "out").keys() == load_file(path).keys()
    loaded = Autoencoder(replace(config, weights=tuple(map(str, paths.values()))), 64, 1)
    for title, array in tensors.items():
        np.testing.assert_array_equal(loaded.params[title], array, err_msg=title)


# What does not fit.


def refuse(path, truth, match, family="vae", **how):
    store = empty(family, truth)
    with pytest.raises(FormatError, match=match) as caught:
        load_part(store, path, family, **how)
    assert caught.value.path == str(path)
    return store


def test_everything_that_does_not_fit_is_in_one_error(tmp_path, truth):
    path, vae = tmp_path / "vae", dict(truth["vae"])
    vae["encoder.extra"] = vae.pop("encoder.conv_out.bias")
    vae["decoder.conv_in.bias"] = np.ones(5, np.float32)
    save_file(vae, path)
    lists = "1 missing: encoder.conv_out.bias; 1 unexpected: encoder.extra; 1 of another shape: decoder.conv_in.bias"
    store = refuse(path, truth, lists)
    assert all(np.isnan(store[title]).all() for title in store.shapes())  # nothing was set


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: np.where(np.arange(a.size) == 3, np.nan, a), "1 with values that are not finite: decoder.conv_in.bias"),
        (lambda a: np.where(np.arange(a.size) == 3, -np.inf, a), "not finite"),
        (lambda a: a.astype(np.float64) * 1e300, "not finite"),  # finite, but not as float32
        (lambda a: np.arange(a.size), "no floating-point numbers"),
    ],
)
def test_values_that_are_no_weights(tmp_path, truth, change, match):
    path, vae = tmp_path / "vae", dict(truth["vae"])
    vae["decoder.conv_in.bias"] = change(vae["decoder.conv_in.bias"])
    if vae["decoder.conv_in.bias"].dtype == np.float64:
        vae = {t: a.astype(np.float64) for t, a in vae.items()}
    save_file(vae, path)
    refuse(path, truth, match)
    if match == "not finite":
        load_part(empty("vae", truth), path, "vae", allow_nonfinite=True)


def test_all_zero_and_another_model(tmp_path, truth):
    path = tmp_path / "file"
    save_file({t: np.zeros_like(a) for t, a in truth["vae"].items()}, path)
    refuse(path, truth, "every value is zero")
    save_file(truth["clip_text"], path)
    refuse(path, truth, "holds no KL autoencoder, but CLIP's text model")
    save_file({"w": np.ones(3, np.float32)}, path)
    refuse(path, truth, "but nothing that is known")


def test_parts_are_loaded_by_an_explicit_prefix_alone(tmp_path, truth):
    path = tmp_path / "encoder"
    save_file({t: a for t, a in truth["vae"].items() if not t.startswith("decoder.mid.attn")}, path)
    refuse(path, truth, "missing: decoder.mid.attn_1")
    store = empty("vae", truth)
    load_part(store, path, "vae", prefix="encoder.")
    for title in store.shapes():
        assert np.isnan(store[title]).any() != title.startswith("encoder.")
    with pytest.raises(ValueError, match="begins with 'encode.x'"):
        load_part(store, path, "vae", prefix="encode.x")


def test_averages_of_some_tensors_are_no_model(tmp_path, truth):
    tensors = stable_diffusion(truth)
    tensors.pop("model_ema.diffusion_modeltime_embed0weight")
    save_file(tensors, tmp_path / "file")
    refuse(tmp_path / "file", truth, r"\d+ of \d+ tensors have a moving average", family="unet", ema=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: {"weight_map": m | {"conv_in.weight": "../x.safetensors"}}, "no plain name"),
        (lambda m: {"weight_map": m | {"conv_in.weight": "/etc/passwd"}}, "no plain name"),
        (lambda m: {"weight_map": m | {"more": next(iter(m.values()))}}, "1 tensors of the index are in no shard: more"),
        (lambda m: {"weight_map": dict(list(m.items())[1:])}, "which the index places elsewhere"),
        (lambda m: {"weight_map": m | {str(i): str(i) for i in range(1000)}}, "at most 1000"),
        (lambda m: {"weight_map": []}, "without a weight_map"),
        (lambda m: {}, "without a weight_map"),
        (lambda m: "[" * 100_000, "not a readable index"),
        (lambda m: "{", "not a readable index"),
        (lambda m: " " * (3 << 20), "at most"),
    ],
)  # fmt: skip
def test_hostile_indices(tmp_path, truth, change, match):
    diffusers_folder(tmp_path, truth)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    changed = change(json.loads(path.read_text())["weight_map"])
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    refuse(path, truth, match, family="unet")


@pytest.mark.parametrize("write", [layouts.torch_zip, lambda path, state: save_file(state, path)])
def test_loading_takes_one_tensor_beside_the_model(tmp_path, write):
    shapes = {f"text_model.encoder.layers.{i}.mlp.fc1.weight": (512, 1024) for i in range(8)}
    shapes["text_model.embeddings.token_embedding.weight"] = (512, 1024)
    store = Store({title: np.empty(shape, np.float32) for title, shape in shapes.items()})
    write(tmp_path / "file", layouts.random_tensors(shapes))
    one = 4 * 512 * 1024
    tracemalloc.start()
    load_part(store, tmp_path / "file", "clip_text")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one < peak < 1.3 * one


# Commands.


def test_inspect(tmp_path, truth, capsys):
    path = tmp_path / "sd.ckpt"
    layouts.torch_zip(path, stable_diffusion(truth) | {"what": np.ones(2, np.float32)}, layouts.lightning)
    assert main(["weights", "inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"][0]["format"] == "torch zip" and found["files"][0]["tensors"] == len(stable_diffusion(truth)) + 1
    models = {model["family"]: model for model in found["models"]}
    assert set(models) == {"unet", "vae", "clip_text"} and found["unknown"] == ["what"]
    assert len(found["ignored"]) == len(layouts.BUFFERS) + 2
    assert models["unet"]["ema"] and models["unet"]["parameters"] == sum(a.size for a in truth["unet"].values())
    assert models["unet"]["parameters_of"]["unet.input_blocks.0.0.weight"] == [8, 3, 3, CONFIG.autoencoder.latent_channels]
    assert models["vae"]["tensors_of"]["quant_conv.bias"]["from"] == "first_stage_model.quant_conv.bias"
    assert main(["weights", "inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "model.diffusion_model." in text and "what" in text and "F32" in text
    for name, raw in (("resnet18", {"blocks": (2, 2, 2, 2), "bottleneck": False}), ("resnet50", {"blocks": (3, 4, 6, 3)})):
        layouts.torch_zip(path, {t: np.asarray(a) for t, a in layouts.resnet_tensors(**raw).items()})
        assert main(["weights", "inspect", str(path)]) == 0
        assert f"ResNet ({name})" in capsys.readouterr().out
    assert main(["weights", "inspect", str(tmp_path / "none")]) == 1


def test_inspect_a_checkpoint(first_checkpoint, tmp_path, capsys):
    def inspect(path, *more):
        status = main(["weights", "inspect", str(path), *more])
        return status, capsys.readouterr()

    tensors, state = load_checkpoint(first_checkpoint)
    status, told = inspect(first_checkpoint)
    assert status == 0 and "checkpoint of cdad (version 2)" in told.out and "every tensor is whole" in told.out
    assert "task 1 learned: gear, cloth (12 steps)" in told.out and "preset tiny, 64 pixels" in told.out
    status, told = inspect(first_checkpoint, "--json")
    found = json.loads(told.out)
    assert found["config"] == state["config"] and found["ledger"] == state["ledger"] and found["steps"] == 12
    sizes = {name: part["bytes"] for name, part in found["parts"].items()}
    assert sizes["basis"] == sum(a.nbytes for n, a in tensors.items() if n.startswith("basis/"))
    assert sum(sizes.values()) == sum(a.nbytes for a in tensors.values()) and {"model/unet", "model/amn", "calibration"} <= set(sizes)
    path = tmp_path / "other"
    save_checkpoint(path, tensors, state | {"progress": {"classes": ["steel"], "step": 5}})
    assert "task 2, at step 5: steel" in inspect(path)[1].out
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    status, told = inspect(path)
    assert status == 1 and "damaged: 1 tensors: " in told.out
    for edited in ({}, state | {"ledger": [7]}, state | {"config": {"more": 1}}, state | {"progress": [1]}):
        save_checkpoint(path, tensors, edited)
        status, told = inspect(path)
        assert status == 1 and "no checkpoint of a model" in told.err


def test_convert(tmp_path, truth, capsys):
    diffusers_folder(tmp_path / "in", truth)
    out = tmp_path / "out.safetensors"
    assert main(["weights", "convert", str(tmp_path / "in"), str(out)]) == 0
    written = load_file(out)
    expected = {n: a for n, a in stable_diffusion(truth, ema=False).items() if n not in layouts.BUFFERS and "_ids" not in n}
    assert written.keys() == expected.keys()
    for title, array in expected.items():
        half = title.startswith("first_stage_model.")
        np.testing.assert_array_equal(written[title], array.astype(np.float16) if half else array, err_msg=title)
    layouts.torch_zip(tmp_path / "sd.ckpt", stable_diffusion(truth))
    assert main(["weights", "convert", str(tmp_path / "sd.ckpt"), str(out), "--ema"]) == 0
    check("unet", truth, out, scale=2.0)
    save_file(truth["vae"], tmp_path / "vae")
    assert main(["weights", "convert", str(tmp_path / "vae"), str(out)]) == 0
    assert load_file(out).keys() == truth["vae"].keys()
    before = out.read_bytes()
    save_file(truth["vae"] | {"w": np.ones(2, np.float32)}, tmp_path / "vae")
    layouts.torch_zip(tmp_path / "sd.ckpt", stable_diffusion(truth) | {"what": np.ones(2, np.float32)})
    assert main(["weights", "convert", str(tmp_path / "sd.ckpt"), str(out)]) == 1
    assert "what" in capsys.readouterr().err and out.read_bytes() == before


def test_converting_shared_values_does_not_fill_the_disk(tmp_path):
    """1000 tensors that are one: the file would become 1000 times as large."""
    shared = tensor(storage(count=1 << 16), shape=(256, 256), strides=(256, 1))
    state = {f"text_model.encoder.layers.{i}.mlp.fc1.weight": shared for i in range(1000)}
    state["text_model.embeddings.token_embedding.weight"] = shared
    path = tmp_path / "file"
    path.write_bytes(layouts.archive({"a/data.pkl": program(state), "a/data/0": bytes(4 << 16)}))
    with Collection(path) as collection, pytest.raises(LimitError, match="share values"):
        convert(collection, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pull(tmp_path, truth, monkeypatch, capsys):
    def command():
        return main(["weights", "pull", "sd-vae-ft-mse", "--to", str(tmp_path)])

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert command() == 1
    assert "pip install 'cdad[hub]'" in capsys.readouterr().err

    hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    errors.HfHubHTTPError = type("HfHubHTTPError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)

    def offline(repository, file, local_dir):
        raise errors.HfHubHTTPError("no route to host")

    hub.hf_hub_download = offline
    assert command() == 1
    assert "could not be fetched" in capsys.readouterr().err

    def fetch(repository, file, local_dir):
        assert repository == PUBLISHED["sd-vae-ft-mse"].repository
        save_file(content, local_dir / file)
        return str(local_dir / file)

    hub.hf_hub_download, content = fetch, truth["vae"]
    assert command() == 0
    assert "MIT" in capsys.readouterr().out
    content = truth["clip_text"]
    assert command() == 1
    assert "holds no vae" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["weights", "pull", "everything", "--to", str(tmp_path)])


# In models, and checkpoints as foreign files.


def test_a_model_starts_from_files(tmp_path):
    config = preset("tiny").updated({"training.ema_decay": 0.9})
    shapes = ContinualModel(config).params.shapes()
    original = layouts.to_original(layouts.random_tensors(shapes))
    path = tmp_path / "sd.safetensors"
    roots = {"unet": "model.diffusion_model", "amn": "control_model"}
    save_file({".".join((roots[n.split(".")[0]], n.split(".", 1)[1])): a for n, a in original.items()}, path)
    model = ContinualModel(config.updated({"unet.weights": str(path), "amn.weights": str(path)}))
    found = layouts.to_original({title: model.params[title] for title in shapes})
    for title, array in original.items():
        np.testing.assert_array_equal(found[title], array, err_msg=title)
    np.testing.assert_array_equal(model._trainer.block("ema"), model._trainer.block("weights"))
    with pytest.raises(FormatError, match="no tensor has a moving average"):
        ContinualModel(config.updated({"unet.weights": str(path), "unet.ema": True}))


def test_an_average_that_a_checkpoint_lacks_begins_with_its_weights(first_checkpoint, quick_config):
    model = ContinualModel.load(first_checkpoint, quick_config.updated({"training.ema_decay": 0.9}))
    np.testing.assert_array_equal(model._trainer.block("ema"), model._trainer.block("weights"))


def change(*keys, to):
    def apply(tensors, state):
        at = state
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = to

    return apply


def drop(title):
    return lambda tensors, state: tensors.pop(title)


def put(title, array):
    return lambda tensors, state: tensors.update({title: array})


def within_first(tensors, state):
    state["progress"] = {"classes": state["ledger"].pop()["classes"], "step": 1, "seconds": 0.0}
    state["age"] = 1


def within_first_with_moments(tensors, state):
    within_first(tensors, state)
    tensors |= {f"optimizer/{name}": np.ones(1, np.float32) for name in ("m", "v")}


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (change("config", to=[]), "configuration"),
        (change("config", "image_size", to=-64), "configuration.*image_size"),
        (change("config", "image_size", to=1 << 70), "configuration"),
        (change("config", "unet", "model_channels", to="x"), "configuration.*model_channels"),
        (change("config", "unet", "num_heads", to=0), "configuration.*num_heads"),
        (change("config", "more", to=1), "configuration.*unknown key"),
        (change("ledger", to=[{}]), "does not fit together"),
        (change("ledger", to=7), "does not fit together"),
        (change("ledger", 0, "classes", to=[["gear"], "cloth"]), "a class's name is a str"),
        (change("ledger", 0, "classes", to=["gear", "gear"]), "twice"),
        (change("progress", to=[1]), "does not fit together"),
        (change("progress", to={"classes": ["gear"]}), "twice"),
        (change("progress", to={"classes": ["steel"], "step": -1, "seconds": 0.0}), "progress"),
        (change("progress", to={"classes": ["steel"], "step": 1.5, "seconds": 0.0}), "progress"),
        (change("steps", to="x"), "does not fit together"),
        (change("steps", to=1 << 70), "does not fit together"),
        (change("age", to=-1), "does not fit together"),
        (change("strategy", to={}), "does not fit together"),
        (drop("latent/shift"), "latent/shift"),
        (put("latent/scale", np.ones(1, np.float32)), "latent/scale is"),
        (within_first, "no optimizer/m"),
        (within_first_with_moments, "optimizer/[mv] is"),
        (put("optimizer/x", np.ones(1, np.float32)), "no block 'x'"),
        (drop("calibration/gear/mean"), "mean"),
        (drop("model/unet.out.2.bias"), "missing: unet.out.2.bias"),
        (put("model/unet.out.2.bias", np.full(16, np.nan, np.float32)), "not finite: unet.out.2.bias"),
        (put("model/more", np.ones(1, np.float32)), "unexpected: more"),
    ],
)
def test_edited_checkpoints(first_checkpoint, tmp_path, edit, match):
    """A digest that was made anew does not make a checkpoint right."""
    tensors, state = load_checkpoint(first_checkpoint)
    edit(tensors, state)
    path = tmp_path / "edited.safetensors"
    save_checkpoint(path, tensors, state)
    with pytest.raises(CheckpointError, match=match) as caught:
        ContinualModel.load(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "7", "{", '{"a":' + "1" * 5000 + "}", "null"])
def test_checkpoints_whose_state_is_no_object(tmp_path, text):
    path = tmp_path / "file"
    for version in ("1", "2", "\u00b2", "9" * 5000):
        metadata = {"format": FORMAT, "version": version, "state": text, "crc32": "{}"}
        if version == "1":
            metadata["digest"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        else:
            metadata["digest"] = _digest(metadata, {})
        save_file({}, path, metadata)
        with pytest.raises(CheckpointError, match="JSON" if version in "12" else "version"):
            Checkpoint(path)


# The libraries' own files, where they are installed.


def test_diffusers_writes_what_is_read(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(8, 8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=2,
    )
    unet.save_pretrained(tmp_path / "unet", max_shard_size="100KB")
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    )
    vae.half().save_pretrained(tmp_path / "vae", variant="fp16")
    store = denoiser()
    load_part(store, tmp_path, "unet")
    upsampling = unet.up_blocks[1].upsamplers[0].conv.weight.detach().numpy()
    np.testing.assert_array_equal(store["unet.output_blocks.5.2.conv.weight"], upsampling.transpose(0, 2, 3, 1))
    load_part(autoencoder(), tmp_path, "vae")
    control = diffusers.ControlNetModel.from_unet(unet)
    control.save_pretrained(tmp_path / "controlnet")
    with Collection(tmp_path / "controlnet") as collection:
        part, _ = collection.find("controlnet")
        assert all(n.startswith(("input_", "time_", "middle_", "zero_convs.")) for n in part.names)


def test_transformers_writes_what_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = transformers.CLIPTextConfig(
        vocab_size=11, hidden_size=8, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=7
    )
    transformers.CLIPTextModel(config).save_pretrained(tmp_path)
    store = Store({n: np.empty(s, np.float32) for n, s in layouts.clip_shapes().items()})
    load_part(store, tmp_path, "clip_text")
