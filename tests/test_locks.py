"""Who waits for whom: several threads, forks, signal handlers and callbacks on one model."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from cdad import ContinualModel, _core
from cdad.model import as_classes


@pytest.fixture
def busy():
    """Starts functions that are called again and again, each in a thread of its own, until the test is over."""
    stop, threads, failures = threading.Event(), [], []

    def start(fn):
        def run():
            try:
                while not stop.is_set():
                    fn()
            except BaseException as error:  # noqa: BLE001 - told by the fixture
                failures.append(error)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures


def images(model, n=6):
    return np.random.default_rng(0).random((n, model.config.image_size, model.config.image_size, 3), np.float32)


def test_predictions_meanwhile_are_not_collected(model, products, busy):
    """A prediction may have begun before the task, and end after it."""
    classes = as_classes([products["steel"]], None)
    alone = model.collect_bases(classes, False)
    busy(lambda: model.drawing.draw(images(model)))
    for _ in range(2):
        beside = model.collect_bases(classes, False)
        assert all(np.array_equal(U, beside[name][0]) and kept == beside[name][1] for name, (U, kept, _) in alone.items())


def test_collectors_come_and_go_while_a_network_runs(model, busy):
    sampler, x = model.drawing.samplers.whole, images(model, model.drawing.samplers.batch_size)
    start = np.zeros_like(model.autoencoder.encode(x))
    busy(lambda: sampler.denoise(x, start, steps=1))
    for _ in range(30):
        collector = _core.Collector(sampler)
        sampler.denoise(x, start, steps=1)
        with pytest.raises(ValueError, match="attached to this sampler already"):
            _core.Recorder(sampler, list(collector.plan())[:1])
        del collector
    _core.Collector(sampler).bases({})
    _core.Recorder(sampler, [])  # bases() has removed the taps


def test_consolidation_is_training(first_checkpoint, products, monkeypatch):
    model = ContinualModel.load(first_checkpoint, predict_only=True)
    met = []

    def after_task(*_):
        for call in (lambda: model.predict(images(model)), lambda: model.fit_task([products["steel"]])):
            with pytest.raises(RuntimeError, match="model is training"):
                call()
            met.append(True)
        return {}

    monkeypatch.setattr(type(model.strategy), "after_task", after_task)
    model.consolidate([products["gear"], products["cloth"]], progress=False)
    assert len(met) == 2
    monkeypatch.setattr(model, "_calibrate", lambda classes: after_task())
    model.recalibrate([products["gear"]])
    assert len(met) == 4
    model.predict(images(model))


def trainer(quick_config):
    """One of two processes' parts of a step, and its arguments."""
    params, c = _core.Params("cpu"), quick_config
    made = _core.Trainer(params, c.denoiser(), 2, c.optimizer(), 0, share=(0, 2))
    side = c.latent_size
    return params, made, (np.zeros((2, side, side, c.autoencoder.latent_channels), np.float32), *[np.zeros((2, c.image_size, c.image_size, 3), np.float32)] * 2)


def test_a_callback_cannot_use_what_is_running(quick_config):
    params, made, batch = trainer(quick_config)
    before = made.block("weights").copy()
    for call in (lambda: made.step(*batch), made.drawn, made.reset, lambda: _core.Sampler(params, quick_config.denoiser(), 1),
                 lambda: made.protect("unet.out.2.weight", frozen=True)):  # fmt: skip
        with pytest.raises(RuntimeError, match="in use by this very call"):
            made.step(*batch, all_reduce=lambda block, call=call: call())
    assert np.array_equal(before, made.block("weights"))
    made.step(*batch, all_reduce=lambda block: made.memory_bytes)  # what only looks may


def test_waiting_can_be_interrupted(quick_config):
    params, made, batch = trainer(quick_config)
    entered, go_on = threading.Event(), threading.Event()

    def all_reduce(block):
        entered.set()
        go_on.wait(60)

    class Told(Exception):
        pass

    def told(*_):
        raise Told

    thread = threading.Thread(target=lambda: made.step(*batch, all_reduce=all_reduce))
    before = signal.signal(signal.SIGALRM, told)
    try:
        thread.start()
        assert entered.wait(60)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Told):
            made.drawn()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        go_on.set()
        thread.join(60)
    made.drawn()


def run(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


FORKS = """
import os, signal, sys, threading
import numpy as np
import cdad
model = cdad.ContinualModel.load(sys.argv[1], device="cpu")
side = model.config.image_size
x = np.random.default_rng(0).random((4, side, side, 3), np.float32)
wanted, stop = model.predict(x).scores, threading.Event()
features = np.ones((3000, 64), np.float32)
stream = cdad._core.Stream(64)
def work():
    while not stop.is_set():
        model.predict(x)
def add():
    while not stop.is_set():
        stream.add(features)
for fn in (work, add):
    threading.Thread(target=fn, daemon=True).start()
for i in range(8):
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        same = np.array_equal(model.predict(x).scores, wanted)
        stream.rows
        os._exit(0 if same else 1)
    if os.waitpid(child, 0)[1]:
        sys.exit("a child hung, or another result")
stop.set()
"""


def test_children_of_a_busy_process(first_checkpoint):
    run(FORKS, str(first_checkpoint))


HANDLER = """
import signal, sys, time
import numpy as np
import cdad
model = cdad.ContinualModel.load(sys.argv[1], device="cpu")
side, n = model.config.image_size, 64  # so that a network runs for longer than signals wait
sampler = cdad._core.Sampler(model.params, model.config.denoiser(), n)
x = np.random.default_rng(0).random((n, side, side, 3), np.float32)
start, told = np.zeros_like(model.autoencoder.encode(x)), []
def denoise():
    return sampler.denoise(x, start, steps=1)
def handler(*_):
    try:
        denoise()
    except RuntimeError as error:
        told.append(str(error))
wanted = denoise()
signal.signal(signal.SIGALRM, handler)
until = time.monotonic() + 120
while len(told) < 3 and time.monotonic() < until:
    signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.1 * np.random.rand())  # once: a handler is not to be interrupted by itself
    assert np.array_equal(denoise(), wanted)
    signal.setitimer(signal.ITIMER_REAL, 0)
assert np.array_equal(denoise(), wanted)
print(told[0])
"""


def test_a_handler_that_uses_what_it_interrupts_is_told(first_checkpoint):
    assert "in use by this very call" in run(HANDLER, str(first_checkpoint))


STOPPED = """
import signal, sys
import numpy as np
import cdad
from cdad.model import as_classes
model = cdad.ContinualModel.load(sys.argv[1], device="cpu")
classes = as_classes({"new": sys.argv[2:]}, None)
class Told(Exception):
    pass
def stop(*_):
    raise Told
signal.signal(signal.SIGALRM, stop)
wanted, stopped = model.collect_bases(classes, False), 0
for delay in np.linspace(0.005, 0.3, 16):
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        model.collect_bases(classes, False)
    except Told as error:
        kept = error  # as a notebook keeps the last one, with its frames
        stopped += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
again = model.collect_bases(classes, False)
assert all(np.array_equal(U, again[name][0]) for name, (U, _, _) in wanted.items())
print(stopped)
"""


def test_collecting_goes_on_after_an_interrupt(first_checkpoint, products):
    assert int(run(STOPPED, str(first_checkpoint), *map(str, products["steel"].train[:4]))) > 0
