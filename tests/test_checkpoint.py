"""Atomic checkpoints: round trips, damage, and crashes in the middle."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest

from cdad.checkpoint import load_checkpoint, save_checkpoint
from cdad.errors import CheckpointError

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([np.pi, -0.0]),
    "c": np.arange(5),
    "d": np.zeros((0, 3), np.uint8),
    "e": np.arange(3, dtype=np.uint16),
}
STATE = {"step": 3, "ledger": [{"classes": ["a"]}]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    return path


def same(tensors) -> bool:
    return set(tensors) == set(TENSORS) and all(
        tensors[k].dtype == v.dtype and tensors[k].tobytes() == v.tobytes() and tensors[k].shape == v.shape
        for k, v in TENSORS.items()
    )


def test_round_trip(path):
    tensors, state = load_checkpoint(path)
    assert same(tensors) and state == STATE


def test_safetensors_reads_it(path):
    from safetensors.numpy import load_file

    assert same(load_file(path))


def test_writing_holds_no_second_copy(tmp_path):
    big = {"a": np.ones(1 << 22, np.float32)}
    tracemalloc.start()
    save_checkpoint(tmp_path / "big", big, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < big["a"].nbytes / 4


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_any_flipped_bit_is_seen(path):
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        path.write_bytes(bytes(damaged))
        try:
            tensors, state = load_checkpoint(path)
        except CheckpointError:
            continue
        assert same(tensors) and state == STATE, at  # blanks that pad the header carry nothing


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_file(path, monkeypatch, call):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {"a": np.ones(3, np.float32)}, {})
    monkeypatch.undo()
    assert same(load_checkpoint(path)[0])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_newer_version_and_other_files_are_refused(path, tmp_path, monkeypatch):
    monkeypatch.setattr("cdad.checkpoint.VERSION", 2)
    save_checkpoint(path, TENSORS, STATE)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="version"):
        load_checkpoint(path)
    from safetensors.numpy import save_file

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
