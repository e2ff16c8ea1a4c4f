"""What the sampler runs: the U-Net once a step where guidance is the identity, the condition once an image."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cdad import _core, preset

BATCH, STEPS = 2, 3


@pytest.fixture(scope="module")
def sampler():
    config = preset("tiny").updated({"unet.context_dim": 8, "unet.context_length": 3})
    params = _core.Params()
    made = _core.Sampler(params, config.denoiser(), BATCH)
    params.allocate(0)
    rng = np.random.default_rng(0)
    for name in params.shapes():  # what starts at zero would hide the context
        params[name] = params[name] + 0.05 * rng.standard_normal(params.shapes()[name], np.float32)
    return made


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(1)
    return {
        "image": rng.random((BATCH, 64, 64, 3), np.float32),
        "start": rng.standard_normal((BATCH, 8, 8, 16), np.float32),
        "context": rng.standard_normal((BATCH, 3, 8), np.float32),
        "steps": STEPS,
    }


def runs(sampler, **how) -> tuple[np.ndarray, int, int]:
    """What is drawn, and how often the condition and the U-Net ran: by the calls of one weight of each."""
    _core.profile_start()
    try:
        drawn = sampler.denoise(**how)
    finally:
        events = _core.profile_stop()
    calls = Counter(event[1] for event in events)
    condition, unet = ({n for w, n in calls.items() if w.startswith(part)} for part in ("amn.", "unet."))
    assert len(condition) == len(unet) == 1
    return drawn, condition.pop(), unet.pop()


@pytest.mark.parametrize("twin", [False, True])
def test_the_condition_is_computed_once_an_image(sampler, given, twin):
    starts = {"twin": -given["start"]} if twin else {}
    assert runs(sampler, **given, **starts)[1:] == (1, STEPS * (1 + twin))


def test_equal_contexts_run_the_unet_once(sampler, given):
    drawn, *once = runs(sampler, **given)
    guided, *count = runs(sampler, **given, uncond=given["context"].copy(), guidance=9.0)
    assert once == count == [1, STEPS]
    assert np.array_equal(guided, drawn)


@pytest.mark.parametrize("place", [(0, 0, 0), (BATCH - 1, 2, 7)])
def test_contexts_that_differ_anywhere_run_it_twice(sampler, given, place):
    uncond = given["context"].copy()
    uncond[place] += 1
    guided, *count = runs(sampler, **given, uncond=uncond, guidance=9.0)
    assert count == [1, 2 * STEPS]
    assert not np.array_equal(guided[place[0]], runs(sampler, **given)[0][place[0]])


def test_skipped_steps_start_from_less_noise(sampler, given):
    """a z + sqrt(1 - a^2) noise, of the same noise; without a skip a is 0, as the last timestep is noise alone."""
    z, streams = given["start"], np.arange(BATCH)
    noise = sampler.start(z, streams, 5, steps=STEPS)
    assert np.array_equal(noise, sampler.start(np.zeros_like(z), streams, 5, steps=STEPS))
    shares = []
    for skip in range(1, STEPS):
        part = sampler.start(np.zeros_like(z), streams, 5, steps=STEPS, skip=skip)
        whole = sampler.start(z, streams, 5, steps=STEPS, skip=skip)
        a = float(np.vdot(whole - part, z) / np.vdot(z, z))
        assert np.allclose(part, np.sqrt(1 - a * a) * noise, atol=1e-4) and np.allclose(whole, part + a * z, atol=1e-5)
        assert runs(sampler, **given, skip=skip)[1:] == (1, STEPS - skip)
        shares.append(a)
    assert 0 < shares[0] < shares[1] < 1
