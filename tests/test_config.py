"""Configurations: presets, TOML, changes by key, refusals."""

from __future__ import annotations

import pytest

from cdad import PRESETS, Config, ContinualModel, preset
from cdad.config import PAPER_RECIPE


@pytest.mark.parametrize("name", list(PRESETS))
def test_toml_and_dict_round_trips(name, tmp_path):
    config = preset(name)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert Config.from_toml(path) == config
    assert Config.from_dict(config.to_dict()) == config


def test_sd15_is_the_paper_s_size():
    config = preset("sd15")
    assert config.latent_size == 32 and config.denoiser()["unet"]["model_channels"] == 320
    assert config.diffusion.stop == 0 and config.diffusion.prediction == "epsilon"


def test_a_toml_file_changes_its_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "tiny"\nseed = 3\n[training]\nsteps = 7\n')
    assert Config.from_toml(path) == preset("tiny").updated({"seed": 3, "training.steps": 7})
    path.write_text("seed = ")
    with pytest.raises(ValueError, match="mine.toml"):
        Config.from_toml(path)


def test_steps_of_a_task():
    t = preset("tiny").updated({"training.steps": 5, "training.increment_steps": 3, "training.batch_size": 4}).training
    assert [t.task_steps(k, n_classes=2, n_images=9) for k in range(3)] == [10, 6, 6]
    t = preset("tiny").updated({"training.epochs": 5, "training.increment_epochs": 2, "training.batch_size": 4}).training
    assert [t.task_steps(k, n_classes=2, n_images=9) for k in range(3)] == [15, 6, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.step": 3}, "did you mean 'steps'"),
        ({"trainin.steps": 3}, "did you mean 'training'"),
        ({"training.steps": "many"}, "training.steps: int is wanted"),
        ({"training.steps": 0}, "at least 1"),
        ({"training.increment_epochs": -1}, "training.increment_epochs is -1; at least 0"),
        ({"training.accumulate": 0}, "training.accumulate is 0; at least 1"),
        ({"training.accumulate": 3}, "a divisor of training.batch_size = 8 is wanted"),
        ({"training.recompute": 1}, "training.recompute: bool is wanted"),
        ({"continual.gamma": 1.5}, "gamma"),
        ({"image_size": 100}, "multiple of"),
        ({"diffusion.skip": 10}, "skip"),
        ({"diffusion.stop": 11}, "stop"),
        ({"autoencoder.kind": "big"}, "one of tiny, dct, vae"),
        ({"autoencoder.shift_scale": "large"}, "standardize"),
        ({"scoring.backbone": "resnet50"}, "scoring.weights: the backbone 'resnet50' wants the file"),
    ],
)
def test_refusals_name_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        preset("small").updated(changes)


def test_unknown_preset():
    with pytest.raises(ValueError, match="did you mean 'small'"):
        preset("smal")


def test_the_paper_s_recipe_trains(products, quick_config):
    config = quick_config.updated(PAPER_RECIPE)
    model = ContinualModel(config)
    model.fit_task([products["gear"]], progress=False)
    model.fit_task([products["steel"]], progress=False)
    assert model.predict([s.path for s in products["gear"].test[:2]]).maps.shape == (2, 64, 64)
