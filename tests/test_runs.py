"""Runs that go back, that lost files, and that several processes change."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from cdad import ContinualModel, run
from cdad.cli import main
from cdad.results import read_csv

QUICK = ["--preset", "tiny", "--quiet", "--set", "training.steps=2", "--set", "training.increment_steps=2", "--set", "diffusion.steps=2",
         "--set", "scoring.backbone=autoencoder", "--set", "scoring.calibration_images=2", "--set", "continual.images=2"]  # fmt: skip


def train(root, folder, tasks, *more):
    return main(["train", "--data", str(root), "--out", str(folder), "--protocol", tasks, *QUICK, *more])


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train(root, folder, "gear/steel") == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """The test's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_going_back_forgets_what_came_later(root, folder, tmp_path):
    assert train(root, folder, "gear/cloth", "--resume-previous") == 0
    assert train(root, tmp_path / "fresh", "gear/cloth") == 0
    measured = list(read_csv(folder / "metrics.csv"))
    assert [(r.after_task, r.class_name) for r in measured] == [(0, "gear"), (1, "gear"), (1, "cloth")]
    assert measured == list(read_csv(tmp_path / "fresh" / "metrics.csv"))


def test_results_of_later_tasks_go_before_they_are_learned_again(root, folder, monkeypatch):
    def stop(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(ContinualModel, "fit_task", stop)
    assert train(root, folder, "gear/steel", "--resume-previous") == 130
    assert [r.after_task for r in read_csv(folder / "metrics.csv")] == [0]
    assert run.read_json(folder / "results.json").matrix.n_learned == 1


def test_going_back_that_is_refused_changes_nothing(root, folder, capsys):
    before = files(folder)
    for tasks, message in (("steel/gear", "has learned gear"), ("gear", "a line after task 1 in a run of 1 tasks")):
        assert train(root, folder, tasks, "--resume-previous") == 1
        assert message in capsys.readouterr().err and files(folder) == before


def test_without_checkpoints_nothing_is_overwritten(root, folder, capsys):
    for path in folder.glob("checkpoint*"):
        path.unlink()
    before = files(folder)
    for more in ([], ["--resume"]):
        assert train(root, folder, "gear/cloth", *more) == 1
        assert "no checkpoint to go on from" in capsys.readouterr().err and files(folder) == before
    (folder / "results.json").unlink()
    assert train(root, folder, "gear/cloth") == 1 and "no checkpoint to go on from" in capsys.readouterr().err


def test_the_file_of_a_task_that_is_missing_is_written(root, folder):
    file, metrics = folder / "tasks" / "1.safetensors", (folder / "metrics.csv").read_bytes()
    file.unlink()
    assert train(root, folder, "gear/steel", "--resume") == 0
    assert ContinualModel.load(file).classes == ("gear", "steel") and (folder / "metrics.csv").read_bytes() == metrics


def test_a_threshold_is_of_what_a_task_left(folder, products, capsys):
    def stop(report):
        raise KeyboardInterrupt

    checkpoint = folder / "checkpoint.safetensors"
    model = ContinualModel.load(checkpoint)
    with pytest.raises(KeyboardInterrupt):
        model.fit_task([products["cloth"]], progress=False, callback=stop)
    model.save(checkpoint)
    before = checkpoint.read_bytes()
    images = [str(sample.path) for sample in products["gear"].test if sample.label == 0]
    assert main(["threshold", str(folder), *images, "--class", "gear"]) == 1
    assert "in the middle of a task: let it end, or measure with" in capsys.readouterr().err and checkpoint.read_bytes() == before
    assert main(["threshold", str(folder / "tasks" / "1.safetensors"), *images, "--class", "gear"]) == 0


def test_changes_of_a_file_come_one_after_the_other(tmp_path):
    file, n_threads, times = tmp_path / "counts", 6, 15
    file.write_text("0")

    def count(number):
        for _ in range(times):
            with run.in_turn(file):
                text = json.dumps(json.loads(file.read_text()) + 1)
                other = tmp_path / str(number)
                other.write_text(text)
                os.replace(other, file)

    threads = [threading.Thread(target=count, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() == str(n_threads * times)


def test_pictures_of_two_classes_have_names_of_their_own(root, folder, tmp_path):
    for name in ("gear", "steel"):
        good = root / name / "test" / "good"
        assert main(["predict", str(folder), str(good), "--class", name, "--out", str(tmp_path / "maps")]) == 0
    wanted = {f"{i:04d}_{name}_{path.stem}_map.png" for name in ("gear", "steel")
              for i, path in enumerate(sorted((root / name / "test" / "good").iterdir()))}  # fmt: skip
    assert {path.name for path in (tmp_path / "maps").iterdir()} == wanted


def test_slips_of_the_command_line(folder, products, capsys):
    image = str(products["gear"].train[0])
    for arguments, message in (
        (["predict", str(folder), image, ""], "images is an empty text"),
        (["predict", str(folder), image, "--threads", "9" * 20], "OverflowError"),
    ):
        assert main(arguments) == 1
        told = capsys.readouterr()
        assert message in told.err and "Traceback" not in told.err and not told.out
