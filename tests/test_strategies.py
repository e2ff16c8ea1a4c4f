"""Strategies against forgetting: what each adds to a step, on cases with a known answer, and what each keeps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bits import assert_same
from conftest import FIRST

from cdad import CheckpointError, ContinualModel, _core, open_dataset
from cdad.config_checks import STRATEGIES
from cdad.data import MixedBatches, TrainingBatches, read_pixels, spread
from cdad.strategies import CDAD, EWC, MAS, SI, ControlNet, Distill, Joint, Replay, Strategy, make_strategy
from cdad.strategies.importance import draw, mean_magnitudes, path_importance, penalty

BETA1 = 0.9


def batch_of(model: ContinualModel, n: int, seed: int = 3) -> dict[str, np.ndarray]:
    c = model.config
    rng = np.random.default_rng(seed)
    z = (n, c.latent_size, c.latent_size, c.autoencoder.latent_channels)
    images = rng.random((2, n, c.image_size, c.image_size, 3), np.float32)
    return {
        "latent": rng.standard_normal(z, np.float32),
        "image": images[0],
        "perturbed": images[1],
        "noise": rng.standard_normal(z, np.float32),
        "timesteps": rng.integers(300, 900, n),
    }


def trainer_of(model: ContinualModel, n: int, optimizer: dict | None = None, **how) -> _core.Trainer:
    """A trainer of the model's own weights."""
    return _core.Trainer(model.params, model.config.denoiser(), n, optimizer, 7, **how)


def block_of(model: ContinualModel, gradients: dict[str, np.ndarray]) -> np.ndarray:
    """Gradients by name as a block."""
    trainer = model._trainer
    kept = trainer.block("weights").copy()
    trainer.set_block("weights", np.zeros_like(kept))
    for name, gradient in gradients.items():
        model.params[name] = gradient
    out = trainer.block("weights").copy()
    trainer.set_block("weights", kept)
    return out


@pytest.fixture
def first(first_checkpoint):
    return ContinualModel.load(first_checkpoint)


def optimizer_of(model, clip_norm: float) -> dict:
    return model.config.optimizer() | {"clip_norm": clip_norm, "weight_decay": 0.0}


@pytest.mark.parametrize("objective", ["loss", "output"])
def test_gradients_are_those_of_central_differences(first_checkpoint, quick_config, objective):
    """What EWC and MAS square and take absolute: of the loss (with Eq. 12 as written: no gradient is stopped), and of
    ||prediction||^2."""
    first = ContinualModel.load(first_checkpoint, quick_config.updated({"amn.target": "as_written"}))
    trainer, batch = trainer_of(first, 2, optimizer_of(first, 0.0), objective=objective), batch_of(first, 2)
    value, loss_cdm, loss_amn, gradients = trainer.gradients(**batch)
    assert value > 0 and loss_cdm > 0 and loss_amn > 0
    tried = 0
    for name in spread(sorted(gradients), 60):
        # along the gradient of one parameter; float32 resolves a millionth of the objective
        gradient, kept = gradients[name].astype(np.float64), first.params[name].copy()
        norm = np.linalg.norm(gradient)
        if norm < 0.01 * value:
            continue
        step, values = 1e-3 * value / norm**2 * gradient, []
        for scale in (1, -1, 0.5, -0.5):
            first.params[name] = kept + scale * step
            values.append(trainer.gradients(**batch)[0])
        first.params[name] = kept
        whole, half = values[0] - values[1], 2 * (values[2] - values[3])
        assert (4 * half - whole) / 3 == pytest.approx(2e-3 * value, rel=0.01), name  # Richardson's: the cubic part cancels
        tried += 1
    assert tried > 5


@pytest.mark.parametrize(("objective", "squares"), [("loss", True), ("output", False)])
def test_magnitudes_are_sums_over_samples(first, objective, squares):
    """The sum of each sample's own squared (EWC) or absolute (MAS) gradient, not that of the batch's."""
    lone = trainer_of(first, 1, objective=objective)
    reference = trainer_of(first, 1, optimizer_of(first, 0.0), objective=objective)
    wanted = np.zeros_like(first._trainer.block("weights"))
    with pytest.raises(ValueError, match="has added up no magnitudes"):
        lone.block("sums")
    for seed in range(3):
        batch = batch_of(first, 1, seed)
        value = lone.magnitudes(**batch, squares=squares)
        expected, _, _, gradients = reference.gradients(**batch)
        gradient = block_of(first, gradients)
        wanted += gradient * gradient if squares else np.abs(gradient)
        assert value == expected
    sums = lone.block("sums")
    assert np.count_nonzero(sums) > 0.9 * sum(np.size(first.params[n]) for n in first.params.shapes())
    assert np.allclose(sums, wanted, rtol=1e-6, atol=0)
    assert lone.memory_bytes["moments"] == 0
    lone.set_block("sums", 0 * sums)
    assert not lone.block("sums").any()
    with pytest.raises(ValueError, match="takes no steps"):
        lone.step(batch["latent"], batch["image"], batch["perturbed"])
    with pytest.raises(ValueError, match="no optimizer"):
        lone.reset()
    with pytest.raises(ValueError, match="neither clips nor accumulates"):
        first._trainer.magnitudes(**batch_of(first, first.config.training.batch_size))


def test_mean_magnitudes_take_each_image_once(first, products):
    """Half of them are perturbed, and each has draws of its own: the mean of two classes is the mean of their means."""
    config = first.config.updated({"continual.images": 1, "training.perturb_share": 0.0})
    first.config = config
    both = mean_magnitudes(first, [products[n] for n in FIRST], "loss", squares=True)
    again = mean_magnitudes(first, [products[n] for n in FIRST], "loss", squares=True)
    assert np.array_equal(both, again) and both.min() >= 0 and both.max() > 0
    one = mean_magnitudes(first, [products["gear"]], "loss", squares=True)
    assert not np.allclose(both, one)


@pytest.mark.parametrize(
    ("name", "objective", "magnitude"), [("ewc", "loss", np.square), ("mas", "output", np.abs)], ids=["ewc", "mas"]
)
def test_importances_are_means_over_samples(first_checkpoint, quick_config, products, name, objective, magnitude):
    """EWC's of the loss's squared gradient, MAS's of the output's absolute one, each sample with draws of its own."""
    model = ContinualModel.load(first_checkpoint, quick_config.updated({"continual.strategy": name}))
    classes, c = [products[n] for n in FIRST], model.config
    trainer = trainer_of(model, 1, optimizer_of(model, 0.0), objective=objective)
    samples = list(model.representative_batches(classes).resized(1).epoch(0))
    wanted = {n: np.zeros(shape) for n, shape in model.params.shapes().items()}
    for i, batch in enumerate(samples):
        latent = model.autoencoder.encode(batch.image)
        noise, timesteps = draw(c, latent.shape, c.seed + 104_729 * len(model.ledger), i)
        gradients = trainer.gradients(latent, batch.image, batch.perturbed, noise, timesteps)[3]
        for n, gradient in gradients.items():
            wanted[n] += magnitude(gradient.astype(np.float64)) / len(samples)
    assert len(samples) == len(FIRST) * c.continual.images
    found = model.strategy.measure(model, classes, False)
    assert np.allclose(found, block_of(model, wanted), rtol=1e-5, atol=0) and found.any()


@pytest.mark.parametrize(("name", "pull"), [("ewc", 1.0), ("mas", 2.0), ("si", 2.0)])
def test_importances_decay_and_are_pulled_by(quick_config, monkeypatch, name, pull):
    """Online EWC's decayed sum; and the papers' penalties in units of half of the weighted square: SI's and MAS's have no 1/2."""
    strategy = make_strategy(quick_config.updated({"continual.importance_decay": 0.5, "continual.strength": 3.0,
                                                   "continual.strategy": name}).continual)  # fmt: skip
    rng = np.random.default_rng(0)
    weights, old, new = rng.random((3, 10), np.float32)
    told = []
    trainer = SimpleNamespace(block=lambda _: weights, penalize=lambda *how: told.append(how), follow=lambda on: None)
    model = SimpleNamespace(_trainer=trainer)
    strategy.importance, strategy.anchor = old.copy(), weights + 1
    monkeypatch.setattr(strategy, "measure", lambda *_: new.copy())
    strategy.before_task(model, [], 1, 0, False)
    ((importance, anchor, strength),) = told
    assert np.array_equal(importance, old) and np.array_equal(anchor, weights + 1) and strength == 3.0 * pull
    report = strategy.after_task(model, [], False)
    assert report["penalty"] == pytest.approx(3.0 * pull / 2 * old.sum(), rel=1e-5)
    assert np.allclose(strategy.importance, new + 0.5 * old, rtol=1e-6) and np.array_equal(strategy.anchor, weights)


def test_a_penalty_adds_its_gradient(first):
    """After one step from empty moments m = (1 - beta1) g', g' = g + strength * importance * (w - anchor)."""
    batch = batch_of(first, 2)
    arrays = {k: batch[k] for k in ("latent", "image", "perturbed")}
    start, rng = first._trainer.block("weights").copy(), np.random.default_rng(1)
    importance = rng.random(start.size, np.float32)
    anchor = start + 0.1 * rng.standard_normal(start.size, np.float32)
    results = {}
    for clip in (0.0, 1e30, 0.5):
        for strength in (None, 3.0):
            first._trainer.set_block("weights", start)
            trainer = trainer_of(first, 2, optimizer_of(first, clip))
            if strength is not None:
                trainer.penalize(importance, anchor, strength)
            norm = trainer.step(**arrays)[3]
            results[clip, strength] = trainer.block("m") / np.float32(1 - BETA1), norm, first._trainer.block("weights").copy()
    first._trainer.set_block("weights", start)
    plain, _, _ = results[0.0, None]
    pull = 3.0 * importance * (start - anchor)
    pull[plain == 0] *= results[0.0, 3.0][0][plain == 0] != 0  # between parameters there is padding, which nobody pulls
    wanted = plain + pull
    got, norm, moved = results[0.0, 3.0]
    assert np.allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    assert norm == pytest.approx(np.linalg.norm(wanted.astype(np.float64)), rel=1e-5)
    # gradients that come one by one, and all at once: the same bits
    assert np.array_equal(got, results[1e30, 3.0][0]) and np.array_equal(moved, results[1e30, 3.0][2])
    clipped, norm_before, _ = results[0.5, 3.0]
    assert norm_before == pytest.approx(norm, rel=1e-6)
    assert np.allclose(clipped, got * 0.5 / norm, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("clip", [0.0, 1e30, 0.5])
def test_the_path_is_gradient_times_change(first, clip):
    """SI's path integral (Zenke et al. 2017, Eq. 3), with the gradient of the loss alone."""
    batch = batch_of(first, 2)
    arrays = {k: batch[k] for k in ("latent", "image", "perturbed")}
    start, rng = first._trainer.block("weights").copy(), np.random.default_rng(1)
    importance, anchor = rng.random(start.size, np.float32), start + np.float32(0.01)
    paths, expected = [], 0.0
    for pulled in (False, True):
        first._trainer.set_block("weights", start)
        trainer = trainer_of(first, 2, optimizer_of(first, clip))
        trainer.follow(True)
        if pulled:
            trainer.penalize(importance, anchor, 0.5)
        for _ in range(3):
            before, noise = first._trainer.block("weights").copy(), trainer.n_steps
            trainer.reset()
            norm = trainer.step(**arrays)[3]
            change = first._trainer.block("weights").astype(np.float64) - before
            gradient = trainer.block("m").astype(np.float64) / (1 - BETA1)
            if clip and norm > clip:
                gradient *= norm / clip
            if pulled:
                gradient -= 0.5 * importance.astype(np.float64) * (before.astype(np.float64) - anchor)
            else:
                expected = expected - gradient * change
            assert trainer.n_steps == noise + 1
            if pulled:
                paths.append(-gradient * change)
        path = trainer.block("path")
        if not pulled:
            assert np.linalg.norm(path - expected) < 1e-3 * np.linalg.norm(expected)
            assert path.sum() > 0  # steps go downhill
        else:
            wanted = np.sum(paths, 0)
            assert np.linalg.norm(path - wanted) < 1e-2 * np.linalg.norm(wanted)
    first._trainer.set_block("weights", start)


def test_si_finds_the_curvature_of_a_quadratic():
    """On L = sum(a/2 (w - c)^2), followed to its minimum, the path integral is the loss that each weight took away, and
    over the squared change it is a/2."""
    rng = np.random.default_rng(0)
    a, c, w = rng.uniform(0.5, 2, 50), rng.standard_normal(50), np.zeros(50)
    path = np.zeros(50)
    for _ in range(40000):
        g = a * (w - c)
        dw = -1e-3 * g
        path -= g * dw
        w += dw
    assert np.allclose(path_importance(path, w, 1e-9), a / 2, rtol=2e-3)
    assert np.allclose(path_importance(path, w, 0.5), a / 2 * w**2 / (w**2 + 0.5), rtol=2e-3)
    assert path_importance(np.array([-1.0]), np.array([1.0]), 0.1) == 0


def test_penalty_is_the_quadratic():
    rng = np.random.default_rng(0)
    w, importance, anchor = rng.standard_normal((3, 3_000_000), np.float32)
    wanted = 0.5 * 2.0 * np.sum(importance.astype(np.float64) * (w.astype(np.float64) - anchor) ** 2)
    assert penalty(w, importance, anchor, 2.0) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("clip", [0.0, 1e30])
def test_a_teacher_that_predicts_zero_shrinks_the_output(first, clip):
    """With all of its weights zero a teacher predicts zero, so its term is strength * ||prediction||^2 / count."""
    batch = batch_of(first, 2)
    trainer = trainer_of(first, 2, optimizer_of(first, clip), distill=True)
    plain, _, _, without = trainer.gradients(**batch)
    assert plain == trainer_of(first, 2, optimizer_of(first, clip)).gradients(**batch)[0]
    norm, _, _, output = trainer_of(first, 2, optimizer_of(first, clip), objective="output").gradients(**batch)
    trainer.teach(np.zeros_like(first._trainer.block("weights")), 3.0)
    taught, _, _, gradients = trainer.gradients(**batch)
    count = batch["latent"].size
    largest = max(np.abs(gradient).max() for gradient in gradients.values())  # some gradients are rounding noise alone
    assert taught - plain == pytest.approx(3.0 * norm / count, rel=1e-5)
    for name, gradient in gradients.items():
        wanted = without[name] + 3.0 / count * output[name]
        assert np.allclose(gradient, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max() + 1e-7 * largest), name
    trainer.teach(first._trainer.block("weights"), 3.0)  # itself: nothing to learn
    assert trainer.gradients(**batch)[0] == plain
    trainer.teach(None)
    assert all(np.array_equal(without[n], g) for n, g in trainer.gradients(**batch)[3].items())
    with pytest.raises(ValueError, match="not made to distil"):
        first._trainer.teach(first._trainer.block("weights"))


def test_blocks_are_checked(first):
    block = first._trainer.block("weights").copy()
    for wrong, error in ((block[:-1], ValueError), (block.astype(np.float64), TypeError), ([1.0], TypeError), (block[::2], TypeError)):
        with pytest.raises(error):
            first._trainer.penalize(wrong, block)
    block.setflags(write=False)  # it is only read
    with pytest.raises(ValueError, match="at least 0"):
        first._trainer.penalize(block, block, -1.0)
    name = next(n for n in first.bases if first.bases[n].shape[1])
    first._trainer.protect(name, first.bases[name])
    first._trainer.penalize(block, block, 1.0)
    batch = batch_of(first, first.config.training.batch_size)
    with pytest.raises(ValueError, match="protected by a basis"):
        first._trainer.step(batch["latent"], batch["image"], batch["perturbed"])


def test_a_path_comes_and_goes(first):
    trainer, batch = trainer_of(first, 2, optimizer_of(first, 0.0)), batch_of(first, 2)
    arrays, start = [batch[k] for k in ("latent", "image", "perturbed")], first._trainer.block("weights").copy()

    def step() -> np.ndarray:
        first._trainer.set_block("weights", start)
        trainer.reset()
        trainer.n_steps = 0
        trainer.step(*arrays)
        return np.array(trainer.block("path"))

    for call in (lambda: trainer.block("path"), lambda: trainer.set_block("path", start)):
        with pytest.raises(ValueError, match="follows no path"):
            call()
    trainer.follow(True)
    shown, once = trainer.block("path"), step()
    assert once.any()
    trainer.set_block("path", 3 * once)
    np.testing.assert_allclose(step(), 4 * once, rtol=1e-5)
    trainer.follow(True)  # anew
    assert not trainer.block("path").any() and np.array_equal(step(), once)
    trainer.follow(False)
    assert np.isfinite(shown).all()  # of the host: the memory of the first one, which lives on
    with pytest.raises(ValueError, match="follows no path"):
        step()
    with pytest.raises(ValueError, match="wanted"):
        trainer.follow(True)
        trainer.set_block("path", once[1:])
    first._trainer.set_block("weights", start)


@pytest.mark.parametrize("name", ["ewc", "si", "mas"])
def test_weights_that_mattered_stay_nearer(started, products, name):
    """The penalty at the end of a task falls with its strength, and a report tells it."""
    ends = {}
    for strength in (0.0, 1e6):
        model = started(name, {"continual.strength": strength})
        importance, anchor = model.strategy.importance.copy(), model.strategy.anchor.copy()
        assert np.array_equal(anchor, model._trainer.block("weights"))
        model.fit_task([products["steel"]], progress=False)
        weights = model._trainer.block("weights")
        ends[strength] = penalty(weights, importance, anchor, 1.0)
        told = penalty(weights, importance, anchor, model.strategy.pull * strength)
        assert model.ledger[-1]["penalty"] == pytest.approx(told, rel=1e-6)
        assert np.all(model.strategy.importance >= importance) and np.array_equal(model.strategy.anchor, weights)
    assert ends[1e6] < 0.5 * ends[0.0]


@pytest.mark.parametrize("name", ["ewc", "si", "mas", "distill"])
def test_steps_on_a_device_move_no_blocks(products, quick_config, name):
    """What a strategy gives the trainer crosses once a task."""
    changes = {"training.steps": 2, "training.increment_steps": 3, "scoring.calibrate": False, "continual.strategy": name}
    model, crossed = ContinualModel(quick_config.updated(changes), device="emulated"), []
    for task in ("gear", "steel"):
        crossed.clear()
        model.fit_task([products[task]], progress=False, callback=lambda _: crossed.append(sum(_core.device_traffic("emulated").values())))
        assert 0 < max(np.diff(crossed)) < model.memory_bytes["parameters"] / 2


def test_distilling_keeps_the_old_predictions(started, products):
    batch, moved = None, {}
    for strength in (0.0, 30.0):
        model = started("distill", {"continual.strength": strength})
        batch = batch or batch_of(model, 2)
        teacher = model._trainer.block("weights").copy()
        model.fit_task([products["steel"]], progress=False)
        judge = trainer_of(model, 2, optimizer_of(model, 0.0), distill=True)
        plain = judge.gradients(**batch)[0]
        judge.teach(teacher, 1.0)
        moved[strength] = judge.gradients(**batch)[0] - plain
    assert 0 < moved[30.0] < 0.7 * moved[0.0]


def test_replay_mixes_stored_images(started, products, quick_config):
    model = started("replay", {"continual.replay_images": 3, "continual.replay_share": 0.25})
    assert {name: kept.shape for name, kept in model.strategy.stored.items()} == dict.fromkeys(FIRST, (3, 64, 64, 3))
    for name in FIRST:
        for kept, path in zip(model.strategy.stored[name], spread(products[name].train, 3), strict=True):
            assert np.array_equal(kept, read_pixels(path, 64))
    new = TrainingBatches([products["steel"]], image_size=64, batch_size=8, seed=5, perturb_share=0.5)
    mixed = model.strategy.batches(new)
    assert isinstance(mixed, MixedBatches) and mixed.n_images == len(products["steel"].train) + 6
    whole, clean = list(mixed.steps(0, 6)), mixed.clean(0, mixed.n_images)
    for batch in whole:
        assert len(batch.image) == 8 and np.count_nonzero(batch.index >= new.n_images) == 2
        assert np.abs(clean[batch.index] - batch.image).max() <= 0.5 / 255 + 1e-6  # 8 bits
    assert {int(i) for b in whole for i in b.index if i >= new.n_images} == set(range(new.n_images, mixed.n_images))
    for a, b in zip(whole[3:], mixed.steps(3, 6), strict=True):
        assert np.array_equal(a.perturbed, b.perturbed)
    assert model.memory_bytes["strategy"] == 6 * 64 * 64 * 3
    model.fit_task([products["steel"]], progress=False)
    assert model.ledger[-1]["stored_images"] == 9


def test_joint_training_takes_all_images_and_calibrates_all(started, products, quick_config):
    model = started("joint")
    before = dict(model.calibrations)
    model.fit_task([products["steel"]], progress=False)
    assert model.ledger[-1]["steps"] == 3 * quick_config.training.increment_steps
    assert not np.array_equal(model.calibrations["gear"].mean, before["gear"].mean)
    assert list(model.strategy.old) == [*FIRST, "steel"]


def test_joint_training_finds_its_images_from_another_folder(root, quick_config, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    data = open_dataset(".")
    model = ContinualModel(quick_config.updated({"continual.strategy": "joint"}))
    model.fit_task([data["gear"]], progress=False)
    monkeypatch.chdir(tmp_path)
    assert all(Path(path).is_file() for path in model.strategy.old["gear"])


def assert_off(moves, basis, before):
    """Each change dW is off its basis, but for its own rounding and the weight's."""
    for name, dW in moves.items():
        rounding = 1e-6 * np.linalg.norm(dW) + 1e-7 * np.linalg.norm(before[name])
        assert np.linalg.norm(dW @ basis[name]) <= rounding, name


def test_without_the_masked_network(products, quick_config, tmp_path):
    model = ContinualModel(quick_config.updated({"continual.strategy": "without_amn"}))
    assert all(name.startswith("unet.") for name in model.params.shapes())
    other = ContinualModel(quick_config.updated({"amn.enabled": False}))
    assert other.params.shapes() == model.params.shapes()
    seen = []
    model.fit_task([products["gear"]], progress=False, callback=seen.append)
    assert all(r.loss_amn == 0 and r.loss == r.loss_cdm > 0 for r in seen)
    assert "condition_ratio" not in model.ledger[-1]
    basis = dict(model.bases)
    before = {name: model.params[name].copy() for name in basis}
    model.fit_task([products["steel"]], progress=False)
    moves = {name: (model.params[name] - w).reshape(len(w), -1) for name, w in before.items()}
    assert any(dW.any() for dW in moves.values())
    assert_off(moves, basis, before)
    paths = [s.path for s in products["gear"].test[:2]]
    model.save(tmp_path / "plain")
    assert np.array_equal(ContinualModel.load(tmp_path / "plain").predict(paths).maps, model.predict(paths).maps)


def test_a_controlnet_for_the_condition(products, quick_config, tmp_path):
    """It begins as a copy of the U-Net's encoder that adds nothing, learns to use the image, is guarded by projection with
    the U-Net, and goes on from a checkpoint to the same bits."""
    model = ContinualModel(quick_config.updated({"continual.strategy": "controlnet", "training.ema_decay": 0.5}))
    names = model.params.shapes()
    assert {name.split(".")[0] for name in names} == {"unet", "control"}
    copied = [n for n in names if n.startswith("control.") and n.replace("control.", "unet.") in names]
    assert {n.split(".")[1] for n in copied} == {"time_embed", "input_blocks", "middle_block"}

    class Stop(Exception):
        pass

    def stop(report):
        if report.step == 4:
            raise Stop

    model.strategy.before_task(model, [products["gear"]], 0, 0, False)
    assert all(np.array_equal(model.params[n], model.params[n.replace("control.", "unet.")]) for n in copied)
    assert np.array_equal(model._trainer.block("ema"), model._trainer.block("weights"))
    batch = batch_of(model, 2)
    trainer = trainer_of(model, 2, optimizer_of(model, 0.0))
    told = [trainer.gradients(**batch)[0], trainer.gradients(**batch | {"perturbed": 1 - batch["perturbed"]})[0]]
    assert told[0] == told[1], "what begins with zeros says nothing of the image"

    seen = []
    model.fit_task([products["gear"]], progress=False, callback=seen.append)
    assert all(r.loss_amn == 0 and r.loss == r.loss_cdm > 0 for r in seen)
    assert "condition_ratio" in model.ledger[-1] and set(model.bases) == {n for n, s in names.items() if len(s) > 1}
    assert trainer.gradients(**batch)[0] != trainer.gradients(**batch | {"perturbed": 1 - batch["perturbed"]})[0]
    model.save(tmp_path / "first")
    basis, before = dict(model.bases), {name: model.params[name].copy() for name in names}
    model.fit_task([products["steel"]], progress=False)
    for part in ("unet.", "control."):
        moves = {n: (model.params[n] - before[n]).reshape(len(before[n]), -1) for n in basis if n.startswith(part)}
        assert any(dW.any() for dW in moves.values())
        assert_off(moves, basis, before)
    cut = ContinualModel.load(tmp_path / "first")
    with pytest.raises(Stop):
        cut.fit_task([products["steel"]], progress=False, callback=stop, checkpoint=tmp_path / "cut", checkpoint_seconds=0.0)
    resumed = ContinualModel.load(tmp_path / "cut")
    assert resumed.progress["step"] > 0
    resumed.fit_task([products["steel"]], progress=False)
    assert np.array_equal(resumed._trainer.block("weights"), model._trainer.block("weights"))


@pytest.fixture(scope="session")
def si_checkpoint(products, quick_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("si") / "first.safetensors"
    model = ContinualModel(quick_config.updated({"continual.strategy": "si", "continual.strength": 2.0}))
    model.fit_task([products[name] for name in FIRST], progress=False, checkpoint=path)
    return path


@pytest.fixture
def started(first_checkpoint, si_checkpoint, products, quick_config):
    """A model of a strategy after the first task."""

    def make(name: str, changes: dict | None = None) -> ContinualModel:
        config = quick_config.updated({"continual.strategy": name, **(changes or {})})
        model = ContinualModel.load(si_checkpoint if name == "si" else first_checkpoint, config)
        if not model.strategy.ready:
            model.consolidate([products[n] for n in FIRST], progress=False)
        return model

    return make


@pytest.mark.parametrize("name", ["joint", "replay", "ewc", "si", "mas", "distill"])
def test_going_on_in_the_middle_of_a_task_gives_the_same_bits(started, products, tmp_path, name):
    path = tmp_path / "state.safetensors"
    whole, cut = started(name), started(name)
    whole.fit_task([products["steel"]], progress=False)

    class Stop(Exception):
        pass

    def stop(report):
        if report.step == 4:
            raise Stop

    with pytest.raises(Stop):
        cut.fit_task([products["steel"]], progress=False, callback=stop, checkpoint=path, checkpoint_seconds=0.0)
    assert cut.memory_bytes["strategy"] == sum(a.nbytes for a in cut.strategy.tensors().values())
    resumed = ContinualModel.load(path)
    assert 0 < resumed.progress["step"] < 8 and resumed.strategy.tensors().keys() == cut.strategy.tensors().keys()
    resumed.fit_task([products["steel"]], progress=False)
    assert np.array_equal(resumed._trainer.block("weights"), whole._trainer.block("weights"))
    kept = whole.strategy.tensors()
    assert all(np.array_equal(kept[key], value) for key, value in resumed.strategy.tensors().items())
    assert resumed.strategy.state() == whole.strategy.state()
    if name in ("si", "distill"):
        other = ContinualModel.load(path, whole.config.updated({"continual.strategy": "finetune"}))
        other.strategy = whole.strategy.__class__(whole.config.continual)
        with pytest.raises(CheckpointError):
            other.strategy.before_task(other, [products["steel"]], 1, other.progress["step"], False)


def test_following_a_task_does_not_change_it(first, si_checkpoint):
    """So that every strategy can go on from a first task under `si`."""
    assert np.array_equal(ContinualModel.load(si_checkpoint)._trainer.block("weights"), first._trainer.block("weights"))


@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_importances_of_consolidating_are_those_of_learning(products, quick_config, name):
    config = quick_config.updated({"training.steps": 2, "training.increment_steps": 2, "scoring.calibrate": False})
    own = ContinualModel(config.updated({"continual.strategy": name}))
    learned = ContinualModel(config.updated({"continual.strategy": "finetune"}))
    for model in (own, learned):
        model.fit_task([products[FIRST[0]]], progress=False)
    learned.config = own.config
    learned.strategy = own.strategy.__class__(own.config.continual)
    learned.consolidate([products[FIRST[0]]], progress=False)
    kept, made = own.strategy.tensors(), learned.strategy.tensors()
    assert kept and all(np.array_equal(kept[key], made[key]) for key in kept)


def test_consolidating_is_what_learning_would_have_kept(started, first, si_checkpoint, products, quick_config):
    model = ContinualModel.load(si_checkpoint, quick_config)
    with pytest.raises(CheckpointError, match="consolidate"):
        model.fit_task([products["steel"]], progress=False)
    model.consolidate([products[n] for n in FIRST], progress=False)
    assert all(np.array_equal(U, first.bases[name]) for name, U in model.bases.items()) and model.bases
    with pytest.raises(ValueError, match="steel.*not learned"):
        model.consolidate([products["steel"]])
    with pytest.raises(RuntimeError, match="has what it needs"):
        model.consolidate([products["gear"]])
    other = ContinualModel.load(si_checkpoint, quick_config.updated({"continual.strategy": "ewc"}))
    assert other.strategy.importance is None, "another strategy's importances are not taken"
    with pytest.raises(CheckpointError, match="si follows"):
        model = ContinualModel.load(si_checkpoint, quick_config.updated({"continual.strategy": "mas"}))
        model.config = quick_config.updated({"continual.strategy": "si"})
        model.strategy = started("si").strategy.__class__(model.config.continual)
        model.consolidate([products[n] for n in FIRST])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"continual.strategy": "lwf"}, "one of cdad, finetune"),
        ({"continual.strength": -1.0}, "strength"),
        ({"continual.importance_decay": 1.5}, "decay"),
        ({"continual.si_damping": 0.0}, "damping"),
        ({"continual.replay_share": 1.0}, "share"),
        ({"continual.replay_images": 0}, "at least 1"),
        ({"continual.strategy": "replay", "training.batch_size": 1}, "batch_size >= 2"),
    ],
)
def test_refusals_name_the_key(quick_config, changes, message):
    with pytest.raises(ValueError, match=message):
        quick_config.updated(changes)


CLASSES = {
    "cdad": CDAD, "finetune": Strategy, "joint": Joint, "replay": Replay, "ewc": EWC, "si": SI, "mas": MAS, "distill": Distill,
    "without_amn": CDAD, "without_cdm": Strategy, "controlnet": ControlNet,
}  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_name_makes_its_strategy(quick_config, name):
    model = ContinualModel(quick_config.updated({"continual.strategy": name}))
    assert type(model.strategy) is CLASSES[name] and model.memory_bytes["strategy"] == 0


def test_si_goes_on_where_a_task_s_end_was_interrupted(products, quick_config, tmp_path, monkeypatch):
    config = quick_config.updated({"continual.strategy": "si"})
    whole, model = ContinualModel(config), ContinualModel(config)
    whole.fit_task([products["gear"]], progress=False)
    follow = model._trainer.follow

    class Trainer:
        def __getattr__(self, name):
            return getattr(trainer, name)

        def follow(self, on):
            follow(on)
            if not on:
                raise KeyboardInterrupt

    trainer = model._trainer
    monkeypatch.setattr(model, "_trainer", Trainer())
    with pytest.raises(KeyboardInterrupt):
        model.fit_task([products["gear"]], progress=False)
    monkeypatch.undo()
    model.save(tmp_path / "cut.safetensors")
    for cut in (ContinualModel.load(tmp_path / "cut.safetensors"), model):
        cut.fit_task([products["gear"]], progress=False)
        assert_same(cut.strategy.importance, whole.strategy.importance)
        assert_same(cut.strategy.anchor, whole.strategy.anchor)
