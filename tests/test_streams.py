"""Streams by `Stream` and `Collector`: methods, hints, plans, and memory that does not grow."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import cdad
from cdad import _core
from cdad._core import Stream
from cdad.model import describe_plan

METHODS = ("exact", "incremental", "sketch", "isvd")


def features(rows=900, d=300, seed=0):
    rng = np.random.default_rng(seed)
    return ((rng.standard_normal((rows, d)) / np.arange(1, d + 1)) @ rng.standard_normal((d, d))).astype(np.float32)


def collector(preset, **options):
    sampler = _core.Sampler(_core.Params(), cdad.preset(preset).denoiser(), 1)
    return _core.Collector(sampler, "auto", **options)


def test_auto_chooses_by_width_gamma_and_columns():
    assert Stream(1280, method="auto").method == "exact"
    assert Stream(1280, method="auto", gamma=0.99999).method == "incremental"
    assert Stream(11520, method="auto", columns=1000).method == "incremental"
    stream = Stream(23040, method="auto", memory=64 << 20)
    assert stream.method == "sketch" and stream.bytes <= 64 << 20
    assert Stream(300, "sketch", rank=40).rank == 40 and Stream(300, "incremental").rank == 300


@pytest.mark.parametrize("preset", ["tiny", "demo", "small", "small256"])
def test_auto_is_exact_for_the_presets_that_train_on_a_cpu(preset):
    plan = collector(preset, runs=1, memory=cdad.preset(preset).continual.memory << 20).plan()
    assert len(plan) > 20 and {method for _, method, _, _ in plan.values()} == {"exact"}


def test_the_plan_of_stable_diffusion_fits_in_memory():
    memory = cdad.preset("sd15").continual.memory << 20
    plan = collector("sd15", memory=memory).plan()
    for d, method, rank, _ in plan.values():
        assert (method, rank) == (("sketch", 1024) if d > 6144 else ("exact", d))
    assert max(d for d, *_ in plan.values()) == 23040
    assert sum(size for *_, size in plan.values()) <= memory
    smaller = collector("sd15", memory=memory // 4).plan()
    assert sum(size for *_, size in smaller.values()) <= memory // 4
    text = describe_plan(plan)
    assert "23040" in text and "MiB at most" in text


def test_weights_that_share_features_are_planned_once():
    plan = collector("sd15").plan()
    name = next(n for n in plan if n.endswith("attn1.to_q.weight"))
    q, k = plan[name], plan[name.replace("to_q", "to_k")]
    assert q[:3] == k[:3] and q[3] > 0 and k[3] == 0


def test_energy_is_counted():
    X = features()
    total = (X.astype(np.float64) ** 2).sum()
    for method in METHODS:
        stream = Stream(300, method, 0.99, rank=30)
        stream.add(X)
        found, lost, spectral = stream.energy
        if method == "isvd":
            assert np.isnan([found, lost, spectral]).all()
            continue
        assert found == pytest.approx(total, rel=1e-6)
        assert {"exact": lost == spectral == 0, "incremental": 0 < lost <= total * 0.01 / 4,
                "sketch": 0.001 * total < lost < 0.1 * total}[method] and spectral <= lost  # fmt: skip


def test_any_blocks_give_the_same():
    X = features()
    for method in ("incremental", "sketch"):
        whole, parts = Stream(300, method, rank=40), Stream(300, method, rank=40)
        whole.add(X)
        for row in range(0, len(X), 7):
            parts.add(X[row : row + 7])
        off = np.abs(whole.state() - parts.state()).max()
        assert off == 0 if method == "incremental" else off < 1e-6 * np.abs(whole.state()[2:]).max()


@pytest.mark.parametrize("method", ["incremental", "sketch"])
def test_merge_and_resume(method):
    X = features()
    half, other, resumed = (Stream(300, method, rank=60) for _ in range(3))
    half.add(X[:450])
    resumed.load_state(half.state())
    other.add(X[450:])
    half.merge(other)
    assert half.rows == len(X)
    U, energy = half.basis()
    total, lost, _ = half.energy
    kept = ((X.astype(np.float64) @ U) ** 2).sum() / total
    assert energy - 1e-6 <= kept <= energy + lost / total + 1e-6 if method == "incremental" else abs(kept - energy) < 0.1 * (1 - kept)
    resumed.add(X[450:])
    whole = Stream(300, method, rank=60)
    whole.add(X[:450])
    whole.add(X[450:])
    assert np.array_equal(resumed.state(), whole.state())
    with pytest.raises(ValueError, match="two exact streams"):
        half.merge(Stream(300))
    with pytest.raises(ValueError, match="no sketch by 8 test vectors" if method == "sketch" else "do not hold"):
        Stream(300, method, rank=5).load_state(whole.state()[: None if method == "sketch" else -1])
    if method == "sketch":
        with pytest.raises(ValueError, match="a sketch of rank 5 into rank 60"):
            half.merge(Stream(300, method, rank=5))


def test_refusals():
    for wrong, message in (({"columns": -1}, "-1 columns"), ({"memory": -1}, "-1 bytes"), ({"rank": -1}, "rank -1")):
        with pytest.raises(ValueError, match=message):
            Stream(5, **wrong)
    with pytest.raises(ValueError, match="expected 'auto', 'exact'"):
        Stream(5, "gram")
    sampler = _core.Sampler(_core.Params(), cdad.preset("tiny").denoiser(), 1)
    with pytest.raises(ValueError, match="-3 runs"):
        _core.Collector(sampler, "auto", runs=-3)
    with pytest.raises(ValueError, match="expected 'auto'"):
        _core.Collector(sampler, "pca")
    _core.Collector(sampler)  # a refused one has left no taps


SKETCHED = """
import numpy as np
from cdad._core import Stream, random_normal, set_threads
from cdad.process_memory import peak
set_threads(2)
stream = Stream(4000, "sketch", rank=64)
block, peaks = random_normal((128, 4000), 0, 0), []
for i in range(120):
    stream.add(block * np.float32(i + 1))
    if i in (9, 119):
        peaks.append(peak())
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_blocks():
    done = subprocess.run([sys.executable, "-c", SKETCHED], capture_output=True, text=True, check=True)
    # 110 blocks are 220 MB, and a Gram matrix would be 64; a thread that first gets work late takes its buffers then.
    assert int(done.stdout) < 8 << 20


@pytest.mark.parametrize(("method", "columns"), [("auto", 0), ("exact", 0), ("incremental", 900), ("incremental", 0)])
def test_wide_bases_keep_what_they_say(method, columns):
    X = features(900, 800)
    stream = Stream(800, method, 0.999, columns=columns)
    assert not stream.rounded or method == "auto"
    for block in np.array_split(X, 3):
        stream.add(block)
    U, energy = stream.basis()
    wide = X.astype(np.float64)
    total = (wide**2).sum()
    values = np.linalg.svd(wide, compute_uv=False) ** 2
    fewest = int(np.searchsorted(np.cumsum(values) / total, 0.999)) + 1
    kept = ((wide @ U) ** 2).sum() / total
    assert energy >= 0.999 and energy - 1e-5 <= kept <= energy + stream.energy[1] / total + 1e-5
    assert fewest <= U.shape[1] <= 1.05 * fewest + 1
    assert not Stream(800, "auto", 0.9999).rounded and not Stream(700, "auto", 0.999).rounded


def test_whole_numbers_serve_a_basis_as_well_as_floats():
    """Where the processor multiplies them fastest; rows among which a few stand out are multiplied as they are."""
    rows = 6 * 800
    stream, plain = Stream(800, "auto", 0.999, columns=rows), Stream(800, "exact", 0.999)
    if stream.rounded != "int7":
        pytest.skip(f"this processor's choice is {stream.rounded or 'float32'}")
    X = features(rows, 800)
    for block in np.array_split(X, 4):
        stream.add(block)
        plain.add(block)
    assert stream.energy[0] == pytest.approx(plain.energy[0], rel=1e-6)
    (U, energy), (V, _) = stream.basis(), plain.basis()
    wide = X.astype(np.float64)
    kept = ((wide @ U) ** 2).sum() / (wide**2).sum()
    assert kept >= 0.999 - 1e-4 and abs(kept - energy) < 1e-4
    assert abs(U.shape[1] - V.shape[1]) <= 0.05 * V.shape[1]
    assert np.abs(U.T @ U - np.eye(U.shape[1])).max() < 1e-6
    assert np.array_equal(stream.state()[1:], plain.state()[1:]) is False
    uneven, as_they_are = Stream(800, "auto", 0.999, columns=rows), Stream(800, "exact", 0.999)
    X[::50] *= 100
    for one in (uneven, as_they_are):
        one.add(X)
    assert np.array_equal(uneven.state(), as_they_are.state())
