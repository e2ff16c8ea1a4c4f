"""What the paper's strategy keeps: orthonormal bases after many tasks, their cap, and their storage in 16 bits."""

from __future__ import annotations

import numpy as np
import pytest

from cdad import ContinualModel, _core
from cdad.bfloat16 import from_bfloat16, to_bfloat16
from cdad.strategies.projection import TOLERANCE, orthonormal, orthonormality_error


def tasks(products):
    """Six tasks: half of each class's images."""
    return [{f"{name}{half}": products[name].train[half::2]} for half in (0, 1) for name in ("gear", "cloth", "steel")]


@pytest.fixture(scope="module")
def quick(quick_config):
    return quick_config.updated({"training.steps": 2, "training.increment_steps": 2, "scoring.calibration_images": 2})


@pytest.fixture(scope="module")
def learned(products, quick):
    """A model after each of six tasks: its ledger, and its bases after every task."""
    model, kept = ContinualModel(quick), []
    for task in tasks(products):
        model.fit_task(task, progress=False)
        kept.append(dict(model.bases))
    return model, kept


def test_bases_stay_orthonormal_over_many_tasks(learned):
    model, kept = learned
    for U in model.bases.values():
        assert np.abs(U.astype(np.float64).T @ U - np.eye(U.shape[1])).max() <= TOLERANCE
    shares = [entry["rank_share"] for entry in model.ledger]
    assert shares == sorted(shares) and shares[0] < shares[-1] <= model.ledger[-1]["rank_share_max"] <= 1
    for entry, bases in zip(model.ledger, kept, strict=True):
        ranks = [U.shape[1] / U.shape[0] for U in bases.values()]
        assert entry["rank_share"] == pytest.approx(np.mean(ranks)) and entry["rank_share_max"] == max(ranks)
        assert 0 <= entry["orthonormality_error"] <= TOLERANCE
    for before, after in zip(kept, kept[1:]):
        assert all(np.array_equal(after[name][:, : U.shape[1]], U) for name, U in before.items())


def test_confined_updates_are_adamw_in_the_directions_coordinates(quick):
    """A first step moves each coordinate by the learning rate against its gradient, but for tiny ones, and nothing across the
    directions."""
    config = quick.updated({"training.clip_norm": 0.0, "training.weight_decay": 0.5})
    params = _core.Params()
    trainer = _core.Trainer(params, config.denoiser(), 2, config.optimizer(), 0)
    rng, bases, spans, before = np.random.default_rng(0), {}, {}, {}
    for i, (name, shape) in enumerate(params.shapes().items()):
        before[name] = params[name].copy()
        if len(shape) < 2:
            trainer.protect(name, frozen=True)
            continue
        d = int(np.prod(shape[1:]))
        if d not in bases:
            bases[d] = np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32)
        basis = bases[d]
        rank = (0, 1, d // 2, d - d // 4, d)[i % 5]
        if i % 2:  # what a basis leaves free
            trainer.protect(name, basis[:, rank:])
        else:
            trainer.confine(name, basis[:, :rank].T)
        spans[name] = basis.astype(np.float64), rank, i % 2 == 0
    n = config.latent_size
    latent = _core.random_normal((2, n, n, config.autoencoder.latent_channels), 0, 0)
    image = _core.random_normal((2, 64, 64, 3), 0, 1)
    trainer.step(latent, image, image)
    other = _core.Params()
    whole = _core.Trainer(other, config.denoiser(), 2, config.optimizer(), 0)
    for name, old in before.items():
        other[name] = old
    gradients = whole.gradients(latent, image, image, *trainer.drawn())[-1]
    moved = 0
    for name, old in before.items():
        dW = (params[name].astype(np.float64) - old).reshape(len(old), -1)
        if name not in spans or spans[name][1] == 0:
            assert not dW.any()
            continue
        basis, rank, confined = spans[name]
        if rank == len(basis) and not confined:  # protected from nothing
            continue
        inside, outside = dW @ basis[:, :rank], dW @ basis[:, rank:]
        rounding = 1e-7 * np.abs(old).max() * np.sqrt(dW.shape[1])
        assert np.abs(outside).max(initial=0) <= 1e-6 * np.abs(dW).max() + rounding
        assert np.linalg.norm(inside, axis=1).max() <= config.training.lr * 1.001 * np.sqrt(rank) + rounding
        if confined:
            assert np.abs(inside).max() <= config.training.lr * 1.001 + rounding
            along = gradients[name].reshape(len(old), -1).astype(np.float64) @ basis[:, :rank]
            large = np.abs(along) > 1e-3 * np.abs(along).max()
            assert np.array_equal(np.sign(inside[large]), -np.sign(along[large])), name
            moved += np.median(np.abs(inside)) > 0.9 * config.training.lr
    assert moved > len(spans) / 10


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_step_makes_no_gradient_of_what_is_frozen(quick, clip_norm):
    """But moves its average, and makes one again where it is freed, or asked for."""
    config = quick.updated({"training.clip_norm": clip_norm, "training.ema_decay": 0.5})
    params = _core.Params()
    trainer = _core.Trainer(params, config.denoiser(), 2, config.optimizer(), 0)
    n, whole, arena = config.latent_size, trainer.flops, trainer.arena_bytes
    latent = _core.random_normal((2, n, n, config.autoencoder.latent_channels), 0, 0)
    image = _core.random_normal((2, 64, 64, 3), 0, 1)
    moving = "unet.out.2.weight"
    for name in params.shapes():
        trainer.protect(name, frozen=name != moving)
    assert trainer.flops < 0.75 * whole and trainer.arena_bytes <= arena
    before = {name: params[name].copy() for name in params.shapes()}
    trainer.set_block("ema", np.zeros_like(trainer.block("ema")))
    norm = trainer.step(latent, image, image)[-1]
    assert all(np.array_equal(params[name], old) == (name != moving) for name, old in before.items())
    assert np.allclose(trainer.block("ema"), 0.9 * trainer.block("weights"), rtol=1e-6, atol=0)  # of the first step: 1 / (9 + 1) is old
    gradients = trainer.gradients(latent, image, image, *trainer.drawn())[-1]
    assert gradients.keys() == before.keys() and gradients["unet.input_blocks.0.0.weight"].any()
    for name, old in before.items():
        params[name] = old
        trainer.protect(name)
    assert trainer.flops == whole
    trainer.n_steps = 0
    assert trainer.step(latent, image, image)[-1] > norm


@pytest.mark.parametrize("device, clip_norm", [("cpu", 0.0), ("cpu", 1.0), ("emulated", 1.0)])
def test_a_step_leaves_what_the_model_has_no_part_in(quick, device, clip_norm):
    """Parameters of another network in the same store: they have no gradient, and no decay; their average goes on."""
    config = quick.updated({"training.clip_norm": clip_norm, "training.ema_decay": 0.5, "training.weight_decay": 0.5})
    autoencoder = {"channels": 64, "latent_channels": 4, "midblock": False}
    n, norms = config.latent_size, []
    latent = _core.random_normal((2, n, n, config.autoencoder.latent_channels), 0, 0)
    image = _core.random_normal((2, 64, 64, 3), 0, 1)
    for kinds in ([], ["tiny_encode"]):
        params = _core.Params(device)
        for kind in kinds:
            _core.Network(params, kind, autoencoder, 1, (64, 64))
        others = set(params.shapes())
        trainer = _core.Trainer(params, config.denoiser(), 2, config.optimizer(), 0)
        before = {name: params[name].copy() for name in params.shapes()}
        trainer.set_block("ema", np.zeros_like(trainer.block("ema")))
        norms.append(trainer.step(latent, image, image)[-1])
        assert all(np.array_equal(params[name], before[name]) for name in others)
        assert np.allclose(trainer.block("ema"), 0.9 * trainer.block("weights"), rtol=1e-6, atol=0)  # of the first step: 1 / (9 + 1) is old
        assert trainer.gradients(latent, image, image, *trainer.drawn())[-1].keys() == before.keys() - others
    assert norms[0] == norms[1]


def test_a_basis_that_drifts_is_made_orthonormal_again(products, quick, monkeypatch):
    rng = np.random.default_rng(0)
    U = np.linalg.qr(rng.standard_normal((300, 280)))[0].astype(np.float32)
    drifted = U + rng.normal(0, 1e-5, U.shape).astype(np.float32)
    assert orthonormality_error(U) < 1e-6 < orthonormality_error(drifted)
    assert orthonormality_error(np.eye(4, dtype=np.float32)[:, [0, 1, 1]]) == 1
    assert orthonormality_error(np.eye(4, dtype=np.float32)[:, [0, 0, 1]], first=2) == 0
    same, error = orthonormal(U, 0)
    assert same is U and error == orthonormality_error(U)
    again, error = orthonormal(drifted, 0)
    assert error > 1e-6 and orthonormality_error(again) < TOLERANCE
    assert np.abs(again @ (again.T @ U) - U).max() < 1e-4, "it spans what it spanned"

    model = ContinualModel(quick)
    whole = model.collect_bases

    def collect(classes, progress):
        return {n: (V * np.float32(1 + 1e-5), *rest) for n, (V, *rest) in whole(classes, progress).items()}

    monkeypatch.setattr(model, "collect_bases", collect)
    model.fit_task(tasks(products)[0], progress=False)
    assert model.ledger[0]["orthonormality_error"] > 1e-5
    assert max(orthonormality_error(V) for V in model.bases.values()) < TOLERANCE


def test_a_cap_keeps_the_directions_of_most_energy(learned, products, quick):
    free, kept = learned
    model = ContinualModel(quick.updated({"continual.max_rank_share": 0.25}))
    first, second = tasks(products)[:2]
    model.fit_task(first, progress=False)
    capped = 0
    for name, U in model.bases.items():
        most = max(1, int(0.25 * len(U)))
        whole = kept[0][name]
        assert np.array_equal(U, whole[:, :most]), name
        capped += whole.shape[1] > most
    assert capped > 10
    assert model.ledger[0]["energy_capped_max"] > model.ledger[0]["energy_capped"] > 0
    assert "energy_capped" not in free.ledger[0]
    # what the cap costs is what the directions beyond it hold
    collector_of = model.collect_bases
    model.strategy.bases = {}
    lost = {name: (share, cap) for name, (_, share, cap) in collector_of([as_class(first)], False).items()}
    model.config = model.config.updated({"continual.max_rank_share": 1.0})
    whole = {name: share for name, (_, share, cap) in collector_of([as_class(first)], False).items() if cap == 0}
    assert whole.keys() == lost.keys()
    assert all(share + cap == pytest.approx(whole[name], abs=1e-9) for name, (share, cap) in lost.items())
    # later tasks keep what there is, whatever the cap
    model.strategy.bases = dict(kept[0])
    model.config = model.config.updated({"continual.max_rank_share": 0.01})
    after = model.collect_bases([as_class(second)], False)
    assert all(np.array_equal(after[name][0], U) for name, U in kept[0].items() if U.shape[1])


def test_a_cap_leaves_new_tasks_their_directions(products, quick):
    """Bases that are as wide as they may get are no reason to freeze what they guard."""
    first, second = tasks(products)[:2]
    model = ContinualModel(quick.updated({"continual.max_rank_share": 0.25, "continual.images": 2, "scoring.calibrate": False}))
    model.fit_task(first, progress=False)
    full = [name for name, U in model.bases.items() if U.shape[1] == max(1, int(0.25 * len(U)))]
    before, found = {name: model.params[name].copy() for name in full}, {}
    model.fit_task(second, progress=False, callback=lambda report: found.update(model.strategy._free))
    assert len(full) > 10 and all(len(found[name]) > 0 for name in full)
    assert all(not np.array_equal(before[name], model.params[name]) for name in full)
    assert all(U.shape[1] <= max(1, int(0.25 * len(U))) for U in model.bases.values())  # and they stay capped


def test_a_task_moves_weights_in_so_many_directions_at_most(products, quick, tmp_path):
    """Those in which its features have the most energy; the ledger tells what the others held, also of a task that went on from a file."""
    first, second = tasks(products)[:2]
    free, models = {}, {}
    for most in (0, 3):
        model = models[most] = ContinualModel(quick.updated({"continual.max_directions": most, "scoring.calibrate": False}))
        model.fit_task(first, progress=False)
        before = {name: model.params[name].copy() for name in model.bases}

        def keep(report, model=model, most=most):
            free[most] = dict(model.strategy._free)
            model.save(tmp_path / "within") if most and report.step == 1 else None

        model.fit_task(second, progress=False, callback=keep)
    assert sum(len(V) > 3 for V in free[0].values()) > 20
    for name, V in free[3].items():
        assert np.array_equal(V, free[0][name][:3]), name
        change = (model.params[name] - before[name]).reshape(len(before[name]), -1)
        assert np.abs(change - change @ V.T @ V).max() <= 1e-3 * np.abs(change).max(), name  # beside the rounding of weights
    told = models[3].ledger[1]
    assert told["free_capped_max"] >= told["free_capped"] > 0 and told["free_share"] < models[0].ledger[1]["free_share"]
    assert "free_capped" not in models[0].ledger[1] and "free_capped" not in models[3].ledger[0]
    again = ContinualModel.load(tmp_path / "within")
    again.fit_task(second, progress=False)
    assert again.ledger[1] == told and again.strategy.state()["free_capped"] == []


def test_operations_of_projections_are_counted(quick):
    trainers = {}
    for projection in ("gradient", "update"):
        params = _core.Params()
        config = quick.updated({"continual.projection": projection})
        trainers[projection] = _core.Trainer(params, config.denoiser(), 2, config.optimizer(), 0)
    whole = trainers["gradient"].flops
    weights = {name: (shape[0], int(np.prod(shape[1:]))) for name, shape in params.shapes().items() if len(shape) > 1}
    name = max(weights, key=lambda name: np.prod(weights[name]))
    o, d = weights[name]
    V = np.eye(d, dtype=np.float32)[:5]
    trainers["gradient"].protect(name, np.ascontiguousarray(V.T))
    assert trainers["gradient"].flops == whole + 2 * 2 * o * d * 5  # G U and, of that, (G U) U^T
    trainers["update"].confine(name, V)
    there = trainers["update"].flops - 2 * o * d * 5  # W + C V
    places = 2 * (config.latent_size // 2) ** 2  # of a batch, at this weight's level
    assert whole - there == 2 * places * o * d - 2 * 5 * places * (o + d)  # x V, and coordinates in the gradient's place


def test_weights_that_share_features_keep_bases_of_their_own(learned, products, quick):
    """q and k read the same features: one basis, unless what they have so far differs."""
    model, first = learned[0], as_class(tasks(products)[0])
    q = next(name for name in model.bases if name.endswith("attn1.to_q.weight"))
    k = q.replace("to_q", "to_k")
    d = model.bases[q].shape[0]

    def bases(old):
        collector = model._collector(model.drawing.samplers.whole, 1, 0.9)
        assert collector.plan()[k][3] == 0 < collector.plan()[q][3]
        batch = next(model.representative_batches([first]).epoch(0))
        model.drawing.denoise(batch.perturbed, model.autoencoder.encode(batch.image), 0)
        return collector.bases(old)

    old = np.linalg.qr(np.random.default_rng(0).normal(size=(d, 2)))[0].astype(np.float32)
    for given in ({}, {q: old, k: old}):
        found = bases(given)
        assert np.array_equal(found[q][0], found[k][0]) and found[q][1:] == found[k][1:]
        found[q][0][0, 0] += 1  # the arrays are not shared
        assert not np.array_equal(found[q][0], found[k][0])
    for given in ({q: old}, {k: old}, {q: old, k: old[:, :1].copy()}, {q: old, k: -old}):
        found = bases(given)
        for name in (q, k):
            U = given.get(name, np.empty((d, 0), np.float32))
            assert np.array_equal(found[name][0][:, : U.shape[1]], U)
        assert not np.array_equal(found[q][0], found[k][0])


def test_a_collector_gives_its_bases_once(learned):
    model = learned[0]
    collector = model._collector(model.drawing.samplers.whole, 1, 0.9)
    with pytest.raises(ValueError, match=r"is \[\d+, rank\]"):
        collector.bases({next(iter(model.bases)): np.zeros((1, 1), np.float32)})
    with pytest.raises(ValueError, match="grow by -1"):
        collector.bases({}, max_added=-1)
    collector.bases({})  # a failure has taken nothing
    with pytest.raises(ValueError, match="already"):
        collector.bases({})


def test_a_cap_on_a_weighted_basis_tells_its_cost(learned, products, quick):
    model = ContinualModel(quick.updated({"continual.method": "incremental"}))
    model.fit_task(tasks(products)[0], progress=False)
    model.strategy.bases = {}
    found = {}
    for share in (1.0, 0.25):
        model.config = model.config.updated({"continual.max_rank_share": share})
        found[share] = model.collect_bases([as_class(tasks(products)[0])], False)
    capped = {name: (kept, cost) for name, (_, kept, cost) in found[0.25].items() if cost}
    assert len(capped) > 10
    for name, (kept, cost) in capped.items():
        assert kept + cost == pytest.approx(found[1.0][name][1], abs=1e-6) and kept < found[1.0][name][1], name


def as_class(task):
    from cdad.model import as_classes

    return as_classes(task, 0)[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_bases_in_16_bits(learned, products, quick, tmp_path, dtype):
    free, kept = learned
    config = quick.updated({"continual.basis_dtype": dtype})
    model = ContinualModel(config)
    model.fit_task(tasks(products)[0], progress=False)
    model.save(tmp_path / "half")
    again = ContinualModel.load(tmp_path / "half")
    assert again.bases.keys() == kept[0].keys()
    for name, U in model.bases.items():
        assert np.array_equal(again.bases[name], U), "what is used is what a load gives"
        assert orthonormality_error(U) <= TOLERANCE
    for name, U in kept[0].items():  # the first task's bases: the same weights, then rounded
        V = model.bases[name][:, : U.shape[1]]
        outside = 1 - np.sum((U.T @ V) ** 2) / max(1, U.shape[1])
        assert outside < (1e-5 if dtype == "float16" else 1e-3), name
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice").read_bytes() == (tmp_path / "half").read_bytes()
    if dtype == "float16":  # a later task adds to what is kept
        for other in (model, again):
            other.fit_task(tasks(products)[1], progress=False)
        assert all(np.array_equal(again.bases[name], U) for name, U in model.bases.items())
    size = sum(U.nbytes for U in model.bases.values())
    assert sum(a.nbytes for a in model.strategy.tensors().values()) * 2 == size
    assert model.memory_bytes["strategy"] == size + size // 2
    # another dtype at the next load
    wanted = "float32" if dtype == "float16" else "float16"
    other = ContinualModel.load(tmp_path / "half", config.updated({"continual.basis_dtype": wanted}))
    assert max(orthonormality_error(U) for U in other.bases.values()) <= TOLERANCE
    assert {a.dtype for a in other.strategy.tensors().values()} == {np.dtype(wanted)}


def test_bfloat16_rounds_to_nearest_even():
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159, 0.0], np.float32)
    assert from_bfloat16(to_bfloat16(x)).tolist() == [1.0, 1.0, 1 + 2**-6, -3.140625, 0.0]


def test_rows_are_checked():
    assert _core.orthonormalise(np.zeros((0, 5), np.float32)).shape == (0, 5)
    for wrong in (np.zeros((6, 5)), np.zeros(5)):
        with pytest.raises(ValueError, match="rows"):
            _core.orthonormalise(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"continual.max_rank_share": 0.0}, "max_rank_share"),
        ({"continual.max_rank_share": 0.5, "continual.method": "isvd"}, "forgets energies"),
        ({"continual.max_directions": 4, "continual.method": "isvd"}, "max_directions is 4.*forgets energies"),
        ({"continual.max_directions": -1}, "max_directions"),
        ({"continual.basis_dtype": "int8"}, "float16, bfloat16"),
    ],
)
def test_refusals_name_the_key(quick_config, changes, message):
    with pytest.raises(ValueError, match=message):
        quick_config.updated(changes)
