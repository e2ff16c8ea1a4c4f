"""The plan of a run: what it says beside what a process takes, and that planning itself takes next to nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import cdad
from cdad import ContinualModel, _core, preset
from cdad.cli import main

QUICK = {
    "training.steps": 5,
    "training.batch_size": 16,  # large beside what malloc keeps
    "scoring.backbone": "autoencoder",
    "scoring.calibration_images": 8,
    "continual.images": 8,
}

# Prints bytes that the process grew by up to the last training step, and until a task and a prediction are done.
RUN = """
import json, sys
import cdad
from cdad.process_memory import held, peak
cdad.set_threads(2)
config, root = cdad.preset("small").updated(json.loads(sys.argv[1])), sys.argv[2]
data = cdad.open_dataset(root)["gear"]
before, grown = held(), lambda: peak() - before
told = []
model = cdad.ContinualModel(config)
if sys.argv[3] == "train":
    model.fit_task([data], progress=False, callback=lambda report: told.append(grown()))
    print(json.dumps([told[-1], grown(), sum(U.nbytes for U in model.bases.values())]))
else:
    model.ledger = [{"classes": ["gear"]}]
    images = cdad.data.load_images(list(data.train) * 3, config.image_size)
    model.calibrations["gear"] = model.drawing.calibration_of(images[:8])
    model.predict(images[:33], "gear")
    print(json.dumps(grown()))
"""


def measured(config: dict, root, what: str):
    command = [sys.executable, "-c", RUN, json.dumps(config), str(root), what]
    host = os.environ | {"CDAD_DEVICE": "cpu"}  # whose memory this is of
    done = subprocess.run(command, env=host, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def host():
    """Plans are of a run on the host by two threads."""
    before = _core.get_device(), _core.get_threads()
    _core.set_device("cpu")
    _core.set_threads(2)
    yield
    _core.set_device(before[0])
    _core.set_threads(before[1])


def test_memory_of_training_is_as_planned(root, products, host):
    training, whole, bases = measured(QUICK, root, "train")
    found = cdad.plan(preset("small").updated(QUICK), images=len(products["gear"].train))
    assert training == pytest.approx(found.peak["training"], rel=0.03)
    # The bases' ranks are known only now.
    share = found.assumed["rank_share"] * bases / found.memory["increment"]["bases"]
    found = cdad.plan(preset("small").updated(QUICK), images=len(products["gear"].train), rank_share=share)
    assert found.memory["increment"]["bases"] == pytest.approx(bases, rel=0.01)
    assert whole == pytest.approx(found.peak["collecting"], rel=0.1)  # threads' solving overlaps as it comes: 6 % alone, 9 beside others


def test_memory_of_sampling_and_scoring_is_as_planned(root, host):
    found = cdad.plan(preset("small").updated(QUICK))
    assert measured(QUICK, root, "predict") == pytest.approx(found.peak["prediction"], rel=0.06)


def test_the_published_size_is_planned_without_its_memory():
    code = """
import time
import cdad
from cdad.process_memory import peak
began, before = time.process_time(), peak()
plan = cdad.plan("sd15")
assert plan.batch_size == 12 and plan.memory["training"]["weights"] > 3 << 30
assert "gradients" not in plan.memory["training"]  # they are used one by one
print(time.process_time() - began, (peak() - before) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, mebibytes = map(float, done.stdout.split())
    assert seconds < 5 and mebibytes < 100


OTHER_BLOCKS = {"training.clip_norm": 0.0, "training.ema_decay": 0.9, "training.moments": "bfloat16"}


@pytest.mark.parametrize("changes", [{}, OTHER_BLOCKS])
def test_a_model_says_the_same(changes):
    config = preset("tiny").updated(changes)
    model, found = ContinualModel(config), cdad.plan(config)
    here = model.memory_bytes
    names = {"weights": "parameters"} | {part: part for part in ("moments", "average", "gradients", "workspace")}
    for part, name in names.items():
        assert found.memory["training"].get(part, 0) == here[name], part
    model.features  # noqa: B018 - made now
    assert model.workspace_needs == found.workspace
    assert max(found.workspace, key=found.workspace.get) == "step"
    assert model.memory_bytes["workspace"] == found.workspace["step"]  # not the sum: nothing runs beside a step
    assert found.memory["prediction"]["workspace"] == max(size for name, size in found.workspace.items() if name != "step")
    assert model.memory_bytes["condition"] < found.memory["prediction"]["condition"]  # one sample's program is not compiled yet


def test_later_tasks_take_bases_and_directions():
    config = preset("tiny").updated(QUICK)
    half, tenth = (cdad.plan(config, rank_share=share) for share in (0.5, 0.1))
    sampler = _core.Sampler(_core.Params("planned"), config.denoiser(), 8)
    widths = [d for d, *_ in _core.Collector(sampler).plan().values()]
    assert half.memory["increment"]["bases"] == sum(4 * d * (d // 2) for d in widths)
    assert tenth.memory["increment"]["bases"] < half.memory["increment"]["bases"] / 4
    assert half.memory["increment"]["directions"] == sum(4 * d * max(1, int(0.18 * d)) for d in widths)
    assert half.memory["increment"]["update"] > 0 and "update" not in half.memory["training"]
    assert cdad.plan(config.updated({"continual.basis_dtype": "float16"})).memory["increment"]["bases"] == sum(
        6 * d * (d // 2) for d in widths
    )
    finetune, ewc = (cdad.plan(config.updated({"continual.strategy": name})) for name in ("finetune", "ewc"))
    assert "collecting" not in finetune.memory
    later = finetune.peak["increment"] - finetune.memory["increment"]["condition"]  # was drawn under after the first task
    assert later == finetune.peak["training"]
    assert ewc.memory["increment"]["kept"] == 2 * ewc.memory["increment"]["weights"]
    sketched = cdad.plan(config.updated({"continual.method": "sketch"})).memory["increment"]["bases"]
    assert sketched == sum(4 * d * min(d // 2, 256) for d in widths) < half.memory["increment"]["bases"]
    few = cdad.plan(config.updated({"continual.max_directions": 5})).memory["increment"]["directions"]
    assert few == sum(4 * d * min(5, max(1, int(0.18 * d))) for d in widths) < half.memory["increment"]["directions"]
    everywhere = cdad.plan(config.updated({"continual.free_gamma": 1.0})).memory["increment"]["directions"]
    assert everywhere == sum(4 * d * (d - d // 2) for d in widths)
    nearly = cdad.plan(config, rank_share=0.95).memory["increment"]["directions"]
    assert nearly == sum(4 * d * min(max(1, int(0.18 * d)), d - max(1, int(0.95 * d))) for d in widths)
    nothing = cdad.plan(config.updated({"continual.free_gamma": 1.0}), rank_share=1.0).memory["increment"]
    assert not {"moments", "directions"} & nothing.keys()  # nothing moves


@pytest.mark.parametrize("preset", ["small", "sd15"])
def test_projection_adds_a_tenth_to_a_step_at_most(preset):
    """In operations, of an increment as the preset runs it."""
    for rank_share in (0.25, 0.75):
        flops = cdad.plan(preset, images=20, rank_share=rank_share).flops
        assert 0.5 * flops["step"] < flops["increment"] <= 1.1 * flops["step"]
        wide = cdad.plan(cdad.preset(preset).updated({"continual.max_directions": 0, "continual.frozen": []}), images=20, rank_share=rank_share)
        assert wide.flops["increment"] > 1.1 * flops["step"] == 1.1 * wide.flops["step"]


def test_a_plan_of_numpys_numbers_is_json():
    found = cdad.plan("tiny", images=np.int64(20), classes=np.int32(2), rank_share=np.float32(0.5)).to_dict()
    assert json.loads(json.dumps(found))["assumed"] == {"images": 20, "classes": 2, "rank_share": 0.5}


def test_the_size_of_a_checkpoint(first_checkpoint, quick_config):
    model = ContinualModel.load(first_checkpoint)
    found = cdad.plan(quick_config, images=12 * len(model.classes), classes=len(model.classes))
    real = sum(U.nbytes for U in model.bases.values())
    expected = found.checkpoint - found.memory["increment"]["bases"] + real
    assert os.path.getsize(first_checkpoint) == pytest.approx(expected, rel=0.01)


def test_operations_are_those_that_a_profile_counts():
    config = preset("tiny").updated({"scoring.backbone": "autoencoder", "scoring.noise_seeds": 2})
    found = cdad.plan(config)
    assert found.flops["increment"] != found.flops["step"] == sum(op.flops for op in cdad.profile.profile_training(config, repeats=1).ops)
    drawn = sum(op.flops for op in cdad.profile.profile_prediction(config, repeats=1).ops)
    assert found.flops["image"] == pytest.approx(drawn / config.scoring.batch_size)


def test_nothing_runs_on_the_planned_device():
    config = preset("tiny").updated({"scoring.backbone": "autoencoder"})
    model = ContinualModel(config, device="planned")
    shape = (8, 64, 64, 3)
    for use in (
        lambda: model.autoencoder.encode(_core.random_normal(shape, 0, 0)),
        lambda: model._trainer.step(_core.random_normal((8, 8, 8, 16), 0, 0), *2 * [_core.random_normal(shape, 0, 0)]),
        lambda: model.params["unet.out.2.weight"],
        lambda: model._trainer.block("m"),
    ):
        with pytest.raises(ValueError, match="planned"):
            use()


@pytest.mark.parametrize(
    ("arguments", "message"), [({"images": 0}, "images is 0"), ({"classes": 0}, "classes"), ({"rank_share": 1.5}, "rank_share")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        cdad.plan("tiny", **arguments)


def test_command(capsys):
    assert main(["plan", "--preset", "sd15", "--batch", "12", "--set", "scoring.batch_size=1"]) == 0
    told = capsys.readouterr().out
    assert "of the workspace: step" in told and "a checkpoint after a task" in told and "output_blocks.0.0.in_layers.2.weight" in told
    assert main(["plan", "--preset", "tiny", "--batch", "3", "--time", "--json", "--rows", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["batch_size"] == 3 and len(record["layers"]) == 2
    assert record["peak"]["training"] == sum(record["memory"]["training"].values())
    assert 0 < record["seconds"]["step"] < 5 and 0 < record["seconds"]["image"] < 5
    assert main(["plan", "--preset", "tiny", "--batch", "0"]) == 1
    assert "training.batch_size" in capsys.readouterr().err


@pytest.mark.parametrize("isa", _core.build_info()["isas"])
def test_plans_are_of_the_kernels_that_run(isa):
    config = preset("tiny").updated({"scoring.backbone": "autoencoder"})
    now = _core.build_info()["isa"]
    _core.set_isa(isa)
    try:
        model = ContinualModel(config, device="cpu")
        model.features  # noqa: B018 - its networks are made now
        assert cdad.plan(config).workspace == model.workspace_needs
    finally:
        _core.set_isa(now)


@pytest.mark.parametrize("command", ["plan", "profile"])
@pytest.mark.parametrize("rows", ["-1", "1.5"])
def test_rows_are_a_count(command, rows, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--preset", "tiny", f"--rows={rows}"])
    assert ended.value.code == 2 and f"--rows: '{rows}' is no count" in capsys.readouterr().err


def test_time_where_the_levels_that_attend_have_heads_of_their_own():
    heads = {"scoring.backbone": "autoencoder", "unet.channel_mult": [1, 1, 3], "unet.num_heads": 3, "unet.attention_resolutions": [4]}
    assert cdad.plan(preset("tiny").updated(heads), time=True).seconds["step"] > 0
