"""Task matrices, the files of a run and the tables of the command line."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from cdad import results
from cdad.errors import FormatError, LimitError
from cdad.protocols import Protocol
from cdad.results import ClassResult, ResultWriter, RunResults, TaskMatrix
from cdad.run import finished_results

TASKS = ("base", "tile", "zipper")
TWO = ("image_auroc", "pixel_auroc")


def filled_matrix():
    matrix = TaskMatrix(TASKS, TWO)
    rows = [[0.90], [0.95, 0.80], [0.85, 0.82, 0.70]]
    for learned, row in enumerate(rows):
        for evaluated, value in enumerate(row):
            matrix.update(learned, evaluated, {"image_auroc": value, "pixel_auroc": value / 2})
    return matrix


def filled_writer(folder, **options):
    writer = ResultWriter(folder, TASKS, measures=TWO, **options)
    writer.record(0, 0, "bottle", {"image_auroc": 0.1 + 0.2, "pixel_auroc": 1 / 3})
    writer.record(0, 0, 'odd, "name"\nñ', {"image_auroc": 0.5, "pixel_auroc": float("nan")})
    writer.record(1, 1, "tile", {"image_auroc": np.float32(0.7), "pixel_auroc": 0.25})
    writer.record(1, 0, "bottle", {"image_auroc": 0.25, "pixel_auroc": 0.75})
    return writer


def test_summary_by_hand():
    summary = filled_matrix().summary()
    assert summary["image_auroc"]["average"] == pytest.approx((0.85 + 0.82 + 0.70) / 3)
    assert summary["image_auroc"]["forgetting"] == pytest.approx((0.10 - 0.02) / 2)
    assert summary["pixel_auroc"]["forgetting"] == pytest.approx((0.10 - 0.02) / 4)
    assert summary["pixel_auroc"]["backward_transfer"] == pytest.approx((-0.05 + 0.02) / 4)


def test_summary_of_a_run_in_progress():
    matrix = TaskMatrix(TASKS, ("image_auroc",))
    assert matrix.n_learned == 0 and np.isnan(matrix.summary()["image_auroc"]["average"])
    matrix.update(0, 0, {"image_auroc": 0.9})
    assert matrix.summary()["image_auroc"]["average"] == 0.9
    assert np.isnan(matrix.summary()["image_auroc"]["forgetting"]) and np.isnan(matrix.summary()["image_auroc"]["backward_transfer"])
    matrix.update(1, 1, {"image_auroc": 0.6})
    assert matrix.n_learned == 2
    assert np.isnan(matrix.summary()["image_auroc"]["average"])  # task 0 is not evaluated yet
    matrix.update(1, 0, {"image_auroc": 0.8})
    assert matrix.summary() == {
        "image_auroc": {"average": pytest.approx(0.7), "forgetting": pytest.approx(0.1), "backward_transfer": pytest.approx(-0.1)}}


def test_matrix_refuses_what_does_not_fit():
    matrix = TaskMatrix(TASKS, TWO)
    for entry in ((0, 1), (3, 0), (1, -1)):
        with pytest.raises(ValueError, match="no entry"):
            matrix.update(*entry, {"image_auroc": 0.5})
    with pytest.raises(ValueError, match="unknown measure 'auroc'"):
        matrix.update(0, 0, {"auroc": 0.5})
    with pytest.raises(ValueError, match="inf"):
        matrix.update(0, 0, {"image_auroc": float("inf")})
    with pytest.raises(ValueError, match="got 0"):
        TaskMatrix(())
    copy = matrix["image_auroc"]
    copy[:] = 1.0
    assert np.isnan(matrix["image_auroc"]).all()


def test_matrix_survives_json():
    matrix = filled_matrix()
    record = json.loads(json.dumps(matrix.to_dict(), allow_nan=False))
    assert record["measures"]["image_auroc"][0] == [0.9, None, None]
    assert TaskMatrix.from_dict(record) == matrix
    other = filled_matrix()
    other.update(2, 2, {"pixel_auroc": 0.1})
    assert other != matrix


def test_a_task_is_the_mean_of_its_classes(tmp_path):
    matrix = filled_writer(tmp_path).matrix()
    assert matrix["image_auroc"][0, 0] == pytest.approx((0.3 + 0.5) / 2)
    assert np.isnan(matrix["pixel_auroc"][0, 0])  # one class is undefined
    assert matrix["pixel_auroc"][1, 0] == 0.75


def test_run_is_written_and_read_back(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Config:
        folder: Path
        rate: float
        seeds: tuple[int, ...]

    folder = tmp_path / "new" / "run"
    writer = filled_writer(folder, config=Config(Path("data"), np.float64(1e-4), (1, 2)),
                           protocol={"name": "10-5", "steps": np.int64(2)})
    writer.write()
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.csv", "results.json"]

    lines = results.read_csv(folder / "metrics.csv")
    assert [(line.after_task, line.task, line.class_name) for line in lines] == [
        (0, 0, "bottle"), (0, 0, 'odd, "name"\nñ'), (1, 0, "bottle"), (1, 1, "tile")]
    assert lines[0].measures == {"image_auroc": 0.1 + 0.2, "pixel_auroc": 1 / 3}  # the same bits
    assert lines[3].measures["image_auroc"] == np.float32(0.7)
    assert np.isnan(lines[1].measures["pixel_auroc"])

    run = results.read_json(folder / "results.json")
    assert run.config == {"folder": "data", "rate": 1e-4, "seeds": [1, 2]}
    assert run.protocol == {"name": "10-5", "steps": 2}
    assert run.matrix == writer.matrix()
    record = json.loads((folder / "results.json").read_text())
    assert record["version"] == results.SCHEMA_VERSION
    assert record["summary"]["image_auroc"]["average"] == run.summary()["image_auroc"]["average"]
    assert record["summary"]["pixel_auroc"]["forgetting"] is None
    assert record["summary"]["image_auroc"]["backward_transfer"] == run.summary()["image_auroc"]["backward_transfer"]
    for summary in record["summary"].values():
        del summary["backward_transfer"]  # as earlier versions wrote it
    (folder / "results.json").write_text(json.dumps(record))
    assert results.read_json(folder / "results.json").summary().keys() == run.summary().keys()
    assert "backward_transfer" in results.read_json(folder / "results.json").summary()["image_auroc"]


def test_resume_continues_and_replaces(tmp_path):
    filled_writer(tmp_path).write()
    resumed = ResultWriter(tmp_path, TASKS, measures=TWO, resume=True)
    resumed.record(1, 1, "tile", {"image_auroc": 0.9, "pixel_auroc": 0.9})
    assert len(resumed.results) == 4
    assert resumed.matrix()["image_auroc"][1, 1] == 0.9
    assert resumed.matrix()["image_auroc"][1, 0] == 0.25
    assert not ResultWriter(tmp_path, TASKS, measures=TWO).results
    assert not ResultWriter(tmp_path / "empty", TASKS, measures=TWO, resume=True).results
    with pytest.raises(FormatError, match="run of 1 tasks"):
        ResultWriter(tmp_path, TASKS[:1], measures=TWO, resume=True)
    with pytest.raises(FormatError, match="expected image_auroc$"):
        ResultWriter(tmp_path, TASKS, measures=TWO[:1], resume=True)


def test_a_run_of_other_tasks_is_not_finished(tmp_path):
    """As many tasks are not the same ones: their results are no answer."""
    writer = ResultWriter(tmp_path, ["tile", "a+b"])
    for task, name in ((0, "tile"), (1, "a")):
        writer.record(1, task, name, dict.fromkeys(results.MEASURES, 0.5))
    writer.write()
    assert finished_results(tmp_path, Protocol("it", (("tile",), ("a", "b")))) is not None
    for tasks in ((("a", "b"), ("tile",)), (("tile",), ("a",)), (("tile", "a", "b"),)):
        assert finished_results(tmp_path, Protocol("other", tasks)) is None


def test_writer_refuses_what_does_not_fit(tmp_path):
    writer = ResultWriter(tmp_path, TASKS, measures=TWO)
    good = {"image_auroc": 0.5, "pixel_auroc": 0.5}
    with pytest.raises(ValueError, match="cannot be evaluated"):
        writer.record(0, 1, "tile", good)
    with pytest.raises(ValueError, match="run of 3 tasks"):
        writer.record(3, 1, "tile", good)
    with pytest.raises(ValueError, match="expected image_auroc, pixel_auroc"):
        writer.record(0, 0, "tile", {"image_auroc": 0.5})
    with pytest.raises(ValueError, match="pixel_auroc of class tile after task 0 is inf"):
        writer.record(0, 0, "tile", good | {"pixel_auroc": float("inf")})
    with pytest.raises(TypeError, match=r"model\.layers\[1\] of type object"):
        ResultWriter(tmp_path, TASKS, config={"model": {"layers": [1, object()]}})
    with pytest.raises(ValueError, match="rate is inf"):
        ResultWriter(tmp_path, TASKS, config={"rate": float("inf")})


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_files(tmp_path, monkeypatch, failing):
    writer = filled_writer(tmp_path)
    writer.write()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writer.record(2, 2, "zipper", {"image_auroc": 0.5, "pixel_auroc": 0.5})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        writer.write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content, message", [
    (b"", "line 0: header"),
    (b"task,after_task,class\n", "line 1: header"),
    (b"after_task,task,class,a,a\n", "line 1: header"),
    (b"after_task,task,class,a\n0,0,x,0.5\n0,0,x\n", "line 3: 3 fields"),
    (b"after_task,task,class,a\n0,0,x,good\n", "line 2: could not convert"),
    (b"after_task,task,class,a\n0,0,x,inf\n", "line 2: a of class x"),
    (b"after_task,task,class,a\n0,1,x,0.5\n", "line 2: task 1 cannot be evaluated"),
    (b'after_task,task,class,a\n0,0,"x', "line 2: unexpected end"),
    (b"after_task,task,class,a\n0,0,\xff,0.5\n", r"not UTF-8 \(at byte 28\)"),
])
def test_damaged_csv_is_refused(tmp_path, content, message):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        results.read_csv(path)


def damaged(**changes):
    record = {"schema": results.SCHEMA, "version": 1, "config": {}, "protocol": {},
              "task_matrix": {"tasks": ["a", "b"], "measures": {"m": [[0.5, None], [0.5, 0.5]]}}}
    record.update(changes)
    return json.dumps(record)


@pytest.mark.parametrize("text, message", [
    (damaged()[:-5], "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[]", "not a cdad.results file"),
    (damaged(schema="other"), "not a cdad.results file"),
    (damaged(version=2), "version 2, this cdad reads version 1"),
    (damaged(config=None), "config is missing"),
    (damaged(task_matrix={"tasks": ["a"]}), "not a task matrix"),
    (damaged(task_matrix={"tasks": "ab", "measures": {}}), "not a list of names"),
    (damaged(task_matrix={"tasks": ["a"], "measures": {"m": [[1, 2]]}}), r"shape \(1, 2\) for 1 tasks"),
    (damaged(task_matrix={"tasks": ["a"], "measures": {"m": [[1], [1, 2]]}}), "not a task matrix"),
    (damaged(task_matrix={"tasks": ["a", "b"], "measures": {"m": [[1, 1], [1, 1]]}}), "above the diagonal"),
    (damaged(task_matrix={"tasks": ["a"], "measures": {"m": [[float("inf")]]}}), "infinite"),
])
def test_damaged_json_is_refused(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as caught:
        results.read_json(path)
    assert caught.value.path == str(path)


def test_huge_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_MAX_FILE_BYTES", 10)
    (tmp_path / "results.json").write_text(damaged())
    with pytest.raises(LimitError, match="larger than the 10 bytes"):
        results.read_json(tmp_path / "results.json")


def test_numpy_scalars_and_undefined_values_in_files(tmp_path):
    path = tmp_path / "metrics.csv"
    results.write_csv(path, [ClassResult(0, 0, "a", {"m": np.float64(0.5), "n": float("nan")})], ("m", "n"))
    assert path.read_text() == "after_task,task,class,m,n\n0,0,a,0.5,\n"
    results.write_json(tmp_path / "r.json", RunResults({"x": float("nan"), "y": np.bool_(True)}, {},
                                                       TaskMatrix(("a",), ("m",))))
    assert results.read_json(tmp_path / "r.json").config == {"x": None, "y": True}


def test_format_table():
    rows = [{"class": "bottle", "AUROC": 0.98765, "images": 83}, {"class": "screw", "AUROC": float("nan")}]
    assert results.format_table(rows, title="after task 2") == "\n".join([
        "after task 2",
        "class   AUROC  images",
        "------  -----  ------",
        "bottle  0.988      83",
        "screw       -       -"])
    assert results.format_table(rows, ["images", "class"], digits=1).splitlines()[2:] == [
        "    83  bottle", "     -  screw"]
    assert results.format_table([{"a": "two\nlines"}]).splitlines()[-1] == "two lines"


def test_compare_summaries():
    tuned = {"image_auroc": {"average": 0.6, "forgetting": 0.25},
             "pixel_auroc": {"average": 0.7, "forgetting": float("nan")}}
    rows = results.compare_summaries({"cdad": filled_matrix().summary(), "fine-tuning": tuned})
    assert results.format_table(rows).splitlines() == [
        "method       A- image_auroc / pixel_auroc (%)  FM image_auroc / pixel_auroc (%)",
        "-----------  --------------------------------  --------------------------------",
        "cdad         79.0 / 39.5                       4.0 / 2.0",
        "fine-tuning  60.0 / 70.0                       25.0 / -"]
