"""Configurations: presets, TOML, changes by key, refusals."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cdad.config
from cdad import PRESETS, Config, ContinualModel, preset
from cdad.config import PAPER_RECIPE, AMNConfig, DiffusionConfig, TrainingConfig, UNetConfig

SECTIONS = {f.name: f.default_factory for f in dataclasses.fields(Config) if f.default_factory is not dataclasses.MISSING}
KEYS = {f.name: f.type for f in dataclasses.fields(Config) if f.name not in SECTIONS}
KEYS |= {f"{name}.{f.name}": f.type for name, section in SECTIONS.items() for f in dataclasses.fields(section)}


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
        ({"training.recompute": 1}, "training.recompute: true or false is wanted"),
        ({"continual.gamma": 1.5}, "continual.gamma is 1.5; 0 < x <= 1"),
        ({"continual.free_gamma": 0.0}, "continual.free_gamma is 0.0"),
        ({"continual.memory": -1}, "continual.memory is -1; at least 0"),
        ({"continual.images": 0}, "continual.images is 0; at least 1"),
        ({"image_size": 100}, "multiple of"),
        ({"image_size": 0}, "image_size is 0; at least 1"),
        ({"image_size": 1 << 20}, "at most 65535"),
        ({"seed": -1}, "seed is -1; at least 0"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616; at most"),
        ({"preset": "nonsense"}, "preset is 'nonsense'; one of tiny, demo"),
        ({"training.lr": 0.0}, "training.lr is 0.0; more than 0"),
        ({"training.lr": 10**400}, "a finite number"),
        ({"training.lr": 1e-320}, "float32"),
        ({"training.increment_lr": -1.0}, "training.increment_lr is -1.0; at least 0"),
        ({"training.beta1": 1.0}, "training.beta1 is 1.0; 0 <= x < 1"),
        ({"training.ema_decay": 1.0}, "training.ema_decay is 1.0"),
        ({"training.beta2": 1 - 2.0**-25}, "training.beta2 is 0.99999997"),
        ({"training.eps": 0.0}, "training.eps is 0.0"),
        ({"training.warmup": -5}, "training.warmup is -5; at least 0"),
        ({"training.decay": 3}, "training.decay is 3.0; 0 to 1"),
        ({"training.perturb_share": 1.1}, "training.perturb_share is 1.1"),
        ({"training.timestep_focus": -0.1}, "training.timestep_focus is -0.1"),
        ({"training.light": 1.0}, "training.light is 1.0"),
        ({"diffusion.skip": 10}, "skip"),
        ({"diffusion.stop": 11}, "stop"),
        ({"diffusion.steps": 2000}, "diffusion.steps is 2000; less than diffusion.num_train_timesteps = 1000"),
        ({"diffusion.steps": 1000}, "diffusion.steps is 1000"),
        ({"diffusion.num_train_timesteps": 1}, "at least 2"),
        ({"diffusion.num_train_timesteps": 5000}, "at most 4096"),
        ({"diffusion.beta_start": 0.5}, "diffusion.beta_start is 0.5 and beta_end 0.012"),
        ({"diffusion.beta_end": 1.0}, "beta_end"),
        ({"diffusion.beta_start": 1e-20, "diffusion.beta_end": 1e-20}, "there would be no noise"),
        ({"diffusion.prediction": "epsilon"}, "zero_terminal_snr wants"),
        (
            {"diffusion.prediction": "epsilon", "diffusion.zero_terminal_snr": False, "diffusion.beta_end": 0.5},
            "without a signal",
        ),
        ({"unet.attention_resolutions": [3]}, r"unet.attention_resolutions is \[3\]; some of \[1, 2, 4\]"),
        ({"unet.attention_resolutions": [1, 8]}, "attention_resolutions"),
        ({"unet.attention_resolutions": [1] * 9}, "a list of 0 to 8"),
        ({"unet.channel_mult": []}, "a list of 1 to 8"),
        ({"unet.channel_mult": [1, 0]}, r"unet.channel_mult is \[1, 0\]"),
        ({"unet.channel_mult": ["a", 2]}, r"unet.channel_mult: a list of int is wanted, not \['a', 2\]"),
        ({"unet.channel_mult": "12"}, "a list of int is wanted, not '12'"),
        ({"unet.num_res_blocks": 21}, "unet.num_res_blocks is 21; at most 20"),
        ({"unet.num_heads": 3}, "unet.num_heads is 3; a divisor of 64"),
        ({"unet.norm_groups": 24}, "unet.norm_groups is 24; a divisor of unet.model_channels = 64"),
        ({"unet.model_channels": 7, "unet.norm_groups": 7}, "even"),
        ({"unet.model_channels": 10, "unet.norm_groups": 5, "unet.num_heads": 1}, "a multiple of 4"),
        ({"unet.context_dim": 8}, "unet.context_length is 0"),
        ({"unet.context_dim": 8, "unet.context_length": 7, "text.weights": "clip"}, "text.num_heads is 12; a divisor of"),
        ({"text.vocab_size": 1}, "at least 2"),
        ({"amn.neighbor": [4, 4]}, "two odd numbers"),
        ({"amn.neighbor": [0, 3]}, "two odd numbers"),
        ({"amn.neighbor": [3]}, "two odd numbers"),
        ({"amn.num_heads": 3}, "amn.num_heads is 3; a divisor of"),
        ({"amn.strides": [2, 2, 2]}, "7 entries"),
        ({"amn.strides": [1, 1, 2, 1, 2, 1, 1]}, "turns 128 pixels into 32; 16"),
        ({"autoencoder.downsampling": 0}, "autoencoder.downsampling is 0; at least 1"),
        ({"autoencoder.downsampling": 4, "autoencoder.latent_channels": 49}, "at most 3 downsampling"),
        ({"autoencoder.downsampling": 128, "image_size": 512}, "at most 64"),
        ({"autoencoder.kind": "tiny", "autoencoder.downsampling": 4}, "8 is wanted"),
        ({"autoencoder.kind": "vae", "autoencoder.downsampling": 4}, "8 is wanted by autoencoder.ch_mult"),
        ({"autoencoder.kind": "vae", "autoencoder.channels": 48}, "a multiple of 32"),
        ({"autoencoder.shift_scale": 0}, "autoencoder.shift_scale is 0; 'standardize' or"),
        ({"autoencoder.shift_scale": True}, "'standardize' or a number"),
        ({"autoencoder.weights": [1]}, r"a list of str is wanted, not \[1\]"),
        ({"scoring.sigma": 1e6}, "scoring.sigma is 1000000.0; 0 to 64"),
        ({"scoring.sigma": -1.0}, "scoring.sigma is -1.0"),
        ({"scoring.top": 1.5}, "scoring.top is 1.5; 0 to 1"),
        ({"scoring.calibration_images": 0}, "at least 1"),
        ({"scoring.layers": []}, "a list of 1 to 8"),
        ({"scoring.layers": ["a"]}, "a list of int"),
        ({"scoring.layers": [-1]}, "scoring.layers"),
        ({"scoring.layers": [0, 9]}, r"scoring.layers is \[0, 9\]; 0 to 2 each"),
        ({"scoring.layers": [5], "scoring.backbone": "resnet50", "scoring.weights": "w"}, "0 to 4 each"),
        ({"scoring.layers": [1, 2], "scoring.backbone": "autoencoder"}, "0 among them"),
        ({"autoencoder.kind": "big"}, "one of tiny, dct, vae"),
        ({"autoencoder.shift_scale": "large"}, "standardize"),
        ({"scoring.backbone": "resnet50"}, "scoring.weights: the backbone 'resnet50' wants the file"),
    ],
)
def test_refusals_name_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        preset("small").updated(changes)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [key for key, kind in KEYS.items() if "float" in kind])
def test_no_float_is_nan_or_infinite(key, value, tmp_path):
    with pytest.raises(ValueError, match=f"{key} is {value}"):
        preset("small").updated({key: value})
    section, _, name = key.partition(".")
    (tmp_path / "config.toml").write_text(f"[{section}]\n{name} = {value}\n")
    with pytest.raises(ValueError, match=f"{key} is {value}"):
        Config.from_toml(tmp_path / "config.toml")


@pytest.mark.parametrize(("key", "kind"), KEYS.items())
def test_every_key_has_a_type_and_a_range(key, kind):
    wrong = {"bool": [1, "true"], "int": [-1, 1.0, True, "1", 1 << 70], "float": [True, "1", -1e-9], "str": [1, ["a"]]}
    wrong |= {"tuple[str, ...]": ["a", [1]], "str | float": [[1], "mean", -1.0]}
    wrong["tuple[int, ...]"] = wrong["tuple[int, int]"] = [1, "12", [-1, 1], [1.0, 1], [True, True], [[1], 1], [1 << 70, 1]]
    if kind == "str" and not key.endswith("weights"):
        wrong["str"].append("nonsense")
    for value in [None, {}, *wrong[kind]]:
        with pytest.raises(ValueError, match=key):
            preset("small").updated({key: value})


def test_what_is_made_without_a_file_is_checked_too():
    for wrong in ({"seed": "1"}, {"training": TrainingConfig(lr="fast")}, {"amn": AMNConfig(strides=(1, "2"))}, {"text": "clip"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Config(**wrong)
    with pytest.raises(ValueError, match="diffusion.steps"):
        dataclasses.replace(preset("small"), diffusion=DiffusionConfig(steps=2000))
    # Whole numbers for floats, and lists for tuples.
    config = Config(unet=UNetConfig(channel_mult=[1, 2, 3]), training=TrainingConfig(weight_decay=0))
    assert Config.from_dict(config.to_dict()) == preset("small").updated({"training.weight_decay": 0})


@pytest.mark.parametrize(
    "changes",
    [
        {"training.increment_lr": 0, "training.warmup": 0, "training.decay": 1, "training.clip_norm": 0, "continual.memory": 0},
        {"diffusion.num_train_timesteps": 4096, "diffusion.steps": 4095, "diffusion.stop": 0},
        {"diffusion.num_train_timesteps": 2, "diffusion.steps": 1},
        {"unet.attention_resolutions": []},
        {"unet.channel_mult": [1, 2], "unet.attention_resolutions": [1, 2, 4]},  # the first levels of a deeper network
        {"autoencoder.kind": "vae", "autoencoder.ch_mult": [1, 2, 4], "autoencoder.downsampling": 4, "amn.strides": [2, 2] + [1] * 5},
        {"autoencoder.downsampling": 16, "amn.strides": [1, 1, 2, 2, 2, 1, 2], "unet.channel_mult": [1]},
        {"autoencoder.shift_scale": 1},
        {"amn.enabled": False, "amn.strides": [1], "unet.model_channels": 2, "unet.norm_groups": 1, "unet.num_heads": 1},
        {"amn.neighbor": [0, 0]},
        {"scoring.backbone": "autoencoder", "scoring.layers": [0], "scoring.sigma": 0, "scoring.top": 0},
        {"scoring.backbone": "resnet18", "scoring.weights": "w", "scoring.layers": [4, 1, 3]},
        {"seed": (1 << 64) - 1},
    ],
)
def test_what_is_unusual_but_works_is_let_through(changes, tmp_path):
    config = preset("small").updated(changes)
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert Config.from_toml(tmp_path / "config.toml") == config
    ContinualModel(config, device="planned", _load_weights=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"unet.channel_mult": [1] * 9},
        {"unet.num_res_blocks": 40},
        {"unet.num_heads": 3},
        {"unet.norm_groups": 5},
        {"unet.model_channels": 7, "unet.norm_groups": 7, "unet.num_heads": 1},
        {"unet.context_dim": 8},
        {"amn.strides": [2, 2, 2]},
        {"amn.strides": [2] * 7},
        {"amn.neighbor": [2, 2]},
        {"amn.num_heads": 3},
        {"autoencoder.latent_channels": 193},
        {"diffusion.num_train_timesteps": 4097},
        {"diffusion.beta_end": 1e-5},
        {"training.beta2": 1.0},
        {"training.beta1": 1 - 2.0**-25},
        {"training.ema_decay": 1 - 2.0**-25},
        {"training.eps": 0.0},
        {"training.accumulate": 3},
    ],
)
def test_limits_are_the_core_s(changes, monkeypatch):
    with pytest.raises(ValueError):
        preset("tiny").updated(changes)
    monkeypatch.setattr(cdad.config, "check", lambda config: None)
    unchecked = preset("tiny").updated(changes)
    with pytest.raises(ValueError):
        ContinualModel(unchecked, device="planned", _load_weights=False)


FLEETING = """
from cdad import _core, preset

class Fleeting:
    def __len__(self):
        return 2
    def __getitem__(self, i):
        raise AssertionError
    def __iter__(self):
        table.clear()
        return iter((1, 2))

config = preset("tiny").denoiser()
table = config["unet"] = dict(config["unet"])
table["channel_mult"] = Fleeting()
_core.Sampler(_core.Params("cpu"), config, 1)
"""


def test_a_value_that_takes_itself_away():
    """While it is read, nothing but the core keeps it. Freed memory is overwritten there."""
    environment = os.environ | {"PYTHONMALLOC": "debug"}
    done = subprocess.run([sys.executable, "-c", FLEETING], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "ValueError: unet: num_res_blocks is missing" in done.stderr


def test_a_table_changes_the_keys_that_it_names():
    config = preset("tiny").updated({"training.batch_size": 4})
    assert config.updated({"training": {"steps": 3}}) == config.updated({"training.steps": 3})
    both = {"training": {"steps": 3, "lr": 1}, "training.steps": 5, "scoring": {}}
    assert config.updated(both) == config.updated({"training.steps": 5, "training.lr": 1.0})
    for wrong, message in (({"step": 3}, "did you mean 'steps'"), (3, "a table is wanted"), ({"lr": {"first": 1}}, "training.lr")):
        with pytest.raises(ValueError, match=message):
            config.updated({"training": wrong})


def test_any_path_comes_back_from_a_file(tmp_path):
    config = preset("tiny").updated({"unet.weights": 'a "\\\n\x7f\x01 \u00fc \U0001f600', "autoencoder.weights": ["\U0001f600"]})
    (tmp_path / "config.toml").write_text(config.to_toml(), "utf-8")
    assert Config.from_toml(tmp_path / "config.toml") == config


def test_unknown_preset(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'small'"):
        preset("smal")
    (tmp_path / "config.toml").write_text("preset = [1]\n")
    with pytest.raises(ValueError, match="there is no preset"):
        Config.from_toml(tmp_path / "config.toml")
    for name, config in PRESETS.items():
        assert config.preset == name and f'"{name}"' in preset.__doc__


def test_the_paper_s_recipe_trains(products, quick_config):
    config = quick_config.updated(PAPER_RECIPE)
    model = ContinualModel(config)
    model.fit_task([products["gear"]], progress=False)
    model.fit_task([products["steel"]], progress=False)
    assert model.predict([s.path for s in products["gear"].test[:2]]).maps.shape == (2, 64, 64)


def test_sections_made_of_lists_are_the_same_and_keys():
    config = preset("small")
    other = dataclasses.replace(config, amn=dataclasses.replace(config.amn, hidden=list(config.amn.hidden)))
    assert other == config and {config: 1}[other] == 1


def test_paths_and_numbers_within_lists():
    config = preset("small").updated({"autoencoder.kind": "tiny", "autoencoder.weights": [Path("a"), Path("b")], "scoring.layers": (np.int64(0),)})
    assert config.autoencoder.weights == ("a", "b") and config.scoring.layers == (0,)


@pytest.mark.parametrize(("n", "low"), [(10, 949), (7, 928), (300, 998), (600, 999)])
def test_a_focus_begins_half_a_stride_below_the_last_timestep_visited(n, low):
    config = preset("small").updated({"diffusion.steps": n, "diffusion.skip": 0, "diffusion.stop": 1})
    assert config.diffusion.prediction == "v" and config.lowest_sampled_timestep == low
