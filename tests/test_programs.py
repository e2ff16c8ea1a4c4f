"""Any number of samples through programs for fixed batches."""

from __future__ import annotations

import numpy as np
import pytest

from cdad.programs import Programs


@pytest.mark.parametrize(
    "size, n, batches",
    [(4, 8, [4, 4]), (4, 11, [4, 4, 4]), (4, 10, [4, 4, 1, 1]), (4, 1, [1]), (5, 3, [5]), (5, 2, [1, 1]), (1, 2, [1, 1])],
)
def test_samples_are_cut_into_batches(size, n, batches):
    made, called = [], []

    def make(count: int) -> int:
        made.append(count)
        return count

    def double(program: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        assert len(x) == len(y) == program
        called.append(program)
        return x + y

    programs, x = Programs(make, size), np.arange(float(n))
    assert np.array_equal(programs.run(double, x, x), 2 * x)
    assert called == batches
    assert made == sorted({size, *batches}, reverse=True)  # compiled once, and only what was wanted
