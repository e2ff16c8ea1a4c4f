"""What is the same to the bit on the CPU, and within rounding on a GPU, whose libraries choose their ways by shape."""

from __future__ import annotations

import os

import numpy as np

ON_GPU = os.environ.get("CDAD_DEVICE", "cpu").startswith("cuda")


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    """On the device that tests run on (``CDAD_DEVICE``)."""
    if ON_GPU:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(np.abs(want).max(initial=0)))
    else:
        np.testing.assert_array_equal(got, want)
