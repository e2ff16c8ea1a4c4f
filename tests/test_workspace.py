"""The memory in which the networks of a model run one at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cdad
from cdad import _core, preset
from cdad.autoencoder import Autoencoder


def pair(beside: _core.Params | None, device: str | None) -> tuple[_core.Network, _core.Network]:
    """E of 64 pixels and of 32, each with weights of its own."""
    networks = []
    for size in (64, 32):
        params = _core.Params(device, beside)
        networks.append(_core.Network(params, "tiny_encode", {"channels": 16, "latent_channels": 4, "midblock": True}, 2, (size, size)))
        params.allocate(size)
    return networks[0], networks[1]


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_networks_run_in_turn_as_they_run_alone(device):
    store = _core.Params(device)
    images = [np.random.default_rng(0).random((2, size, size, 3), np.float32) for size in (64, 32)]
    alone, shared = pair(None, device), pair(store, device)
    wanted = [network.run(x)[0] for network, x in zip(alone, images, strict=True)]
    assert store.workspace_bytes == max(network.memory_bytes for network in shared) == shared[0].memory_bytes
    assert shared[1].memory_bytes < shared[0].memory_bytes
    for _ in range(3):  # on a device that records: before, while and after it does
        for network, x, want in zip(shared, images, wanted, strict=True):
            assert np.array_equal(network.run(x)[0], want)
    larger = Autoencoder(preset("tiny").autoencoder, 512, 4, load=False, beside=store)
    grown = max(programs.memory_bytes for programs in larger.programs)
    assert store.workspace_bytes == grown > shared[0].memory_bytes  # and moved
    for network, x, want in zip(shared, images, wanted, strict=True):
        assert np.array_equal(network.run(x)[0], want)


def test_it_goes_with_the_last_that_uses_it():
    used = _core.device_memory("emulated")["used"]
    first = _core.Params("emulated")
    second = _core.Params(beside=first)
    assert second.device == "emulated"
    network = _core.Network(second, "dct_encode", {"patch": 8, "latent_channels": 4}, 1, (64, 64))
    assert first.workspace_bytes == network.memory_bytes > 0
    del first
    second.allocate(0)
    assert network.run(np.ones((1, 64, 64, 3), np.float32))[0].shape == (1, 8, 8, 4)
    del network, second
    assert _core.device_memory("emulated")["used"] == used


def test_several_threads_at_once():
    """Each reads its result before the next one runs: a result would else be another's."""
    store = _core.Params()
    networks = pair(store, None)
    rng = np.random.default_rng(0)
    work = [(i % 2, rng.random((2, 64 >> i % 2, 64 >> i % 2, 3), np.float32)) for i in range(24)]
    wanted = [networks[i].run(x)[0] for i, x in work]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(4):
            found = list(pool.map(lambda job: networks[job[0]].run(job[1])[0], work))
            assert all(map(np.array_equal, found, wanted))


def test_refusals():
    with pytest.raises(ValueError, match="same device"):
        _core.Params("emulated", _core.Params("cpu"))
    with pytest.raises(TypeError, match="Params object is wanted"):
        _core.Params("cpu", "beside")


def test_a_model_takes_what_its_largest_network_does(first_checkpoint):
    model = cdad.ContinualModel.load(first_checkpoint)
    needs = model.workspace_needs
    assert set(needs) == {"step", "encode", "decode", "sampler"} and min(needs.values()) > 0
    model.features  # noqa: B018 - made now
    assert set(model.workspace_needs) == set(needs) | {"compare"}
    assert model.memory_bytes["workspace"] == max(model.workspace_needs.values()) < sum(needs.values())
