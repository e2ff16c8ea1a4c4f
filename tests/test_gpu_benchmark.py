"""The benchmark of the CUDA backend runs to its end without a GPU: the same code on small shapes, beside PyTorch on the CPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from paths import ROOT, benchmark

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


@pytest.fixture(scope="module")
def gpu():
    return benchmark("gpu")


def test_every_kind_of_entry_on_the_emulated_device(gpu, tmp_path, capfd):
    out = tmp_path / "records.json"
    how = ["--no-build", "--device", "emulated", "--quick", "--backend", "none", "--tests", "--json", str(out)]
    assert gpu.main([*how, "--only", "train_bf16_8bit_moments", "ops", "score_tf32", "vae"]) == 0
    told = capfd.readouterr().out
    assert told.splitlines()[-1] == "tests: not run; failures: 0; not run: nothing"
    records = {record["name"]: record for record in json.loads(out.read_text())}
    for name in ("sd15_train_step_bf16_8bit_moments", "conv3x3_16x2", "sd15_images_to_scores_2_tf32", "vae_decode"):
        record = records[f"emulated_{name}"]
        assert set(record) == {"name", "value", "unit", "peer", "peer_value", "ratio", "command"}
        assert record["ratio"] == pytest.approx(record["peer_value"] / record["value"])
        assert name in told


def test_what_fails_is_told_and_counted(gpu, tmp_path, capfd):
    """A test that fails, a device that is none, and an entry for which no time is left."""
    (tmp_path / "test_it.py").write_text("def test_good(): pass\ndef test_bad(): assert False\n")
    how = ["--no-build", "--device", "nowhere", "--backend", "none", "--tests", str(tmp_path / "test_it.py")]
    assert gpu.main([*how, "--quick", "--only", "ops"]) == 1
    told = capfd.readouterr().out
    assert "FAILED: tests: 1 passed, 1 failed, 0 skipped\n" in told and "FAILED: ops: exit status 1\n" in told
    assert gpu.main([*how[:-1], "--seconds", "1", "--only", "vae"]) == 0
    assert capfd.readouterr().out.endswith("failures: 0; not run: vae\n")


def test_kernels_under_compute_sanitizer(gpu, tmp_path, capfd, monkeypatch):
    (tmp_path / "test_it.py").write_text("def test_values(): pass\ndef test_files(): pass\n")
    how = ["--no-build", "--device", "nowhere", "--backend", "none", "--seconds", "19", "--quick", "--only", "vae", "--sanitize", "racecheck"]
    how += ["--tests", str(tmp_path / "test_it.py")]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.main(how) == 1
    assert "FAILED: tests: compute-sanitizer, of the CUDA toolkit, is not found\n" in capfd.readouterr().out
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\n[ "$*" != "${*#--tool racecheck --error-exitcode 9 }" ] || exit 3\nshift 6\n"$@" && exit 9\n')
    tool.chmod(0o755)
    assert gpu.main(how) == 1
    assert "FAILED: tests: 1 passed, 0 failed, 0 skipped\n" in capfd.readouterr().out
    tool.write_text('#!/bin/sh\nshift 6\nexec "$@"\n')
    assert gpu.main(how) == 0
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.skip\ndef test_values(): pass\n")
    assert gpu.main(how) == 1
    assert "FAILED: tests: 0 passed, 0 failed, 1 skipped\n" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(how[:-1])


def test_a_row_says_which_side_failed_and_why(gpu):
    row = {"row": "a", "ms": {"cdad": 2.0, "eager": 3.0, "compiled": 1.0}, "MiB": {"cdad": 4.0, "eager": 8.0}, "why": {}}
    first, memory = gpu.records({"a": row}, "cuda", "command")
    assert (first["name"], first["peer"], first["ratio"]) == ("cuda_a", "PyTorch, compiled", 0.5)
    assert (memory["name"], memory["unit"], memory["ratio"]) == ("cuda_a_peak_memory", "MiB", 2.0)
    alone = {"row": "b", "ms": {"eager": 3.0}, "MiB": {}, "why": {"cdad": "MemoryError: cuda:0: 9 MiB cannot be had"}}
    assert gpu.records({"b": alone}, "cuda", "command") == [] and gpu.table_line(alone)["ratio"] == "-"
    failures: list[str] = []
    gpu.report({"b": alone, "c": row | {"row": "c", "why": {"compiled": "Broken: it is"}}}, failures, [], "", lambda *_: "")
    assert failures == ["b: cdad: MemoryError: cuda:0: 9 MiB cannot be had"]


def test_times_of_kernels():
    """Two runs of two kernels, which overlap once, and a copy; what the host does is left out."""
    kernels = benchmark("gpu_kernels")
    events = [
        {"cat": "kernel", "name": "a", "ts": 0, "dur": 1000},
        {"cat": "kernel", "name": "b", "ts": 500, "dur": 100},
        {"cat": "gpu_memcpy", "name": "copy", "ts": 3000, "dur": 500},
        {"cat": "cpu_op", "name": "host", "ts": 0, "dur": 9000},
        {"cat": "kernel", "name": "a", "ts": 3500, "dur": 2000},
        {"name": "no category", "ts": 0},
    ]
    told = kernels.lines(events, 4, runs=2)
    assert told[0] == "1.80 ms of kernels, 2 launches" and told[1].split() == ["1.500", "ms", "1.0", "a"]
    assert told[4:] == ["1.00 ms between them", "    2.000 ms between a and copy"]
    assert kernels.lines(events[3:4], 4) == ["nothing ran on a GPU"]


def test_kernels_want_a_gpu():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_entries.py"), "train", "--kernels", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--kernels wants a GPU" in done.stderr
