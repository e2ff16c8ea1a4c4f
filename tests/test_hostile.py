"""Hostile weight files and checkpoints: each is refused with a typed error, quickly, in little memory; nothing is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import hostile
import pytest
from layouts import load_tensors

from cdad.errors import FormatError
from cdad.weights import open_tensors

# What a refusal may take here; the aim is 0.1 s and 64 MB, and machines are shared.
SECONDS, BYTES = 2.0, 256e6


def measure(folder: Path) -> dict[str, list]:
    """{title: [error, seconds, bytes]} of every file of the corpus; the error is "" where none was raised. Each is read
    twice: tracing memory makes some files take 40 times as long."""
    os.chdir(folder)
    path = folder / "weights.safetensors"  # the name has no say
    result = {}
    modules = set(sys.modules)
    for title, content, reason in hostile.corpus():
        path.write_bytes(content)
        del content
        began, error = time.process_time(), _refusal(path, reason)
        seconds = time.process_time() - began
        tracemalloc.start()
        again = _refusal(path, reason)  # safetensors names any of several tensors
        result[title] = [error if again[:1] not in ("", "?") else again, seconds, tracemalloc.get_traced_memory()[1]]
        tracemalloc.stop()
    assert set(sys.modules) == modules, set(sys.modules) - modules
    assert os.listdir() == [path.name]  # nothing was run that would leave a file
    return result


def _refusal(path: Path, reason: str) -> str:
    """The error of loading the file, with ? before it where it is not the one expected."""
    try:
        load_tensors(path)
    except FormatError as caught:
        return str(caught) if re.search(reason, str(caught)) and caught.path == str(path) else f"?{caught}"
    return ""


def test_the_corpus_is_refused(tmp_path):
    """In a process of its own, whose address space is bounded: no file can take the tests' memory."""
    code = "import json, sys, pathlib, test_hostile; print(json.dumps(test_hostile.measure(pathlib.Path(sys.argv[1]))))"
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30,) * 2); {code}"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert len(result) >= 200
    wrong = {title: error for title, (error, *_) in result.items() if not error or error[0] == "?"}
    assert not wrong
    costly = {title: costs for title, (_, *costs) in result.items() if costs[0] > SECONDS or costs[1] > BYTES}
    assert not costly


@pytest.mark.parametrize("content", [hostile.saved(hostile.GOOD), hostile.legacy(hostile.GOOD), hostile.one()])
def test_a_file_that_is_written_while_it_is_read(tmp_path, content):
    path = tmp_path / "weights"
    path.write_bytes(content)
    for change in (lambda file: file.truncate(60), lambda file: file.write(b"x")):
        with open_tensors(path) as opened, open(path, "r+b") as file:
            name = next(iter(opened.tensors))
            change(file)
            file.flush()
            os.utime(path, ns=(1, 1))  # clocks of files may be coarse
            with pytest.raises(FormatError, match="changed|left|CRC"):
                opened.read(name)
        path.write_bytes(content)
