"""A tether: after each step what moves goes a part of the way back to where it was (`continual.tether`)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from test_devices import SMALLEST

import cdad
from cdad import CheckpointError, ContinualModel, _core, preset
from cdad.strategies import make_strategy

RATE = 30.0


@pytest.fixture(scope="module")
def config(quick_config):
    changes = {"continual.tether": RATE, "training.steps": 3, "training.increment_steps": 6, "scoring.calibrate": False}
    return quick_config.updated(changes)


@pytest.fixture(scope="module")
def first(products, config, tmp_path_factory):
    path = tmp_path_factory.mktemp("tether") / "first.safetensors"
    ContinualModel(config).fit_task([products["gear"]], progress=False, checkpoint=path)
    return path


def moved(model: ContinualModel, start: dict[str, np.ndarray]) -> float:
    """|dW| of all weights."""
    return float(np.sqrt(sum(np.sum((model.params[name].astype(np.float64) - w) ** 2) for name, w in start.items())))


def weights(model: ContinualModel) -> dict[str, np.ndarray]:
    return {name: model.params[name].copy() for name in model.params.shapes()}


@pytest.mark.parametrize("device", ["cpu", "emulated", "cuda"])
@pytest.mark.parametrize("projection", ["update", "gradient"])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_step_goes_back_by_its_share(clip_norm, projection, device):
    """w + share (anchor - w) of what AdamW alone gives, share = lr rate / (1 + lr rate); of what is confined, protected or free, and
    not of what is frozen; the average is of that."""
    config = preset("tiny").updated(SMALLEST | {"training.lr": 1e-2, "continual.projection": projection, "training.ema_decay": 0.5})
    rng, c, optimizer = np.random.default_rng(0), config.denoiser(), config.optimizer() | {"clip_norm": clip_norm}
    latent = rng.standard_normal((1, *c["latent_size"], c["unet"]["in_channels"]), np.float32)
    image = rng.random((1, *c["image_size"], 3), np.float32)
    confined, guarded, frozen = "unet.out.2.weight", "amn.encoder.layers.0.linear1.weight", "unet.out.2.bias"
    found = {}
    try:
        _core.Params(device)
    except RuntimeError as error:
        pytest.skip(f"no {device} device: {error}")
    for tethered in (False, True):
        params = _core.Params(device)
        trainer = _core.Trainer(params, c, 1, optimizer, 0)
        start = {name: np.array(params[name]) for name in params.shapes()}
        d = start[confined][0].size
        trainer.confine(confined, np.eye(d, dtype=np.float32)[: d // 4])
        trainer.protect(guarded, np.eye(start[guarded].shape[1], dtype=np.float32)[:, :7])
        trainer.protect(frozen, frozen=True)
        if tethered:
            for name in start:  # away from where it begins, so that the direction is seen
                params[name] = start[name] + 1
            anchor = np.array(trainer.block("weights"))
            for name in start:
                params[name] = start[name]
            trainer.set_block("ema", np.array(trainer.block("weights")))
            trainer.tether(anchor, RATE, {confined: 3 * RATE})
        trainer.step(latent, image, image, lr_scale=0.5)
        average = np.array(trainer.block("ema"))
        found[tethered] = {name: np.array(params[name], np.float64) for name in start}
        lr = 0.5 * 1e-2
        if tethered:
            for name, w in found[False].items():
                rate = {frozen: 0.0, confined: 3 * RATE}.get(name, RATE)
                wanted = w + lr * rate / (1 + lr * rate) * (start[name] + 1 - w)
                assert np.abs(found[True][name] - wanted).max() < 1e-6, name
                params[name] = (0.1 * start[name] + 0.9 * found[True][name]).astype(np.float32)  # at the first step
            assert np.abs(average - np.array(trainer.block("weights"))).max() < 1e-6
            assert np.array_equal(found[True][frozen], start[frozen])
            before = {name: np.array(params[name]) for name in start}
            trainer.tether(None)
            trainer.step(latent, image, image, lr_scale=1e-3)
            assert max(np.abs(np.array(params[name]) - w).max() for name, w in before.items()) < 1e-4  # a tether: 3e-4 and more


@pytest.mark.parametrize(
    ("anchor", "rate", "error", "message"),
    [
        (np.zeros(3, np.float32), 1.0, ValueError, "a block of"),
        ([0.0], 1.0, TypeError, "a contiguous array of float32"),
        (None, -1.0, ValueError, "at least 0"),
        (None, float("inf"), ValueError, "finite"),
        (None, {"unet.out.2.weight": -1.0}, ValueError, "at least 0"),
        (None, {"unet.out.2.weight": "1"}, TypeError, "real number"),
        (None, {"nowhere": 1.0}, ValueError, "no parameter nowhere"),
    ],
)
def test_what_is_no_tether(first, anchor, rate, error, message):
    with pytest.raises(error, match=message):
        ContinualModel.load(first)._trainer.tether(anchor, *((1.0, rate) if isinstance(rate, dict) else (rate,)))


def test_the_last_layer_is_held_ten_times_as_much(config):
    told, strategy = [], make_strategy(config.continual)
    trainer = SimpleNamespace(tether=lambda *how: told.append(how))
    strategy.restrict(SimpleNamespace(config=config, params=SimpleNamespace(shapes=dict), _trainer=trainer), 1)
    assert told == [(None, RATE, {"unet.out.2.weight": 10 * RATE})]


def test_a_tethered_task_moves_less_and_lets_go(first, config, products):
    changes, held = [], []
    for rate in (0.0, RATE, 100 * RATE):
        model = ContinualModel.load(first, config.updated({"continual.tether": rate}))
        start, told = weights(model), []
        model.fit_task([products["steel"]], progress=False, callback=lambda _: told.append(model.memory_bytes["strategy"]))
        changes.append(moved(model, start))
        held.append(told[0])
        assert model.strategy._anchor is None and "strategy/anchor" not in model.strategy.tensors()
    assert held[1] - held[0] == held[2] - held[0] == model._trainer.block("weights").nbytes  # the anchor
    assert changes[0] > 1.05 * changes[1] > 2 * changes[2] > 0


def test_a_tethered_task_goes_on_to_the_same_bits(first, config, products, tmp_path):
    path = tmp_path / "model.safetensors"

    def stop(report):
        if report.step == 2:
            raise KeyboardInterrupt

    whole, interrupted = ContinualModel.load(first), ContinualModel.load(first)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit_task([products["steel"]], progress=False, callback=stop)
    interrupted.save(path)
    for model in (resumed := ContinualModel.load(path), whole):
        model.fit_task([products["steel"]], progress=False)
    assert all(np.array_equal(w, resumed.params[name]) for name, w in weights(whole).items())
    loose = ContinualModel.load(first, config.updated({"continual.tether": 0.0}))
    with pytest.raises(KeyboardInterrupt):
        loose.fit_task([products["steel"]], progress=False, callback=stop)
    loose.save(path)
    late = ContinualModel.load(path, config)
    with pytest.raises(CheckpointError, match="began without continual.tether"):
        late.fit_task([products["steel"]], progress=False)


def test_the_first_task_and_other_strategies_have_none(config, products):
    free, tethered = (ContinualModel(config.updated({"continual.tether": rate})) for rate in (0.0, RATE))
    for model in (free, tethered):
        model.fit_task([products["gear"]], progress=False)
    assert all(np.array_equal(w, tethered.params[name]) for name, w in weights(free).items())
    tuned = [ContinualModel(config.updated({"continual.tether": rate, "continual.strategy": "finetune"})) for rate in (0.0, RATE)]
    for model in tuned:
        for name in ("gear", "steel"):
            model.fit_task([products[name]], progress=False)
    assert all(np.array_equal(w, tuned[1].params[name]) for name, w in weights(tuned[0]).items())


def test_a_plan_counts_the_anchor(config):
    found = [cdad.plan(config.updated({"continual.tether": rate})).memory["increment"] for rate in (0.0, RATE)]
    assert "kept" not in found[0] and found[1]["kept"] == found[1]["weights"]
