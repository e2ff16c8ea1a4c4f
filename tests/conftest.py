"""Shared fixtures: a small synthetic data set, and a model that has learned its first task."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before NumPy and PyTorch are loaded, whose threads would wait for each other's
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import pytest

from cdad import ContinualModel, open_dataset, preset
from cdad.data import write_dataset

FIRST, SECOND = ("gear", "cloth"), ("steel",)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """The folder of `products`."""
    root = tmp_path_factory.mktemp("products")
    write_dataset(root, classes=[*FIRST, *SECOND], size=64, n_train=12, n_good=4, n_defect=2, seed=0)
    return root


@pytest.fixture(scope="session")
def products(root):
    return open_dataset(root)


@pytest.fixture(scope="session")
def quick_config():
    return preset("tiny").updated(
        {
            "training.steps": 6,
            "training.increment_steps": 8,
            "training.warmup": 2,
            "diffusion.steps": 3,
            "scoring.backbone": "autoencoder",
            "scoring.calibration_images": 4,
            "scoring.batch_size": 4,
            "continual.images": 2,
        }
    )


@pytest.fixture(scope="session")
def first_checkpoint(products, quick_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("first") / "first.safetensors"
    model = ContinualModel(quick_config)
    model.fit_task([products[name] for name in FIRST], progress=False, checkpoint=path)
    return path


@pytest.fixture
def model(first_checkpoint):
    """It has learned its first task, and is the test's own."""
    return ContinualModel.load(first_checkpoint)
