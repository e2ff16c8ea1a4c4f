"""The CUDA backend on a GPU: builds it, runs its tests, and times it beside PyTorch, within a budget of time.

    benchmarks/gpu.sh [--wheels DIR] [--only NAME ...] [--seconds N] [--json FILE]     (its head says what it needs)
    python benchmarks/gpu.py --no-build --device emulated --quick                      the same code without a GPU

The entries, the most important first (`gpu_entries` says what they measure and how):

    train_bf16, train_tf32, train    a training step of "sd15" at batch 12
    ops                              convolutions, attention, a linear map and a norm of "sd15"
    score_bf16, score_tf32, score    32 images to scores: sampler, autoencoder, ResNet-50
    vae                              the autoencoder's halves
    train_bf16_8bit_moments          a training step with AdamW's moments in 8 bits; the peer's are float32

Each runs in a process of its own, which may fail or run out of memory: its rows then say why. What does not fit into
``--seconds``, which counts from the start, is listed as not run. While the backend is compiled and tested, PyTorch's compiler
fills its cache for the entries. The last table is what was found; a ratio above 1 says that the core is faster than the better
of eager and compiled PyTorch. Exit status 1: a build, a test or a row of the core failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENTRIES = ("train_bf16", "train_tf32", "ops", "score_bf16", "train", "vae", "score_tf32", "score", "train_bf16_8bit_moments")
# All but importances and 8-bit moments.
KERNELS = "(values or gradients or attention or conv2d or bfloat16 or product or tiles or stream or precision or training_steps) and not emulated"
LEAST = 20.0  # seconds in which an entry tells something
GRACE = 15.0  # seconds that a process gets to end by itself
TESTS_SHARE, ENTRY_SHARE = 0.35, 0.45  # of the budget, at most
TIMINGS_SHARE = 0.6  # of the budget: what compiling ahead leaves, unless the build and the tests have taken it
COLUMNS = ["what", "cdad ms", "eager ms", "compiled ms", "ratio", "error", "cdad MiB", "PyTorch MiB"]


class Budget:
    def __init__(self, seconds: float):
        self.seconds, self.began = seconds, time.monotonic()

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {text}", flush=True)


class Process:
    """A command in a process group of its own, which is killed when ``limit`` seconds are over."""

    def __init__(self, command: list[str], limit: float, **how: Any):
        self.command, self.timed_out = command, False
        self.process = subprocess.Popen(command, process_group=0, text=True, **how)
        self.timer = threading.Timer(limit, self.time_out)
        self.timer.daemon = True
        self.timer.start()

    def time_out(self) -> None:
        self.timed_out = True
        self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self) -> str:
        """"" when it ended well, else how it ended."""
        status = self.process.wait()
        self.timer.cancel()
        if self.timed_out:
            return "it was stopped when its time was over"
        return "" if status == 0 else f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"


def environment(package: Path) -> dict[str, str]:
    """For processes that find this package, and no script of a name that a library has too."""
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def build(budget: Budget, cuda: str) -> str:
    """What is wrong, or ""."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return Process(command, budget.left, cwd=ROOT, env=os.environ | {"CDAD_CUDA": cuda} | own_archs()).wait()


def own_archs() -> dict[str, str]:
    """The backend is compiled for the GPUs that are here, which takes a third of the time."""
    if "CDAD_CUDA_ARCHS" in os.environ or not shutil.which("nvidia-smi"):
        return {}
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.split()
    archs = sorted({n.replace(".", "") for n in found if n.replace(".", "").isdigit()}, key=int)
    return {"CDAD_CUDA_ARCHS": " ".join(archs)} if archs else {}


def worker(a: argparse.Namespace, names: list[str], *more: str) -> list[str]:
    command = [sys.executable, str(HERE / "gpu_entries.py"), *names, "--device", a.device, "--backend", a.backend, *more]
    return command + (["--quick", "--seconds", "0.01"] if a.quick else [])


def start_ahead(a: argparse.Namespace, budget: Budget) -> Process:
    """Has PyTorch compile what the entries need. It ends after what it is at, when it is told to."""
    how = {"cwd": ROOT, "env": environment(ROOT), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return Process(["nice", *worker(a, a.only, "--ahead")], budget.left, **how)


def run_tests(a: argparse.Namespace, budget: Budget, package: Path) -> tuple[str, list[str]]:
    """(how many tests did what, what went wrong)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", f"--junitxml={report}", *a.tests]
        if a.device.startswith("cuda") and importlib.util.find_spec("xdist"):  # most of their time is the host's
            command += ["-n", str(min(12, os.cpu_count() or 1))]
        seconds = TESTS_SHARE * budget.seconds
        if a.sanitize:
            if not shutil.which("compute-sanitizer"):
                return "not run", ["tests: compute-sanitizer, of the CUDA toolkit, is not found"]
            tool = ["compute-sanitizer", "--tool", a.sanitize, "--error-exitcode", "9", "--target-processes", "all"]
            command = [*tool, *command, "-k", KERNELS]
            seconds = budget.left
        ended = Process(command, min(budget.left, seconds), cwd=ROOT, env=environment(package)).wait()
        if not report.exists():
            return "no result", [f"tests: {ended or 'no report'}"]
        suite = ElementTree.parse(report).getroot().find("testsuite")
    n = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    passed, bad = n["tests"] - n["failures"] - n["errors"] - n["skipped"], n["failures"] + n["errors"]
    told = f"{passed} passed, {bad} failed, {n['skipped']} skipped"
    return told, [f"tests: {told}"] if bad or ended or (a.sanitize and not passed) else []


def measure(
    a: argparse.Namespace, budget: Budget, package: Path, names: list[str], rows: dict[str, dict]
) -> tuple[list[str], list[str]]:
    """Fills rows, by name; (what went wrong, what there was no time for). The last entry may take all the time that is left."""
    left = budget.left if names[-1] == a.only[-1] else min(budget.left, max(LEAST, ENTRY_SHARE * budget.seconds))
    command, before = worker(a, names, "--left", f"{left:.0f}"), len(rows)
    process = Process(command, left + GRACE, cwd=ROOT, env=environment(package), stdout=subprocess.PIPE)
    for line in process.process.stdout:
        try:
            told = json.loads(line)
        except ValueError:
            print(line, end="", flush=True)
            continue
        if "machine" in told and not rows:
            print(json.dumps(told["machine"]), flush=True)
        if "row" in told:
            rows[told["row"]] = told
            budget.say(summary(told))
    ended = process.wait()
    what = ", ".join(names)
    if process.timed_out and len(rows) > before:
        return [], [f"the rest of {what}"]
    return [f"{what}: {ended}"] if ended else [], []


def summary(row: dict) -> str:
    parts = [f"{side} {ms:.3f} ms" for side, ms in row.get("ms", {}).items()]
    parts += [f"{side} {size:.0f} MiB" for side, size in row.get("MiB", {}).items()]
    return f"{row['row']}: " + "; ".join([*parts, *(f"{side}: {why}" for side, why in row["why"].items())])


def best_peer(row: dict) -> tuple[str, float] | None:
    peers = {side: ms for side, ms in row.get("ms", {}).items() if side != "cdad"}
    return min(peers.items(), key=lambda item: item[1]) if peers else None


def table_line(row: dict) -> dict[str, Any]:
    ms, best = row.get("ms", {}), best_peer(row)
    eager = [value for side, value in ms.items() if side.startswith("eager")]
    theirs = [size for side, size in row.get("MiB", {}).items() if side != "cdad"]
    line = {"what": row["row"], "cdad ms": ms.get("cdad"), "eager ms": min(eager, default=None), "compiled ms": ms.get("compiled")}
    line |= {"ratio": best[1] / ms["cdad"] if best and "cdad" in ms else None, "error": row.get("error")}
    line |= {"cdad MiB": row.get("MiB", {}).get("cdad"), "PyTorch MiB": min(theirs, default=None)}
    digits = {"ratio": ".2f", "error": ".0e", "cdad MiB": ".0f", "PyTorch MiB": ".0f"}
    return {key: format(value, digits.get(key, ".3f")) if isinstance(value, float) else value or "-" for key, value in line.items()}


def records(rows: dict[str, dict], device: str, command: str) -> list[dict[str, Any]]:
    """Those that both sides have."""
    found = []

    def add(name: str, value: float, unit: str, peer: str, peer_value: float) -> None:
        found.append({"name": f"{device}_{name}", "value": value, "unit": unit, "peer": f"PyTorch, {peer}", "peer_value": peer_value,
                      "ratio": peer_value / value, "command": command})  # fmt: skip

    for name, row in rows.items():
        best, size = best_peer(row), row.get("MiB", {})
        if best and "cdad" in row["ms"]:
            add(name, row["ms"]["cdad"], "ms", *best)
        peers = {side: mib for side, mib in size.items() if side != "cdad"}
        if peers and size.get("cdad"):
            side = min(peers, key=peers.__getitem__)
            add(f"{name}_peak_memory", size["cdad"], "MiB", side, peers[side])
    return found


def say_machine(budget: Budget) -> None:
    for command in (["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"], ["nvcc", "--version"]):
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            budget.say(f"{command[0]}: {(done.stdout or done.stderr).strip().splitlines()[-1]}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="of the core: cuda, cpu or emulated")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, in one process")
    parser.add_argument("--seconds", type=float, default=420.0, help="budget for everything")
    parser.add_argument("--only", nargs="+", choices=ENTRIES, metavar="NAME", default=list(ENTRIES))
    parser.add_argument("--backend", default="inductor", help="of torch.compile; none: compile nothing")
    parser.add_argument("--no-build", action="store_true", help="the package is built or installed")
    parser.add_argument("--tests", nargs="*", default=["tests/test_devices.py", "tests/test_device_arrays.py"], help="files; none: no tests")
    parser.add_argument(
        "--sanitize",
        choices=("memcheck", "racecheck", "initcheck", "synccheck"),
        help="run the tests of kernels under this tool of compute-sanitizer, within all the time that is left",
    )
    parser.add_argument("--json", help="write the records here")
    a = parser.parse_args(argv)
    if a.sanitize and not a.tests:
        parser.error("--sanitize wants --tests")
    command = shlex.join(["python", "benchmarks/gpu.py", *(sys.argv[1:] if argv is None else argv)])
    budget, failures, tests, ahead = Budget(a.seconds), [], "not run", None
    say_machine(budget)
    package = ROOT
    if a.no_build:
        if not list(ROOT.glob("cdad/_core*.so")):
            spec = importlib.util.find_spec("cdad")
            if not spec:
                parser.error("--no-build: the package is neither built here nor installed")
            package = Path(spec.origin).parents[1]
    else:
        budget.say("building the core")
        wrong = build(budget, "0")
        if not wrong and a.device.startswith("cuda"):
            ahead = start_ahead(a, budget) if a.backend == "inductor" and not a.quick else None
            budget.say("building the CUDA backend")
            wrong = build(budget, "1")
        if wrong:
            if ahead:
                ahead.kill()
            print(f"FAILED: build: {wrong}", flush=True)
            return 1
    sys.path.insert(0, str(package))
    from cdad.results import format_table  # which there was not before

    if a.tests:
        budget.say(f"testing: {' '.join(a.tests)}")
        tests, failures = run_tests(a, budget, package)
        budget.say(f"tests: {tests}")
    if ahead:
        ahead.process.terminate()  # it ends after what it is compiling
        patience = threading.Timer(max(0.0, budget.left - TIMINGS_SHARE * budget.seconds), ahead.kill)
        patience.start()
        ahead.wait()
        patience.cancel()
        budget.say("PyTorch has compiled ahead")

    rows: dict[str, dict] = {}
    not_run: list[str] = []
    for names in [a.only] if a.quick else [[name] for name in a.only]:
        if budget.left < LEAST:
            not_run += names
            continue
        budget.say(f"measuring: {', '.join(names)}")
        wrong, missed = measure(a, budget, package, names, rows)
        failures, not_run = failures + wrong, not_run + missed
        if a.json:  # what an interrupted run has measured is not lost
            Path(a.json).write_text(json.dumps(records(rows, a.device, command), indent=1) + "\n")
    report(rows, failures, not_run, tests, format_table)
    return int(bool(failures))


def report(rows: dict[str, dict], failures: list[str], not_run: list[str], tests: str, format_table: Callable) -> None:
    """Adds what the rows of the core say to ``failures``, and prints everything, the table and the failures last."""
    notes = []
    for name, row in rows.items():
        for side, why in row["why"].items():
            is_failure = side in ("cdad", "error") and "no time" not in why
            (failures if is_failure else notes).append(f"{name}: {side}: {why}")
    print()
    for note in notes:
        print(f"note: {note}")
    print(format_table([table_line(row) for row in rows.values()], COLUMNS) if rows else "nothing was measured")
    for failure in failures:
        print(f"FAILED: {failure}")
    print(f"tests: {tests}; failures: {len(failures)}; not run: {', '.join(not_run) or 'nothing'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
