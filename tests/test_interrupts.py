"""Interruptions by signals: after a step is done, within one, and tasks that are given up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import FIRST, SECOND
from tqdm.auto import tqdm

from cdad import ContinualModel, ImageError
from cdad.cli import main


class Interrupted:
    """A trainer whose step ``at`` is done when the exception of a signal comes."""

    def __init__(self, trainer, at: int):
        self.trainer, self.at = trainer, at

    def step(self, *arguments, **how):
        losses = self.trainer.step(*arguments, **how)
        if self.trainer.n_steps == self.at:
            raise KeyboardInterrupt
        return losses

    def __getattr__(self, name):
        return getattr(self.trainer, name)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_after_a_step_is_done(products, quick_config, tmp_path, clip_norm):
    config = quick_config.updated({"training.clip_norm": clip_norm, "scoring.calibrate": False})
    task = [products[FIRST[0]]]
    whole, cut = ContinualModel(config), ContinualModel(config)
    whole.fit_task(task, progress=False)
    real, cut._trainer = cut._trainer, Interrupted(cut._trainer, 3)
    with pytest.raises(KeyboardInterrupt):
        cut.fit_task(task, progress=False)
    cut._trainer = real
    assert cut.progress["step"] == cut._trainer.n_steps == 3
    cut.save(tmp_path / "cut.safetensors")
    for model in (cut, ContinualModel.load(tmp_path / "cut.safetensors")):
        model.fit_task(task, progress=False)
        assert model._trainer.n_steps == whole._trainer.n_steps
        assert np.array_equal(model._trainer.block("weights"), whole._trainer.block("weights"))


def test_a_step_is_told_before_the_bar_moves(products, quick_config, monkeypatch):
    class Bar(tqdm):
        def update(self, n=1):
            if told and told[-1] == 2:  # of the steps: nothing else has been told by then
                raise KeyboardInterrupt
            return super().update(n)

    told = []
    monkeypatch.setattr("cdad.model.tqdm", Bar)
    model = ContinualModel(quick_config.updated({"training.steps": 5, "scoring.calibrate": False}))
    with pytest.raises(KeyboardInterrupt):
        model.fit_task([products[FIRST[0]]], progress=False, callback=lambda report: told.append(report.step))
    assert told == [0, 1, 2] and model.progress["step"] == 3


class StoppedAtOnce(ContinualModel):
    """A signal's exception comes as soon as there is a place in the second task."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "progress" and value and self.ledger:
            raise KeyboardInterrupt


def test_before_the_first_step(products, quick_config, tmp_path):
    model = StoppedAtOnce(quick_config.updated({"training.steps": 2, "scoring.calibrate": False}))
    model.fit_task([products[FIRST[0]]], progress=False)
    with pytest.raises(KeyboardInterrupt):
        model.fit_task([products[name] for name in SECOND], progress=False)
    model.save(tmp_path / "cut.safetensors")
    assert ContinualModel.load(tmp_path / "cut.safetensors").progress["step"] == 0


WITHIN = """
import os, signal, sys, threading
import numpy as np
import cdad
config = cdad.preset("tiny").updated({"training.batch_size": 256, "scoring.backbone": "autoencoder"})
model = cdad.ContinualModel(config, device="cpu")
rng, n = np.random.default_rng(0), config.latent_size
latent = rng.standard_normal((256, n, n, config.autoencoder.latent_channels), np.float32)
image = rng.random((256, 64, 64, 3), np.float32)
model.progress, told = {"classes": ["a"], "step": 0, "seconds": 0.0}, []
def state(model):
    return model._trainer.n_steps, *(model._trainer.block(name).copy() for name in ("weights", "m", "v"))
def same(one, other):
    return all(map(np.array_equal, one, other))
def ask():
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
def save(*_):
    if not within:
        return ask()
    model.save(sys.argv[1])
    told.append(same(state(model), before))
within = False
signal.signal(signal.SIGUSR1, save)
model._trainer.step(latent, image, image)
ask()
for _ in range(100):
    before, within = state(model), True
    model._trainer.step(latent, image, image)
    within = False
    if told:
        break
saved = cdad.ContinualModel.load(sys.argv[1])
moved = model._trainer.n_steps > before[0] and not np.array_equal(model._trainer.block("weights"), before[1])
print(told, same(state(saved), before), saved.progress["step"] == saved._trainer.n_steps == saved._trainer.age > 0, moved)
def stop(*_):
    if not within:
        return ask()
    raise KeyboardInterrupt
signal.signal(signal.SIGUSR1, stop)
ask()
try:
    for _ in range(100):
        before, within = state(model), True
        model._trainer.step(latent, image, image)
        within = False
except KeyboardInterrupt:
    print(same(state(model), before))
"""


class Untethered(Interrupted):
    """A trainer that has just let go of the tether when the exception of a signal comes."""

    def tether(self, anchor, *how):
        self.trainer.tether(anchor, *how)
        if anchor is None and self.at:
            self.at = 0
            raise KeyboardInterrupt


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_as_a_task_s_bases_are_kept(products, quick_config, tmp_path, decay):
    """What is kept is that of the task before or of this one, whole."""
    changes = {"training.steps": 2, "training.increment_steps": 2, "training.ema_decay": decay, "continual.tether": 5.0}
    path, task = tmp_path / "cut.safetensors", [products[name] for name in SECOND]
    ContinualModel(quick_config.updated(changes)).fit_task([products[FIRST[0]]], progress=False, checkpoint=path)
    whole, cut = (ContinualModel.load(path) for _ in range(2))
    whole.fit_task(task, progress=False)

    def untethered(report):
        cut._trainer = Untethered(real, 1)

    real = cut._trainer
    with pytest.raises(KeyboardInterrupt):
        cut.fit_task(task, progress=False, callback=untethered)
    cut._trainer = real
    cut.save(path)
    for model in (cut, ContinualModel.load(path)):
        model.fit_task(task, progress=False)
        assert np.array_equal(model._trainer.block("weights"), whole._trainer.block("weights"))
        assert all(np.array_equal(U, model.bases[name]) for name, U in whole.bases.items())


def test_learned_is_not_in_progress(products, quick_config, tmp_path):
    """Whenever a signal's handler saves, the file is one to go on from."""
    model = ContinualModel(quick_config.updated({"training.steps": 2, "scoring.calibrate": False}))
    model.fit_task([products[FIRST[0]]], progress=False)

    class Saving(list):
        def append(self, entry):
            super().append(entry)
            model.save(tmp_path / "cut.safetensors")
            raise KeyboardInterrupt

    model.ledger = Saving(model.ledger)
    try:
        model.fit_task([products[name] for name in SECOND], progress=False)
    except KeyboardInterrupt:
        assert ContinualModel.load(tmp_path / "cut.safetensors").classes == model.classes
    assert not model.progress and model.classes == (FIRST[0], *SECOND)


def test_handlers_within_a_step(tmp_path):
    """As a cluster's warning is answered: what a handler saves is the model before the step. One that raises ends the step
    before it touches the model."""
    command = [sys.executable, "-c", WITHIN, str(tmp_path / "saved.safetensors")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[True] True True True\nTrue\n", done.stderr


def test_a_task_that_did_not_begin_is_given_up(first_checkpoint, products, tmp_path):
    model = ContinualModel.load(first_checkpoint)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ImageError):
        model.fit_task({"steel": [*products["steel"].train, bad]}, progress=False)
    model.fit_task({"other": products["steel"].train}, progress=False)
    assert model.classes[-1] == "other"


def test_a_task_that_did_not_begin_goes_on_under_another_strategy(first_checkpoint, products, tmp_path, monkeypatch):
    """Consolidating and learning on wanted each other first."""
    model, path, task = ContinualModel.load(first_checkpoint), tmp_path / "cut.safetensors", [products[name] for name in SECOND]

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ContinualModel, "collect_bases", stop)
        with pytest.raises(KeyboardInterrupt):
            model.fit_task(task, progress=False)
    model.save(path)
    other = model.config.updated({"continual.strategy": "ewc"})
    went_on, began = (ContinualModel.load(file, other) for file in (path, first_checkpoint))
    for each in (went_on, began):
        each.consolidate([products[name] for name in FIRST], progress=False)
        each.fit_task(task, progress=False)
    assert np.array_equal(went_on._trainer.block("weights"), began._trainer.block("weights"))


def test_a_folder_is_no_checkpoint(quick_config, products, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(IsADirectoryError):
        ContinualModel(quick_config).fit_task([products["gear"]], progress=False, checkpoint=tmp_path / "data")
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


def test_a_task_of_another_strategy_is_loaded_without_its_moments(first_checkpoint, products, tmp_path):
    path = tmp_path / "cut.safetensors"
    model = ContinualModel.load(first_checkpoint)

    def stop(report):
        if report.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit_task([products[name] for name in SECOND], progress=False, callback=stop)
    model.save(path)
    other = ContinualModel.load(path, model.config.updated({"continual.strategy": "finetune"}))
    assert other.progress["step"] == 2 and other._trainer.age == 0
    other.fit_task([products[name] for name in SECOND], progress=False)
    with pytest.raises(ValueError, match="free_gamma, frozen and projection stay"):
        ContinualModel.load(path, model.config.updated({"continual.free_gamma": 1.0}))


QUICK = ["--preset", "tiny", "--quiet", "--set", "training.steps=2", "--set", "training.increment_steps=2", "--set", "scoring.calibration_images=2"]


def test_runs_of_the_command_line(root, tmp_path, capsys):
    run = ["train", "--data", str(root), "--out", str(tmp_path / "run")]
    assert main([*run, "--protocol", "gear/steel", *QUICK]) == 0
    kept = (tmp_path / "run" / "config.toml").read_text()
    for arguments, message in (
        (["--protocol", "steel/gear"], "has learned gear / steel"),
        (["--protocol", "gear/steel", "--set", "unet.model_channels=64"], "unet.model_channels = 32, not 64"),
        (["--protocol", "gear/steel", "--seed", "7"], "another configuration (seed = 0, not 7)"),
        (["--protocol", "gear/steel", "--preset", "small"], "the run that goes on has the preset tiny"),
    ):
        assert main([*run, "--resume", "--quiet", *arguments]) == 1
        assert message in capsys.readouterr().err and (tmp_path / "run" / "config.toml").read_text() == kept
    assert main([*run, "--resume", "--quiet", "--protocol", "gear/steel"]) == 0
    file = tmp_path / "run" / "checkpoint.safetensors"
    before = file.read_bytes()
    assert main(["export", str(tmp_path / "run"), str(file)]) == 1
    assert "choose another file" in capsys.readouterr().err and file.read_bytes() == before
    shutil.copytree(root / "steel", tmp_path / "less" / "steel")  # without the images of what was learned
    other = ["train", "--data", str(tmp_path / "less"), "--out", str(tmp_path / "other"), "--protocol", "steel", "--strategy", "ewc"]
    assert main([*other, "--start-from", str(file), *QUICK]) == 1
    assert "has learned gear / steel" in capsys.readouterr().err
    assert main(["predict", str(file), "x.png", "--threads", "-2"]) == 1
    assert "threads" in capsys.readouterr().err


def test_normal_images_alone(products, tmp_path, capsys):
    for name in ("gear", "steel"):
        (tmp_path / "parts" / name).mkdir(parents=True)
        for path in products[name].train[:4]:
            (tmp_path / "parts" / name / path.name).write_bytes(path.read_bytes())
    run = ["train", "--data", str(tmp_path / "parts"), "--out", str(tmp_path / "run"), *QUICK]
    assert main(run) == 0 and main([*run, "--resume"]) == 0
    assert "no class has test images" in capsys.readouterr().out
    assert ContinualModel.load(tmp_path / "run" / "tasks" / "1.safetensors").classes == ("gear", "steel")


def test_an_error_after_training_keeps_it(root, tmp_path, monkeypatch, capsys):
    run = ["train", "--data", str(root), "--out", str(tmp_path / "run"), "--protocol", "gear", *QUICK]

    def broken(self, classes):
        raise FileNotFoundError("weights of the backbone")

    monkeypatch.setattr(ContinualModel, "_calibrate", broken)
    assert main(run) == 1
    assert "weights of the backbone" in capsys.readouterr().err
    model = ContinualModel.load(tmp_path / "run" / "checkpoint.safetensors")
    assert model.progress["step"] == 2 and not model.classes
    monkeypatch.undo()
    assert main([*run, "--resume"]) == 0
