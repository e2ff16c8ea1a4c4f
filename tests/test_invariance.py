"""What the projection promises, after many steps of an increment: the old features meet the weights that they met before."""

from __future__ import annotations

import numpy as np
import pytest

from cdad import ContinualModel, _core
from cdad.strategies import make_strategy

BOUND = 1e-5  # of |X| |dW|
STEPS = 100
FIRST, SECOND = ("gear", "cloth"), "steel"


@pytest.fixture(scope="module")
def config(quick_config):
    """Small images, so that their features leave most weights something to learn even at gamma = 1."""
    return quick_config.updated({"image_size": 32, "training.batch_size": 2, "scoring.calibrate": False})


@pytest.fixture(scope="module")
def first(products, config, tmp_path_factory):
    path = tmp_path_factory.mktemp("invariance") / "first.safetensors"
    ContinualModel(config).fit_task([products[name] for name in FIRST], progress=False, checkpoint=path)
    return path


@pytest.fixture(scope="module")
def increment(first, products, config):
    """A model before and after an increment of so many steps of AdamW."""

    def learn(precision: str = "float32", **how) -> tuple[ContinualModel, ContinualModel]:
        changes = {f"continual.{key}": value for key, value in how.items()} | {"training.increment_steps": STEPS, "precision": precision}
        before, model = (ContinualModel.load(first, config.updated(changes)) for _ in range(2))
        if before.config.continual.gamma != config.continual.gamma:
            before.strategy = make_strategy(before.config.continual)
            before.consolidate([products[name] for name in FIRST], progress=False)
            model.strategy.restore(before.strategy.tensors(), {})
        model.fit_task([products[SECOND]], progress=False)
        assert model.ledger[-1]["steps"] == STEPS and model.config.training.weight_decay > 0
        return before, model

    return learn


@pytest.fixture(scope="module")
def features(first, products):
    """{weight: X [rows, d]}: what came in while the bases were collected, the same samples under the same noise."""
    model = ContinualModel.load(first)
    names = [name for name, shape in model.params.shapes().items() if len(shape) > 1]
    (batch,) = model.representative_batches([products[name] for name in FIRST]).epoch(0)
    recorder = _core.Recorder(model.drawing.samplers.whole, names)
    model.drawing.denoise(batch.perturbed, model.autoencoder.encode(batch.image), noise_seed=batch.step)
    return {name: X.astype(np.float64) for name, X in recorder.take().items()}


def change_of(before: ContinualModel, after: ContinualModel, name: str) -> np.ndarray:
    """dW [O, d]"""
    dW = after.params[name].astype(np.float64) - before.params[name]
    return dW.reshape(len(dW), -1)


def share(X: np.ndarray, dW: np.ndarray, XdW: np.ndarray) -> float:
    """|X dW| of |X| |dW|; 0 where nothing changed."""
    return float(np.linalg.norm(XdW) / (np.linalg.norm(X) * np.linalg.norm(dW))) if dW.any() else 0.0


def moved(before: ContinualModel, after: ContinualModel) -> dict[str, int]:
    """How many weights of each network changed by more than a thousandth."""
    names = [n for n in before.bases if np.linalg.norm(change_of(before, after, n)) > 1e-3 * np.linalg.norm(before.params[n])]
    return {network: sum(name.startswith(network) for name in names) for network in ("unet.", "amn.")}


def check_frozen(before: ContinualModel, after: ContinualModel) -> None:
    frozen = [name for name in before.params.shapes() if name not in before.bases]
    assert all(any(name.startswith(network) for name in frozen) for network in ("unet.", "amn."))
    for name in frozen:
        assert np.array_equal(after.params[name], before.params[name]), name


@pytest.mark.parametrize(
    ("free_gamma", "tether", "precision"),
    [(0.999, 0.0, "float32"), (1.0, 0.0, "float32"), (0.999, 10.0, "float32"), (1.0, 10.0, "float32"), (0.999, 0.0, "bfloat16")],
)
def test_old_features_in_the_basis_see_no_change(increment, features, free_gamma, tether, precision):
    """With a threshold below 1 a basis leaves some energy out, and what lies there may change: that is what the threshold
    is for. So features are projected onto the basis first: X U U^T dW."""
    before, after = increment(projection="update", gamma=0.999, free_gamma=free_gamma, tether=tether, precision=precision)
    check_frozen(before, after)
    assert sorted(before.bases) == sorted(features), "every linear map and convolution has a basis"
    for name, X in features.items():
        U, dW = before.bases[name].astype(np.float64), change_of(before, after, name)
        assert share(X @ U, dW, (X @ U) @ (dW @ U).T) < BOUND, name
    counts = moved(before, after)
    assert counts["unet."] > 30 and counts["amn."] > 10


def test_old_features_see_no_change(increment, features):
    """With gamma = 1 the bases span all features, so these are taken as they are. Weights whose features fill their space
    have no update left."""
    before, after = increment(projection="update", gamma=1.0, free_gamma=1.0)
    check_frozen(before, after)
    for name, X in features.items():
        U, dW = before.bases[name], change_of(before, after, name)
        if U.shape[1] == U.shape[0]:
            assert not dW.any(), name
        else:
            assert share(X, dW, X @ dW.T) < BOUND, name
    counts = moved(before, after)
    assert counts["unet."] > 10 and counts["amn."] > 2


def test_projecting_the_gradient_alone_changes_what_old_features_see(increment, features):
    """AdamW scales elements after that projection, and its decay knows no basis: every weight misses the bound by far."""
    before, after = increment(projection="gradient", gamma=0.999)
    check_frozen(before, after)
    for name, X in features.items():
        U, dW = before.bases[name].astype(np.float64), change_of(before, after, name)
        assert share(X @ U, dW, (X @ U) @ (dW @ U).T) > 100 * BOUND, name
