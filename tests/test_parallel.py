"""Several processes train one model; here threads stand for them, as they meet in all_reduce alone."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import FIRST, SECOND

from cdad import ContinualModel, DataParallel, TrainingError, _core
from cdad.data import TrainingBatches
from cdad.data.loader import MixedBatches


class Meeting:
    """Where the blocks of all ranks are added up, in the order of the ranks."""

    def __init__(self, world_size: int):
        self.blocks: list[np.ndarray | None] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=60)

    def all_reduce(self, rank: int):
        def add_up(block):
            self.blocks[rank] = np.array(block)
            self.barrier.wait()
            total = np.sum(self.blocks, axis=0)
            self.barrier.wait()  # all have read before the next step writes
            block[:] = total

        return add_up

    def members(self) -> list[DataParallel]:
        n = len(self.blocks)
        return [DataParallel(rank, n, self.all_reduce(rank)) for rank in range(n)]


def together(members, train):
    """What ``train`` makes of each of the members, at the same time."""
    with ThreadPoolExecutor(len(members)) as pool:
        return [future.result() for future in [pool.submit(train, member) for member in members]]


def two_tasks(config, products, parallel=None, checkpoint=None):
    model = ContinualModel(config, parallel=parallel)
    model.fit_task([products[name] for name in FIRST], progress=False)
    model.fit_task([products[name] for name in SECOND], progress=False, checkpoint=checkpoint)
    return model


def weights(model):
    return {name: np.array(model.params[name]) for name in model.params.shapes()}


@pytest.mark.parametrize("changes", [{}, {"continual.strategy": "replay", "continual.replay_images": 2}], ids=["cdad", "replay"])
def test_two_processes_make_what_one_makes(products, quick_config, changes):
    # Of updates that follow the gradient, not its sign, so that rounding stays rounding.
    config = quick_config.updated({"training.batch_size": 4, "training.eps": 1e-2, "continual.free_gamma": 0.999} | changes)
    alone = two_tasks(config, products)
    pair = together(Meeting(2).members(), lambda member: two_tasks(config, products, member))
    start = weights(ContinualModel(config))
    for name, wanted in weights(alone).items():
        first, second = (np.array(model.params[name]) for model in pair)
        np.testing.assert_array_equal(first, second, err_msg=name)
        moved = np.linalg.norm(wanted - start[name])
        assert np.linalg.norm(first - wanted) <= 1e-3 * moved + 1e-6, name


class Stop(Exception):
    pass


def test_rank_0_writes_the_checkpoint_that_all_go_on_from(products, quick_config, tmp_path):
    config = quick_config.updated({"training.batch_size": 4})
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    task = [products[name] for name in SECOND]

    def stop(report):
        if report.step == 4:
            raise Stop

    def interrupted(member):
        model = ContinualModel(config, parallel=member)
        model.fit_task([products[name] for name in FIRST], progress=False)
        with pytest.raises(Stop):
            model.fit_task(task, progress=False, callback=stop, checkpoint=paths[member.rank], checkpoint_seconds=0.0)

    def resumed(member):
        model = ContinualModel.load(paths[0], parallel=member)
        assert model.progress["step"] == 4
        model.fit_task(task, progress=False)
        return weights(model)

    whole = together(Meeting(2).members(), lambda member: weights(two_tasks(config, products, member)))
    together(Meeting(2).members(), interrupted)
    assert not paths[1].exists()
    for found in together(Meeting(2).members(), resumed):
        for name, wanted in whole[0].items():
            np.testing.assert_array_equal(found[name], wanted)


def test_processes_with_other_directions_are_noticed(products, quick_config):
    """The same span is not enough: gradients are added up in the directions' coordinates."""
    config = quick_config.updated({"training.batch_size": 4, "training.steps": 2})

    def refused(member):
        model = ContinualModel(config, parallel=member)
        model.fit_task([products[name] for name in FIRST], progress=False)
        if member.rank == 1:
            collect = model.collect_bases
            model.collect_bases = lambda *a, **how: {name: (-U, *rest) for name, (U, *rest) in collect(*a, **how).items()}
        with pytest.raises(RuntimeError, match="the 2 processes do not go on from the same model"):
            model.fit_task([products[name] for name in SECOND], progress=False)
        assert model.progress["step"] == 0

    together(Meeting(2).members(), refused)


def test_processes_that_begin_with_other_images_or_another_model_are_noticed(products, quick_config):
    config, first = quick_config.updated({"training.batch_size": 4}), products[SECOND[0]]

    def refused(member, seed, images):
        model = ContinualModel(config.updated({"seed": seed}), parallel=member)
        with pytest.raises(RuntimeError, match="the 2 processes do not go on from the same model"):
            model.fit_task({"steel": images}, progress=False)

    together(Meeting(2).members(), lambda member: refused(member, member.rank, first.train))
    together(Meeting(2).members(), lambda member: refused(member, 0, first.train[member.rank :]))


def test_a_model_goes_when_what_adds_up_knows_it(quick_config):
    class Worker:
        def __init__(self):
            self.model = ContinualModel(quick_config.updated({"training.batch_size": 4}), parallel=DataParallel(0, 2, self.reduce))

        def reduce(self, block):
            pass

    worker = weakref.ref(Worker())
    gc.collect()
    assert worker() is None


def trainers_of(config, members, samples, freezes=False, device=None):
    """A trainer of each member, and a step of it on these samples of the whole batch. freezes: its first parameter."""
    latent, image = samples

    def make(member):
        part = member.part(len(latent))
        share = (member.rank, member.world_size)
        params = _core.Params(device)
        trainer = _core.Trainer(params, config.denoiser(), len(part), config.optimizer(), 1, share=share)
        trainer.protect(next(iter(params.shapes())), frozen=freezes)
        mine = slice(part.start, part.stop)
        return trainer, lambda: trainer.step(latent[mine], image[mine], image[mine], all_reduce=member.all_reduce)

    return [make(member) for member in members]


@pytest.fixture
def samples(quick_config):
    rng, side = np.random.default_rng(0), quick_config.latent_size
    latent = rng.standard_normal((4, side, side, quick_config.autoencoder.latent_channels), np.float32)
    return latent, rng.random((4, quick_config.image_size, quick_config.image_size, 3), np.float32)


@pytest.mark.parametrize("clip_norm, device", [(0.0, "cpu"), (0.5, "cpu"), (0.0, "emulated")])
def test_parts_draw_and_learn_what_the_whole_batch_does(quick_config, samples, clip_norm, device):
    config = quick_config.updated({"training.clip_norm": clip_norm, "training.eps": 1e-2, "training.lr": 1e-2})
    whole = _core.Trainer(_core.Params(), config.denoiser(), 4, config.optimizer(), 1)
    pair = trainers_of(config, Meeting(2).members(), samples, device=device)
    before = whole.block("weights").copy()
    for _ in range(2):
        norm = whole.step(samples[0], samples[1], samples[1])[3]
        norms = [told[3] for told in together(pair, lambda member: member[1]())]
    assert norms == pytest.approx([norm, norm], rel=1e-4)
    for wanted, *found in zip(whole.drawn(), *(trainer.drawn() for trainer, _ in pair), strict=True):
        np.testing.assert_array_equal(np.concatenate(found), wanted)
    moved = whole.block("weights") - before
    for trainer, _ in pair:
        assert np.linalg.norm(trainer.block("weights") - before - moved) < 1e-4 * np.linalg.norm(moved)


@pytest.mark.parametrize("freezes", [False, True])
def test_a_loss_that_is_not_finite_fails_in_every_process_and_moves_none(quick_config, samples, freezes):
    samples[0][3] = 1e20  # of the second process's part, whose loss is infinite, and its gradients are not
    pair = trainers_of(quick_config, Meeting(2).members(), samples, freezes)
    before = [trainer.block("weights").copy() for trainer, _ in pair]

    def failed(member):
        with pytest.raises(TrainingError) as caught:
            member[1]()
        return str(caught.value)

    told = together(pair, failed)
    assert "gradient" in told[0] and "loss" in told[1]
    for (trainer, _), wanted in zip(pair, before, strict=True):
        np.testing.assert_array_equal(trainer.block("weights"), wanted)
        assert trainer.n_steps == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_what_all_reduce_raises_ends_the_step(quick_config, samples, rank):
    samples[0][3] = np.nan  # where the second process would have raised by itself

    def lost(block):
        raise ConnectionError("rank 1 is gone")

    (trainer, step), = trainers_of(quick_config, [DataParallel(rank, 2, lost)], samples)
    before = trainer.block("weights").copy()
    with pytest.raises(ConnectionError, match="rank 1 is gone"):
        step()
    np.testing.assert_array_equal(trainer.block("weights"), before)


def test_what_does_not_fit_is_told(quick_config):
    with pytest.raises(ValueError, match=r"rank is 2, expected 0\.\.1"):
        DataParallel(2, 2, print)
    with pytest.raises(ValueError, match="a batch of 3 cannot be cut into 2 equal parts: set training.batch_size"):
        ContinualModel(quick_config.updated({"training.batch_size": 3}), parallel=DataParallel(0, 2, print))
    config = quick_config.denoiser()
    with pytest.raises(ValueError, match=r"world_size is 0, expected at least 1"):
        DataParallel(0, 0, print)
    with pytest.raises(TypeError, match="all_reduce is None, which cannot be called"):
        DataParallel(0, 2, None)

    def trainer(share, **changes):
        return _core.Trainer(_core.Params(), config, 2, quick_config.optimizer(), 0, share=share, **changes)

    with pytest.raises(ValueError, match=r"shard 2 of 2: one of 0 \.\. shards - 1 is wanted"):
        trainer((2, 2))
    with pytest.raises(ValueError, match="world_size is 0, 1 or more is wanted"):
        trainer((0, 0))
    with pytest.raises(ValueError, match="does not fit"):
        trainer((0, 2**62))
    with pytest.raises(TypeError, match=r"share is \(rank, world_size\) or None"):
        trainer([0, 2])
    with pytest.raises(ValueError, match="cannot be added up"):
        trainer((0, 2), objective="output")
    image = np.zeros((2, quick_config.image_size, quick_config.image_size, 3), np.float32)
    latent = np.zeros((2, *config["latent_size"], config["unet"]["in_channels"]), np.float32)
    with pytest.raises(ValueError, match="nothing adds up the gradients of the batch's shards"):
        trainer((0, 2)).step(latent, image, image)


def test_magnitudes_are_of_one_process(quick_config, samples):
    (trainer, _), = trainers_of(quick_config.updated({"training.clip_norm": 0.0}), [DataParallel(0, 2, print)], samples)
    latent, image = (array[:2] for array in samples)
    with pytest.raises(ValueError, match="neither clips nor accumulates nor shares"):
        trainer.magnitudes(latent, image, image, latent, [0, 1])


def test_a_part_of_batches_is_what_they_hold_there(products):
    def batches(names, n, seed):
        return TrainingBatches([products[name] for name in names], image_size=32, batch_size=n, seed=seed, light=0.1)

    for whole in (batches(FIRST, 6, 0), MixedBatches(batches(FIRST, 4, 0), batches(SECOND, 2, 1))):
        parts = [whole.part(range(2)), whole.part(range(1, 6)).part(range(1, 3)), whole.part(range(4, 6))]
        for batch, *found in zip(whole.steps(0, 5), *(part.steps(0, 5) for part in parts), strict=True):
            for field in ("image", "perturbed", "index"):
                joined = np.concatenate([getattr(part, field) for part in found])
                np.testing.assert_array_equal(joined, getattr(batch, field), err_msg=field)


WORKER = textwrap.dedent("""
    import json, sys
    import torch
    import cdad

    rank, world_size, rendezvous, config = int(sys.argv[1]), 2, sys.argv[2], cdad.Config.from_dict(json.loads(sys.argv[3]))
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)

    def all_reduce(block):
        torch.distributed.all_reduce(torch.from_dlpack(block))

    model = cdad.ContinualModel(config, device="cpu", parallel=cdad.DataParallel(rank, world_size, all_reduce))
    model.fit_task(dict(cdad=sys.argv[4:]), progress=False)
    print(json.dumps(float(abs(model._trainer.block("weights")).sum())))
""")


def test_processes_meet_by_torch_distributed(products, quick_config, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    config = quick_config.updated({"training.batch_size": 4})
    images = [str(path) for path in products[SECOND[0]].train]
    given = [str(tmp_path / "meeting"), json.dumps(config.to_dict()), *images]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), *given], stdout=subprocess.PIPE, text=True) for rank in range(2)
    ]
    told = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    alone = ContinualModel(config, device="cpu")
    alone.fit_task({"cdad": images}, progress=False)
    assert told[0] == told[1] and json.loads(told[0]) == pytest.approx(float(abs(alone._trainer.block("weights")).sum()), rel=1e-5)


def test_gradients_of_what_moves_alone_are_held_and_summed(quick_config, samples):
    latent, image = (array[:2] for array in samples)
    params, sizes = _core.Params(), []
    trainer = _core.Trainer(params, quick_config.denoiser(), 2, quick_config.optimizer(), 0, share=(0, 2))

    def step():
        trainer.step(latent, image, image, all_reduce=lambda block: sizes.append(len(np.asarray(block))))
        assert trainer.memory_bytes["gradients"] == 4 * sizes[-1]

    step()
    assert sizes[-1] == trainer.block("weights").size
    before = {name: params[name].copy() for name in params.shapes()}
    for name, shape in params.shapes().items():
        d = int(np.prod(shape[1:]))
        if len(shape) < 2 or d < 8:
            trainer.protect(name, frozen=True)
        else:
            trainer.confine(name, np.eye(d, dtype=np.float32)[: d // 8])
    step()
    assert sizes[-1] < 0.7 * sizes[0]
    moved = {name for name, w in before.items() if not np.array_equal(params[name], w)}
    assert len(moved) > 20  # others have no gradient yet, behind layers that begin with zeros
    for name in moved:
        change = (params[name] - before[name]).reshape(len(before[name]), -1)
        assert not change[:, change.shape[1] // 8 :].any()
    whole = trainer.gradients(latent, image, image, np.zeros_like(latent), [3, 5])[3]  # all of them again, and then fewer
    assert {name: g.shape for name, g in whole.items()} == params.shapes() and whole["unet.out.2.bias"].any()
    step()
    assert sizes[-1] == sizes[1]
    trainer.reset()
    step()
    assert sizes[-1] == sizes[0]
