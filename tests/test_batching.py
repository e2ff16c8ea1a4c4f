"""Training in less memory: blocks that the backward pass runs again, and batches in parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from bits import ON_GPU, learn

from cdad import Config, ContinualModel, _core, preset

FIRST, SECOND = "gear", "steel"

# What a process grows by while it makes a trainer and takes two steps, and what was planned.
GROWTH = """
import json, sys
import numpy as np
from cdad import Config, _core, process_memory
from cdad.profile import _inputs

def train(config):
    batch = config.training.batch_size
    trainer = _core.Trainer(_core.Params(), config.denoiser(), batch, config.optimizer(), 0, **config.batching())
    latents, images, context = _inputs(config, batch, 0)
    for _ in range(2):
        trainer.step(latents, images, images, context)
    return trainer.memory_bytes | {"arena": trainer.arena_bytes}

train(Config.from_dict(json.loads(sys.argv[1])))
before = process_memory.held()
planned = train(Config.from_dict(json.loads(sys.argv[2])))
print(json.dumps([process_memory.peak() - before, planned]))
"""


def trainer_of(config: Config, device: str | None = None) -> _core.Trainer:
    batch = config.training.batch_size
    return _core.Trainer(_core.Params(device), config.denoiser(), batch, config.optimizer(), 3, **config.batching())


def batch_of(config: Config) -> list[np.ndarray]:
    """Latents and two images, no two samples alike."""
    rng, n, side = np.random.default_rng(0), config.training.batch_size, config.latent_size
    latents = rng.standard_normal((n, side, side, config.autoencoder.latent_channels), np.float32)
    images = rng.random((2, n, config.image_size, config.image_size, 3), np.float32)
    scale = np.linspace(0.1, 3.0, n, dtype=np.float32)[:, None, None, None]
    return [latents * scale, *images]


@pytest.mark.parametrize(
    "changes",
    [
        {"training.ema_decay": 0.9, "training.clip_norm": 0.0},
        {"continual.projection": "gradient", "precision": "bfloat16"},
        {"continual.strategy": "distill"},
        {"continual.strategy": "ewc"},
    ],
)
def test_recomputing_changes_no_bit(products, quick_config, changes):
    changes = changes | {"training.steps": 3, "training.increment_steps": 3, "scoring.calibrate": False}
    changes |= {"scoring.distance": "euclidean"}
    losses, models, blocks = [], [], []
    for recompute in (False, True):
        model = ContinualModel(quick_config.updated(changes | {"training.recompute": recompute}))
        told = []
        for name in (FIRST, SECOND):
            blocks.append(learn(model, [products[name]], callback=lambda r, to=told: to.append((r.loss, r.grad_norm))))
        losses.append(told)
        models.append(model)
    assert losses[0] == losses[1] and len(losses[0]) == 6
    for kept, again in zip(blocks[:2], blocks[2:], strict=True):
        assert kept["m"].any() and all(np.array_equal(kept[name], again[name]) for name in kept)
    assert all(np.array_equal(U, models[1].bases[name]) for name, U in models[0].bases.items())
    arenas, memory = [model._trainer.arena_bytes for model in models], [model.memory_bytes for model in models]
    assert arenas[1] < 0.75 * arenas[0]
    assert memory[1].pop("workspace") < memory[0].pop("workspace")
    assert memory[0] == memory[1]


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_parts_of_a_batch_are_the_batch(clip_norm):
    config = preset("tiny").updated({"training.clip_norm": clip_norm})
    batch = batch_of(config)
    whole = trainer_of(config)
    want = whole.step(*batch)
    memory, m = whole.memory_bytes, whole.block("m").copy()
    for parts in (2, 8):
        cut = trainer_of(config.updated({"training.accumulate": parts}))
        assert cut.step(*batch) == pytest.approx(want, rel=1e-5)
        assert np.linalg.norm(cut.block("m") - m) < 1e-5 * np.linalg.norm(m)
        weights = cut.block("weights")
        assert np.linalg.norm(weights - whole.block("weights")) < 1e-5 * np.linalg.norm(weights)
        held = 0 if clip_norm else memory["parameters"]
        assert cut.memory_bytes["gradients"] == memory["gradients"] + held
        assert cut.arena_bytes < 1.2 * whole.arena_bytes / parts


def test_gradients_of_parts_are_the_batch_s():
    config = preset("tiny")
    batch = batch_of(config)
    draws = [np.flip(batch[0]), np.linspace(10, 990, len(batch[0])).astype(np.int64)]
    *want, whole = trainer_of(config).gradients(*batch, *draws)
    *got, cut = trainer_of(config.updated({"training.accumulate": 4, "training.recompute": True})).gradients(*batch, *draws)
    assert got == pytest.approx(want, rel=1e-5)
    # Of keys' biases they are zero but for rounding.
    noise = 1e-7 * max(map(np.linalg.norm, whole.values())) if ON_GPU else 0.0
    for name, gradient in whole.items():
        assert np.linalg.norm(cut[name] - gradient) <= 1e-4 * np.linalg.norm(gradient) + noise, name


def test_a_task_in_parts_goes_on_from_a_checkpoint(products, quick_config, tmp_path):
    path, task = tmp_path / "state.safetensors", [products[FIRST]]
    config = quick_config.updated({"training.accumulate": 2, "training.recompute": True})
    whole, cut, told = ContinualModel(config), ContinualModel(config), []
    want = learn(whole, task, callback=told.append)

    def stop(report):
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut.fit_task(task, progress=False, callback=stop, checkpoint=path, checkpoint_seconds=0.0)
    resumed, other, plain = ContinualModel.load(path), ContinualModel.load(path, quick_config), []
    assert resumed.config == config and resumed.progress["step"] == 3
    got = learn(resumed, task)
    assert want["m"].any() and all(np.array_equal(want[name], got[name]) for name in want)
    # The same task's last steps in whole batches: a sample's noise is what it was in a part.
    other.fit_task(task, progress=False, callback=plain.append)
    assert [r.loss for r in plain] == pytest.approx([r.loss for r in told[3:]], rel=1e-3)


def test_on_a_device():
    config = preset("tiny").updated({"training.accumulate": 2, "training.recompute": True, "training.batch_size": 2})
    here, there = trainer_of(config, "cpu"), trainer_of(config, "emulated")
    for _ in range(2):
        assert here.step(*batch_of(config)) == there.step(*batch_of(config))
    assert np.array_equal(here.block("weights"), there.block("weights"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc, where a process reads its peak memory")
def test_memory_is_what_was_planned():
    config = preset("small").updated({"training.recompute": True, "training.accumulate": 2, "training.clip_norm": 0.0})
    configs = [json.dumps(c.to_dict()) for c in (preset("tiny"), config)]
    host = os.environ | {"CDAD_DEVICE": "cpu"}  # whose memory this is of
    done = subprocess.run([sys.executable, "-c", GROWTH, *configs], env=host, capture_output=True, text=True, check=True)
    grown, planned = json.loads(done.stdout)
    arena = planned.pop("arena")
    assert grown == pytest.approx(sum(planned.values()), rel=0.03)
    plain = _core.Trainer(_core.Params(), preset("small").denoiser(), 8, preset("small").optimizer(), 0)
    assert arena < 0.4 * plain.arena_bytes / 2
    assert planned["moments"] == plain.memory_bytes["moments"]  # the sum of the parts' gradients, as clipping has it


def test_refusals():
    config = preset("tiny")
    with pytest.raises(ValueError, match="cannot be cut into 3 equal parts"):
        _core.Trainer(_core.Params(), config.denoiser(), 8, config.optimizer(), 0, accumulate=3)
    with pytest.raises(ValueError, match="cannot be added up"):
        _core.Trainer(_core.Params(), config.denoiser(), 8, config.optimizer(), 0, "output", accumulate=2)
