"""AdamW's moments in bfloat16 and 8 bit: memory, losses, files, and going on in the middle of a task. The codes and single steps
are tested in C (csrc/tests/test_moments.c)."""

from __future__ import annotations

import os

import numpy as np
import pytest
from bits import learn
from conftest import FIRST, SECOND
from test_devices import ON_HOST

from cdad import ContinualModel, TrainingError, _core, preset
from cdad.checkpoint import Checkpoint, previous_of, save_checkpoint
from cdad.config import Config

SMALL, BLOCK, ALIGN = 4096, 256, 64
CODED = np.uint8


def kept_bytes(model: ContinualModel) -> int:
    """Of one moment in 8 bit, by the parameters' shapes."""

    def aligned(n: int) -> int:
        return -(-n // ALIGN) * ALIGN

    counts = [int(np.prod(shape)) for shape in model.params.shapes().values()]
    return sum(aligned(n) + aligned(4 * -(-n // BLOCK)) if n >= SMALL else aligned(4 * n) for n in counts)


def in_floats(model: ContinualModel, name: str, values: np.ndarray) -> np.ndarray:
    """What a block of a moment stands for, by a trainer that keeps float32."""
    config = model.config.updated({"training.moments": "float32"})
    trainer = _core.Trainer(_core.Params("cpu"), config.denoiser(), 1, config.optimizer(), 0)
    trainer.set_block(name, values)
    return np.array(trainer.block(name))


@pytest.mark.parametrize(("moments", "types"), [("bfloat16", (np.uint16, np.float32)), ("8bit", (CODED, CODED))])
def test_learning_and_files(products, quick_config, tmp_path, moments, types):
    config = quick_config.updated({"training.steps": 12})
    narrow = config.updated({"training.moments": moments})
    losses, models, blocks = {}, {}, {}
    for kind in (config, narrow):
        name = kind.training.moments
        models[name], losses[name] = ContinualModel(kind), []
        blocks[name] = learn(
            models[name],
            [products["gear"]],
            callback=lambda r, to=losses[name]: to.append(r.loss),
            checkpoint=tmp_path / name,
            checkpoint_seconds=0.0,
        )
    assert losses[moments] != losses["float32"]
    assert losses[moments] == pytest.approx(losses["float32"], rel=0.02)
    model, wide = models[moments], models["float32"]
    saved = wide.memory_bytes["moments"] - model.memory_bytes["moments"]
    floats = wide.memory_bytes["parameters"]
    assert saved == (floats / 2 if moments == "bfloat16" else 2 * (floats - kept_bytes(model)))

    kept = {name: blocks[moments][name] for name in ("m", "v")}
    for (name, block), kind in zip(kept.items(), types, strict=True):
        assert block.dtype == kind and np.count_nonzero(block) > block.size / 2
        exact = blocks["float32"][name]
        assert np.abs(in_floats(model, name, block) - exact).max() < 0.2 * np.abs(exact).max()
    path = previous_of(tmp_path / moments)  # after the last step; the newest, after the task, needs no moments
    same = ContinualModel.load(path)
    assert all(np.array_equal(same._trainer.block(name), block) for name, block in kept.items())
    turned = ContinualModel.load(path, config)
    assert all(np.array_equal(turned._trainer.block(name), in_floats(model, name, block)) for name, block in kept.items())
    turned.save(tmp_path / "wide")
    again = ContinualModel.load(tmp_path / "wide", narrow)
    assert all(np.array_equal(again._trainer.block(name), block) for name, block in kept.items())


def test_names(quick_config, first_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="moments is 'half'"):
        quick_config.updated({"training.moments": "half"})
    with pytest.raises(ValueError, match="moments is 'half'; 'float32' or 'bfloat16' or '8bit' is wanted"):
        _core.Trainer(_core.Params(), quick_config.denoiser(), 1, quick_config.optimizer() | {"moments": "half"}, 0)
    with pytest.raises(ValueError, match="did you mean 'moments'"):
        quick_config.updated({"training.first_moment": "bfloat16"})
    # Of checkpoints and runs of earlier versions.
    stored = quick_config.to_dict()
    del stored["training"]["moments"]
    assert Config.from_dict(stored | {"training": stored["training"] | {"first_moment": "bfloat16"}}).training.moments == "bfloat16"
    (tmp_path / "old.toml").write_text('preset = "tiny"\n[training]\nfirst_moment = "bfloat16"\n')
    assert Config.from_toml(tmp_path / "old.toml").training.moments == "bfloat16"
    with Checkpoint(first_checkpoint) as checkpoint:
        tensors, state = {name: checkpoint.read(name) for name in checkpoint.tensors}, checkpoint.state
    state["config"]["training"]["first_moment"] = state["config"]["training"].pop("moments")
    save_checkpoint(tmp_path / "old", tensors, state)
    assert ContinualModel.load(tmp_path / "old").config == quick_config


class Stop(Exception):
    pass


def stop(report):
    if report.step == 4:
        raise Stop


@pytest.mark.parametrize(
    "changes",
    [
        {"training.ema_decay": 0.5, "training.clip_norm": 0.0},
        {"continual.projection": "gradient"},
        {"continual.strategy": "si", "training.clip_norm": 0.0},
    ],
    ids=lambda changes: " ".join(f"{value}" for value in changes.values()),
)
def test_going_on_in_the_middle_of_a_task_gives_the_same_bits(products, quick_config, tmp_path, changes):
    """With directions that updates are confined to, the paper's projection, a penalty and a path; by one thread or two, and on
    a device."""
    config = quick_config.updated({"training.moments": "8bit", "training.steps": 2, "scoring.calibrate": False, **changes})
    first = ContinualModel(config)
    first.fit_task([products[name] for name in FIRST], progress=False, checkpoint=tmp_path / "first")
    second = [products[name] for name in SECOND]
    whole, cut = (ContinualModel.load(tmp_path / "first", device=device) for device in ("cpu", "emulated"))
    want = learn(whole, second)
    before = _core.get_threads()
    try:
        _core.set_threads(1)
        with pytest.raises(Stop):
            cut.fit_task(second, progress=False, callback=stop, checkpoint=tmp_path / "cut", checkpoint_seconds=0.0)
    finally:
        _core.set_threads(before)
    resumed = ContinualModel.load(tmp_path / "cut", device="cpu")
    assert resumed.progress["step"] > 0 and resumed._trainer.block("m").any()
    got = learn(resumed, second)
    assert all(np.array_equal(got[name], block) for name, block in want.items()) and want["m"].any()


by_cuda_s_kernels = pytest.mark.skipif(not ON_HOST.exists() or os.path.exists("/dev/nvidiactl"), reason="build_cuda_on_host was not run")


def smallest(moments: str, clip_norm: float) -> Config:
    """A denoiser so small that its step takes seconds with CUDA's kernels built for the CPU."""
    shape = {"image_size": 8, "unet.model_channels": 16, "unet.channel_mult": [1], "unet.attention_resolutions": []}
    shape |= {"autoencoder.latent_channels": 4, "amn.hidden": [8] * 7, "amn.n_layers": 1, "amn.num_heads": 1}
    return preset("tiny").updated(shape | {"amn.dim_feedforward": 16, "training.moments": moments, "training.clip_norm": clip_norm})


@by_cuda_s_kernels
def test_a_step_by_cuda_s_kernels():
    """Three of the weights are in 8 bit."""
    config = smallest("8bit", 0.0)
    c, rng = config.denoiser(), np.random.default_rng(0)
    latent = rng.standard_normal((1, *c["latent_size"], c["unet"]["in_channels"]), np.float32)
    image, told = rng.random((1, *c["image_size"], 3), np.float32), {}
    for device in ("cpu", "cuda"):
        try:
            params = _core.Params(device)
        except RuntimeError as error:
            pytest.skip(str(error))
        trainer = _core.Trainer(params, c, 1, config.optimizer(), 0)
        assert sum(np.prod(s) >= SMALL for s in params.shapes().values()) == 3
        n = trainer.block("weights").size
        trainer.set_block("m", (1e-3 * np.sin(np.arange(n))).astype(np.float32))
        trainer.set_block("v", (1e-4 * np.cos(np.arange(n)) ** 2).astype(np.float32))
        trainer.age = 100
        trainer.step(latent, image, image)
        told[device] = {name: np.array(trainer.block(name)) for name in ("weights", "m", "v")}
    wide = _core.Trainer(_core.Params("cpu"), c, 1, config.updated({"training.moments": "float32"}).optimizer(), 0)
    for name in ("m", "v"):
        found = []
        for device in ("cpu", "cuda"):
            wide.set_block(name, told[device][name])
            found.append(np.array(wide.block(name), np.float64))
        far, most = np.abs(found[0] - found[1]), np.abs(found[0]).max()  # by a bin, where rounding crosses its edge
        assert far.max() < 0.02 * most and np.mean(far > 1e-5 * (np.abs(found[0]) + 0.1 * most)) < 1e-3, name
    assert np.allclose(told["cpu"]["weights"], told["cuda"]["weights"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=by_cuda_s_kernels)])
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_they_are_no_denormals(moments, device):
    """Which a processor takes many times as long for, step after step. Gradients clipped to a norm of 1e-36 would leave them."""
    config = smallest(moments, 1e-36)
    c, rng = config.denoiser(), np.random.default_rng(0)
    try:
        trainer = _core.Trainer(_core.Params(device), c, 1, config.optimizer(), 0)
    except RuntimeError as error:
        pytest.skip(str(error))
    trainer.set_block("v", np.full(trainer.block("v").shape, 1.1755e-38, np.float32))
    latent = rng.standard_normal((1, *c["latent_size"], c["unet"]["in_channels"]), np.float32)
    image = rng.random((1, *c["image_size"], 3), np.float32)
    trainer.step(latent, image, image)
    m, v = np.array(trainer.block("m")), np.array(trainer.block("v"))
    values = (m.astype(np.uint32) << 16).view(np.float32) if m.dtype == np.uint16 else m
    tiny = np.finfo(np.float32).tiny
    assert values.any() and not np.any((values != 0) & (np.abs(values) < tiny))
    assert np.mean(v == 0) > 0.5 and not np.any((v != 0) & (v < tiny))


def test_they_are_there_while_steps_run(products, quick_config):
    """And of what moves: of a later task's weights the coordinates in its own directions, of what is frozen nothing."""
    config = quick_config.updated({"training.steps": 2, "training.ema_decay": 0.5, "scoring.calibrate": False})
    model, used, within, bytes_of = ContinualModel(config, device="emulated"), [], [], []

    def memory() -> int:
        return _core.device_memory("emulated")["used"]

    def watch(report):
        within.append(memory())
        bytes_of.append(model.memory_bytes["moments"])

    held = model.memory_bytes["parameters"]
    for names in (FIRST, SECOND):
        model.fit_task([products[name] for name in names], progress=False, callback=watch)
        used.append(memory())
        assert model._trainer.age == 0
    assert bytes_of[0] == 2 * held and 0 < bytes_of[-1] < held
    assert within[-1] - used[0] >= held + bytes_of[-1]  # with the gradients
    assert used[0] == used[1]


def test_what_is_shown_of_them_outlives_them(quick_config):
    config = quick_config.updated({"training.batch_size": 1})
    c, rng = config.denoiser(), np.random.default_rng(0)
    params = _core.Params("cpu")
    trainer = _core.Trainer(params, c, 1, config.optimizer(), 0)
    latent = rng.standard_normal((1, *c["latent_size"], c["unet"]["in_channels"]), np.float32)
    image = rng.random((1, *c["image_size"], 3), np.float32)
    trainer.step(latent, image, image)
    shown, copy = trainer.block("m"), np.array(trainer.block("m"))
    trainer.protect(next(name for name, shape in params.shapes().items() if len(shape) == 4), frozen=True)
    trainer.step(latent, image, image)
    assert trainer.block("m").size < shown.size and np.array_equal(shown, copy)  # other memory is in use now
    trainer.reset()
    assert np.array_equal(shown, copy) and not trainer.block("m").any()
    shown[:] = 1
    assert not trainer.block("m").any()


def test_a_gradient_that_is_not_finite_changes_nothing(quick_config):
    config = quick_config.updated({"training.moments": "8bit"})
    c, rng = config.denoiser(), np.random.default_rng(0)
    trainer = _core.Trainer(_core.Params("cpu"), c, 1, config.optimizer(), 0)
    latent = rng.standard_normal((1, *c["latent_size"], c["unet"]["in_channels"]), np.float32)
    image = rng.random((1, *c["image_size"], 3), np.float32)
    trainer.step(latent, image, image)
    before = {name: np.array(trainer.block(name)) for name in ("weights", "m", "v")}
    with pytest.raises(TrainingError, match="not finite"):
        trainer.step(latent * np.float32(np.nan), image, image)
    assert all(np.array_equal(trainer.block(name), block) for name, block in before.items())
    trainer.reset()
    assert not trainer.block("m").any() and not trainer.block("v").any() and trainer.age == 0
