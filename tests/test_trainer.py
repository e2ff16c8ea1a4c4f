"""What the core's trainer and sampler refuse, and what they leave behind."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from cdad import TrainingError, _core, preset

CONFIG = preset("tiny")


def test_a_refused_trainer_leaves_its_parameters_as_they_were():
    params, other = _core.Params(), _core.Params()
    with pytest.raises(ValueError, match="lr"):
        _core.Trainer(params, CONFIG.denoiser(), 1, CONFIG.optimizer() | {"lr": -1.0}, 1)
    assert not params.shapes()
    for of in (params, other):
        _core.Trainer(of, CONFIG.denoiser(), 1, CONFIG.optimizer(), 2)
    assert all(np.array_equal(params[name], other[name]) for name in other.shapes())


def test_a_trainer_of_its_own_blocks_goes_with_its_last_name():
    params, optimizer = _core.Params(), CONFIG.optimizer() | {"ema_decay": 0.9}
    before = sys.getrefcount(params)
    trainer = _core.Trainer(params, CONFIG.denoiser(), 1, optimizer, 0, distill=True)
    trainer.teach(trainer.block("ema"), 1.0)
    trainer.tether(trainer.block("weights")[:], 1.0)
    latent, image = (np.ones((1, *size, n), np.float32) for size, n in ((CONFIG.denoiser()["latent_size"], 16), ((64, 64), 3)))
    assert np.isfinite(trainer.step(latent, image, image)[0])
    del trainer
    gc.collect()
    assert sys.getrefcount(params) == before


@pytest.mark.parametrize("n", [-1, 2**32 + 1, 2**53 + 1, 2**70])
def test_steps_that_cannot_be_counted(n):
    trainer = _core.Trainer(_core.Params(), CONFIG.denoiser(), 1, CONFIG.optimizer(), 0)
    with pytest.raises((ValueError, OverflowError)):
        trainer.n_steps = n
    assert trainer.n_steps == 0


def test_a_sampler_wants_a_prediction_of_the_latent():
    config = CONFIG.denoiser()
    with pytest.raises(ValueError, match="16 channels that gives 256 denoises nothing"):
        _core.Sampler(_core.Params(), config | {"unet": config["unet"] | {"out_channels": 256}}, 1)


def test_what_has_no_finite_gradient_is_not_drawn_back():
    """Of a device, which looks at gradients itself: biases and norms, which it moves many at once."""
    params = _core.Params("emulated")
    trainer = _core.Trainer(params, CONFIG.denoiser(), 1, CONFIG.optimizer() | {"clip_norm": 0.0}, 0)
    trainer.tether(trainer.block("weights") + 1, 100.0)
    trainer.penalize(np.full_like(trainer.block("weights"), 1e38), trainer.block("weights") + 1e3)
    before = {name: np.array(params[name]) for name, shape in params.shapes().items() if len(shape) == 1}
    latent, image = np.ones((1, *CONFIG.denoiser()["latent_size"], 16), np.float32), np.ones((1, 64, 64, 3), np.float32)
    with pytest.raises(TrainingError):
        trainer.step(latent, image, image)
    assert all(np.array_equal(params[name], x) for name, x in before.items())
