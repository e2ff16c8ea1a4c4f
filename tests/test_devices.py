"""The device path. "emulated" runs the CPU's kernels on memory that the host may not touch, to the same bits; "cuda" is a
GPU where there is one, else, where `python setup.py build_cuda_on_host` was run, CUDA's kernels built for the CPU."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from bits import learn
from conftest import SECOND
from paths import ROOT
from test_ops import CASES, DIFFERENTIABLE, SAME, Case, assert_close, difference_gradients, pads, run_case, target_of

from cdad import ContinualModel, TrainingError, _core, preset
from cdad.cli import main

ON_HOST = ROOT / "build/ctests/cuda_on_host.so"
if not os.path.exists("/dev/nvidiactl") and ON_HOST.exists():
    os.environ.setdefault("CDAD_CUDA_LIBRARY", str(ON_HOST))  # read when "cuda" is first opened


@pytest.fixture(params=["emulated", "cuda"])
def device(request):
    """Programs and parameters that the test makes lie there."""
    now = _core.get_device()
    try:
        _core.set_device(request.param)
    except RuntimeError as error:
        pytest.skip(f"no {request.param} device: {error}")
    yield request.param
    _core.set_device(now)


@pytest.fixture
def quick_device(device):
    """One on which whole models run in seconds."""
    if device == "cuda" and os.environ.get("CDAD_CUDA_LIBRARY") == str(ON_HOST):
        pytest.skip("no GPU, and models by CUDA's kernels on the CPU take long")
    return device


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(case, device):
    arrays = case.data()
    # CUDA records the second of three runs, with other arrays, and does it again as the third
    for y, want in zip(run_case(case, arrays, others=2)[0], case.reference(arrays), strict=True):
        assert_close(y, want, case.tol if device == "emulated" else max(case.tol, 1e-5))


@pytest.mark.parametrize("index", DIFFERENTIABLE, ids=lambda i: str(CASES[i]))
def test_gradients(index, device):
    case = CASES[index]
    arrays = case.data()
    _, got = run_case(case, arrays, target_of(case, case.reference(arrays)[0].shape), others=2)
    for g, want in zip(got, difference_gradients(index), strict=True):
        assert_close(g, want, max(case.grad_tol, 2e-5))


@pytest.mark.parametrize("op", ["linear", "conv2d", "attention"])
def test_precision(op, device):
    """Products in float32, bfloat16 and TF32: errors that fit the rounding of factors, where there is one."""
    # Large enough for tensor cores, which cuBLAS may use, and need not.
    shapes = {"linear": ((128, 64), (64, 64), (64,)), "conv2d": ((2, 8, 8, 64), (64, 3, 3, 64), (64,)), "attention": ((2, 64, 64),) * 3}
    case = Case(op, shapes[op], {"pad_t": 1, "pad_l": 1, "pad_b": 1, "pad_r": 1} if op == "conv2d" else {})
    arrays = case.data()
    want = case.reference(arrays)[0].astype(np.float64)
    errors = []
    for precision in range(3):
        other = dataclasses.replace(case, attrs=case.attrs | {"precision": precision})
        y = run_case(other, arrays)[0][0]
        errors.append(np.linalg.norm(y - want) / np.linalg.norm(want))
    # Where linear maps are in bfloat16, the CPU's attention is in float32.
    rounds, steps = [False, op != "attention" or device == "cuda", device == "cuda"], (0, 2**-8, 2**-11)
    for error, rounded, step in zip(errors, rounds, steps, strict=True):
        assert step / 20 < error < 2 * step if rounded else error < 1e-6


# Heads as wide as the fused kernels have them, and less; several tiles of keys and queries, the last ones not full; masks; heads whose
# features do not lie in fours.
HEADS = [
    *(Case("attention", ((2, 70, 2 * d), *((2, 45, 2 * d),) * 2), {"heads": 2}, per_sample=(0, 1, 2)) for d in (20, 39)),
    *(Case("attention", ((1, 70, d), *((1, 77, d),) * 2), per_sample=(0, 1, 2)) for d in (64, 80)),
    *(Case("attention", ((1, 40, d), *((1, 37, d),) * 2), per_sample=(0, 1, 2)) for d in (111, 132, 160)),
    Case("attention", ((1, 130, 40), *((1, 135, 40),) * 2), scale=2.0, per_sample=(0, 1, 2)),
    Case("attention", ((1, 70, 64),) * 3, {"causal": 1}, per_sample=(0, 1, 2)),
    Case("attention", ((1, 42, 160),) * 3, {"grid_h": 7, "grid_w": 6, "mask_h": 3, "mask_w": 5}, per_sample=(0, 1, 2)),
    Case("attention", ((1, 99, 80),) * 3, {"heads": 2, "grid_h": 9, "grid_w": 11, "mask_h": 17, "mask_w": 11}, per_sample=(0, 1, 2)),
    # rows far enough from each other to be met without a look at the mask
    Case("attention", ((1, 192, 40),) * 3, {"grid_h": 12, "grid_w": 16, "mask_h": 5, "mask_w": 3}, per_sample=(0, 1, 2)),
    # too wide for the fused kernels
    Case("attention", ((2, 40, 168), *((2, 37, 168),) * 2), per_sample=(0, 1, 2)),
    Case("attention", ((1, 42, 2 * 168),) * 3, {"heads": 2, "causal": 1, "grid_h": 7, "grid_w": 6, "mask_h": 3, "mask_w": 5}, per_sample=(0, 1, 2)),
    # 41 times the float nearest to 1 / 41 is less than 1
    Case("attention", ((1, 123, 20),) * 3, {"grid_h": 3, "grid_w": 41, "mask_h": 1, "mask_w": 5}, per_sample=(0, 1, 2)),
]


@pytest.mark.parametrize("case", [*(case for case in CASES if case.op == "attention"), *HEADS], ids=str)
@pytest.mark.parametrize("precision, bound", [(0, 2**-17), (1, 2**-6), (2, 2**-8)], ids=["float32", "bfloat16", "tf32"])
def test_attention_in_every_precision(precision, bound, case, device):
    assert_close_to_float32(case, device, precision, bound)


WINDOW = {"pad_t": 1, "pad_l": 1, "pad_b": 1, "pad_r": 1}
# Both factors of a product by rows, by columns and unfolded, four at a time and one by one, in one tile and in several.
ROUNDED_CASES = [
    Case("linear", ((70, 68), (72, 68), (72,))),
    Case("linear", ((3, 65, 67), (71, 67), (71,))),
    Case("conv2d", ((2, 7, 8, 20), (12, 3, 3, 20), (12,)), WINDOW, per_sample=(0,)),
    *(Case("conv2d", ((4, s, s, c), (o, 3, 3, c)), WINDOW) for s, c, o in ((20, 8, 4), (16, 8, 128), (20, 20, 96), (14, 12, 1))),
    Case("conv2d", ((1, 5, 6, 20), (132, 3, 3, 20), (132,)), WINDOW, per_sample=(0,)),
    Case("conv2d", ((1, 6, 5, 132), (8, 3, 3, 132)), WINDOW, per_sample=(0,)),
    Case("conv2d", ((3, 9, 8, 7), (70, 3, 3, 7)), WINDOW | {"stride": 2}),
    Case("conv2d", ((1, 6, 5, 9), (13, 2, 3, 9), (13,)), WINDOW | {"upsample": 2}),
]


@pytest.mark.parametrize("case", ROUNDED_CASES, ids=str)
def test_products_in_bfloat16(case, device):
    assert_close_to_float32(case, device, 1, 2**-6)


def assert_close_to_float32(case, device, precision, bound):
    """Values and gradients beside float32's of the CPU."""
    arrays = case.data()
    _core.set_device("cpu")
    target = target_of(case, case.reference(arrays)[0].shape)
    values, grads = run_case(case, arrays, target)
    _core.set_device(device)
    other = dataclasses.replace(case, attrs=case.attrs | {"precision": precision})
    rounded_values, rounded_grads = run_case(other, arrays, target, others=2)
    for a, b in zip((*rounded_values, *rounded_grads), (*values, *grads), strict=True):
        finite = np.isfinite(b)
        np.testing.assert_array_equal(np.isfinite(a), finite)
        assert np.linalg.norm(a[finite] - b[finite]) < bound * np.linalg.norm(b[finite])
    if device == "cuda" and precision:  # the CPU computes some of them in float32
        assert np.linalg.norm(rounded_values[0] - values[0]) > bound / 64 * np.linalg.norm(values[0])


# What CUDA cuts into tiles or gives to warps (csrc/kernels/cuda/reduce.cu, layer_norm.cu, group_norm.cu): one number of many, few
# columns and wide ones beside dimensions that stay, sums that do not lie together; rows that a warp holds, full, not full, several, and
# too wide; groups of several tiles, with channels four at a time and one, and with widths that four do not divide.
ROWS = ((3, 4), (1050, 4), (9, 132), (20, 320), (3, 516), (5, 1024), (9, 1280), (3, 1284))
GROUPS = (((9, 20), 320, 32), ((10, 13), 130, 2), ((70, 70), 8, 4), ((70, 70), 6, 1), ((3, 3), 64, 2))
TILED = [
    Case("reduce_sum", ((3, 41000),), {"axes": 0b11}),
    *(Case("reduce_sum", ((2, rows, C),), {"axes": 0b010}) for rows, C in ((900, 33), (2500, 3), (7, 130), (1, 5))),
    *(Case("reduce_sum", ((2, rows, 3, 40),), {"axes": 0b1010}) for rows in (5, 300)),
    *(Case("layer_norm", ((n, C), (C,), (C,))) for n, C in ROWS),
    Case("layer_norm", ((9, 200), None, None)),
    *(Case("group_norm", ((2, *size, C), (C,), (C,)), {"groups": groups, "silu": C % 4 // 2}) for size, C, groups in GROUPS),
]


@pytest.mark.parametrize("case", TILED, ids=str)
def test_tiles(case, device):
    """Values and gradients beside the CPU's."""
    arrays = case.data()
    target = target_of(case, case.reference(arrays)[0].shape)
    _core.set_device("cpu")
    want, grads = run_case(case, arrays, target)
    _core.set_device(device)
    values, others = run_case(case, arrays, target)
    for y, other in zip((*values, *others), (*want, *grads), strict=True):
        assert_close(y, other, 2e-5)  # the CPU's means, near zero, have a float sum's errors


@pytest.mark.parametrize("op, shape, attrs", [("layer_norm", (5, 320), {}), ("group_norm", (2, 20, 20, 32), {"groups": 2})])
def test_a_mean_far_from_zero(op, shape, attrs, device):
    """The variance is of distances from the mean, or as good as that."""
    x = 1000 + np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    ones = np.ones(shape[-1], np.float32)
    y, mean, rstd = run_case(Case(op, (shape, ones.shape, ones.shape), attrs), [x, ones, 0 * ones])[0]
    wide = x.astype(np.float64).reshape(shape[0], -1, attrs.get("groups", 1), shape[-1] // attrs.get("groups", 1))
    assert_close(mean.ravel(), wide.mean((1, 3)).astype(np.float32).ravel(), 1e-7)
    assert_close(rstd.ravel(), (1 / np.sqrt(wide.var((1, 3)) + 1e-5)).astype(np.float32).ravel(), 1e-6)
    normal = (wide - wide.mean((1, 3), keepdims=True)) / np.sqrt(wide.var((1, 3), keepdims=True) + 1e-5)
    assert np.abs(y.reshape(wide.shape) - normal).max() < 1e-4  # half a step of the mean


# CUDA's convolutions on tensor cores: channels that end within a chunk, odd counts of results, sums in parts, and every tile, which on the
# CPU are chosen for far fewer results than on a GPU, in both layouts of the weight.
CONVOLUTIONS = [
    Case("conv2d", ((2, 9, 11, 20), (36, 3, 3, 20), (36,)), SAME),
    Case("conv2d", ((2, 9, 11, 36), (64, 3, 3, 36), (64,)), {"stride": 2} | SAME),
    Case("conv2d", ((2, 6, 5, 12), (20, 3, 3, 12), None), {"stride": 2} | pads(0, 0, 1, 1)),
    Case("conv2d", ((1, 5, 7, 64), (37, 3, 3, 64), (37,)), {"upsample": 2} | SAME),
    Case("conv2d", ((3, 17, 9, 4), (33, 5, 3, 4), (33,)), pads(0, 2, 1, 0)),
    Case("conv2d", ((2, 7, 5, 8), (16, 1, 1, 8), None), {"stride": 2}),
    Case("conv2d", ((1, 20, 20, 4), (164, 3, 3, 4), (164,)), SAME),
    Case("conv2d", ((1, 20, 20, 164), (4, 3, 3, 164), None), SAME),
    Case("conv2d", ((2, 12, 13, 4), (140, 3, 3, 4), (140,)), SAME),
    Case("conv2d", ((2, 12, 13, 140), (4, 3, 3, 140), None), SAME),
    Case("conv2d", ((3, 16, 16, 8), (132, 3, 3, 8), (132,)), SAME),
    Case("conv2d", ((3, 16, 16, 132), (8, 3, 3, 132), None), SAME),
    Case("conv2d", ((4, 16, 16, 8), (128, 3, 3, 8), (128,)), SAME),
    Case("conv2d", ((4, 16, 16, 128), (8, 3, 3, 128), None), SAME),
    Case("conv2d", ((1, 3, 3, 128), (100, 3, 3, 128), (100,)), SAME),
    Case("conv2d", ((1, 3, 3, 256), (21, 3, 3, 256), (21,)), SAME),
]
# Those that csrc/kernels/cuda/conv_hopper.cu takes, in values or in the gradient of the input: both widths of tiles, one chunk of channels
# and several, patches that are not full, several images, an enlarged one.
PATCHES = [
    Case("conv2d", ((1, 16, 16, 32), (128, 3, 3, 32), (128,)), SAME),
    Case("conv2d", ((2, 20, 28, 96), (128, 3, 3, 96), (128,)), SAME),
    Case("conv2d", ((2, 17, 15, 32), (320, 3, 3, 32), None), SAME),
    Case("conv2d", ((1, 13, 18, 128), (96, 3, 3, 128), None), SAME),
    Case("conv2d", ((3, 14, 16, 160), (64, 3, 3, 160), (64,)), SAME),
    Case("conv2d", ((1, 12, 14, 64), (256, 3, 3, 64), (256,)), {"upsample": 2} | SAME),
]
# The same in bfloat16, of which it has twice as many channels at a time.
ROUNDED_PATCHES = [
    Case("conv2d", ((1, 16, 16, 64), (128, 3, 3, 64), (128,)), SAME),
    Case("conv2d", ((2, 20, 28, 192), (128, 3, 3, 192), (128,)), SAME),
    Case("conv2d", ((2, 17, 15, 64), (320, 3, 3, 64), None), SAME),
    Case("conv2d", ((1, 13, 18, 128), (96, 3, 3, 128), None), SAME),
    Case("conv2d", ((3, 14, 16, 320), (64, 3, 3, 320), (64,)), SAME),
    Case("conv2d", ((1, 12, 14, 64), (256, 3, 3, 64), (256,)), {"upsample": 2} | SAME),
    Case("conv2d", ((2, 16, 16, 32), (128, 3, 3, 32), (128,)), SAME),  # too few channels
]


# Enough of them for a GPU.
MANY_PATCHES = [
    Case("conv2d", ((12, 60, 64, 128), (160, 3, 3, 128), (160,)), SAME),
    Case("conv2d", ((8, 30, 32, 64), (256, 3, 3, 64), (256,)), {"upsample": 2} | SAME),
]


def assert_close_when_rounded(case, device, precision):
    """Values and gradients beside float32's of the CPU. ``precision``: 1 is bfloat16, 2 TF32."""
    arrays = case.data()
    _core.set_device("cpu")
    target = target_of(case, run_case(case, arrays)[0][0].shape)
    (want,), grads = run_case(case, arrays, target)
    _core.set_device(device)
    other = dataclasses.replace(case, attrs=case.attrs | {"precision": precision})
    (y,), y_grads = run_case(other, arrays, target)
    for a, b in zip((y, *y_grads), (want, *grads), strict=True):
        assert np.linalg.norm(a - b) < (2**-7 if precision == 1 else 2**-10) * np.linalg.norm(b)


@pytest.mark.parametrize("case", [*CONVOLUTIONS, *PATCHES], ids=str)
def test_conv2d_in_tf32(case, device):
    assert_close_when_rounded(case, device, 2)


@pytest.mark.parametrize("case", ROUNDED_PATCHES, ids=str)
def test_conv2d_by_patches_in_bfloat16(case, device):
    assert_close_when_rounded(case, device, 1)


@pytest.mark.parametrize("precision", [1, 2])
@pytest.mark.parametrize("case", MANY_PATCHES, ids=str)
def test_conv2d_of_many_patches(case, precision, quick_device):
    assert_close_when_rounded(case, quick_device, precision)


# 36 and 132 columns are added to four at a time, 21 one by one; 128 channels are summed in parts, 132 columns in bfloat16 gathered, and 133
# multiplied where there is room for 136; 128 and 160 of a larger image are conv_hopper.cu's.
PRODUCTS = [(0, 8, 36), (0, 8, 21), (1, 8, 132), (1, 8, 133), (2, 8, 36), (2, 8, 21), (2, 128, 36), (2, 32, 128), (2, 32, 160), (1, 64, 160)]


@pytest.mark.parametrize("precision, channels, outputs", PRODUCTS)
@pytest.mark.parametrize("op", ["conv2d", "linear"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_what_ends_a_product(op, activation, precision, channels, outputs, device):
    """Bias, a sum and an activation, of several tiles of rows."""
    rng = np.random.default_rng(0)
    if op == "conv2d":
        size = (14, 17) if channels in (32, 64) else (5, 6)
        shapes, how = ((1, *size, channels), (outputs, 3, 3, channels), (outputs,), (1, *size, outputs)), SAME
    else:
        shapes, how = ((130, 9 * channels), (outputs, 9 * channels), (outputs,), (130, outputs)), {}
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    found = []
    for name, rounding in (("cpu", 0), (device, precision)):
        _core.set_device(name)
        graph = _core.Graph()
        inputs = [graph.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
        (y,) = graph.op("add", [graph.op(op, inputs[:3], precision=rounding, **how)[0], inputs[3]])
        (y,) = graph.op(activation, [y]) if activation else (y,)
        found.append(graph.compile([y]).run(dict(zip(inputs, arrays, strict=True)))[0])
    want, y = found
    assert np.linalg.norm(y - want) < (1e-6, 2**-7, 2**-10)[precision] * np.linalg.norm(want)


@pytest.mark.parametrize("n", [1, 16385, 5 * 2**20, 9 * 2**20 + 3])
def test_large_arrays_come_back(n, device):
    """Sizes about those of the pieces in which CUDA's downloads come (csrc/kernels/cuda/memory.cu)."""
    given = np.random.default_rng(0).random(n, np.float32)
    there = _core.DeviceArray(given, device)
    assert np.array_equal(there.numpy(), given) and np.array_equal(there.numpy(), given)


def test_products_of_one_factor(device):
    """What rounds a factor once for products in a row: other factors between them, and new values in the same place, are seen."""
    rng = np.random.default_rng(0)
    shapes = {"x": (64, 64), "y": (64, 64), "p": (65, 64), "q": (72, 64), "r": (64, 64), "x2": (1, 64, 64)}
    graph = _core.Graph()
    x, y, p, q, r, again = (graph.input(name, shape) for name, shape in shapes.items())
    pairs = [(x, p), (x, q), (y, p), (x, r), (again, q)]
    outputs = [graph.op("linear", list(pair), precision=1)[0] for pair in pairs]
    last = graph.op("linear", [outputs[3], r], precision=1)[0]  # of what was an output
    program = graph.compile([*outputs, last, graph.op("linear", [outputs[3], q], precision=1)[0]])
    alone = graph.compile(outputs[1:2])  # its last product is its first
    for _ in range(4):
        arrays = {v: rng.standard_normal(shape, np.float32) for v, shape in zip((x, y, p, q, r, again), shapes.values(), strict=True)}
        results = program.run(arrays)
        factors = [*((arrays[a], arrays[b]) for a, b in pairs), (results[3], arrays[r]), (results[3], arrays[q])]
        for got, (a, b) in zip(results, factors, strict=True):
            assert np.linalg.norm(got - a @ b.T) < 2**-7 * np.linalg.norm(got)
        for factor in (arrays[y], arrays[x]):
            (got,) = alone.run({x: factor, q: arrays[q]})
            assert np.linalg.norm(got - factor @ arrays[q].T) < 2**-7 * np.linalg.norm(got)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_conv2d_in_tf32_keeps_what_is_not_finite(bad, device):
    x, w = np.ones((1, 6, 6, 8), np.float32), np.ones((4, 3, 3, 8), np.float32)
    x[0, 2, 3, 5] = bad
    case = Case("conv2d", (x.shape, w.shape, None), {"precision": 2} | SAME)
    finite = np.isfinite(run_case(case, [x, w, None])[0][0])
    assert not finite[0, 1:4, 2:5].any() and finite.sum() == finite.size - 9 * 4


@pytest.mark.parametrize("op", ["silu", "relu", "relu6", "gelu", "quick_gelu", "tanh", "sigmoid", "exp", "sqrt"])
def test_activations_keep_nan(op, device):
    y = run_case(Case(op, ((5,),)), [np.array([np.nan, 1, 2, np.nan, 7], np.float32)])[0][0]
    np.testing.assert_array_equal(np.isnan(y), [True, False, False, True, False])


@pytest.mark.parametrize("precision", range(3))
def test_attention_keeps_nan(precision, device):
    q, k, v = (np.ones((1, 5, 8), np.float32) for _ in range(3))
    q[0, 2, 3] = np.nan
    y, lse = run_case(Case("attention", (q.shape,) * 3, {"precision": precision}), [q, k, v])[0]
    assert np.isnan(y[0, 2]).all() and np.isnan(lse[0, 0, 2])
    assert np.isfinite(np.delete(y, 2, axis=1)).all() and np.isfinite(np.delete(lse, 2, axis=2)).all()


@pytest.mark.parametrize("precision", range(3))
def test_attention_far_below_zero(precision, device):
    """Powers of what is beyond the last key would be infinite."""
    case = Case("attention", ((1, 21, 16), *((1, 37, 16),) * 2), {"precision": precision})
    q, k, v = case.data()
    y, grads = run_case(case, [q + 30, k - 30, v], np.ones(q.shape, np.float32))
    assert all(np.isfinite(x).all() for x in (*y, *grads))


@pytest.mark.parametrize("width", [20, 64, 80, 160, 168])
def test_attention_of_large_scores(width, device):
    """Far beyond what float32 tells from the next: in both directions they are the same, or there is no probability."""
    case = Case("attention", ((2, 21, width), *((2, 37, width),) * 2))
    q, k, v = case.data()
    given, target = [1e4 * q, 1e4 * k, v], np.ones(q.shape, np.float32)
    _core.set_device("cpu")
    (want, *_), wanted = run_case(case, given, target)
    _core.set_device(device)
    (y, *_), grads = run_case(case, given, target)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grads[2], wanted[2], rtol=1e-5, atol=1e-5)
    assert all(np.isfinite(x).all() for x in grads)


# Wider than a strip of CUDA's products (1024 columns); more rows than a float32 sum takes in (1536).
@pytest.mark.parametrize(
    "method, d, rows",
    [("exact", 1100, 40), ("exact", 40, 1800), ("sketch", 1100, 40), ("sketch", 40, 1800), ("sketch", 500, 700), ("incremental", 40, 120), ("isvd", 40, 120)],
)
def test_streams_take_features_of_a_device(method, d, rows, device):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 8), np.float32) @ rng.standard_normal((8, d), np.float32)
    X += 0.01 * rng.standard_normal((rows, d), np.float32)
    here, there = (_core.Stream(d, method, 0.99) for _ in range(2))
    for part in (X[:10], X[10:]):
        here.add(part)
        there.add(_core.DeviceArray(part))
        if method != "isvd":
            assert there.energy[0] == pytest.approx(np.sum(np.float64(X[: there.rows]) ** 2), rel=1e-6)
    off = 1e-5 * rows if device == "cuda" and method == "exact" else 0
    if method == "sketch":  # sums in float32, of other blocks
        off = 2e-6 * np.abs(here.state()[2:]).max()
    np.testing.assert_allclose(there.state(), here.state(), rtol=1e-12, atol=off)
    there.add(_core.DeviceArray(X))
    there.load_state(here.state())  # in place of what is on the device
    np.testing.assert_array_equal(there.state(), here.state())
    (U, energy), (V, other) = there.basis(), here.basis()
    assert U.shape == V.shape and energy == pytest.approx(other, rel=1e-6)
    assert np.linalg.norm(U - V @ (V.T @ U)) < 1e-4 * np.sqrt(U.shape[1])


# A sketch's test vectors: 40 unit vectors and 32 checks, two ends of each, and two signs a feature. Its sum: their products, and the total.
@pytest.mark.parametrize("method, up, down", [("exact", 0, 8 * 40 * 40), ("sketch", 4 * (2 * 72 + 2 * 40), 8 + 4 * 72 * 40)])
def test_features_of_streams_that_a_device_sums_do_not_cross(method, up, down, device):
    """But for a number that tells whether they are finite; their sum does, once."""
    stream, X = _core.Stream(40, method, 0.99), _core.DeviceArray(np.random.default_rng(0).standard_normal((300, 40), np.float32))
    told = [_core.device_traffic(device)]
    for do in (lambda: stream.add(X), lambda: stream.add(X), stream.state, stream.state):
        do()
        told.append(_core.device_traffic(device))
    assert np.diff([of["uploaded"] for of in told]).tolist() == [up, 0, 0, 0]
    assert np.diff([of["downloaded"] for of in told]).tolist() == [8, 8, down, 0]


@pytest.mark.parametrize("method", ["exact", "sketch"])
def test_features_go_to_the_host_where_the_device_has_no_memory_for_their_sums(method):
    config, rng = preset("tiny"), np.random.default_rng(0)
    core, bases = config.denoiser(), []
    latent = rng.standard_normal((1, *core["latent_size"], core["unet"]["in_channels"]), np.float32)
    image = rng.random((1, *core["image_size"], 3), np.float32)
    for limited in (False, True):
        params = _core.Params("emulated")
        sampler = _core.Sampler(params, core, 1)
        params.allocate(0)
        sampler.denoise(image, latent, None, steps=2)
        collector = _core.Collector(sampler, method, 0.9)
        _core.limit_device_memory((_core.device_memory("emulated")["used"] + 100_000) * limited, "emulated")
        try:
            sampler.denoise(image, latent, None, steps=2)
        finally:
            _core.limit_device_memory(0, "emulated")
        bases.append(collector.bases({}))
    for name, (U, energy, capped) in bases[0].items():
        V, other, also = bases[1][name]
        assert U.shape == V.shape and energy == pytest.approx(other, rel=1e-5) and capped == also, name
        if method == "exact":
            assert np.array_equal(U, V) and energy == other, name
        else:  # there and here in turns, each a sum in float32
            assert np.linalg.norm(U - V @ (V.T @ U)) < 1e-3 * np.sqrt(U.shape[1]), name


def test_what_a_stream_refuses_of_a_device(device):
    stream = _core.Stream(4)
    with pytest.raises(ValueError, match=r"features has shape \[2,5\]; \[rows, d\] with d = 4 is wanted"):
        stream.add(_core.DeviceArray(np.zeros((2, 5), np.float32)))
    with pytest.raises(TrainingError, match="features: not all are finite"):
        stream.add(_core.DeviceArray(np.array([[0, 1, np.inf, 2]], np.float32)))
    assert stream.rows == 0


def test_a_program_is_recorded_where_that_can_be(device):
    graph = _core.Graph()
    x = graph.input("x", (2, 6))
    shared = graph.op("silu", [x])[0]
    program = graph.compile(graph.op("mul", [shared, graph.const(np.full((2, 6), 3, np.float32))]))
    told = []
    for k in range(4):
        given = np.full((2, 6), k, np.float32)
        assert_close(program.run({x: given})[0], 3 * given / (1 + np.exp(-given)), 1e-6)
        told.append(program.recorded)
    assert told == ([False, True, True, True] if device == "cuda" else [False] * 4)


def test_memory_of_a_device_is_counted_and_can_be_limited(device):
    graph = _core.Graph()
    x = graph.input("x", (64, 1024))
    outputs = graph.op("silu", [x])
    before = _core.device_memory()["used"]
    program = graph.compile(outputs)
    given = np.ones((64, 1024), np.float32)
    program.run({x: given})
    taken = _core.device_memory()["used"] - before
    assert 2 * given.nbytes <= taken < 2.1 * given.nbytes + 2**16
    try:
        _core.limit_device_memory(before + taken + 1000)
        with pytest.raises(MemoryError, match="would pass the limit"):
            graph.compile(outputs)
        assert program.run({x: given})[0].shape == given.shape  # what is there goes on
        assert _core.device_memory()["limit"] == before + taken + 1000
    finally:
        _core.limit_device_memory(0)
    del program
    told = _core.device_memory(device, True)
    assert told["used"] == before and told["peak"] >= before + taken
    assert _core.device_memory(device)["peak"] == before


def test_memory_of_the_host_is_not_counted():
    for call in (lambda: _core.device_memory("cpu"), lambda: _core.limit_device_memory(1, "cpu")):
        with pytest.raises(ValueError, match="is not counted"):
            call()
    with pytest.raises(ValueError, match="a limit of -1 bytes"):
        _core.limit_device_memory(-1, "emulated")


@pytest.mark.parametrize("bad", [-1.0, 7.0, 2.5, np.nan])
def test_an_id_of_no_row(bad, device):
    tokens = next(case for case in CASES if case.op == "token_embedding")
    ids, table = tokens.data()
    ids[-1, -1] = bad
    with pytest.raises(ValueError, match=r"token_embedding: an id is not one of 0 \.\. 6"):
        run_case(tokens, [ids, table])


def second_task(checkpoint, products, device: str) -> tuple[ContinualModel, dict[str, np.ndarray]]:
    """The model after its second task, and its blocks."""
    model = ContinualModel.load(checkpoint, device=device)
    assert model.params.device.partition(":")[0] == device
    return model, learn(model, [products[name] for name in SECOND])


def test_a_task(first_checkpoint, products, tmp_path, quick_device):
    """Training with projection, sampling, representations, calibration and files: on the emulated device, whose memory the host may
    not touch, to the same bits, and on a GPU up to rounding, which AdamW makes the larger the smaller a gradient is. Moments, which
    follow the latest gradients, are apart by 11 % there."""
    exact = quick_device == "emulated"
    here, blocks = second_task(first_checkpoint, products, "cpu")
    there, others = second_task(first_checkpoint, products, quick_device)
    first = ContinualModel.load(first_checkpoint, device="cpu")._trainer.block("weights")
    for name, block in blocks.items():
        moved = np.linalg.norm(block - first if name == "weights" else block)
        assert np.linalg.norm(others[name] - block) <= (0 if exact else (0.05 if name == "weights" else 0.25) * moved), name
    assert {name: U.shape[1] for name, U in there.bases.items()} == pytest.approx(
        {name: U.shape[1] for name, U in here.bases.items()}, rel=0 if exact else 0.1, abs=0 if exact else 2
    )
    images = [sample.path for sample in products[SECOND[0]].test[:2]]

    def alike(found, wanted):
        return np.array_equal(found, wanted) if exact else np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)

    assert alike(there.predict(images).maps, here.predict(images).maps)
    there.save(tmp_path / "there")
    back = ContinualModel.load(tmp_path / "there", device="cpu")
    assert np.array_equal(back._trainer.block("weights"), others["weights"])
    assert alike(back.predict(images).maps, there.predict(images).maps)
    if exact:
        assert all(np.array_equal(U, there.bases[name]) for name, U in here.bases.items())
    with pytest.raises(ValueError, match="read-only"):
        there.params[next(iter(there.bases))][...] = 0.0


# So small that CUDA's kernels on the CPU take a second for a step.
SMALLEST = {"image_size": 32, "unet.model_channels": 16, "unet.channel_mult": [1], "unet.num_res_blocks": 1, "unet.attention_resolutions": []}
SMALLEST |= {"amn.hidden": [8] * 7, "amn.n_layers": 1, "amn.dim_feedforward": 16, "amn.num_heads": 1}


def train_beside_the_cpu(device, precision, steps, changes=None):
    """What a small model's steps tell, [steps, 4], and its weights after them, on the CPU and on the device."""
    config, rng = preset("tiny").updated({"precision": precision} | (changes or {})), np.random.default_rng(0)
    c = config.denoiser()
    latent = rng.standard_normal((1, *c["latent_size"], c["unet"]["in_channels"]), np.float32)
    image = rng.random((1, *c["image_size"], 3), np.float32)
    told = {}
    for name in ("cpu", device):
        trainer = _core.Trainer(_core.Params(name), c, 1, config.optimizer(), 0)
        told[name] = np.array([trainer.step(latent, image, image) for _ in range(steps)]), np.array(trainer.block("weights"), np.float64)
    return told["cpu"], told[device]


def test_training_steps(device):
    (told, weights), (found, others) = train_beside_the_cpu(device, "float32", 3, SMALLEST)
    np.testing.assert_allclose(found, told, rtol=1e-5)
    assert np.linalg.norm(others - weights) < 1e-4 * np.linalg.norm(weights)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "tf32"])
def test_updates_stay_in_their_span(precision, device):
    """To what float32 weights can hold, however the factors of products are rounded."""
    wide = {"image_size": 16, "unet.model_channels": 64, "precision": precision, "training.clip_norm": 0.0, "training.ema_decay": 0.0, "training.lr": 1e-2}
    config, rng = preset("tiny").updated(SMALLEST | wide), np.random.default_rng(0)
    c, params = config.denoiser(), _core.Params(device)
    latent = rng.standard_normal((1, *c["latent_size"], c["unet"]["in_channels"]), np.float32)
    image = rng.random((1, *c["image_size"], 3), np.float32)
    trainer, spans, rows = _core.Trainer(params, c, 1, config.optimizer(), 0), {}, {}
    for name, shape in params.shapes().items():
        if not params[name].any():  # zeros at first: no gradient would come from them
            params[name] = 0.05 * rng.standard_normal(shape, np.float32)
        d = int(np.prod(shape[1:]))
        if len(shape) > 1 and shape[0] >= 64 and d >= 256:  # as large as GPUs round products
            if d not in rows:
                rows[d] = np.ascontiguousarray(np.linalg.qr(rng.standard_normal((d, d // 4)))[0].T, np.float32)
            spans[name] = rows[d]
            trainer.confine(name, spans[name])
        else:
            trainer.protect(name, frozen=True)
    before = {name: params[name].astype(np.float64) for name in spans}
    trainer.step(latent, image, image)
    moved = 0
    for name, V in spans.items():
        dW = (params[name] - before[name]).reshape(len(before[name]), -1)
        moved += dW.any()
        assert np.linalg.norm(dW - dW @ V.T.astype(np.float64) @ V) <= 1e-5 * np.linalg.norm(dW), name
    assert moved >= 3


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_blocks_of_weights_cross_when_they_are_set_or_read(clip_norm, device):
    """And not in each step, under a penalty, a path integral and a teacher; nor for each sample whose magnitudes are added up."""
    config, rng = preset("tiny").updated(SMALLEST | {"training.clip_norm": clip_norm}), np.random.default_rng(0)
    c, params = config.denoiser(), _core.Params(device)
    latent = rng.standard_normal((1, *c["latent_size"], c["unet"]["in_channels"]), np.float32)
    image = rng.random((1, *c["image_size"], 3), np.float32)
    trainer = _core.Trainer(params, c, 1, config.optimizer(), 0, distill=True)
    start, lone = trainer.block("weights"), _core.Trainer(params, c, 1, None, 0)

    def crossed(do) -> int:
        before = sum(_core.device_traffic(device).values())
        do()
        return sum(_core.device_traffic(device).values()) - before

    assert crossed(lambda: trainer.block("weights")) == start.nbytes
    assert crossed(lambda: trainer.penalize(0 * start + 1, start, 1.0)) == 2 * start.nbytes
    assert crossed(lambda: trainer.follow(True)) == 0
    assert crossed(lambda: trainer.teach(start)) == start.nbytes
    for _ in range(2):  # the batch crosses, twice for the teacher
        assert 0 < crossed(lambda: trainer.step(latent, image, image)) < start.nbytes / 2
        assert 0 < crossed(lambda: lone.magnitudes(latent, image, image, latent, [500])) < start.nbytes / 2
    read = []
    assert crossed(lambda: read.extend((trainer.block("path"), lone.block("sums")))) == 2 * start.nbytes
    assert all(block.any() for block in read)


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("extra", [False, True], ids=["plain", "pulled"])
def test_a_step_of_held_gradients_is_adamw(extra, moments, device):
    """Beside float64: clipped; with an average, a penalty and a path, or without."""
    config = preset("tiny").updated(SMALLEST | {"training.moments": moments, "training.ema_decay": 0.5 if extra else 0.0})
    rng, optimizer = np.random.default_rng(0), config.optimizer() | {"clip_norm": 0.1, "weight_decay": 0.1}
    c, params = config.denoiser(), _core.Params(device)
    latent = rng.standard_normal((1, *c["latent_size"], c["unet"]["in_channels"]), np.float32)
    image = rng.random((1, *c["image_size"], 3), np.float32)
    trainer = _core.Trainer(params, c, 1, optimizer, 0)
    start = np.array(trainer.block("weights"))
    importance, anchor = rng.random(start.size, np.float32), start + 0.1 * rng.standard_normal(start.size, np.float32)
    if extra:
        trainer.penalize(importance, anchor, 0.5)
        trainer.follow(True)
    trainer.set_block("v", np.full_like(start, 1e-3))
    trainer.age = 9
    norm = trainer.step(latent, image, image)[3]
    names = ["m", "v", "weights", *(["ema", "path"] if extra else [])]
    found = {name: np.array(trainer.block(name)) for name in names}
    if moments == "bfloat16":
        found["m"] = (found["m"].astype(np.uint32) << 16).view(np.float32)

    def block_of(values) -> np.ndarray:
        for name, value in values.items():
            params[name] = value
        return np.array(trainer.block("weights"), np.float64)

    trainer.set_block("weights", start)
    gradients = trainer.gradients(latent, image, image, *trainer.drawn())[3]
    g, there = block_of(gradients), block_of({name: np.ones_like(value) for name, value in gradients.items()}) == 1  # not between them
    pulled = g + 0.5 * importance * (start.astype(np.float64) - anchor) * extra
    whole = np.linalg.norm(pulled[there])
    assert norm == pytest.approx(whole, rel=1e-5) and norm > 0.1
    scaled, w = pulled * 0.1 / whole, start.astype(np.float64)
    m, v = 0.1 * scaled, 0.999 * 1e-3 + 0.001 * scaled**2
    change = -optimizer["lr"] * (m / (1 - 0.9**10) / (np.sqrt(v / (1 - 0.999**10)) + 1e-8) + 0.1 * w)
    want = {"m": m, "v": v, "weights": w + change, "ema": w + 0.5 * change, "path": -g * change}
    for name in names:
        far = found[name][there] - want[name][there]
        size = np.linalg.norm(change[there]) if name in ("weights", "ema") else np.linalg.norm(want[name][there])
        # weights are about 1e-7 of themselves off, and change by some 1e-4
        assert np.linalg.norm(far) < (2**-8 if name == "m" and moments == "bfloat16" else 2e-3 if size < 1e-1 else 1e-4) * size, name


@pytest.mark.parametrize("precision, step, curve", [("float32", 1e-4, 2e-2), ("tf32", 1e-2, 5e-2), ("bfloat16", 2e-2, 5e-2)])
def test_a_hundred_steps(precision, step, curve, quick_device):
    """Losses: each of the first five, and of a hundred the means of tens, through which rounding grows."""
    (told, weights), (found, others) = train_beside_the_cpu(quick_device, precision, 100)
    np.testing.assert_allclose(found[:5, :3], told[:5, :3], rtol=step)
    np.testing.assert_allclose(*(losses[:, :3].reshape(10, 10, 3).mean(axis=1) for losses in (found, told)), rtol=curve)
    assert np.linalg.norm(others - weights) < 0.1 * np.linalg.norm(weights)


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="no device 'tpu'"):
        ContinualModel("tiny", device="tpu")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CDAD_CUDA_LIBRARY": "/nowhere/_cuda.so"}, "no CUDA backend: /nowhere/_cuda.so is not there"),
        ({"CDAD_CUDA_LIBRARY": __file__}, "cannot be loaded"),
        ({"CDAD_CUDA_LIBRARY": "libm.so.6"}, "is not there"),
    ],
)
def test_why_there_is_no_cuda(environment, message):
    code = "import cdad\ntry:\n    cdad.set_device('cuda')\nexcept RuntimeError as error:\n    print(error)"
    told = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert message in told.stdout, told.stderr


@pytest.mark.skipif(not ON_HOST.exists(), reason="build_cuda_on_host was not run")
@pytest.mark.parametrize(("error", "message"), [(100, "finds no GPU"), (35, "is for CUDA 13.0"), (999, "an error")])
def test_why_the_driver_has_no_gpu(error, message):
    environment = os.environ | {"CDAD_CUDA_LIBRARY": str(ON_HOST), "CDAD_ON_HOST_ERROR": str(error)}
    for command in (["info", "--device", "cuda"], ["doctor"]):
        done = subprocess.run([sys.executable, "-m", "cdad", *command], env=environment, capture_output=True, text=True)
        assert message in done.stdout + done.stderr
        assert done.returncode == (command[0] == "info")


def test_doctor_says_what_is_found(capsys):
    assert main(["doctor", "--device", "cuda:7"]) == 0  # it is asked because that fails
    told = capsys.readouterr().out
    assert "cuBLAS" in told and (told.startswith("cuda:7: ") or "device cuda:7\n" in told)
    environment = os.environ | {"CDAD_DEVICE": "foo"}
    done = subprocess.run([sys.executable, "-m", "cdad", "doctor"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "CDAD_DEVICE: " in done.stdout and "foo" in done.stdout.split("CDAD_DEVICE: ")[1].splitlines()[0]
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "CDAD_DEVICE: " not in told or os.environ.get("CDAD_DEVICE")
    assert all(what in told for what in ("CUDA backend", "NVIDIA driver", "cuBLAS"))
    assert ("cuda can be used" in told) != ("cuda cannot be used" in told)
