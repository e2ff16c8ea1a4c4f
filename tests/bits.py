"""What is compared to the bit: the same on the CPU, and within rounding on a GPU, whose libraries choose their ways by shape."""

from __future__ import annotations

import os

import numpy as np

from cdad import ContinualModel
from cdad.model import StepReport

ON_GPU = os.environ.get("CDAD_DEVICE", "cpu").startswith("cuda")


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    """On the device that tests run on (``CDAD_DEVICE``)."""
    if ON_GPU:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(np.abs(want).max(initial=0)))
    else:
        np.testing.assert_array_equal(got, want)


def learn(model: ContinualModel, task, **how) -> dict[str, np.ndarray]:
    """`fit_task` without a display; what the trainer's blocks were after the last step, as moments end with it."""
    blocks = {}
    names = ["weights", "m", "v"] + (["ema"] if model.config.training.ema_decay > 0 else [])
    callback = how.pop("callback", None)

    def keep(report: StepReport) -> None:
        if report.step + 1 == report.steps:
            blocks.update({name: np.array(model._trainer.block(name)) for name in names})
        if callback is not None:
            callback(report)

    model.fit_task(task, progress=False, callback=keep, **how)
    return blocks
