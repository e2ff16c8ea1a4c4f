"""What every op computes, written plainly in float64 NumPy: the measure of the C core in the tests.

Functions have the ops' names, inputs and attributes; activations are [N,H,W,C] or [...,C]. A function returns
one array, or a tuple where the op has several outputs.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erf


def linear(x, w, b=None, *, precision=0):
    del precision  # coarser factors
    return np.einsum("...k,ok->...o", x, w) + (0.0 if b is None else b)


def _windows(x, rows, cols, stride, pad_t, pad_l, pad_b, pad_r):
    """Yields (r, s, the pixels [N,P,Q,C] that tap (r, s) reads)."""
    x = np.pad(x, ((0, 0), (pad_t, pad_b), (pad_l, pad_r), (0, 0)))
    p, q = (x.shape[1] - rows) // stride + 1, (x.shape[2] - cols) // stride + 1
    for r in range(rows):
        for s in range(cols):
            yield r, s, x[:, r : r + stride * p : stride, s : s + stride * q : stride]


def conv2d(x, w, b=None, *, stride=1, pad_t=0, pad_l=0, pad_b=0, pad_r=0, upsample=1, winograd=-1, precision=0):
    del winograd, precision  # another order of the same sums, coarser factors
    x = x.repeat(upsample, axis=1).repeat(upsample, axis=2)
    taps = _windows(x, w.shape[1], w.shape[2], stride, pad_t, pad_l, pad_b, pad_r)
    return sum(pixels @ w[:, r, s].T for r, s, pixels in taps) + (0.0 if b is None else b)


def depthwise_conv2d(x, w, b=None, *, stride=1, pad_t=0, pad_l=0, pad_b=0, pad_r=0):
    taps = _windows(x, w.shape[0], w.shape[1], stride, pad_t, pad_l, pad_b, pad_r)
    return sum(pixels * w[r, s] for r, s, pixels in taps) + (0.0 if b is None else b)


def max_pool2d(x, *, kernel, stride=1, pad_t=0, pad_l=0, pad_b=0, pad_r=0):
    inside = _windows(np.ones_like(x), kernel, kernel, stride, pad_t, pad_l, pad_b, pad_r)
    taps = _windows(x, kernel, kernel, stride, pad_t, pad_l, pad_b, pad_r)
    values = [np.where(known[2] > 0, tap[2], -np.inf) for known, tap in zip(inside, taps, strict=True)]
    return np.max(values, axis=0)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def relu(x):
    return np.maximum(x, 0.0)


def relu6(x):
    return np.clip(x, 0.0, 6.0)


def gelu(x):
    return x * 0.5 * (1.0 + erf(x / np.sqrt(2.0)))


def quick_gelu(x):
    return x * sigmoid(1.702 * x)


tanh, exp, sqrt = np.tanh, np.exp, np.sqrt
add, sub, mul = np.add, np.subtract, np.multiply


def affine(x, *, a=1.0, b=0.0):
    return a * x + b


def reduce_sum(x, *, axes):
    return x.sum(axis=tuple(i for i in range(x.ndim) if axes >> i & 1), keepdims=True)


def geglu(x):
    value, gate = np.split(x, 2, axis=-1)
    return value * gelu(gate)


def group_norm(x, gamma, beta, *, groups=32, silu=0, eps=1e-5):
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    rstd = 1.0 / np.sqrt(grouped.var(axis=(1, 3), keepdims=True) + eps)
    y = ((grouped - mean) * rstd).reshape(x.shape) * gamma + beta
    return y * sigmoid(y) if silu else y, mean[:, 0, :, 0], rstd[:, 0, :, 0]


def layer_norm(x, gamma=None, beta=None, *, eps=1e-5):
    mean = x.mean(axis=-1, keepdims=True)
    rstd = 1.0 / np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    y = (x - mean) * rstd
    return y if gamma is None else y * gamma + beta, mean.ravel(), rstd.ravel()


def neighbour_mask(grid_h, grid_w, mask_h, mask_w):
    """[T,T], True where token i of the grid does not see token j (UniAD's mask)."""
    row, col = np.divmod(np.arange(grid_h * grid_w), grid_w)
    near = lambda at, size: np.abs(at[:, None] - at[None, :]) <= size // 2  # noqa: E731
    return near(row, mask_h) & near(col, mask_w)


def attention(q, k, v, *, heads=1, grid_h=0, grid_w=0, mask_h=0, mask_w=0, scale=0.0, causal=0):
    def split(x):
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    scores = split(q) @ split(k).swapaxes(-1, -2) * (scale or (q.shape[-1] // heads) ** -0.5)
    seen = np.full(scores.shape[-2:], True)
    if mask_h:
        seen = ~neighbour_mask(grid_h, grid_w, mask_h, mask_w)
    if causal:
        seen = np.tril(seen)
    most = np.max(scores, axis=-1, keepdims=True, where=seen, initial=-1e300)
    weights = np.where(seen, np.exp(np.where(seen, scores - most, 0.0)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    out = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0) @ split(v)
    lse = np.where(total > 0, most + np.log(np.where(total > 0, total, 1.0)), -np.inf)
    return out.transpose(0, 2, 1, 3).reshape(q.shape), lse[..., 0]


def upsample2x(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def resize_bilinear(x, *, h, w):
    def axis_weights(size, target):
        """[target, size]: pixel centres are aligned, edges are repeated."""
        at = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0.0, size - 1.0)
        low = np.minimum(at.astype(int), size - 1)
        high = np.minimum(low + 1, size - 1)
        weights = np.zeros((target, size))
        np.add.at(weights, (np.arange(target), low), 1.0 - (at - low))
        np.add.at(weights, (np.arange(target), high), at - low)
        return weights

    return np.einsum("ph,qw,nhwc->npqc", axis_weights(x.shape[1], h), axis_weights(x.shape[2], w), x)


def concat(*inputs):
    return np.concatenate(inputs, axis=-1)


def slice(x, *, begin, end):
    return x[..., begin:end]


def reshape(x, *, ndim, d0=0, d1=0, d2=0, d3=0, d4=0):
    return x.reshape((d0, d1, d2, d3, d4)[:ndim])


def stop_gradient(x):
    return x


def depth_to_space(x, *, block=2):
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, block, block, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h * block, w * block, -1)


def timestep_embedding(t, *, dim):
    angles = t[:, None] * 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def token_embedding(ids, table):
    return table[ids.astype(int)]


def mse(a, b):
    square = (a - b) ** 2
    return square.mean().reshape(1), square.reshape(len(a), -1).mean(axis=1)
