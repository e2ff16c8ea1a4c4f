"""The command line as a user calls it: runs, resuming, bad input, Ctrl-C and SIGTERM."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from layouts import load_checkpoint
from paths import full_disk
from PIL import Image

from cdad import ContinualModel, DataError, open_dataset, preset, protocol, run
from cdad.cli import main
from cdad.model import StepReport

QUICK = [
    "--preset", "tiny",
    "--set", "training.steps=3", "--set", "training.increment_steps=3", "--set", "diffusion.steps=2",
    "--set", "scoring.backbone=autoencoder", "--set", "scoring.calibration_images=2", "--set", "continual.images=2",
    "--quiet",
]  # fmt: skip
PROTOCOL = "gear,cloth/steel"


@pytest.fixture(scope="session")
def run_folder(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--data", str(root), "--protocol", PROTOCOL, "--out", str(out), *QUICK]) == 0
    return out


def test_a_run_folder_holds_everything(run_folder):
    names = {str(p.relative_to(run_folder)) for p in run_folder.rglob("*") if p.is_file()}
    assert {"config.toml", "checkpoint.safetensors", "tasks/0.safetensors", "tasks/1.safetensors", "metrics.csv",
            "results.json", "task_matrix.png", "loss.png", "loss.csv"} <= names  # fmt: skip
    assert {"sheets/after0/gear.png", "sheets/after1/gear.png", "sheets/after1/steel.png"} <= names
    rows = list(csv.DictReader(open(run_folder / "metrics.csv", newline="")))
    assert [(r["after_task"], r["class"]) for r in rows] == [
        ("0", "gear"), ("0", "cloth"), ("1", "gear"), ("1", "cloth"), ("1", "steel")]  # fmt: skip
    results = json.loads((run_folder / "results.json").read_text())
    assert results["config"]["preset"] == "tiny"
    assert ContinualModel.load(run_folder / "checkpoint.safetensors").classes == ("gear", "cloth", "steel")


def test_resuming_a_finished_run_changes_nothing(root, run_folder, capsys):
    before = (run_folder / "results.json").read_bytes()
    losses = (run_folder / "loss.csv").read_bytes()
    with open(run_folder / "loss.csv", "a") as file:
        file.write("2,0,1,1,1,1\n2,1,0.")  # what a killed run logged after its last checkpoint
    assert main(["train", "--data", str(root), "--protocol", PROTOCOL, "--out", str(run_folder), "--resume", *QUICK]) == 0
    assert (run_folder / "results.json").read_bytes() == before
    assert (run_folder / "loss.csv").read_bytes() == losses
    told = capsys.readouterr().out
    assert "A- (%)" in told and "BWT (%)" in told


def test_results_catch_up_with_a_table_that_a_crash_left_ahead(root, run_folder, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    before = run.read_json(folder / "results.json").matrix
    record = json.loads((folder / "results.json").read_text())
    for rows in record["task_matrix"]["measures"].values():
        rows[-1] = [None] * len(rows)
    (folder / "results.json").write_text(json.dumps(record))
    config = ContinualModel.load(folder / run.CHECKPOINT).config
    monkeypatch.setattr(ContinualModel, "predict", None)  # tested is tested
    found = run.run_or_resume(config, open_dataset(root), protocol(PROTOCOL), folder, progress=False)
    assert found.matrix == before and run.read_json(folder / "results.json").matrix == before


def test_losses_outlive_a_crash_as_their_file_is_taken_up_again(tmp_path, monkeypatch):
    log = tmp_path / "loss.csv"
    text = "task,step,loss,loss_cdm,loss_amn,grad_norm\n0,0,1,1,1,1\n0,1,2,2,2,2\n"
    log.write_bytes(b'0,0,"1,1,1,1\n' + text.encode() + b"0,x,1,1,1,1\n0,0,1,1,1,one\n\xff\xfe\n" + bytes(200_000))

    def crash(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", crash)
        with pytest.raises(OSError, match="no space left"):
            run._LossLog(log, done=(0, 1))
    assert text.encode() in log.read_bytes()
    again = run._LossLog(log, done=(0, 1))
    again(StepReport(task=0, step=1, steps=2, loss=3.0, loss_cdm=3.0, loss_amn=0.0, grad_norm=4.0, lr_scale=1.0))
    again.close()
    full = run._LossLog(log, done=(0, 2))
    with full_disk(0), pytest.raises(OSError) as caught:
        full(StepReport(task=0, step=2, steps=2, loss=3.0, loss_cdm=3.0, loss_amn=0.0, grad_norm=4.0, lr_scale=1.0))
    full.close()
    assert caught.value.filename == str(log)
    assert log.read_text().split() == ["task,step,loss,loss_cdm,loss_amn,grad_norm", "0,0,1,1,1,1", "0,1,3,3,0,4"]


@pytest.mark.parametrize("command", ["eval", "predict", "threshold", "export"])
def test_a_model_that_is_not_there(root, tmp_path, capsys, command):
    rest = {"eval": ["--data", str(root)], "predict": ["a.png"], "threshold": ["a.png", "--class", "gear"], "export": [str(tmp_path / "out")]}
    for path in (tmp_path / "nothing", tmp_path):
        assert main([command, str(path), *rest[command]]) == 1
        assert f"there is no model at {path}" in capsys.readouterr().err


def test_a_table_says_what_is_trained_and_tested(root, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(root / "gear", folder / "gear")
    images = [path.relative_to(folder) for path in sorted(folder.glob("gear/train/good/*.png"))]
    (defective,) = sorted(folder.glob("gear/test/[!g]*/*.png"))[:1]
    rows = [["wheel", "train", "normal", path] for path in images[:6]] + [["wheel", "test", "good", path] for path in images[6:8]]
    rows.append(["wheel", "test", defective.parent.name, defective.relative_to(folder)])
    with open(folder / "split.csv", "w", newline="") as file:
        csv.writer(file).writerows([["class", "split", "label", "image"], *rows])
    out, table = str(tmp_path / "run"), str(folder / "split.csv")
    strategy = ["--strategy", "finetune"]
    assert main(["train", "--data", table, "--out", out, *QUICK, *strategy]) == 1
    assert "split.csv, line 10: anomalous image" in capsys.readouterr().err
    assert main(["train", "--data", table, "--out", out, "--no-masks", *QUICK, *strategy]) == 0
    assert ContinualModel.load(tmp_path / "run" / "checkpoint.safetensors").classes == ("wheel",)
    (row,) = csv.DictReader(open(tmp_path / "run" / "metrics.csv", newline=""))
    assert row["class"] == "wheel" and float(row["image_auroc"]) in (0.0, 0.5, 1.0) and row["pixel_auroc"] == ""
    capsys.readouterr()
    assert main(["eval", out, "--data", table, "--no-masks"]) == 0
    assert "wheel" in capsys.readouterr().out


def test_a_damaged_checkpoint_and_the_one_before(root, run_folder, tmp_path, capsys):
    """The newest is refused, the one before is offered, and goes on to the same bits."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    newest, previous = folder / "checkpoint.safetensors", folder / "checkpoint.previous.safetensors"
    wanted = load_checkpoint(newest)
    assert [task["classes"] for task in load_checkpoint(previous)[1]["ledger"]] == [["gear", "cloth"]]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    train = ["train", "--data", str(root), "--protocol", PROTOCOL, "--out", str(folder), *QUICK]
    assert main([*train, "--resume"]) == 1
    error = capsys.readouterr().err
    assert "is damaged" in error and "checkpoint.previous.safetensors" in error and "--resume-previous" in error
    assert newest.read_bytes() == content and previous.exists()
    assert main(["eval", str(folder), "--data", str(root)]) == 1
    assert "is damaged" in capsys.readouterr().err
    assert main([*train, "--resume-previous"]) == 0
    tensors, state = load_checkpoint(newest)
    assert tensors.keys() == wanted[0].keys()
    assert all(array.tobytes() == wanted[0][name].tobytes() for name, array in tensors.items())
    assert [task["classes"] for task in state["ledger"]] == [["gear", "cloth"], ["steel"]]
    assert len(load_checkpoint(previous)[1]["ledger"]) == 1
    capsys.readouterr()
    newest.unlink()
    assert main([*train, "--resume"]) == 1 and "--resume-previous" in capsys.readouterr().err
    assert main(train) == 1 and "holds a run already" in capsys.readouterr().err


def test_a_run_is_one_process_s(root, run_folder, capsys):
    with open(run_folder / ".lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["train", "--data", str(root), "--protocol", PROTOCOL, "--out", str(run_folder), "--resume", *QUICK]) == 1
        assert "another process works on the run" in capsys.readouterr().err
        checkpoint = run_folder / "checkpoint.safetensors"
        before, images = checkpoint.read_bytes(), [*map(str, (root / "gear" / "test" / "good").glob("*.png"))]
        for model in (run_folder, checkpoint):
            assert main(["threshold", str(model), *images, "--class", "gear"]) == 1
            assert "another process works on the run" in capsys.readouterr().err and checkpoint.read_bytes() == before


def test_another_run_is_not_overwritten(root, run_folder, capsys):
    assert main(["train", "--data", str(root), "--protocol", PROTOCOL, "--out", str(run_folder), *QUICK]) == 1
    assert "resume" in capsys.readouterr().err


def test_finetuning_starts_from_the_same_first_task(root, run_folder, tmp_path):
    out = tmp_path / "finetune"
    first = run_folder / "tasks" / "0.safetensors"
    status = main(["train", "--data", str(root), "--protocol", PROTOCOL, "--out", str(out), "--strategy", "finetune",
                   "--start-from", str(first), *QUICK])  # fmt: skip
    assert status == 0
    rows = list(csv.DictReader(open(out / "metrics.csv", newline="")))
    others = list(csv.DictReader(open(run_folder / "metrics.csv", newline="")))
    assert rows[0] == others[0]
    trained = [row["task"] for row in csv.DictReader(open(out / "loss.csv", newline=""))]
    assert trained == ["1"] * 3, "the first task is the other run's"


def test_a_start_whose_scores_are_others_is_measured_again(root, tmp_path):
    """As one of a build that had no memory banks; and what `predict` says where nobody did so."""
    out, data = tmp_path / "other", open_dataset(root)
    first = ["train", "--data", str(root), "--protocol", "gear", "--out", str(tmp_path / "first"), *QUICK]
    assert main([*first, "--set", "scoring.memory_bank=0"]) == 0
    start = tmp_path / "first" / "tasks" / "0.safetensors"
    config = ContinualModel.load(start).config.updated({"scoring.memory_bank": 64})
    told = []
    run.run_protocol(config, data, protocol("gear/steel"), out, start_from=start, progress=False, tell=told.append)
    assert any("measuring what is normal again" in text and "gear" in text for text in told)
    model = ContinualModel.load(out / "checkpoint.safetensors")
    assert [len(model.calibrations[name].banks[0].vectors) for name in ("gear", "steel")] == [64, 64] and model.uncalibrated == []
    older = ContinualModel.load(start, config=config)
    assert older.uncalibrated == ["gear"]
    with pytest.raises(RuntimeError, match=r"recalibrate\(\) measures it, and scoring.memory_bank = 0 does without"):
        older.predict(data["gear"].test[0].path)


def test_settings_in_a_file_go_on_as_they_began(root, tmp_path, capsys):
    """What the file does not name may have another default since."""
    file, out = tmp_path / "mine.toml", tmp_path / "run"
    file.write_text('preset = "tiny"\n[training]\nsteps = 3\n[diffusion]\nsteps = 2\n[scoring]\nbackbone = "autoencoder"\n')
    train = ["train", "--data", str(root), "--protocol", "gear", "--out", str(out), "--config", str(file), "--quiet"]
    assert main(train) == 0
    kept = (out / "config.toml").read_text()
    assert "memory_bank = 2048" in kept
    (out / "config.toml").write_text(kept.replace("memory_bank = 2048", "memory_bank = 0"))
    assert main([*train, "--resume"]) == 0
    file.write_text(file.read_text().replace("steps = 3", "steps = 4"))
    assert main([*train, "--resume"]) == 1 and "training.steps = 3, not 4" in capsys.readouterr().err
    empty = tmp_path / "empty"  # as of a run that was killed before its first checkpoint
    empty.mkdir()
    (empty / "config.toml").write_text((out / "config.toml").read_text())
    file.write_text(file.read_text().replace("steps = 4", "steps = 3"))
    assert main([*train[:6], str(empty), *train[7:], "--resume"]) == 0
    assert "memory_bank = 2048" in (empty / "config.toml").read_text()
    file.write_text('preset = "demo"\n')
    assert main([*train, "--resume"]) == 1 and "its preset is 'demo'" in capsys.readouterr().err


def test_a_run_does_not_go_on_by_other_weights_of_the_backbone(root, tmp_path, monkeypatch):
    """Its scores would be of two kinds: told at once, not after another task."""
    data, out = open_dataset(root), tmp_path / "run"
    config = preset("tiny").updated({"training.steps": 2, "training.increment_steps": 2, "diffusion.steps": 2, "continual.images": 2,
                                     "scoring.calibration_images": 2, "scoring.memory_bank": 8})  # fmt: skip
    begun = []

    def stop(report):
        if report.task == 1:
            begun.append(report)
            raise KeyboardInterrupt

    monkeypatch.setattr("cdad.features.FeatureDistance.checksum", 1)
    with pytest.raises(KeyboardInterrupt):
        run.run_protocol(config, data, protocol("gear/steel"), out, progress=False, callback=stop)
    monkeypatch.setattr("cdad.features.FeatureDistance.checksum", 2)
    with pytest.raises(RuntimeError, match="other weights of the scores' backbone"):
        run.run_protocol(config, data, protocol("gear/steel"), out, resume=True, progress=False, callback=begun.append)
    assert len(begun) == 1
    monkeypatch.setattr("cdad.features.FeatureDistance.checksum", 1)
    assert run.run_protocol(config, data, protocol("gear/steel"), out, resume=True, progress=False)


def test_layers_that_a_backbone_lacks_are_told_before_training(monkeypatch, products):
    """Of the one that "auto" finds: the configuration alone does not tell."""
    monkeypatch.setattr("cdad.features.find_efficientnet_lite0", lambda: None)
    model = ContinualModel(preset("tiny").updated({"scoring.layers": [1, 2], "training.steps": 3}))
    reports = []
    with pytest.raises(ValueError, match=r"scoring.layers is \[1, 2\]; some below 1 are wanted"):
        model.fit_task([products["gear"]], progress=False, callback=reports.append)
    assert not reports


def test_what_is_within_a_task_is_no_start_and_not_tested(root, tmp_path, capsys, caplog):
    """Its weights are not those that the task before left."""
    config = preset("tiny").updated({
        "training.steps": 3, "training.increment_steps": 3, "diffusion.steps": 2, "continual.images": 2, "continual.strategy": "finetune",
        "scoring.backbone": "autoencoder", "scoring.calibration_images": 2,
    })  # fmt: skip
    data, tasks = open_dataset(root), protocol("gear/steel")

    def stop(report):
        if report.task == 1:
            raise KeyboardInterrupt

    folder, out = tmp_path / "run", tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        run.run_protocol(config, data, tasks, folder, progress=False, callback=stop)
    with pytest.raises(DataError, match="in the middle of a task"):
        run.run_protocol(config, data, tasks, out, start_from=folder / run.CHECKPOINT, progress=False)
    assert not (out / "tasks").exists()
    assert main(["export", str(folder), str(tmp_path / "exported")]) == 1 and not (tmp_path / "exported").exists()
    assert "in the middle of a task" in capsys.readouterr().err
    assert "that has begun" not in caplog.text
    ContinualModel.load(folder / run.CHECKPOINT, predict_only=True)
    assert "step 1 of a task that has begun" in caplog.text and "tasks/0.safetensors" in caplog.text
    learned = (folder / "tasks" / "0.safetensors").read_bytes()
    (folder / "metrics.csv").unlink()
    found = run.run_protocol(config, data, tasks, folder, resume=True, progress=False)
    assert (folder / "tasks" / "0.safetensors").read_bytes() == learned
    assert np.isnan(found.matrix["image_auroc"][0, 0]) and not np.isnan(found.matrix["image_auroc"][1]).any()


def test_eval_and_predict(root, run_folder, tmp_path, capsys):
    assert main(["eval", str(run_folder), "--data", str(root), "--out", str(tmp_path / "report")]) == 0
    assert set(json.loads((tmp_path / "report" / "metrics.json").read_text())) == {"gear", "cloth", "steel"}
    capsys.readouterr()
    image = next((root / "gear" / "test").rglob("*.png"))
    assert main(["predict", str(run_folder), str(image), "--class", "gear", "--out", str(tmp_path / "maps")]) == 0
    told = capsys.readouterr().out
    exported = tmp_path / "exported.safetensors"
    assert main(["export", str(run_folder), str(exported)]) == 0
    assert "exported.safetensors: " in capsys.readouterr().out
    assert exported.stat().st_size < 0.9 * (run_folder / "checkpoint.safetensors").stat().st_size
    assert main(["predict", str(exported), str(image), "--class", "gear"]) == 0
    assert capsys.readouterr().out == told
    lines = list(csv.DictReader(told.splitlines()))
    assert lines[0]["image"] == str(image) and float(lines[0]["score"]) == float(lines[0]["score"])
    (picture,) = (tmp_path / "maps").iterdir()
    assert Image.open(picture).size == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "/nowhere", "--out", "x"], "/nowhere"),
        (["predict", "/nowhere", "a.png"], "/nowhere"),
        (["train", "--data", ".", "--out", "x", "--set", "training.step=3"], "training"),
        (["train", "--data", ".", "--out", "x", "--set", "training"], "KEY=VALUE"),
        (["train", "--data", ".", "--out", ""], "out is an empty text"),
        (["plan", "--set", "preset=sd15"], "--preset"),
        (["export", "/nowhere", "x"], "/nowhere"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_corrupt_training_image_loses_nothing(root, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(root / "gear", data / "gear")
    bad = sorted((data / "gear" / "train" / "good").iterdir())[3]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:200])
    train = ["train", "--data", str(data), "--out", str(tmp_path / "run"), *QUICK]
    assert main(train) == 1
    assert bad.name in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    bad.write_bytes(whole)
    assert main(train) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_training_keeps_the_state(root, tmp_path, number, status):
    out = tmp_path / "run"
    quick = [*QUICK, "--set", "training.steps=100000"]
    command = [sys.executable, "-m", "cdad", "train", "--data", str(root), "--protocol", PROTOCOL, "--out", str(out)]
    process = subprocess.Popen(
        command + quick,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it, and so would this
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (out / "loss.csv").exists() and (out / "loss.csv").stat().st_size > 60:
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == status, error
    model = ContinualModel.load(out / "checkpoint.safetensors")
    assert model.progress["step"] > 0 and model.progress["classes"] == ["gear", "cloth"]


def test_a_backbone_that_is_not_there_is_told_once(root, run_folder, capsys, monkeypatch):
    def features(self):
        raise FileNotFoundError("there is no weight file")

    monkeypatch.setattr(ContinualModel, "features", property(features))
    images = [str(path) for path in sorted((root / "gear" / "test" / "good").iterdir())[:2]]
    assert main(["predict", str(run_folder), *images, "--class", "gear"]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("there is no weight file") == 1


def test_an_exported_model_is_a_start_under_other_strategies(root, run_folder, tmp_path, capsys):
    exported = str(tmp_path / "exported.safetensors")
    assert main(["export", str(run_folder / "tasks" / "0.safetensors"), exported]) == 0
    train = ["train", "--data", str(root), "--protocol", PROTOCOL, "--out", str(tmp_path / "run"), *QUICK]
    assert main([*train, "--start-from", exported, "--strategy", "finetune"]) == 0
    assert "nothing was tested here when" not in capsys.readouterr().out
    assert main([*train[:-len(QUICK)], *QUICK, "--out", str(tmp_path / "late"), "--start-from", str(run_folder / "tasks" / "1.safetensors")]) == 0
    assert "nothing was tested here when gear+cloth was learned" in capsys.readouterr().out


def test_maps_of_images_with_long_names(root, run_folder, tmp_path, capsys):
    image = next((root / "gear" / "test").rglob("*.png"))
    for name in (250 * "x" + ".png", 83 * "\u96f6" + ".png"):
        shutil.copy(image, tmp_path / name)
        assert main(["predict", str(run_folder), str(tmp_path / name), "--class", "gear", "--out", str(tmp_path / "maps")]) == 0
        (picture,) = (tmp_path / "maps").glob(f"0000_gear_{name[:60]}*_map.png")
        assert Image.open(picture).size == (64, 64)
    (tmp_path / "file").write_bytes(b"")
    capsys.readouterr()
    assert main(["predict", str(run_folder), str(image), "--class", "gear", "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().out == ""  # before anything is computed


def test_names_that_the_output_cannot_show_end_nothing(root, run_folder, tmp_path):
    image = next((root / "gear" / "test").rglob("*.png"))
    names = [os.fsencode(tmp_path / "\u96f6.png"), os.fsencode(tmp_path) + b"/\xff.png"]
    for name in names:
        shutil.copy(image, name)
    command = [os.fsencode(x) for x in (sys.executable, "-m", "cdad", "predict", run_folder, *names, "--class", "gear")]
    for encoding, shown in (("latin-1", b"\\u96f6.png"), ("utf-8", names[0])):
        environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
        done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
        assert done.returncode == 0 and shown in done.stdout and len(done.stdout.splitlines()) == 3, done.stderr


def test_a_closed_output_is_no_error():
    command = [sys.executable, "-m", "cdad", "info"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=os.environ, timeout=60, preexec_fn=lambda: os.close(1))
    assert done.returncode == 0 and done.stderr == ""


def test_a_closed_pipe_is_no_error():
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "cdad", "info"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, env=os.environ, timeout=60)
    os.close(theirs)
    assert done.returncode == 141 and done.stderr == ""


def test_an_image_that_is_too_large_costs_the_others_nothing(root, run_folder, tmp_path, capsys):
    good = [str(path) for path in sorted((root / "gear" / "test" / "good").iterdir())[:2]]
    Image.new("1", (9000, 8000)).save(tmp_path / "large.png")
    images = [good[0], str(tmp_path / "large.png"), good[1]]
    assert main(["predict", str(run_folder), *images, "--class", "gear", "--out", str(tmp_path / "maps")]) == 1
    told = capsys.readouterr()
    rows = list(csv.DictReader(told.out.splitlines()))
    assert [row["image"] for row in rows] == images and [row["score"] == "" for row in rows] == [False, True, False]
    assert "9000x8000 pixels" in told.err and len(list((tmp_path / "maps").iterdir())) == 2


def test_a_start_that_has_learned_everything_is_a_run_that_goes_on(root, run_folder, tmp_path, capsys):
    out, start = tmp_path / "run", run_folder / "tasks" / "0.safetensors"
    train = ["train", "--data", str(root), "--out", str(out), *QUICK]
    assert main([*train, "--protocol", "gear,cloth", "--start-from", str(start)]) == 0
    image = next((root / "gear" / "test").rglob("*.png"))
    assert main(["predict", str(out), str(image)]) == 0
    before = (out / "tasks" / "0.safetensors").read_bytes()
    assert main([*train, "--protocol", PROTOCOL, "--resume"]) == 0
    assert (out / "tasks" / "0.safetensors").read_bytes() == before
    assert {row["task"] for row in csv.DictReader(open(out / "loss.csv", newline=""))} == {"1"}


def test_files_of_weights_are_found_from_anywhere(tmp_path, monkeypatch):
    """And are the same ones where they have moved."""
    (tmp_path / "file.pth").touch()
    monkeypatch.chdir(tmp_path)
    config = preset("tiny").updated({"scoring.weights": "file.pth"})
    assert run._located(config).scoring.weights == str(tmp_path / "file.pth")
    assert run._located(preset("tiny")) == preset("tiny")
    (tmp_path / run.CONFIG).write_text(run._located(config).to_toml())
    (tmp_path / "results.json").write_text("{}")
    run.check_same_run(config.updated({"scoring.weights": "elsewhere/../file.pth/"}), tmp_path)

    def refused(path):
        with pytest.raises(ValueError, match="another configuration .scoring.weights"):
            run.check_same_run(config.updated({"scoring.weights": path}), tmp_path)

    refused("/elsewhere/file.pth")  # another one, as the first is there
    (tmp_path / "file.pth").unlink()
    run.check_same_run(config.updated({"scoring.weights": "/elsewhere/file.pth"}), tmp_path)
    refused("other.pth")
    refused("")


def test_data_of_tests_alone_can_be_evaluated(root, run_folder, tmp_path, capsys):
    for part in ("test", "ground_truth"):
        shutil.copytree(root / "gear" / part, tmp_path / "new" / "gear" / part)
    assert main(["eval", str(run_folder), "--data", str(tmp_path / "new")]) == 0
    assert "gear" in capsys.readouterr().out
    with pytest.raises(DataError, match="no normal training images"):
        open_dataset(tmp_path / "new")
    table = ["class,split,label,image,mask"]
    for sample in open_dataset(root)["gear"].test:
        table.append(f"gear,test,{sample.defect},{sample.path},{sample.mask_path or ''}")
    (tmp_path / "tests.csv").write_text("\n".join(table))
    assert main(["eval", str(run_folder), "--data", str(tmp_path / "tests.csv")]) == 0


def test_a_run_is_inspected_by_its_folder(run_folder, capsys):
    assert main(["weights", "inspect", str(run_folder)]) == 0
    assert capsys.readouterr().out == (main(["weights", "inspect", str(run_folder / run.CHECKPOINT)]), capsys.readouterr().out)[1]
