"""Every op against float64 NumPy: values, gradients, refused shapes, and bits that stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pytest
import reference
from bits import assert_same

from cdad import _core

NO_GRAD, STOP = 1, 8  # enum in csrc/graph/op.h
BATCH = 4  # a power of two: the loss' mean over the batch then scales gradients without rounding


@dataclass(frozen=True)
class Case:
    """One call of an op; a shape of None is an absent input."""

    op: str
    shapes: tuple
    attrs: dict = field(default_factory=dict)
    tol: float = 2e-6  # of the values, relative, by norm
    grad_tol: float = 1e-5  # of the gradients, the same
    low: float | None = None  # inputs are uniform in [low, low + 2] instead of normal
    scale: float = 1.0
    per_sample: tuple = (0,)  # inputs whose first dimension is the batch; () when samples are not independent
    summed: tuple = ()  # outputs that sum over the batch
    ids: int = 0  # input 0 holds whole numbers below this, and has no gradient

    def __str__(self) -> str:
        shapes = " ".join("-" if s is None else "x".join(map(str, s)) or "scalar" for s in self.shapes)
        attrs = " ".join(f"{k}={v:g}" for k, v in self.attrs.items())
        return f"{self.op} {shapes} {attrs}".strip()

    def data(self, batch: int | None = None) -> list:
        """The inputs, float32; with `batch`, per-sample inputs have that many samples."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        arrays = []
        for i, shape in enumerate(self.shapes):
            if shape is not None and batch and i in self.per_sample:
                shape = (batch, *shape[1:])
            if shape is None:
                arrays.append(None)
            elif i == 0 and self.ids:
                arrays.append(rng.integers(self.ids, size=shape).astype(np.float32))
            elif self.low is not None:
                arrays.append(np.asarray(rng.uniform(self.low, self.low + 2.0, shape), np.float32))
            else:
                arrays.append(np.asarray(self.scale * rng.standard_normal(shape), np.float32))
        return arrays

    def reference(self, arrays: list) -> tuple:
        wide = [None if a is None else a.astype(np.float64) for a in arrays]
        y = getattr(reference, self.op)(*wide, **self.attrs)
        return y if isinstance(y, tuple) else (y,)


def pads(t, left, b, r):
    return {"pad_t": t, "pad_l": left, "pad_b": b, "pad_r": r}


SAME = pads(1, 1, 1, 1)
MASK = {"heads": 2, "grid_h": 3, "grid_w": 5, "mask_h": 3, "mask_w": 3}
ROUNDED = {"tol": 2**-8, "grad_tol": 2**-8}  # factors to bfloat16, whose steps are 2^-8; see csrc/tests/test_epilogue.c
ACTIVATIONS = ("silu", "relu", "relu6", "gelu", "quick_gelu", "tanh", "sigmoid", "exp")

CASES = (
    Case("linear", ((2, 3, 7), (5, 7), (5,))),
    Case("linear", ((2, 37), (33, 37), None)),
    Case("linear", ((2, 4, 3), (2, 3))),
    Case("linear", ((2, 1), (1, 1), (1,))),
    Case("linear", ((2, 3, 70), (35, 70), (35,)), {"precision": 1}, **ROUNDED),
    Case("conv2d", ((2, 5, 7, 9), (4, 3, 3, 9), (4,)), {"precision": 1} | SAME, **ROUNDED),
    Case("conv2d", ((2, 6, 5, 9), (8, 3, 3, 9), None), {"precision": 1, "stride": 2} | SAME, **ROUNDED),
    Case("conv2d", ((2, 5, 7, 3), (4, 3, 3, 3), (4,)), SAME),
    Case("conv2d", ((2, 6, 5, 2), (3, 3, 3, 2), None), {"stride": 2} | SAME),
    Case("conv2d", ((2, 6, 7, 2), (3, 3, 3, 2), (3,)), {"stride": 2} | pads(0, 0, 1, 1)),
    Case("conv2d", ((2, 7, 6, 2), (3, 2, 3, 2), (3,)), {"stride": 3} | pads(1, 0, 0, 2)),
    Case("conv2d", ((2, 3, 4, 2), (3, 3, 3, 2), (3,)), {"upsample": 2} | SAME),
    Case("conv2d", ((2, 3, 3, 5), (6, 1, 1, 5), (6,))),
    Case("conv2d", ((2, 4, 5, 3), (2, 1, 1, 3), None), {"stride": 2}),
    Case("conv2d", ((2, 4, 4, 3), (5, 2, 2, 3), None), {"stride": 2}),
    Case("conv2d", ((2, 5, 4, 1), (1, 5, 3, 1), (1,)), pads(4, 2, 4, 2)),
    Case("conv2d", ((2, 5, 7, 3), (4, 3, 3, 3), (4,)), {"winograd": 2} | SAME),
    Case("conv2d", ((2, 5, 7, 3), (4, 3, 3, 3), (4,)), {"winograd": 4} | SAME),
    Case("conv2d", ((2, 6, 5, 2), (3, 3, 3, 2), None), {"winograd": 2} | pads(0, 2, 1, 0)),
    Case("conv2d", ((2, 6, 5, 2), (3, 3, 3, 2), None), {"winograd": 4} | pads(0, 2, 1, 0)),
    Case("conv2d", ((2, 3, 4, 2), (3, 3, 3, 2), (3,)), {"winograd": 4, "upsample": 2} | SAME),
    # straight from the image: rows of 16 pixels and more (csrc/ops/narrow.c)
    Case("conv2d", ((2, 4, 17, 3), (5, 3, 3, 3), (5,)), SAME),
    Case("conv2d", ((2, 3, 27, 2), (16, 3, 3, 2), (16,)), pads(2, 0, 1, 0)),
    Case("conv2d", ((2, 5, 33, 2), (16, 3, 3, 2), None), {"stride": 2} | pads(0, 0, 1, 1)),
    Case("conv2d", ((2, 4, 36, 3), (17, 3, 3, 3), (17,)), {"stride": 2} | SAME),
    Case("conv2d", ((2, 4, 49, 2), (3, 2, 2, 2), (3,)), {"stride": 3}),
    Case("conv2d", ((2, 2, 19, 5), (16, 1, 1, 5), (16,))),
    Case("conv2d", ((2, 2, 16, 1), (40, 3, 5, 1), (40,)), pads(2, 4, 1, 1)),
    Case("conv2d", ((2, 3, 9, 2), (16, 3, 3, 2), (16,)), {"upsample": 2} | SAME),
    Case("depthwise_conv2d", ((2, 5, 7, 3), (3, 3, 3), (3,)), SAME),
    Case("depthwise_conv2d", ((2, 6, 5, 5), (5, 3, 5), None), {"stride": 2} | pads(1, 0, 2, 1)),
    Case("max_pool2d", ((2, 5, 7, 3),), {"kernel": 3, "stride": 2} | SAME),
    Case("max_pool2d", ((2, 4, 6, 17),), {"kernel": 2, "stride": 2}),
    Case("max_pool2d", ((2, 5, 4, 5),), {"kernel": 4, "stride": 3} | pads(3, 2, 0, 1)),
    *(Case(op, ((2, 5, 13),), scale=4.0 if op == "relu6" else 2.0) for op in ACTIVATIONS),
    Case("sqrt", ((2, 5, 13),), low=0.2),
    Case("affine", ((2, 7),), {"a": -1.75, "b": 0.3}),
    *(
        Case(op, (a, b), per_sample=per_sample)
        for op in ("add", "sub", "mul")
        for a, b, per_sample in (
            ((2, 3, 4, 5), (2, 3, 4, 5), (0, 1)),
            ((2, 3, 4, 5), (5,), (0,)),
            ((2, 3, 4, 5), (2, 1, 1, 5), (0, 1)),
            ((2, 3, 4, 5), (2, 3, 4, 1), (0, 1)),
            ((2, 3, 4, 5), (3, 1, 5), (0,)),
            ((2, 7), (1,), (0,)),
            ((2, 7), (), (0,)),
        )
    ),
    Case("reduce_sum", ((2, 3, 4, 5),), {"axes": 0b1000}),
    Case("reduce_sum", ((2, 3, 4, 5),), {"axes": 0b0110}),
    Case("reduce_sum", ((2, 3, 4, 5),), {"axes": 0b1111}, per_sample=()),
    Case("reduce_sum", ((3, 9, 20, 37),), {"axes": 0b0111}, per_sample=()),  # columns of more rows than a tile has
    Case("geglu", ((2, 3, 14),)),
    Case("group_norm", ((2, 3, 5, 6), (6,), (6,)), {"groups": 3}),
    Case("group_norm", ((2, 4, 3, 8), (8,), (8,)), {"groups": 4, "silu": 1, "eps": 1e-3}),
    Case("group_norm", ((2, 7, 5), (5,), (5,)), {"groups": 1, "silu": 1}),
    Case("layer_norm", ((2, 5, 7), (7,), (7,))),
    Case("layer_norm", ((2, 5, 19), None, None), {"eps": 1e-3}),
    Case("layer_norm", ((2, 3, 4),)),
    Case("attention", ((2, 5, 6), (2, 7, 6), (2, 7, 6)), {"heads": 2}, per_sample=(0, 1, 2)),
    Case("attention", ((2, 4, 5), (2, 4, 5), (2, 4, 5)), {"scale": 0.7}, per_sample=(0, 1, 2)),
    Case("attention", ((2, 15, 6), (2, 15, 6), (2, 15, 6)), MASK, per_sample=(0, 1, 2)),
    # the token in the middle sees nothing
    Case("attention", ((2, 9, 4),) * 3, MASK | {"grid_w": 3}, per_sample=(0, 1, 2)),
    Case("attention", ((2, 6, 4),) * 3, {"heads": 2, "causal": 1}, per_sample=(0, 1, 2)),
    Case("token_embedding", ((2, 5), (7, 3)), ids=7),
    Case("upsample2x", ((2, 3, 2, 5),)),
    Case("resize_bilinear", ((2, 3, 5, 3),), {"h": 7, "w": 4}),
    Case("resize_bilinear", ((2, 8, 8, 2),), {"h": 3, "w": 16}),
    Case("concat", ((2, 3, 4), (2, 3, 1)), per_sample=(0, 1)),
    Case("concat", tuple((2, c) for c in (3, 5, 1, 2, 3, 4, 1, 2)), per_sample=tuple(range(8))),
    Case("slice", ((2, 3, 9),), {"begin": 2, "end": 7}),
    Case("reshape", ((2, 3, 4, 5),), {"ndim": 2, "d0": -1, "d1": 20}),
    Case("stop_gradient", ((2, 3),)),
    Case("depth_to_space", ((2, 2, 3, 12),), {"block": 2}),
    Case("timestep_embedding", ((5,),), {"dim": 32}, scale=400.0, tol=5e-5),
    Case("mse", ((2, 3, 5), (2, 3, 5)), per_sample=(0, 1), summed=(0,)),
)

# Larger than the tiles of the kernels, with work for several threads: for bits and values, not differences.
LARGE = (
    Case("linear", ((BATCH, 77, 100), (130, 100), (130,))),
    Case("conv2d", ((BATCH, 17, 19, 33), (40, 3, 3, 33), (40,)), SAME),
    Case("conv2d", ((BATCH, 17, 19, 33), (40, 3, 3, 33), (40,)), {"stride": 2} | SAME),
    Case("conv2d", ((BATCH, 9, 8, 24), (20, 3, 3, 24), (20,)), {"upsample": 2} | SAME),
    Case("conv2d", ((BATCH, 16, 16, 48), (70, 1, 1, 48), (70,))),
    Case("conv2d", ((BATCH, 17, 19, 33), (40, 3, 3, 33), (40,)), {"winograd": 0} | SAME),
    Case("conv2d", ((BATCH, 40, 41, 16), (16, 3, 3, 16), (16,)), SAME),
    Case("conv2d", ((BATCH, 41, 40, 16), (32, 3, 3, 16), (32,)), {"stride": 2} | SAME),
    Case("conv2d", ((BATCH, 33, 70, 3), (20, 3, 3, 3), (20,)), {"stride": 2} | pads(0, 0, 1, 1)),
    Case("conv2d", ((BATCH, 20, 45, 30), (7, 5, 3, 30), (7,)), pads(2, 1, 2, 1)),
    Case("conv2d", ((BATCH, 7, 9, 150), (70, 3, 3, 150), (70,)), {"winograd": 2} | SAME),
    Case("conv2d", ((BATCH, 7, 9, 150), (70, 3, 3, 150), (70,)), {"winograd": 4} | SAME),
    Case("depthwise_conv2d", ((BATCH, 19, 17, 70), (5, 5, 70), (70,)), pads(2, 2, 2, 2)),
    Case("max_pool2d", ((BATCH, 33, 34, 70),), {"kernel": 3, "stride": 2} | SAME),
    *(Case(op, ((BATCH, 4099),), scale=3.0) for op in ACTIVATIONS),
    Case("sqrt", ((BATCH, 4099),), low=0.2),
    Case("mul", ((BATCH, 33, 31, 19), (BATCH, 1, 1, 19)), per_sample=(0, 1)),
    Case("add", ((BATCH, 33, 31, 19), (19,))),
    Case("reduce_sum", ((BATCH, 33, 31, 19),), {"axes": 0b1000}),
    Case("geglu", ((BATCH, 50, 166),)),
    Case("group_norm", ((BATCH, 13, 17, 96), (96,), (96,)), {"silu": 1}),
    Case("layer_norm", ((BATCH, 65, 83), (83,), (83,))),
    Case("attention", ((BATCH, 130, 48), *((BATCH, 77, 48),) * 2), {"heads": 3}, per_sample=(0, 1, 2)),
    Case(
        "attention",
        ((BATCH, 143, 48),) * 3,
        {"heads": 2, "grid_h": 11, "grid_w": 13, "mask_h": 7, "mask_w": 7},
        per_sample=(0, 1, 2),
    ),
    # several blocks of queries and of keys, the last ones not full; also under a mask, and wider than a block of sums
    Case("attention", ((BATCH, 390, 20), *((BATCH, 530, 20),) * 2), {"heads": 2}, scale=2.0, per_sample=(0, 1, 2)),
    Case("attention", ((BATCH, 323, 8),) * 3, {"grid_h": 17, "grid_w": 19, "mask_h": 5, "mask_w": 5}, per_sample=(0, 1, 2)),
    Case("attention", ((BATCH, 20, 400), *((BATCH, 30, 400),) * 2), per_sample=(0, 1, 2)),
    Case("attention", ((BATCH, 230, 16),) * 3, {"heads": 2, "causal": 1}, per_sample=(0, 1, 2)),
    Case("token_embedding", ((BATCH, 77), (300, 70)), ids=300),
    Case("upsample2x", ((BATCH, 9, 11, 21),)),
    Case("resize_bilinear", ((BATCH, 9, 11, 21),), {"h": 20, "w": 30}),
    Case("concat", ((BATCH, 99, 37), (BATCH, 99, 50)), per_sample=(0, 1)),
    Case("mse", ((BATCH, 70, 301), (BATCH, 70, 301)), per_sample=(0, 1), summed=(0,)),
)


@pytest.fixture(params=_core.build_info()["isas"])
def isa(request):
    """Runs the test with each instruction set that this build and machine have."""
    now = _core.build_info()["isa"]
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(now)


@pytest.fixture
def threads():
    """Lets the test change the number of threads."""
    now = _core.get_threads()
    yield _core.set_threads
    _core.set_threads(now)


def flags_of(op: str) -> int:
    return dict(_core.op_names())[op]


def is_differentiable(op: str) -> bool:
    return not flags_of(op) & (NO_GRAD | STOP)


def add_op(graph, op: str, shapes, attrs) -> tuple:
    """(inputs, outputs) of the op on fresh inputs; absent ones are None."""
    inputs = [None if s is None else graph.input(f"x{i}", s) for i, s in enumerate(shapes)]
    return inputs, graph.op(op, inputs, **attrs)


def run_case(case: Case, arrays: list, target=None, others: int = 0) -> tuple[list, list]:
    """(outputs, gradients of mse(output 0, target) with respect to the inputs); `others`: runs before with other arrays."""
    graph = _core.Graph()
    inputs, outputs = add_op(graph, case.op, [None if a is None else a.shape for a in arrays], case.attrs)
    wanted = []
    if target is not None:
        loss = graph.op("mse", [outputs[0], graph.const(target)])[0]
        wanted = graph.backward(loss, [v for v in inputs if v is not None])
        if case.ids:
            assert wanted.pop(0) is None
    feeds = {v: a for v, a in zip(inputs, arrays) if v is not None}
    program = graph.compile([*outputs, *wanted])
    for _ in range(others):
        program.run({v: np.roll(a, 1) for v, a in feeds.items()})
    results = program.run(feeds)
    return results[: len(outputs)], results[len(outputs) :]


def target_of(case: Case, shape) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def assert_close(got: np.ndarray, want: np.ndarray, tol: float) -> None:
    assert got.shape == want.shape
    assert got.dtype == np.float32
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    error = np.linalg.norm(got[finite] - want[finite]) / max(np.linalg.norm(want[finite]), 1e-30)
    assert error <= tol, f"relative error {error:.2g}"


@lru_cache(maxsize=None)
def difference_gradients(index: int) -> tuple:
    """Central differences of the reference's loss, element by element."""
    case = CASES[index]
    arrays = [None if a is None else np.array(a, np.float64) for a in case.data()]
    target = target_of(case, case.reference(arrays)[0].shape).astype(np.float64)

    def loss():
        return np.mean((case.reference(arrays)[0] - target) ** 2)

    gradients = []
    for i, x in enumerate(arrays):
        if x is None or (i == 0 and case.ids):
            continue
        g = np.empty_like(x)
        for at in np.ndindex(x.shape):
            kept = x[at]
            x[at] = kept + 1e-6
            above = loss()
            x[at] = kept - 1e-6
            g[at] = (above - loss()) / 2e-6
            x[at] = kept
        gradients.append(g)
    return tuple(gradients)


def test_every_op_has_a_case():
    with_case = {case.op for case in CASES}
    for name, flags in _core.op_names():
        assert flags & NO_GRAD or name in with_case, f"{name} has no case here"
    assert {case.op for case in LARGE} <= with_case <= {name for name, _ in _core.op_names()}


@pytest.mark.parametrize("case", CASES + LARGE, ids=str)
def test_values(case, isa):
    arrays = case.data()
    got, _ = run_case(case, arrays)
    want = case.reference(arrays)
    assert len(got) == len(want)
    for y, y_want in zip(got, want):
        assert_close(y, y_want, case.tol)


DIFFERENTIABLE = [i for i, case in enumerate(CASES) if is_differentiable(case.op)]


@pytest.mark.parametrize("index", DIFFERENTIABLE, ids=lambda i: str(CASES[i]))
def test_gradients(index, isa):
    case = CASES[index]
    arrays = case.data()
    target = target_of(case, case.reference(arrays)[0].shape)
    _, got = run_case(case, arrays, target)
    want = difference_gradients(index)
    assert len(got) == len(want)
    for g, g_want in zip(got, want):
        assert_close(g, g_want, case.grad_tol)


def all_bits(case: Case, arrays: list) -> tuple[list, list]:
    """Outputs and, where the op has them, gradients."""
    target = None
    if is_differentiable(case.op):
        target = target_of(case, (1,)) if case.op == "mse" else np.zeros_like(run_case(case, arrays)[0][0])
    return run_case(case, arrays, target)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_bits_do_not_depend_on_threads(case, isa, threads):
    arrays = case.data()
    threads(1)
    want = sum(all_bits(case, arrays), [])
    for n in (2, 4):
        threads(n)
        for a, b in zip(sum(all_bits(case, arrays), []), want):
            assert_same(a, b)


@pytest.mark.parametrize("case", [c for c in CASES + LARGE if c.per_sample], ids=str)
def test_bits_do_not_depend_on_the_batch(case, isa):
    batch = case.data(BATCH)
    together, together_grads = all_bits(case, batch)
    present = [i for i, s in enumerate(case.shapes) if s is not None and not (i == 0 and case.ids)]
    for i in (0, BATCH - 1):
        one = [a[i : i + 1] if a is not None and k in case.per_sample else a for k, a in enumerate(batch)]
        alone, alone_grads = all_bits(case, one)
        for j, (a, b) in enumerate(zip(together, alone)):
            if j not in case.summed:
                assert_same(a.reshape(BATCH, -1)[i], b.ravel())
        for k, a, b in zip(present, together_grads, alone_grads):
            if k in case.per_sample and not case.summed:
                exact = np.abs(b[0]) >= BATCH * np.finfo(np.float32).tiny  # the loss is a mean, and denormals round
                assert_same(np.where(exact, BATCH * a[i], 0), np.where(exact, b[0], 0))


def test_a_group_s_first_value_may_stand_apart():
    """Values are taken from a group's first one (csrc/kernels/cpu/group_norm.c): one far away must not cost precision, nor
    touch the bits of other groups."""
    x = np.random.default_rng(0).standard_normal((4, 32, 32, 64)).astype(np.float32)
    apart = x.copy()
    apart[2, 0, 0, 8] = 1e4  # the first value of a sample's second group

    def statistics(images):
        graph = _core.Graph()
        values = [graph.input("x", images.shape), graph.input("gamma", (64,)), graph.input("beta", (64,))]
        program = graph.compile(list(graph.op("group_norm", values, groups=8)))
        return program.run(dict(zip(values, (images, np.ones(64, np.float32), np.zeros(64, np.float32)))))[1:]

    mean, rstd = statistics(apart)
    wide = apart[2].astype(np.float64)[..., 8:16]
    assert rstd[2, 1] == pytest.approx(1 / np.sqrt(wide.var() + 1e-5), rel=1e-6)
    assert mean[2, 1] == pytest.approx(wide.mean(), rel=1e-6)
    rest = np.ones((4, 8), bool)
    rest[2, 1] = False
    for new, old in zip((mean, rstd), statistics(x)):
        assert_same(new[rest], old[rest])
    for new, old in zip(statistics(apart[2:3]), (mean, rstd)):
        assert_same(new[0], old[2])


@pytest.mark.parametrize("op, shape, attrs", [
    ("layer_norm", (3, 1280), {}),
    ("layer_norm", (70, 83), {}),
    ("group_norm", (2, 9, 7, 96), {"groups": 8}),
    ("group_norm", (2, 16, 16, 30), {"groups": 5}),
])  # fmt: skip
def test_a_norm_of_equal_values_is_beta(op, shape, attrs, isa):
    """Not what is rounded of their mean, times 1 / sqrt(eps)."""
    gamma, beta = np.random.default_rng(0).standard_normal((2, shape[-1])).astype(np.float32)
    arrays = [np.full(shape, 10.3, np.float32), gamma, beta]
    case = Case(op, tuple(a.shape for a in arrays), attrs)
    (y, mean, rstd), (_, dgamma, _) = run_case(case, arrays, target_of(case, shape))
    assert_same(y, np.broadcast_to(beta, shape).copy())
    assert np.all(mean == np.float32(10.3))
    assert np.allclose(rstd, 1e-5**-0.5, rtol=1e-6)
    assert not dgamma.any()


def test_a_stride_beyond_the_image():
    """The gradient takes as many steps as it has pixels, not as many as the square of the stride."""
    w = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype(np.float32)
    attrs = {"height": 3, "width": 5, "stride": 20_000} | SAME
    case = Case("conv2d_grad_input", ((1, 1, 1, 2), w.shape), attrs)
    began = time.process_time()
    dx = run_case(case, [np.ones((1, 1, 1, 2), np.float32), w])[0][0]
    assert time.process_time() - began < 1
    want = np.zeros((1, 3, 5, 4), np.float32)
    want[0, :2, :2] = w.sum(0)[1:, 1:]
    assert_close(dx, want, 1e-6)


X = (2, 4, 4, 6)
BAD = (
    ("linear", ((2, 7), (5, 6)), {}, "7 features, weight wants 6"),
    ("linear", ((2, 7), (5, 7), (4,)), {}, r"bias is \[4\], \[5\] is wanted"),
    ("linear", ((2, 7), (7,)), {}, r"weight is \[7\], \[O,K\]"),
    ("linear_grad_input", ((2, 7), (5, 6)), {}, "7 features, weight gives 5"),
    ("linear_grad_weight", ((2, 7), (3, 7)), {}, r"\[2,7\] and input \[3,7\]"),
    ("conv2d", ((2, 4, 4, 3), (5, 3, 3, 4)), {}, "input has 3 channels, weight wants 4"),
    ("conv2d", ((4, 4, 3), (5, 3, 3, 3)), {}, r"input is \[4,4,3\], \[N,H,W,C\]"),
    ("conv2d", (X, (5, 3, 3)), {}, r"weight is \[5,3,3\]"),
    ("conv2d", (X, (5, 5, 3, 6)), {}, "4 x 4 is smaller than a 5 x 3 kernel"),
    ("conv2d", (X, (5, 3, 3, 6)), {"stride": 0}, "stride is 0"),
    ("conv2d", (X, (5, 3, 3, 6)), {"pad_t": 3}, "padding of 3, 0 to 2"),
    ("conv2d", (X, (5, 3, 3, 6)), {"pad_r": -1}, "padding of -1"),
    ("conv2d", (X, (5, 3, 3, 6)), {"upsample": 3}, "upsample is 3"),
    ("conv2d", (X, (5, 3, 3, 6)), {"upsample": 2, "stride": 2}, "stride 1, not 2"),
    ("conv2d", (X, (5, 3, 3, 6), (6,)), {}, r"bias is \[6\]"),
    ("conv2d", (X, (5, 3, 3, 6)), {"winograd": 3}, "winograd is 3"),
    ("conv2d", (X, (5, 1, 3, 6)), {"winograd": 4}, "wants a 3 x 3 kernel and stride 1, not 1 x 3 and 1"),
    ("conv2d_grad_input", ((2, 2, 2, 5), (5, 3, 3, 6)), {"height": 4, "width": 4, "winograd": 6}, "winograd is 6"),
    ("conv2d_grad_weight", ((2, 2, 2, 5), (2, 4, 4, 6)), {"rows": 3, "cols": 3, "winograd": 6}, "winograd is 6"),
    ("conv2d_grad_input", ((2, 4, 4, 5), (5, 3, 3, 6)), {"height": 4, "width": 4}, r"\[2,2,2,5\] is wanted"),
    ("conv2d_grad_input", ((2, 4, 4, 5), (5, 3, 3, 6)), {}, "image of 0 x 0"),
    ("conv2d_grad_weight", ((2, 4, 4, 5), X), {"rows": 3, "cols": 3}, r"\[2,2,2,5\] is wanted"),
    ("conv2d_grad_weight", ((2, 4, 4, 5), X), {}, "kernel of 0 x 0"),
    ("depthwise_conv2d", (X, (3, 3, 5)), {}, "6 channels, weight has 5"),
    ("depthwise_conv2d", (X, (3, 3, 6), (5,)), {}, r"bias is \[5\]"),
    ("depthwise_conv2d_grad_input", (X, (3, 3, 6)), {"height": 4, "width": 4}, r"\[2,2,2,6\] is wanted"),
    ("depthwise_conv2d_grad_weight", (X, X), {"rows": 3, "cols": 3}, r"\[2,2,2,6\] is wanted"),
    ("max_pool2d", (X,), {}, "kernel is 0"),
    ("max_pool2d", (X,), {"kernel": 2, "pad_t": 2}, "padding of 2"),
    ("max_pool2d", ((4, 4, 6),), {"kernel": 2}, r"\[4,4,6\]"),
    ("max_pool2d_grad", (X, X), {"kernel": 2, "stride": 2}, r"gradient is \[2,4,4,6\], \[2,2,2,6\] is wanted"),
    ("silu", (X, X), {}, "2 inputs"),
    ("activation_grad", (X, (2, 4)), {}, r"input is \[2,4\]"),
    ("activation_grad", (X, X), {"kind": 99}, "no activation 99"),
    ("affine", (X,), {"c": 1.0}, "no attribute c"),
    ("add", ((2, 3), (2, 4)), {}, r"\[2,4\] cannot be broadcast into the left one's shape \[2,3\]"),
    ("sub", ((3,), (2, 3)), {}, r"\[2,3\] cannot be broadcast"),
    ("mul", ((2, 1), (2, 3)), {}, r"\[2,3\] cannot be broadcast"),
    ("reduce_sum", ((2, 3),), {}, "axes is 0"),
    ("reduce_sum", ((2, 3),), {"axes": 4}, "axes is 4"),
    ("reduce_to", ((2, 3),), {"ndim": 1, "d0": 2}, r"\[2\] cannot be broadcast into"),
    ("reduce_to", ((2, 3),), {"ndim": -1}, "ndim is -1"),
    ("broadcast_to", ((2,),), {"ndim": 2, "d0": 2, "d1": 3}, r"\[2\] cannot be broadcast into \[2,3\]"),
    ("geglu", ((2, 7),), {}, r"\[2,7\], \[...,2D\]"),
    ("geglu_grad", ((2, 7), (2, 12)), {}, r"\[2,6\] is wanted"),
    ("group_norm", (X, (6,), (6,)), {"groups": 4}, "6 channels cannot be cut into 4 groups"),
    ("group_norm", (X, (5,), (6,)), {"groups": 3}, r"gamma is \[5\]"),
    ("group_norm", (X, (6,), (1, 6)), {"groups": 3}, r"beta is \[1,6\]"),
    ("group_norm", (X, (6,), None), {"groups": 3}, "input 2 is missing"),
    ("group_norm", (X, (6,), (6,)), {"groups": 3, "eps": 0.0}, "eps is 0"),
    ("group_norm", (X, (6,), (6,)), {"groups": 3, "eps": 1e-50}, "more than 0 is wanted in float32"),
    ("group_norm", (X, (6,), (6,)), {"groups": 3, "silu": 2}, "silu is 2"),
    ("group_norm_grad", (X, X, (2, 3), (2, 2), (6,), (6,)), {"groups": 3}, r"rstd is \[2,2\]"),
    ("layer_norm", (X, (6,), None), {}, "both or not at all"),
    ("layer_norm", (X, (5,), (5,)), {}, r"gamma is \[5\]"),
    ("layer_norm_grad", (X, X, (32,), (32,), (5,)), {}, r"gamma is \[5\]"),
    ("normalize_grad", (X, X, (32,), (31,)), {}, r"rstd is \[31\]"),
    ("attention", ((2, 4, 6), (2, 4, 6), (2, 5, 6)), {}, r"\[2,5,6\]"),
    ("attention", ((2, 4, 6), (2, 4, 6), (2, 4, 6)), {"heads": 4}, "6 features cannot be cut into 4 heads"),
    ("attention", ((2, 4, 6), (2, 4, 6), (2, 4, 6)), {"mask_h": 3, "mask_w": 3}, "no grid of 0 x 0"),
    ("attention", ((2, 4, 6), (2, 4, 6), (2, 4, 6)), {"mask_h": 2, "mask_w": 3}, "mask of 2 x 3"),
    ("attention", ((2, 4, 6), (2, 5, 6), (2, 5, 6)), {"causal": 1}, "causal with 4 queries and 5 keys"),
    ("attention", ((2, 4, 6),) * 3, {"causal": 2}, "causal is 2"),
    ("token_embedding", ((2, 5), (7, 3, 1)), {}, r"table is \[7,3,1\]"),
    ("token_embedding", ((5,), (7, 3)), {}, r"ids is \[5\]"),
    ("token_embedding_grad", ((2, 5, 3), (2, 4)), {"rows": 7}, r"ids is \[2,4\], \[2,5\] is wanted"),
    ("token_embedding_grad", ((2, 5, 3), (2, 5)), {}, "0 rows"),
    ("attention_grad", ((2, 4, 6),) * 5 + ((2, 2, 4),), {}, r"lse is \[2,2,4\], \[2,1,4\]"),
    ("upsample2x", ((2, 4, 4),), {}, r"\[2,4,4\]"),
    ("upsample2x_grad", ((2, 3, 4, 1),), {}, r"\[2,3,4,1\]"),
    ("resize_bilinear", (X,), {"h": 3}, "3 x 0"),
    ("concat", ((2, 3), (3, 3)), {}, r"inputs 0 and 1 are \[2,3\] and \[3,3\]"),
    ("concat", ((2, 3), (2, 3), None), {}, "input 2 is missing"),
    ("slice", ((2, 3),), {"begin": 2, "end": 4}, "columns 2 to 4 of 3"),
    ("slice", ((2, 3),), {"begin": 2, "end": 2}, "columns 2 to 2 of 3"),
    ("pad_columns", ((2, 3),), {"begin": 2, "width": 4}, "3 columns from number 2 on do not fit into 4"),
    ("reshape", ((2, 3),), {"ndim": 2, "d0": 4, "d1": -1}, r"\[2,3\] cannot become \[4,-1\]"),
    ("reshape", ((2, 3),), {"ndim": 2, "d0": -1, "d1": -1}, r"cannot become \[-1,-1\]"),
    ("reshape", ((2, 3),), {"ndim": 1, "d0": 5}, r"cannot become \[5\]"),
    ("reshape", ((2, 3),), {"ndim": 6, "d0": 6}, "ndim is 6"),
    ("reshape", ((2, 3),), {"ndim": 2, "d0": 2**52, "d1": 2**52}, "cannot become"),
    ("depth_to_space", (X,), {"block": 2}, "6 channels are no multiple of block 2 squared"),
    ("space_to_depth", (X,), {"block": 3}, "4 x 4 is no multiple of block 3"),
    ("timestep_embedding", ((3,),), {"dim": 5}, "dim is 5"),
    ("timestep_embedding", ((1024,),), {"dim": 2**52}, ""),  # more bytes than can be counted
    ("mse", ((2, 3), (2, 4)), {}, r"target is \[2,4\], \[2,3\] is wanted"),
    ("mse_grad", ((2, 3), (2, 3), (2,)), {}, r"gradient is \[2\]"),
)


@pytest.mark.parametrize("op, shapes, attrs, message", BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_arguments_are_refused(op, shapes, attrs, message):
    graph = _core.Graph()
    with pytest.raises(ValueError, match=rf"^{op}\b.*{message}"):
        add_op(graph, op, shapes, attrs)


@pytest.mark.parametrize("mask", [{}, {"grid_h": 17, "grid_w": 18, "mask_h": 5, "mask_w": 5}], ids=["all", "masked"])
def test_attention_gradients_over_several_blocks(mask, isa):
    """Too large for differences: against the formulas in float64, which test_gradients checks on small shapes."""
    case = Case("attention", ((2, 306, 12),) * 3, {"heads": 2, **mask}, scale=1.5)
    arrays = case.data()
    want = case.reference(arrays)[0]
    target = target_of(case, want.shape)
    _, got = run_case(case, arrays, target)
    q, k, v, dy = (
        a.astype(np.float64).reshape(2, 306, 2, 6).transpose(0, 2, 1, 3)
        for a in (*arrays, 2 * (want - target) / target.size)
    )
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(6)
    if mask:
        row, column = np.divmod(np.arange(306), 18)
        near = (abs(row[:, None] - row) <= 2) & (abs(column[:, None] - column) <= 2)
        scores[..., near] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = dy @ v.transpose(0, 1, 3, 2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(6)
    for g, g_want in zip(got, (ds @ k, ds.transpose(0, 1, 3, 2) @ q, p.transpose(0, 1, 3, 2) @ dy)):
        assert_close(g, g_want.transpose(0, 2, 1, 3).reshape(2, 306, 12), case.grad_tol)


@pytest.mark.parametrize("size, channels, outputs", [(16, 64, 64), (10, 20, 300), (8, 320, 160)])
def test_winograd_is_nearly_as_exact(size, channels, outputs, isa):
    """The bound that csrc/ops/winograd.c gives: root mean square errors against float64, of values and gradients."""
    shapes = ((2, size, size, channels), (outputs, 3, 3, channels), (outputs,))
    errors = {}
    for m in (0, 2, 4):
        case = Case("conv2d", shapes, {"winograd": m} | SAME)
        arrays = Case("conv2d", shapes, SAME).data()
        want = case.reference(arrays)[0]
        target = target_of(case, want.shape)
        (y,), (dx, dw, *_) = run_case(case, arrays, target)
        dy = 2 * (y.astype(np.float64) - target) / target.size
        turned = arrays[1].astype(np.float64)[:, ::-1, ::-1].transpose(3, 1, 2, 0)
        seen = np.pad(arrays[0].astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(seen, (size, size), axis=(1, 2))
        dw_want = np.einsum("npqo,nrscpq->orsc", dy, windows, optimize=True)
        found = ((y, want), (dx, reference.conv2d(dy, turned, **SAME)), (dw, dw_want))
        errors[m] = [np.sqrt(np.mean((a - b) ** 2)) for a, b in found]
    for two, four, direct in zip(errors[2], errors[4], errors[0]):
        assert two <= 2 * direct
        assert four <= 4 * direct


@pytest.mark.parametrize("value, same_as", [("0", 0), ("1", 4), ("", 4)])
def test_winograd_can_be_switched_off(value, same_as):
    code = """import numpy as np; from cdad import _core
shapes, same = [(1, 32, 32, 32), (32, 3, 3, 32)], dict(pad_t=1, pad_l=1, pad_b=1, pad_r=1)
def run(**attrs):
    graph = _core.Graph()
    inputs = [graph.input(str(i), shape) for i, shape in enumerate(shapes)]
    feeds = {v: _core.random_normal(shape, 0, i) for i, (v, shape) in enumerate(zip(inputs, shapes))}
    return graph.compile(graph.op("conv2d", inputs, **same, **attrs)).run(feeds)[0]
print([m for m in (0, 2, 4) if np.array_equal(run(), run(winograd=m))])"""
    environment = os.environ | {"CDAD_WINOGRAD": value, "CDAD_DEVICE": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"[{same_as}]\n"


def test_kernels_and_threads_are_chosen_by_the_environment():
    def told(**variables):
        code = "from cdad import _core; print(_core.build_info()['isa'], _core.get_threads())"
        return subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)

    for threads in ("2", "3"):
        assert told(CDAD_CPU_ISA="portable", CDAD_NUM_THREADS=threads).stdout == f"portable {threads}\n"
    for name, wrong in (("CDAD_CPU_ISA", "sse9"), ("CDAD_NUM_THREADS", "0"), ("CDAD_NUM_THREADS", "2x")):
        assert f"ImportError: {name}={wrong}: " in told(**{name: wrong}).stderr


def test_stop_gradient_ends_gradients():
    graph = _core.Graph()
    x = graph.input("x", (2, 3))
    (stopped,) = graph.op("stop_gradient", [x])
    (product,) = graph.op("mul", [x, stopped])
    loss = graph.op("mse", [product, graph.const(np.zeros((2, 3), np.float32))])[0]
    (grad,) = graph.backward(loss, [x])
    a = np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3)
    (got,) = graph.compile([grad]).run({x: a})
    np.testing.assert_allclose(got, 2.0 * a**3 / 6.0, rtol=1e-6)  # d/dx of (x*c)^2 with c = x held

    graph = _core.Graph()
    x = graph.input("x", (2, 3))
    loss = graph.op("mse", [graph.op("stop_gradient", [x])[0], graph.const(a)])[0]
    assert graph.backward(loss, [x]) == [None]


@pytest.mark.parametrize(
    "op, shapes, attrs, output",
    [
        ("mse", ((2, 3), (2, 3)), {}, 1),
        ("group_norm", (X, (6,), (6,)), {"groups": 3}, 1),
        ("layer_norm", (X, (6,), (6,)), {}, 2),
        ("attention", ((2, 4, 6),) * 3, {}, 1),
    ],
)
def test_statistics_have_no_gradient(op, shapes, attrs, output):
    graph = _core.Graph()
    inputs, outputs = add_op(graph, op, shapes, attrs)
    statistic = outputs[output]
    loss = graph.op("mse", [statistic, graph.const(np.zeros(graph.shape(statistic), np.float32))])[0]
    with pytest.raises(ValueError, match=rf"^{op}: output {output} has no gradient"):
        graph.backward(loss, inputs)


def test_block_of_layers():
    """Ops that reuse memory, values read twice, and sums of gradients, as in a model's residual block."""
    rng = np.random.default_rng(3)
    shapes = {"x": (2, 4, 4, 8), "w": (8, 3, 3, 8), "b": (8,), "gamma": (8,), "beta": (8,), "e": (2, 1, 1, 8)}
    shapes |= {"qkv": (24, 8), "proj": (16, 8), "out": (8, 8)}
    arrays = {k: (0.5 * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}
    target = rng.standard_normal(shapes["x"]).astype(np.float32)

    graph = _core.Graph()
    v = {k: graph.input(k, s) for k, s in shapes.items()}

    def node(op, *inputs, **attrs):
        return graph.op(op, inputs, **attrs)[0]

    h = node("group_norm", v["x"], v["gamma"], v["beta"], groups=4, silu=1)
    h = node("add", node("conv2d", h, v["w"], v["b"], **SAME), v["e"])
    h = node("add", node("silu", h), v["x"])
    tokens = node("reshape", h, ndim=3, d0=2, d1=16, d2=8)
    packed = node("linear", tokens, v["qkv"])
    q, k, value = (node("slice", packed, begin=i, end=i + 8) for i in (0, 8, 16))
    tokens = node("add", node("linear", node("attention", q, k, value, heads=2), v["out"]), tokens)
    tokens = node("add", node("geglu", node("linear", tokens, v["proj"])), tokens)
    y = node("affine", node("reshape", tokens, ndim=4, d0=2, d1=4, d2=4, d3=8), a=0.5)
    loss = node("mse", y, graph.const(target))
    grads = graph.backward(loss, list(v.values()))
    results = graph.compile([y, loss, *grads]).run({v[k]: a for k, a in arrays.items()})

    def expected(a):
        r = reference
        h = r.group_norm(a["x"], a["gamma"], a["beta"], groups=4, silu=1)[0]
        h = r.silu(r.conv2d(h, a["w"], a["b"], **SAME) + a["e"]) + a["x"]
        tokens = h.reshape(2, 16, 8)
        q, k, value = np.split(r.linear(tokens, a["qkv"]), 3, axis=-1)
        tokens = r.linear(r.attention(q, k, value, heads=2)[0], a["out"]) + tokens
        tokens = r.geglu(r.linear(tokens, a["proj"])) + tokens
        return 0.5 * tokens.reshape(2, 4, 4, 8)

    def expected_loss(a):
        return np.mean((expected(a) - target) ** 2)

    wide = {k: a.astype(np.float64) for k, a in arrays.items()}
    assert_close(results[0], expected(wide), 2e-6)
    assert results[1][0] == pytest.approx(expected_loss(wide), rel=1e-6)
    for name, got in zip(shapes, results[2:]):
        norm = np.linalg.norm(got)  # so much does the loss grow along its gradient
        step = 1e-6 * got.astype(np.float64) / norm
        above, below = (expected_loss(wide | {name: wide[name] + s}) for s in (step, -step))
        assert (above - below) / 2e-6 == pytest.approx(norm, rel=1e-5), name
