"""Memory banks beside a search of all vectors in float64, and what models do with them."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import layouts
import numpy as np
import pytest
from layouts import load_checkpoint
from safetensors.numpy import save_file

from cdad import CheckpointError, Config, ContinualModel
from cdad.checkpoint import save_checkpoint
from cdad.memory_bank import MemoryBank, _compared, _resized, _spread
from cdad.scoring import Calibration, score_maps

LAYERS = (0, 1, 2)


def features(n: int, seed: int = 0) -> list[np.ndarray]:
    """Three layers of n images, of 8, 4 and 2 places a side."""
    rng = np.random.default_rng(seed)
    shapes = ((8, 3, 5.0), (4, 6, 1.0), (2, 9, 0.1))
    return [scale * rng.standard_normal((n, side, side, width)).astype(np.float32) for side, width, scale in shapes]


def places(layers: list[np.ndarray]) -> np.ndarray:
    """What a bank compares, of those: [n,4,4,18]."""
    fine, middle, coarse = (layer.astype(np.float64) for layer in layers)
    fine = fine.reshape(len(fine), 4, 2, 4, 2, -1).mean((2, 4))
    at = np.array([0, 0.25, 0.75, 1])  # where the middles of four lie between those of two
    near = 1 - np.abs(at[:, None] - np.array([0, 1]))
    return np.concatenate([fine, middle, np.einsum("ap,bq,npqc->nabc", near, near, coarse)], -1)


def measure(layers: list[np.ndarray], size: int) -> MemoryBank:
    chunks = ([layer[:2] for layer in layers], [layer[2:] for layer in layers])
    return MemoryBank.measure(chunks, len(layers[0]), size, 0, LAYERS)


def nearest(x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return ((x[:, None] - vectors) ** 2).sum(-1).min(1)


def test_distances_are_those_from_the_nearest_normal_features():
    normal, other = features(5), features(3, seed=1)
    bank, each = measure(normal, 1000), places(normal)
    widths = [layer.shape[-1] for layer in normal]
    flat = each.reshape(-1, 18)
    scales = [part.std() for part in np.split(flat, np.cumsum(widths)[:-1], axis=1)]
    np.testing.assert_allclose(bank.scales, scales, rtol=1e-5)
    flat = flat / np.repeat(scales, widths)
    assert bank.vectors.shape == (5 * 16, 18)
    # a normal image's own features do not count when it says what is normal
    by_image = flat.reshape(5, 16, 18)
    without = [nearest(image, np.delete(by_image, i, 0).reshape(-1, 18)) for i, image in enumerate(by_image)]
    assert bank.normal == pytest.approx(np.mean(without), rel=1e-4)
    wanted = nearest(places(other).reshape(-1, 18) / np.repeat(scales, widths), flat).reshape(3, 4, 4) / bank.normal
    np.testing.assert_allclose(bank.distances(other), wanted, rtol=1e-4)
    assert np.abs(bank.distances(normal)).max() < 1e-4


def test_few_vectors_lie_near_all_others():
    rng = np.random.default_rng(0)
    centres = 10 * rng.standard_normal((20, 100)).astype(np.float32)
    vectors = np.repeat(centres, 50, axis=0) + 0.01 * rng.standard_normal((1000, 100)).astype(np.float32)
    rng.shuffle(vectors)
    kept = vectors[_spread(_compared(vectors, rng), 20)]
    assert nearest(centres, kept).max() < 1
    assert nearest(centres, vectors[:20]).max() > 100  # as they come, some centres have none
    assert list(_spread(vectors[:5], 20)) == list(range(5))


def test_of_one_image_its_spread_is_what_is_normal():
    bank = MemoryBank.measure([features(1)], 1, 4, 0, LAYERS)
    assert bank.vectors.shape == (4, 18) and 9 < bank.normal < 18  # of 18 channels, each of which varies by 1 with its layer


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_images_that_are_all_the_same(value):
    """Nothing is infinite beside them, and what is normal is not nothing."""
    same = [np.full_like(layer, value) for layer in features(3)]
    bank = MemoryBank.measure([same], 3, 100, 0, LAYERS)
    assert np.abs(bank.distances(same)).max() < 1e-3
    far = bank.distances(features(2))
    assert np.isfinite(far).all() and far.min() > 1
    nearly = [np.concatenate([layer, layer * np.float32(1.0001)]) for layer in features(1)]
    bank = MemoryBank.measure([nearly], 2, 100, 0, LAYERS)
    assert bank.normal == pytest.approx(0.01 * bank.vectors.var(0).sum(), rel=1e-3)


def test_copies_of_images_do_not_tell_what_is_normal():
    once = features(6)
    twice = [np.concatenate([layer, layer]) for layer in once]
    alone, doubled = (MemoryBank.measure([layers], len(layers[0]), 1000, 0, LAYERS) for layers in (once, twice))
    assert doubled.normal == pytest.approx(alone.normal, rel=1e-5)
    one = [np.concatenate([layer[:1]] * 5) for layer in once]
    bank = MemoryBank.measure([one], 5, 100, 0, LAYERS)
    assert bank.normal == pytest.approx(MemoryBank.measure([features(1)], 1, 100, 0, LAYERS).normal, rel=0.1)


@pytest.mark.parametrize("images", [2, 3, 12])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_so_few_vectors_that_places_may_have_none_of_other_images(size, images):
    bank = MemoryBank.measure([features(images)], images, size, 0, LAYERS)
    assert len(bank.vectors) == size and 0 < bank.normal < 100
    assert np.isfinite(MemoryBank.from_tensors(bank.tensors()).distances(features(2, seed=1))).all()


def test_distances_within_what_varies_little():
    """Products of large numbers whose difference is small would be rounding."""
    normal, other = ([1000 + 0.1 * layer for layer in features(n, seed)] for n, seed in ((5, 0), (2, 1)))
    bank = measure(normal, 1000)
    # a layer's scale is a share of its largest number here
    flat, x = (places(layers).reshape(-1, 18) / np.repeat(bank.scales, [3, 6, 9]) for layers in (normal, other))
    np.testing.assert_allclose(bank.distances(other), nearest(x, flat).reshape(2, 4, 4) / bank.normal, rtol=1e-2)


def test_a_layer_of_zeros_says_nothing():
    dark = [layer * (i > 0) for i, layer in enumerate(features(4))]
    bank = MemoryBank.measure([dark], 4, 1000, 0, LAYERS)
    lit = [layer + 1 if i == 0 else layer for i, layer in enumerate(dark)]
    assert bank.distances(lit).max() < 100


def test_copies_of_a_bank_that_was_used():
    bank = measure(features(3), 20)
    told = bank.distances(features(2, seed=1))
    for other in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        assert np.array_equal(other.distances(features(2, seed=1)), told)


def test_a_damaged_bank_is_refused():
    tensors = MemoryBank.measure([features(2)], 2, 10, 0, LAYERS).tensors()
    assert MemoryBank.from_tensors(tensors).normal == pytest.approx(tensors["normal"][0])
    vectors, scales = tensors["vectors"], tensors["scales"]
    damaged = [{"vectors": x} for x in (vectors[0], vectors[:0], np.nan * vectors, vectors.astype(np.float64), vectors.astype(np.uint8))]
    damaged += [{"scales": x} for x in (0 * scales, np.inf * scales, scales[:2], scales[None])]
    damaged += [{"normal": np.array(x, np.float32)} for x in ([0], [np.nan], [np.inf], [1e-40], [1, 1], 1)]
    damaged += [{"centre": tensors["centre"][:-1]}, {"layers": np.array(LAYERS, np.float32)}, {"layers": np.arange(4)}]
    for part in damaged:
        with pytest.raises(ValueError, match="is none"):
            MemoryBank.from_tensors(tensors | part)
    for name in tensors:
        with pytest.raises(ValueError, match="is none"):
            MemoryBank.from_tensors({key: value for key, value in tensors.items() if key != name})


@pytest.mark.parametrize("width", [1, 3, 600])
def test_layers_of_any_width_are_resized(width):
    layer = np.random.default_rng(0).random((2, 4, 4, width), np.float32)
    np.testing.assert_allclose(_resized(layer, (2, 2)), layer.reshape(2, 2, 2, 2, 2, width).mean((2, 4)), rtol=1e-6)
    assert _resized(layer, (8, 8)).shape == (2, 8, 8, width) and _resized(layer, (4, 4)) is layer


def test_the_map_is_the_mean_of_both(quick_config):
    rng = np.random.default_rng(0)
    config = quick_config.updated({"scoring.sigma": 0.0}).scoring
    normal = rng.random((6, 16, 16, 2), np.float32)
    calibration, far = Calibration.measure(normal), rng.random((6, 4, 4), np.float32)
    drawn = score_maps(normal, calibration, config, 16)
    both = score_maps(normal, calibration, config, 16, far)
    assert np.allclose(2 * both - drawn, score_maps(0 * normal, calibration, config, 16, 2 * far), atol=1e-6)
    assert (2 * both - drawn)[:, 0, 0] == pytest.approx(far[:, 0, 0], abs=1e-6)


def test_what_models_keep(first_checkpoint, products, quick_config, tmp_path):
    """Later tasks change no bank; files keep it; an image of an unknown class is as far as from the nearest class's."""
    model = ContinualModel.load(first_checkpoint)
    (bank,) = model.calibrations["gear"].banks
    vectors = bank.vectors.copy()
    model.fit_task([products["steel"]], progress=False)
    assert np.array_equal(model.calibrations["gear"].banks[0].vectors, vectors)
    model.save(tmp_path / "model.safetensors")
    loaded = ContinualModel.load(tmp_path / "model.safetensors")
    images = [sample.path for sample in products["gear"].test[:3]]
    assert np.array_equal(loaded.predict(images, "gear").maps, model.predict(images, "gear").maps)
    one, other = (loaded.calibrations[name] for name in ("gear", "steel"))
    layers = features(2)
    banks = [MemoryBank.measure([features(4, seed)], 4, 100, 0, LAYERS) for seed in (3, 4)]
    one, other = (Calibration(c.layers, c.mean, c.moments, (bank,)) for c, bank in zip((one, other), banks, strict=True))
    pooled = Calibration.pool([one, other])
    assert np.array_equal(pooled.nearest(layers), np.minimum(one.nearest(layers), other.nearest(layers)))


def test_models_without_one(first_checkpoint, products, quick_config):
    """None is used where none is wanted; where one is wanted that was never measured, that is said."""
    images = [sample.path for sample in products["gear"].test[:3]]
    model = ContinualModel.load(first_checkpoint)
    without = ContinualModel.load(first_checkpoint, config=quick_config.updated({"scoring.memory_bank": 0}))
    assert not np.array_equal(model.predict(images, "gear").maps, without.predict(images, "gear").maps)
    without.recalibrate([products["gear"]])
    assert without.calibrations["gear"].banks == ()
    model.calibrations["gear"] = without.calibrations["gear"]
    with pytest.raises(RuntimeError, match="'gear' was learned without this calibration"):
        model.predict(images, "gear")


def test_files_of_builds_without_banks_predict_as_they_did(first_checkpoint, quick_config):
    values = quick_config.to_dict()
    del values["scoring"]["memory_bank"]
    assert Config.from_dict(values, whole=True).scoring.memory_bank == 0
    assert Config().scoring.memory_bank == 2048


def test_banks_of_other_layers_are_not_used(first_checkpoint, quick_config):
    """Nor of layers that are as wide together; the order in which they are named does not matter."""
    calibration, config = ContinualModel.load(first_checkpoint).calibrations["gear"], quick_config.updated({"scoring.layers": [2, 0]}).scoring
    ones = np.ones(3, np.float32), np.ones((8, 8), np.float32)

    def fits(*layers: int) -> bool:
        bank = replace(calibration.banks[0], layers=np.array(layers), centre=np.zeros(2, np.float32))
        return Calibration(*ones, (), (bank,)).fits(8, [1, 1, 1], replace(config, distance="euclidean"))

    assert fits(0, 2) and not fits(0, 1) and not fits(2, 0)


def test_other_weights_of_the_backbone_are_told_of(products, quick_config, tmp_path):
    """Whatever their file is called; the same ones may lie elsewhere."""
    tensors = layouts.resnet_tensors(blocks=(2, 2, 2, 2), bottleneck=False, width=64)
    raw = {name: np.float32(0.05) * array for name, array in tensors.items() if array.dtype == np.float32}
    files = {name: tmp_path / f"{name}.safetensors" for name in ("own", "copy", "other")}
    for name, file in files.items():
        save_file(raw | ({"bn1.bias": raw["bn1.bias"] + np.float32(0.5)} if name == "other" else {}), file)
    changes = {"scoring.backbone": "resnet18", "scoring.layers": [0, 1], "scoring.memory_bank": 16, "training.steps": 2}
    model = ContinualModel(quick_config.updated(changes | {"scoring.weights": str(files["own"])}))
    model.fit_task([products["gear"]], progress=False)
    images = [sample.path for sample in products["gear"].test[:3]]
    model.set_threshold("gear", images)
    model.save(tmp_path / "model")

    def load(name: str) -> ContinualModel:
        return ContinualModel.load(tmp_path / "model", config=model.config.updated({"scoring.weights": str(files[name])}))

    copied, other = load("copy"), load("other")
    assert np.array_equal(copied.predict(images, "gear").scores, model.predict(images, "gear").scores) and "gear" in copied.thresholds
    assert other.uncalibrated == ["gear"]
    with pytest.raises(RuntimeError, match=r"other weights of the scores' backbone: recalibrate"):
        other.predict(images, "gear")
    other.recalibrate([products["gear"]])
    assert other.predict(images, "gear").scores.shape == (3,) and "gear" not in other.thresholds


def test_banks_of_builds_that_kept_them_otherwise_are_measured_again(first_checkpoint, products, tmp_path):
    tensors, state = load_checkpoint(first_checkpoint)
    gone = ("bank.centre", "bank.layers")
    save_checkpoint(tmp_path / "older", {name: array for name, array in tensors.items() if not name.endswith(gone)}, state)
    model = ContinualModel.load(tmp_path / "older")
    assert model.uncalibrated == list(model.classes) and not model.calibrations["gear"].banks
    model.recalibrate([products[name] for name in model.classes])
    assert model.uncalibrated == []
    save_checkpoint(tmp_path / "damaged", {name: array for name, array in tensors.items() if not name.endswith(gone[:1])}, state)
    with pytest.raises(CheckpointError, match="is none"):
        ContinualModel.load(tmp_path / "damaged")


def test_thresholds_go_where_other_features_are_compared(first_checkpoint, products, quick_config, tmp_path):
    model = ContinualModel.load(first_checkpoint)
    model.set_threshold("gear", [sample.path for sample in products["gear"].test[:3]])
    model.save(tmp_path / "model")

    def kept(**changes) -> bool:
        config = model.config.updated({f"scoring.{key}": value for key, value in changes.items()})
        return "gear" in ContinualModel.load(tmp_path / "model", config=config).thresholds

    assert kept(memory_bank=64) and kept(calibration_images=4)  # which would change what is measured, not what was
    assert not kept(memory_bank=0)
    assert kept(weights="elsewhere.safetensors")  # calibrations would know whether these are others
    model = ContinualModel.load(first_checkpoint, config=model.config.updated({"scoring.calibrate": False}))
    model.set_threshold("gear", [sample.path for sample in products["gear"].test[:3]])
    model.save(tmp_path / "model")
    assert kept(noise_seeds=1) and not kept(weights="elsewhere.safetensors")
