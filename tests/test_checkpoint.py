"""Atomic checkpoints: round trips, damage, crashes and full disks in the middle, the one before, memory."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from layouts import load_checkpoint
from paths import full_disk
from safetensors.numpy import load_file, save_file

import cdad
from cdad import atomic, process_memory
from cdad.checkpoint import Checkpoint, previous_of, save_checkpoint
from cdad.errors import CheckpointError

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([np.pi, -0.0]),
    "c": np.arange(5),
    "d": np.zeros((0, 3), np.uint8),
    "e": np.arange(3, dtype=np.uint16),
}
STATE = {"step": 3, "ledger": [{"classes": ["a"]}]}
OTHER = {"a": np.ones(3, np.float32)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    return path


def same(tensors, wanted=TENSORS) -> bool:
    return set(tensors) == set(wanted) and all(
        tensors[k].dtype == v.dtype and tensors[k].tobytes() == v.tobytes() and tensors[k].shape == v.shape
        for k, v in wanted.items()
    )


def names(path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def run(code: str, *arguments, **how) -> str:
    """What a Python process of its own prints."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **how)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_round_trip(path):
    tensors, state = load_checkpoint(path)
    assert same(tensors) and state == STATE
    save_checkpoint(path, {name: lambda array=array: array for name, array in TENSORS.items()}, STATE)
    assert same(load_checkpoint(path)[0])


def test_safetensors_reads_it(path):
    assert same(load_file(path))


def test_tensors_of_several_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("cdad.weights.safetensors_file.PART", 1000)
    path, wide = tmp_path / "wide", {"w": np.random.default_rng(0).random((31, 77)), "v": np.arange(125.0)}
    save_checkpoint(path, wide | {"t": wide["w"].T}, {})
    with Checkpoint(path) as opened:
        assert same({name: opened.read(name) for name in wide}, wide)
        assert np.array_equal(opened.read("t"), wide["w"].T)
        target = np.zeros((31, 77))
        opened.check("w", target)
        assert np.array_equal(target, wide["w"])
        with pytest.raises(ValueError, match="1000 bytes for the 19096"):
            opened.check("w", np.zeros(125))
        with pytest.raises(ValueError, match="contiguous"):
            opened.check("w", np.zeros((77, 31)).T)
    content = bytearray(path.read_bytes())
    content[-3000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="the tensor 'w' is damaged"):
        load_checkpoint(path)


# Damage.


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_any_flipped_bit_is_seen(path):
    content = path.read_bytes()
    with Checkpoint(path) as opened:
        places = {n: (opened._file.offset(n), info.bytes) for n, info in opened.tensors.items()}
    data = 8 + int.from_bytes(content[:8], "little")
    for at in [*range(0, data, 3), *range(data, len(content))]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        if at >= data:
            (name,) = (n for n, (begin, size) in places.items() if begin <= at < begin + size)
            assert f"the tensor {name!r} is damaged" in str(caught.value) and caught.value.offset == places[name][0]


def test_tensors_that_are_not_wanted_are_checked_too(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with Checkpoint(path) as opened:
        assert np.array_equal(opened.read("a"), TENSORS["a"])
        with pytest.raises(CheckpointError, match="'e' is damaged"):
            opened.check_unread()


def old_version(path, tensors, state: str = '{"step": 3}') -> None:
    """As version 1 was written: one digest of everything."""
    digest = hashlib.blake2b(state.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name}:{tensors[name].dtype.str}:{tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    metadata = {"format": "cdad-checkpoint", "version": "1", "state": state, "digest": digest.hexdigest()}
    save_file(tensors, path, metadata)


def test_version_1_is_read(tmp_path):
    path = tmp_path / "old.safetensors"
    old_version(path, TENSORS)
    tensors, state = load_checkpoint(path)
    assert same(tensors) and state == {"step": 3}
    content = path.read_bytes()
    for at in range(8 + int.from_bytes(content[:8], "little"), len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="digest"):
            Checkpoint(path)


def test_a_model_of_version_1(first_checkpoint, tmp_path):
    """As it was written after a task: with moments, which later versions neither write nor read."""
    model = cdad.ContinualModel.load(first_checkpoint)
    tensors, state = load_checkpoint(first_checkpoint)
    blocks = {f"optimizer/{name}": np.array(model._trainer.block("weights")) for name in ("m", "v")}
    old_version(tmp_path / "old", tensors | blocks, json.dumps(state, sort_keys=True))
    old = cdad.ContinualModel.load(tmp_path / "old")
    assert old._trainer.age == 0 and not old._trainer.block("m").any()
    assert old.classes == model.classes and np.array_equal(old._trainer.block("weights"), model._trainer.block("weights"))


def test_a_newer_version_and_other_files_are_refused(path, tmp_path, monkeypatch):
    monkeypatch.setattr("cdad.checkpoint.VERSION", 3)
    save_checkpoint(path, TENSORS, STATE)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="version"):
        load_checkpoint(path)
    other = tmp_path / "other.safetensors"
    save_file({"a": np.ones(3, np.float32)}, other)
    with pytest.raises(CheckpointError, match="not a cdad checkpoint"):
        load_checkpoint(other)
    other.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError):
        load_checkpoint(other)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)


# The one before.


def test_the_previous_one_is_kept_and_offered(path):
    for step in range(3):
        save_checkpoint(path, OTHER, {"step": step}, keep_previous=True)
    previous = previous_of(path)
    assert names(path) == ["state.previous.safetensors", "state.safetensors"]
    assert load_checkpoint(path)[1] == {"step": 2} and load_checkpoint(previous)[1] == {"step": 1}
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'a' is damaged.*kept in state.previous.safetensors.*--resume-previous"):
        load_checkpoint(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"no such file.*kept in state.previous.safetensors"):
        load_checkpoint(path)
    previous.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'a' is damaged: [^;]*$"):
        load_checkpoint(previous)


def test_a_crash_between_the_two_names_is_made_good(path):
    """Both may be names of one file then, which renaming leaves alone."""
    os.link(path, previous_of(path))
    save_checkpoint(path, OTHER, {}, keep_previous=True)
    assert same(load_checkpoint(path)[0], OTHER) and same(load_checkpoint(previous_of(path))[0])
    assert names(path) == ["state.previous.safetensors", "state.safetensors"]


def test_where_there_are_no_hard_links(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    save_checkpoint(path, OTHER, {}, keep_previous=True)
    assert same(load_checkpoint(path)[0], OTHER) and same(load_checkpoint(previous_of(path))[0])


# Disks and crashes.


def test_every_call_that_fails_leaves_the_old_files(path, monkeypatch):
    """The k-th call of what touches the disk fails, for every k, until none is left."""
    save_checkpoint(path, TENSORS, STATE, keep_previous=True)
    real, calls = {}, itertools.count()

    def failing(call):
        def wrapped(*a, **k):
            if next(calls) == fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real[call](*a, **k)

        return wrapped

    class File:
        def __init__(self, *a, **k):
            self._file = open(*a, **k)
            real["write"], self.write = self._file.write, failing("write")

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

    for call in ("open", "fsync", "link", "replace"):
        real[call] = getattr(os, call)
        monkeypatch.setattr(os, call, failing(call))
    monkeypatch.setattr(atomic, "open", File, raising=False)
    for fail_at in itertools.count():
        calls = itertools.count()
        failed = False
        try:
            save_checkpoint(path, OTHER, {}, keep_previous=True)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            failed = True
        made = next(calls)
        calls = itertools.count(1 << 20)
        found = [load_checkpoint(p)[0] for p in (path, previous_of(path))]
        assert all(same(tensors) or same(tensors, OTHER) for tensors in found)
        assert names(path) == ["state.previous.safetensors", "state.safetensors"]
        if not failed and made <= fail_at:
            break
    assert fail_at >= 10 and same(found[0], OTHER)


def test_a_file_that_may_not_grow_further(path):
    whole, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for limit in range(0, whole, 97):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(OSError) as caught:
                save_checkpoint(path, TENSORS, {"step": 4} | STATE, keep_previous=True)
            assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(load_checkpoint(path)[0]) and names(path) == [path.name]


def test_a_full_disk(tmp_path):
    size = 1 << 20
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        path, big = tmp_path / "state.safetensors", {"a": np.ones(size // 10, np.float32)}
        save_checkpoint(path, big, {"step": 0}, keep_previous=True)
        save_checkpoint(path, big, {"step": 1}, keep_previous=True)
        with pytest.raises(OSError) as caught:
            save_checkpoint(path, big, {"step": 2}, keep_previous=True)
        assert caught.value.errno == errno.ENOSPC
        assert load_checkpoint(path)[1] == {"step": 1} and load_checkpoint(previous_of(path))[1] == {"step": 0}
        assert names(path) == ["state.previous.safetensors", "state.safetensors"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_is_read_only(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    path.parent.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(PermissionError):
            save_checkpoint(path.name, OTHER, {})
    finally:
        os.seteuid(user)
        path.parent.chmod(0o755)
    assert same(load_checkpoint(path)[0]) and names(path) == [path.name]


def killed(folder: str, rounds: int) -> None:
    """Processes that save again and again, each of which is killed; for a process of its own."""
    import random
    import signal
    import time

    path, generator, in_the_middle, newest = Path(folder, "state.safetensors"), random.Random(0), 0, 0
    save_checkpoint(path, {"a": np.zeros(1 << 18, np.float32)}, {"step": 0})
    for _ in range(rounds):
        before, began = path.stat().st_ino, time.monotonic()
        child = os.fork()
        if child == 0:
            for step in itertools.count(newest + 1):
                save_checkpoint(path, {"a": np.full(1 << 18, step, np.float32)}, {"step": step}, keep_previous=True)
        while path.stat().st_ino == before:
            time.sleep(0.001)
        time.sleep(generator.random() * (time.monotonic() - began))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for file in (path, previous_of(path)):
            tensors, state = load_checkpoint(file)
            assert np.all(tensors["a"] == state["step"]) and state["step"] >= newest
        newest = load_checkpoint(path)[1]["step"]
        left = [name for name in names(path) if name.endswith(".tmp")]
        assert set(left) <= {".state.safetensors.tmp", ".state.previous.safetensors.tmp"}  # the latter a second name
        in_the_middle += bool(left)
    save_checkpoint(path, {}, {}, keep_previous=True)
    assert names(path) == ["state.previous.safetensors", "state.safetensors"]
    print(in_the_middle, newest)


def test_killed_while_it_saves(tmp_path):
    told = run("import sys, test_checkpoint; test_checkpoint.killed(sys.argv[1], 15)", tmp_path)
    in_the_middle, newest = map(int, told.split())
    assert in_the_middle >= 3 and newest >= 15


def test_a_writer_takes_over_what_a_crash_left(path):
    left = path.with_name(f".{path.name}.tmp")
    left.write_bytes(bytes(100_000))
    save_checkpoint(path, OTHER, {})
    assert same(load_checkpoint(path)[0], OTHER) and names(path) == [path.name]


@pytest.mark.parametrize("parts", [[bytes(100_000)], 1000 * [bytes(100)], [bytes(4097)]])
def test_a_failure_to_write_names_the_file(path, parts):
    with pytest.raises(FileNotFoundError) as caught:
        atomic.write_atomically(path.parent / "none" / "file", b"x")
    assert caught.value.filename == str(path.parent / "none" / "file")
    with full_disk(4096), pytest.raises(OSError) as caught:
        atomic.write_atomically(path, parts)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert same(load_checkpoint(path)[0]) and names(path) == [path.name]


def test_a_device_that_is_not_there_is_no_damage(first_checkpoint):
    with pytest.raises(ValueError, match="nothing") as caught:
        cdad.ContinualModel.load(first_checkpoint, device="nothing")
    assert not isinstance(caught.value, CheckpointError)


def test_writers_wait_for_each_other(path):
    entered = threading.Event()

    def other():
        entered.set()
        save_checkpoint(path, OTHER, {})

    with atomic.replacing(path) as file:
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait()
        thread.join(0.1)
        assert thread.is_alive() and same(load_checkpoint(path)[0])
        file.write(b"first")
    thread.join()
    assert same(load_checkpoint(path)[0], OTHER) and names(path) == [path.name]


# Memory.


def measured(path: str, load: bool) -> None:
    """Print how much more memory than before saving or loading takes at most, and the model's bytes; in a process of its own."""
    cdad.set_device("cpu")  # whose memory this is of
    config = cdad.preset("small").updated({"unet.model_channels": 96})
    if load:
        before = process_memory.held()
        model = cdad.ContinualModel.load(path)
    else:
        model = cdad.ContinualModel(config)
        model.progress, model._trainer.age = {"classes": ["a"], "step": 1, "seconds": 0.0}, 1
        for name in ("m", "v"):
            model._trainer.block(name)[:] = 1
        before = process_memory.held()
        process_memory.forget_peak()
        model.save(path)
    assert model._trainer.block("v").min() == model._trainer.block("m").max() == 1
    memory = model.memory_bytes
    held = sum(memory[part] for part in ("parameters", "gradients", "moments"))
    print(process_memory.peak() - before, held, max(model.params[n].nbytes for n in model.params.shapes()))


def test_saving_and_loading_hold_no_second_copy(tmp_path):
    """Beyond the largest weight: parts that are read ahead, and what plans of networks take."""
    code = "import sys, test_checkpoint; test_checkpoint.measured(sys.argv[1], sys.argv[2] == 'load')"
    path, tolerance = tmp_path / "state.safetensors", 40 << 20
    growth, model, largest = map(int, run(code, path, "save").split())
    assert model > 280 << 20 and path.stat().st_size > 200 << 20 and largest < 10 << 20
    assert growth < largest + tolerance
    growth, model, largest = map(int, run(code, path, "load").split())
    assert 200 << 20 < growth < model + largest + tolerance


def test_a_link_stays_one_and_permissions_stay(tmp_path):
    file, link = tmp_path / "there" / "v1", tmp_path / "current"
    file.parent.mkdir()
    file.write_bytes(b"old")
    file.chmod(0o640)
    link.symlink_to("there/v1")
    atomic.write_atomically(link, b"new")
    assert link.is_symlink() and file.read_bytes() == b"new" and file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["current", "there", "v1"]


def test_a_link_to_another_file_system_is_kept_too(tmp_path, monkeypatch):
    """Where the one before cannot be a second name of the file."""
    (tmp_path / "there").mkdir()
    file, link, previous = tmp_path / "there" / "v1", tmp_path / "current", tmp_path / "previous"
    link.symlink_to(file)

    def refused(path, _):
        raise OSError(errno.EXDEV if path.exists() else errno.ENOENT, "no link")

    monkeypatch.setattr(atomic.os, "link", refused)
    for content in (b"1", b"2", b"3"):
        with atomic.replacing(link, previous) as written:
            written.write(content)
    assert link.is_symlink() and file.read_bytes() == b"3" and previous.read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "previous", "there"]
