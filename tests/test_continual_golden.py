"""Streaming bases against the published iterative SVD and one SVD of everything, and what they guarantee."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from paths import golden_file

from cdad._core import Stream
from cdad.errors import TrainingError

GAMMAS = (0.9, 0.99, 0.999)


@pytest.fixture(scope="module")
def golden():
    """{layer: {name: array}}; feature matrices M are [d, columns]."""
    path = golden_file("cdad_tiny_isvd")
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    layers = {}
    for key, value in safetensors_numpy.load_file(path).items():
        layer, name = key.rsplit("/", 1)
        layers.setdefault(layer, {})[name] = value
    return layers


def blocks(layer):
    return [np.ascontiguousarray(layer[f"M{i}"].T) for i in range(4)]


def filled(features, method="exact", gamma=0.999):
    stream = Stream(features[0].shape[1], method=method, gamma=gamma)
    for block in features:
        stream.add(block)
    return stream


def orthonormality(U):
    U = U.astype(np.float64)
    return np.abs(U.T @ U - np.eye(U.shape[1])).max(initial=0)


def share(U, X):
    X = X.astype(np.float64)
    return ((X @ U) ** 2).sum() / (X**2).sum()


def low_rank(rng, rows, d, rank):
    scale = 0.8 ** np.arange(rank)
    return ((rng.standard_normal((rows, rank)) * scale) @ rng.standard_normal((rank, d))).astype(np.float32)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_isvd_equals_the_published_steps(golden, gamma):
    for name, layer in golden.items():
        U, energy = filled(blocks(layer), "isvd", gamma).basis()
        expected = layer[f"isvd_projector_{gamma}"].astype(np.float64)
        if expected.shape[0] > 320:  # these layers hold the basis itself
            expected = expected @ expected.T
        assert U.shape[1] == layer[f"isvd_rank_{gamma}"][0], name
        error = np.linalg.norm(U.astype(np.float64) @ U.T - expected) / np.linalg.norm(expected)
        assert error < 1e-4, name
        assert orthonormality(U) <= 1e-6
        assert energy < gamma, "the published rank stops one short of the threshold"


@pytest.mark.parametrize("gamma", GAMMAS)
def test_exact_equals_one_svd_of_everything(golden, gamma):
    for name, layer in golden.items():
        features = blocks(layer)
        X = np.concatenate(features)
        stream = filled(features, "exact", gamma)
        U, energy = stream.basis()
        # The golden rank counts the shares below gamma; the smallest rank that reaches gamma is one more.
        assert U.shape[1] == layer[f"svd_rank_{gamma}"][0] + 1, name
        assert energy >= gamma and share(U, X) == pytest.approx(energy, abs=1e-6)
        assert share(U[:, :-1], X) < gamma
        assert orthonormality(U) <= 1e-6
        s = layer["svd_singular_values"]
        assert np.abs(stream.singular_values() - s).max() < 1e-6 * s[0], name
        V = np.linalg.eigh(X.T.astype(np.float64) @ X)[1][:, -U.shape[1] :]
        assert np.linalg.norm(V.T @ U) == pytest.approx(U.shape[1] ** 0.5, rel=1e-6)  # the same subspace


@pytest.mark.parametrize("gamma", GAMMAS)
def test_weighted_bases_are_as_good_as_one_svd(golden, gamma):
    """Incremental streams keep gamma with hardly a direction more; sketches say what they keep."""
    for name, layer in golden.items():
        features = blocks(layer)
        X, d = np.concatenate(features), features[0].shape[1]
        fewest = layer[f"svd_rank_{gamma}"][0] + 1
        for stream in (Stream(d, "incremental", gamma), Stream(d, "sketch", gamma, rank=max(1, d // 4))):
            for block in features:
                stream.add(block)
            U, energy = stream.basis()
            total, lost, _ = stream.energy
            assert total == pytest.approx((X.astype(np.float64) ** 2).sum(), rel=1e-12), name
            assert orthonormality(U) <= 1e-6
            if stream.method == "sketch":  # an estimate of what is lost, by as few checks as these widths' directions
                assert abs(share(U, X) - energy) <= 0.35 * lost / total + 1e-6, name
            else:
                assert energy - 1e-6 <= share(U, X) <= energy + lost / total + 1e-6, name
                assert fewest <= U.shape[1] <= 1.05 * fewest + 1 and energy >= gamma, name


@pytest.mark.parametrize("method", ["exact", "isvd"])
def test_six_tasks(method):
    rng, d, rank = np.random.default_rng(0), 90, 14
    U = None
    for _ in range(6):
        features = [low_rank(rng, 200, d, rank), low_rank(rng, 100, d, 3)]
        old = U
        U, energy = filled(features, method, 0.99).basis(old)
        assert orthonormality(U) <= 1e-6
        if old is not None:
            assert U[:, : old.shape[1]].tobytes() == old.tobytes()
        if method == "exact":
            assert share(U, np.concatenate(features)) == pytest.approx(energy, abs=1e-5)
            assert energy >= 0.99
    assert U.shape[1] <= d


def test_input_layouts_give_the_same_bits():
    X = np.random.default_rng(1).standard_normal((60, 20)).astype(np.float32)
    expected = filled([X]).state()
    padded = np.zeros((120, 40), np.float32)
    padded[::2, ::2] = X
    for other in (np.asfortranarray(X), padded[::2, ::2], X.astype(np.float64), X.astype(">f4")):
        before = other.copy()
        assert np.array_equal(filled([other]).state(), expected)
        assert np.array_equal(other, before)


def test_state_and_merge():
    X = np.random.default_rng(2).standard_normal((100, 20)).astype(np.float32)
    for method in ("exact", "isvd"):
        stream, resumed = filled([X[:50]], method), Stream(20, method=method)
        resumed.load_state(stream.state())
        for s in (stream, resumed):
            s.add(X[50:])
        assert np.array_equal(stream.state(), resumed.state())
        assert stream.rows == resumed.rows == 100
    half, other = filled([X[:50]]), filled([X[50:]])
    half.merge(other)
    assert np.array_equal(half.state(), filled([X[:50], X[50:]]).state())
    assert half.rows == 100 and other.rows == 50


def test_attributes_and_defaults():
    stream = Stream(7)
    assert (stream.d, stream.rows, stream.method, stream.gamma) == (7, 0, "exact", 0.999)
    U, energy = stream.basis()
    assert U.shape == (7, 0) and U.dtype == np.float32 and energy == 1
    assert stream.singular_values().shape == (0,)


def test_refusals():
    X = np.ones((4, 5), np.float32)
    for wrong, message in (({"d": 0}, "width 0"), ({"d": 5, "gamma": 2}, "gamma is 2"),
                           ({"d": 5, "gamma": float("nan")}, "gamma"), ({"d": 5, "method": "pca"}, "'pca'")):
        with pytest.raises(ValueError, match=message):
            Stream(**wrong)
    stream = filled([X])
    before = stream.state()
    for wrong, error, message in ((X[0], ValueError, "shape"), (X[:, :4], ValueError, "d = 5"),
                                  (X.astype(np.int64), TypeError, "float32"),
                                  (X.astype(str), TypeError, "float32")):
        with pytest.raises(error, match=message):
            stream.add(wrong)
    X[2, 3] = np.nan
    with pytest.raises(TrainingError, match="row 2, column 3 is nan"):
        stream.add(X)
    with pytest.raises(TrainingError, match="beyond the range of float32"):
        stream.add(np.full((2, 5), 1e25, np.float32))
    with pytest.raises(ValueError, match="orthonormal"):
        stream.basis(np.ones((5, 2), np.float32))
    with pytest.raises(ValueError, match=r"\[d, k\]"):
        stream.basis(np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match="6 columns"):
        stream.basis(np.ones((5, 6), np.float32))
    with pytest.raises(ValueError, match="itself"):
        stream.merge(stream)
    with pytest.raises(ValueError, match="width 6"):
        stream.merge(Stream(6))
    with pytest.raises(ValueError, match="two exact streams"):
        stream.merge(Stream(5, method="isvd"))
    with pytest.raises(TypeError, match="Stream"):
        stream.merge(before)
    with pytest.raises(ValueError, match="15 values"):
        stream.load_state(before[:-1])
    with pytest.raises(TypeError, match="float64"):
        stream.load_state(before.astype(np.float32))
    assert np.array_equal(stream.state(), before)


def test_threads_share_a_stream():
    """Blocks of integers, whose sums are exact in any order: every thread's block is in, whole, once."""
    rng = np.random.default_rng(3)
    features = [rng.integers(-4, 5, (700, 40)).astype(np.float32) for _ in range(8)]
    stream = Stream(40)
    threads = [threading.Thread(target=stream.add, args=(X,)) for X in features]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(stream.state(), filled(features).state())
