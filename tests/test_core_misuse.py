"""What Python objects may do while the core reads them, and values that it cannot keep: told, with nothing half done."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from cdad import ContinualModel, _core, preset
from cdad.atomic import write_atomically
from cdad.checkpoint import Checkpoint, save_checkpoint
from cdad.errors import CheckpointError
from cdad.programs import Programs


def run(script: str) -> str:
    """What a process of its own prints: these end it where they go wrong."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120).stdout


class Compiles:
    """A number, an array, a list and a size that compile the graph when they are asked."""

    def __init__(self, graph, x):
        self.graph, self.x = graph, x

    def _compile(self):
        self.graph.compile([self.x])

    def __float__(self):
        self._compile()
        return 1.0

    def __index__(self):
        self._compile()
        return 4

    def __array__(self, dtype=None, copy=None):
        self._compile()
        return np.ones(4, np.float32)

    def __iter__(self):
        self._compile()
        yield self.x


@pytest.mark.parametrize("grow", [
    lambda g, x, it: g.op("affine", [x], a=it),
    lambda g, x, it: g.op("silu", it),
    lambda g, x, it: g.const(it),
    lambda g, x, it: g.input("y", [it]),
    lambda g, x, it: g.backward(g.op("reduce_sum", [x], axes=1)[0], it),
], ids=["attribute", "inputs", "const", "shape", "backward"])  # fmt: skip
def test_a_graph_that_is_compiled_meanwhile_does_not_grow(grow):
    graph = _core.Graph()
    x = graph.input("x", (4,))
    with pytest.raises(ValueError, match="compiled"):
        grow(graph, x, Compiles(graph, x))


class Liar:
    """A sequence longer than it says at first."""

    def __init__(self, says: int, item: int):
        self.says, self.item, self.asked = says, item, 0

    def __len__(self):
        self.asked += 1
        return self.says if self.asked == 1 else 1000

    def __getitem__(self, i):
        if i >= 1000:
            raise IndexError(i)
        return self.item


@pytest.mark.parametrize("says", [2**61, 2**62, 1])
def test_a_length_that_is_said_is_not_believed(says):
    graph = _core.Graph()
    x = graph.input("x", (4,))
    total = graph.op("reduce_sum", [x], axes=1)[0]
    for use in (lambda v: graph.backward(total, v), graph.compile):
        try:
            use(Liar(says, x))
        except (ValueError, MemoryError):
            pass
    assert graph.shape(x) == (4,)


def test_bases_want_parameters_that_are_there():
    sampler = _core.Sampler(_core.Params(), preset("tiny").denoiser(), 1)
    collector = _core.Collector(sampler, "auto")
    assert collector.plan()
    with pytest.raises(ValueError, match="not allocated"):
        collector.bases({})


def test_a_core_that_is_loaded_again_leaves_the_first_one_its_types():
    assert run("""
import gc, importlib.util
import cdad._core as c
spec = importlib.util.spec_from_file_location("cdad._core", c.__file__)
again = importlib.util.module_from_spec(spec)
spec.loader.exec_module(again)
del again, spec
gc.collect()
others = [type(f"T{i}", (), {}) for i in range(2000)]
g = c.Graph()
x = g.input("x", (4,))
print(type(g.compile([x])).__name__)
""") == "Program\n"


def test_a_profile_that_begins_again_while_it_is_told():
    assert "fine" in run("""
import gc
import numpy as np
from cdad import _core
g = _core.Graph()
x = v = g.input("x", (4,))
for _ in range(3000):
    v = g.op("silu", [v])[0]
p = g.compile([v])
_core.profile_start()
p.run({x: np.ones(4, np.float32)})
class Again:
    def __del__(self):
        _core.profile_start()
gc.collect()
gc.disable()
one = Again()
one.one = one
del one
gc.enable()
assert all(len(event) == 7 for event in _core.profile_stop())
print("fine")
""")


def test_a_child_of_a_profiled_process_has_a_profile_of_its_own():
    assert "0 hang" in run("""
import os, signal, threading, time
import numpy as np
from cdad import _core
_core.set_threads(1)
stop = threading.Event()
def work():
    g = _core.Graph()
    x = v = g.input("x", (4,))
    for _ in range(3000):
        v = g.op("silu", [v])[0]
    p = g.compile([v])
    while not stop.is_set():
        p.run({x: np.ones(4, np.float32)})
threads = [threading.Thread(target=work) for _ in range(3)]
for t in threads:
    t.start()
hang = 0
for _ in range(40):
    _core.profile_start()
    time.sleep(0.002)
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        _core.profile_start()
        os._exit(0)
    hang += os.waitpid(pid, 0)[1] != 0
stop.set()
for t in threads:
    t.join()
print(hang, "hang")
""")


@pytest.mark.parametrize("method", ["isvd", "incremental", "sketch"])
def test_states_beyond_float32_are_refused(method):
    rng = np.random.default_rng(0)
    stream = _core.Stream(6, method, 0.9)
    stream.add(rng.standard_normal((20, 6)).astype(np.float32))
    state = stream.state()
    bad = state.copy()
    bad[-1] = -1e300
    with pytest.raises(ValueError, match="no float32"):
        stream.load_state(bad)
    assert np.array_equal(stream.state(), state)


def test_numbers_that_are_no_integers_are_not_cut():
    config, params = preset("tiny"), _core.Params()
    sampler = _core.Sampler(params, config.denoiser(), 2)
    params.allocate(0)
    latent = np.zeros((2, config.latent_size, config.latent_size, config.autoencoder.latent_channels), np.float32)
    with pytest.raises(TypeError, match="streams: integers are wanted"):
        sampler.start(latent, [0.5, 1.0], 0)
    with pytest.raises(ValueError, match="streams: 2 are wanted"):
        sampler.start(latent, [1], 0)
    assert np.array_equal(sampler.start(latent, np.array([1, 2], np.uint8), 0), sampler.start(latent, [1, 2], 0))
    image = np.zeros((2, config.image_size, config.image_size, 3), np.float32)
    with pytest.raises(ValueError, match="sampling steps"):
        sampler.denoise(image, latent, skip=-(2**63), trace=True)


def test_learning_rates_that_are_none_move_nothing():
    config = preset("tiny").updated({"training.batch_size": 1})
    params = _core.Params()
    trainer = _core.Trainer(params, config.denoiser(), 1, config.optimizer(), 0)
    before = trainer.block("weights").copy()
    size = config.image_size
    latent = np.zeros((1, config.latent_size, config.latent_size, config.autoencoder.latent_channels), np.float32)
    image = np.zeros((1, size, size, 3), np.float32)
    for scale in (1e300, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="lr"):
            trainer.step(latent, image, image, lr_scale=scale)
    assert np.array_equal(trainer.block("weights"), before)


def test_a_pair_of_dlpack_is_a_tuple():
    array = _core.DeviceArray(np.ones(3, np.float32), "emulated")
    for how in ({"max_version": [1, 0]}, {"max_version": 5}, {"dl_device": [1, 0]}):
        with pytest.raises(TypeError, match="is a pair"):
            array.__dlpack__(**how)


def test_a_handler_writes_what_it_interrupts(tmp_path):
    """It comes in the middle of the writing, on the same thread; the older content, which is finished last, stays."""
    path = tmp_path / "file"

    def parts():
        yield b"first"
        write_atomically(path, b"of the handler")
        assert path.read_bytes() == b"of the handler"
        yield b" second"

    write_atomically(path, parts())
    assert path.read_bytes() == b"first second" and os.listdir(tmp_path) == ["file"]


def test_a_handler_predicts_while_a_program_is_compiled():
    made = []

    def make(n):
        made.append(n)
        if made == [4, 1]:
            assert programs.single == 1
        return n

    programs = Programs(make, 4)
    assert programs.single == 1


@pytest.mark.parametrize("name", ["../../x", "a/shift", "\0", "", "b\nc"])
def test_checkpoints_of_classes_that_no_file_is_named_after(first_checkpoint, tmp_path, name):
    checkpoint = Checkpoint(first_checkpoint)
    state = checkpoint.state
    state["ledger"][0]["classes"][0] = name
    path = tmp_path / "named.safetensors"
    save_checkpoint(path, {key: checkpoint.read(key) for key in checkpoint.tensors}, state)
    with pytest.raises(CheckpointError, match="ledger"):
        ContinualModel.load(path)
