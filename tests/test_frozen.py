"""Parts of the networks that later tasks leave as the first one learned them (`continual.frozen`)."""

from __future__ import annotations

import numpy as np
import pytest

import cdad
from cdad import CheckpointError, Config, ContinualModel, _core
from cdad.checkpoint import Checkpoint, save_checkpoint
from cdad.run import CONFIG, read_config

ENCODER = ("unet.time_embed", "unet.input_blocks", "unet.middle_block")


def is_frozen(name: str) -> bool:
    return name.startswith(ENCODER)


@pytest.fixture(scope="module")
def config(quick_config):
    changes = {"continual.frozen": ENCODER, "training.steps": 3, "training.increment_steps": 3, "scoring.calibrate": False}
    return quick_config.updated(changes)


@pytest.fixture(scope="module")
def first(products, config, tmp_path_factory):
    path = tmp_path_factory.mktemp("frozen") / "first.safetensors"
    ContinualModel(config).fit_task([products["gear"]], progress=False, checkpoint=path)
    return path


def weights(model: ContinualModel) -> dict[str, np.ndarray]:
    return {name: model.params[name].copy() for name in model.params.shapes()}


def matrices(model: ContinualModel) -> set[str]:
    return {name for name, shape in model.params.shapes().items() if len(shape) > 1}


def test_an_increment_leaves_what_is_frozen_and_moves_the_rest(first, config, products):
    model = ContinualModel.load(first)
    before = weights(model)
    assert set(model.bases) == {name for name in matrices(model) if not is_frozen(name)}
    model.fit_task([products["steel"]], progress=False)
    after = weights(model)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert not any(map(is_frozen, moved))
    for network in ("unet.output_blocks", "unet.out", "amn."):
        assert any(name.startswith(network) for name in moved), network
    assert set(model.bases) == {name for name in matrices(model) if not is_frozen(name)}


def test_the_first_task_trains_all_of_it(first, config):
    fresh, learned = ContinualModel(config), ContinualModel.load(first)
    assert all(any(not np.array_equal(fresh.params[n], learned.params[n]) for n in matrices(learned) if n.startswith(part)) for part in ENCODER)


def test_what_is_frozen_has_neither_moments_nor_gradients(first, config, products):
    """A step's memory tells that it does not differentiate what it does not move."""

    def of_an_increment(frozen: tuple[str, ...]) -> dict[str, int]:
        model = ContinualModel(config.updated({"continual.frozen": frozen}))
        model.fit_task([products["gear"]], progress=False)
        told: list[dict[str, int]] = []
        model.fit_task([products["steel"]], progress=False, callback=lambda report: told.append(model.memory_bytes | model.workspace_needs))
        return told[-1]

    whole, part, least = (of_an_increment(frozen) for frozen in ((), ENCODER, (*ENCODER, "amn")))
    for key in ("moments", "gradients", "strategy"):
        assert whole[key] > part[key] > least[key], key
    # Nothing below the output blocks is differentiated then, and none of its activations is kept.
    assert least["step"] < part["step"]


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (("unet.inputblocks",), "no weight's name begins with 'unet.inputblocks'"),
        (("unet.input_bloc",), "no weight's name begins with 'unet.input_bloc'"),  # a part of a name's part is a slip
        (("unet", "amn"), "nothing to learn with"),
        (("",), "a list of names"),
        ("unet", "a list of str is wanted"),
    ],
)
def test_a_slip_is_told_before_anything_is_learned(config, frozen, message):
    with pytest.raises(ValueError, match=message):
        ContinualModel(config.updated({"continual.frozen": frozen}))


def test_other_strategies_move_everything(first, config, products):
    model = ContinualModel.load(first, config.updated({"continual.strategy": "finetune"}))
    before = weights(model)
    model.fit_task([products["steel"]], progress=False)
    assert any(is_frozen(name) and not np.array_equal(before[name], model.params[name]) for name in before)


def test_what_was_frozen_is_not_set_free_without_its_bases(first, config, products):
    """Nothing would keep a later task from changing what the weights do with the old features."""
    free = config.updated({"continual.frozen": ()})
    model = ContinualModel.load(first, free)
    with pytest.raises(CheckpointError, match="with more of it frozen: consolidate"):
        model.fit_task([products["steel"]], progress=False)
    kept = dict(model.bases)
    model.consolidate([products["gear"]], progress=False)
    assert set(model.bases) == matrices(model)
    for name, U in kept.items():
        assert np.array_equal(model.bases[name][:, : U.shape[1]], U), name
    model.fit_task([products["steel"]], progress=False)
    assert model.classes == ("gear", "steel")


def test_more_is_frozen_by_a_load(first, config, products, tmp_path):
    more = config.updated({"continual.frozen": (*ENCODER, "amn")})
    model = ContinualModel.load(first, more)
    before = weights(model)
    model.fit_task([products["steel"]], progress=False, checkpoint=tmp_path / "second.safetensors")
    assert not any(name.startswith("amn.") or is_frozen(name) for name in model.bases)
    assert all(np.array_equal(before[name], model.params[name]) for name in before if name.startswith("amn."))
    # Of what the second task saw there is no basis there, whatever the configuration says later.
    again = ContinualModel.load(tmp_path / "second.safetensors", config)
    with pytest.raises(CheckpointError, match="consolidate"):
        again.fit_task([products["cloth"]], progress=False)


def test_a_later_task_moves_the_average_by_its_updates_alone(config, products):
    """What draws old products is the average, which lags behind the weights when their task ends. Here no later step moves any."""
    changes = {"training.ema_decay": 0.9, "training.increment_lr": 0.0}
    model = ContinualModel(config.updated(changes))
    lags = []
    model.fit_task(
        [products["gear"]],
        progress=False,
        callback=lambda report: lags.append(np.abs(model._trainer.block("weights") - model._trainer.block("ema")).max()),
    )
    assert lags[-1] > 1e-4
    average = model._trainer.block("ema").copy()
    model.fit_task([products["steel"]], progress=False)
    np.testing.assert_allclose(model._trainer.block("ema"), average, rtol=1e-5, atol=1e-8)


def test_files_of_builds_that_froze_nothing_stay_so(first, tmp_path):
    """Their configuration has no such key, and today's default would stop half of a network from learning on."""
    with Checkpoint(first) as checkpoint:
        tensors, state = {name: checkpoint.read(name) for name in checkpoint.tensors}, checkpoint.state
    del state["config"]["continual"]["frozen"], state["strategy"]["frozen"]
    save_checkpoint(tmp_path / "old.safetensors", tensors, state)
    assert ContinualModel.load(tmp_path / "old.safetensors").config.continual.frozen == ()
    whole = cdad.preset("small").updated({"continual.frozen": ()})
    (tmp_path / CONFIG).write_text(whole.to_toml().replace("frozen = []\n", ""))
    assert read_config(tmp_path) == whole
    assert Config.from_toml(tmp_path / CONFIG) == cdad.preset("small"), "a user's file changes what it names"


def test_a_task_goes_on_with_what_it_moves(first, config, products, tmp_path):
    path, whole = tmp_path / "model.safetensors", ContinualModel.load(first)

    def stop(report):
        if report.step == 1:
            raise KeyboardInterrupt

    interrupted = ContinualModel.load(first)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit_task([products["steel"]], progress=False, callback=stop)
    interrupted.save(path)
    with pytest.raises(ValueError, match="free_gamma, frozen and projection stay"):
        ContinualModel.load(path, config.updated({"continual.frozen": (*ENCODER, "amn")}))
    # With less of it frozen, moments fit: what the bases lack would be told by fit_task, where only another load helps.
    with pytest.raises(CheckpointError, match="free_gamma, frozen and projection stay"):
        ContinualModel.load(path, config.updated({"continual.frozen": ()}))
    resumed = ContinualModel.load(path)
    for model in (resumed, whole):
        model.fit_task([products["steel"]], progress=False)
    assert all(np.array_equal(whole.params[name], resumed.params[name]) for name in whole.params.shapes())


def test_a_task_that_froze_more_goes_on_with_no_less(first, config, products, tmp_path):
    """The bases of the task before are there, and no directions of the task's own."""
    model = ContinualModel.load(first, config.updated({"continual.frozen": (*ENCODER, "amn")}))

    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit_task([products["steel"]], progress=False, callback=stop)
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no directions of amn.*free_gamma, frozen and projection stay"):
        ContinualModel.load(tmp_path / "model.safetensors", config)


def test_a_collector_takes_the_weights_that_are_named(first):
    sampler = ContinualModel.load(first).drawing.samplers.whole
    names = ["unet.out.2.weight", "amn.encoder.layers.0.linear1.weight"]
    collector = _core.Collector(sampler, "exact", 0.9, names=names)
    assert sorted(collector.plan()) == sorted(names)
    del collector
    for wrong, message in ((["unet.nowhere"], "no parameter unet.nowhere"), (["unet.out.2.bias"], "no weight unet.out.2.bias")):
        with pytest.raises(ValueError, match=message):
            _core.Collector(sampler, names=wrong)
    with pytest.raises(TypeError):
        _core.Collector(sampler, names=[3])
    assert len(_core.Collector(sampler).plan()) > len(names)  # the refused ones have left no taps


def test_small_freezes_its_encoder():
    """What a longer search found to serve neither side (benchmarks/RESULTS.md)."""
    assert cdad.preset("small").continual.frozen == ENCODER == cdad.preset("small256").continual.frozen
    assert cdad.preset("sd15").continual.frozen == (), "the paper's"


def test_runs_of_builds_without_newer_keys_go_on_as_they_did(tmp_path):
    lines = cdad.preset("sd15").to_toml().splitlines()
    (tmp_path / "config.toml").write_text("\n".join(line for line in lines if not line.startswith("max_directions")))
    assert read_config(tmp_path).continual.max_directions == 0 < cdad.preset("sd15").continual.max_directions
