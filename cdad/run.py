"""A run: a protocol's tasks one after the other, tested after each, with everything kept in a folder.

    config.toml             the resolved configuration
    checkpoint.safetensors  the newest state; a run goes on from it
    checkpoint.previous.safetensors  the one before it, should it be damaged
    tasks/K.safetensors     the model after task K
    loss.csv                one row a training step, but for one that a signal interrupted
    metrics.csv             one row a tested class after each task
    results.json            the same, with the task matrix R of every measure, A-, FM and BWT
    sheets/afterK/CLASS.png image, reconstruction, map, mask
    task_matrix.png, loss.png
"""

from __future__ import annotations

import csv
import fcntl
import io
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from . import _core
from .atomic import write_atomically
from .checkpoint import previous_of
from .config import Config, preset
from .data import ClassData, Dataset, Sample
from .data.inputs import check_path
from .errors import DataError, TrainingError
from .evaluation import as_dataset, evaluate_class, read_test, write_contact_sheet
from .model import ContinualModel, StepReport
from .plots import loss_curve, matrix_image
from .protocols import Protocol
from .protocols import protocol as named_protocol
from .results import JSON_NAME, ResultWriter, RunResults, read_json
from .version import __version__

log = logging.getLogger("cdad")

CHECKPOINT, CONFIG, LOSSES = "checkpoint.safetensors", "config.toml", "loss.csv"


def run_protocol(
    config: Config | str,
    dataset: Dataset | Mapping[str, ClassData] | Iterable[ClassData],
    protocol: Protocol | str,
    folder: str | os.PathLike,
    *,
    resume: bool = False,
    previous: bool = False,
    start_from: str | os.PathLike | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = log.info,
    callback: Callable[[StepReport], None] | None = None,
) -> RunResults:
    """Train and test ``protocol``'s tasks in order; return the results that the folder holds too. ``config`` and ``protocol`` may be
    names, as `preset` and `protocol` know them.

    ``resume``: go on with the folder's checkpoint, or, with ``previous``, with the one before it, which takes its place.
    ``start_from``: the checkpoint of another run that has learned this protocol's first tasks: strategies share it, and take
    what they keep of it from its images. ``callback``: told of each training step.

    DataError: a class is missing, the folder holds another run and ``resume`` is not asked for, or a run's results and models but
    no checkpoint, or ``start_from`` is in the middle of a task; ValueError: it was run with another configuration; CheckpointError: the
    checkpoint is damaged, and whether the one before it is kept; RuntimeError: another process works on this run.
    """
    check_path(folder, "the run's folder")
    config, dataset = preset(config) if isinstance(config, str) else config, as_dataset(dataset)
    if not isinstance(config, Config):
        raise TypeError(f"a configuration is wanted, as preset() gives it, not {type(config).__name__}")
    if not isinstance(protocol, Protocol):
        protocol = named_protocol(protocol, list(dataset))
    missing = [name for name in protocol.classes if name not in dataset]
    if missing:
        raise DataError(f"the data set has no class {missing[0]!r}; it holds {', '.join(dataset)}")
    config = _located(config)
    with alone(Path(folder)):
        return _run(config, dataset, protocol, Path(folder), resume, previous, start_from, progress, tell, callback)


def _check_tests(classes: Sequence[ClassData]) -> None:
    """Errors of tests, which follow hours of training, before it."""

    def check(sample: Sample) -> None:
        read_test(sample)  # and let go of: pictures of full size would wait for the first one

    with ThreadPoolExecutor(min(_core.get_threads(), 4)) as pool:  # each has a picture of full size
        for _ in pool.map(check, [sample for data in classes for sample in data.test]):
            pass


def _located(config: Config) -> Config:
    """With the paths of files that are there from anywhere, as a run's folder is used from elsewhere, too."""

    def of(path: str) -> str:
        return os.path.abspath(path) if path and os.path.exists(path) else path

    weights = {key: value for key, value in _flat(config.to_dict()).items() if key.endswith(".weights")}
    return config.updated({key: of(value) if isinstance(value, str) else list(map(of, value)) for key, value in weights.items()})


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """RuntimeError where another process is in here with the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process works on the run in {folder}") from None
        except OSError as error:
            log.info("%s: runs cannot be locked here (%s)", folder, error)
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Of several processes that change this file, by putting another in its place, one after the other."""
    while True:
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                log.info("%s: files cannot be locked here (%s)", path, error)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # else another was put there meanwhile
                yield
                return


def _run(config, dataset, protocol, folder: Path, resume, previous, start_from, progress, tell, callback) -> RunResults:
    checkpoint = folder / CHECKPOINT
    kept = previous_of(checkpoint)
    resumed = holds_run(folder)
    if resumed and not resume:
        raise DataError(f"{folder} holds a run already: resume it (--resume, resume=True), or choose another folder")
    if previous and not resumed:
        raise DataError(f"{folder} holds no run, and so none of its checkpoints")
    of_tasks = any((folder / "tasks").glob("*.safetensors"))
    if not resumed and (is_begun(folder) or of_tasks):
        advice = ", and start there from a file of its tasks/" if of_tasks else ""
        raise DataError(f"{folder} holds what a run made, and no checkpoint to go on from: choose another folder{advice}")
    if resume and not resumed:
        log.warning("%s holds no run to go on with: one of preset '%s' begins", folder, config.preset)
    check_same_run(config, folder)
    _check_tests([dataset[name] for name in protocol.classes])
    names = ["+".join(task) for task in protocol.tasks]
    if resumed and previous:
        model = ContinualModel.load(kept, config)
    elif resumed:
        model = ContinualModel.load(checkpoint, config)
    elif start_from is not None:
        model = ContinualModel.load(start_from, config)
        if model.progress.get("step"):  # its weights are no longer those that the tasks before left, which are tested first
            raise DataError(f"{start_from} is in the middle of a task: start from a file of that run's tasks/, or resume that run")
    else:
        model = ContinualModel(config)
    learned = [tuple(task["classes"]) for task in model.ledger]
    if learned != [tuple(task) for task in protocol.tasks[: len(learned)]]:
        raise DataError(f"the model has learned {' / '.join('+'.join(task) for task in learned)}, and this protocol is {protocol}")
    if not resumed and learned and (model.predict_only or not model.strategy.ready):
        model.consolidate([dataset[name] for name in model.classes], progress=progress)
    if resumed:
        model.check_calibrated(model.classes)
    elif stale := model.uncalibrated:
        tell(f"measuring what is normal again, as another configuration scores: {', '.join(stale)}")
        model.recalibrate([dataset[name] for name in stale])
    is_finished = finished_results(folder, protocol) is not None
    writer = ResultWriter(
        folder,
        names,
        config=config.to_dict(),
        protocol={"name": protocol.name, "tasks": [list(task) for task in protocol.tasks]},
        environment={"cdad": __version__, "device": model.params.device, **_core.build_info()},
        resume=resumed and (folder / JSON_NAME).exists(),
    )
    if previous:  # after all that may refuse
        os.replace(kept, checkpoint)
    (folder / "tasks").mkdir(exist_ok=True)
    if not is_finished:  # a run that is done keeps its own
        write_atomically(folder / CONFIG, config.to_toml().encode())
    if learned and not resumed:  # a task's steps write it, and there may be none to learn, or an interruption before
        model.save(checkpoint)
    if writer.forget(len(model.ledger)):  # of a later state than this one
        writer.write()
    losses = _LossLog(folder / LOSSES, done=(len(model.ledger), model.progress.get("step", 0)) if resumed else (0, 0))

    def report(step: StepReport) -> None:
        losses(step)
        if callback is not None:
            callback(step)

    try:
        for k, classes in enumerate(protocol.tasks):
            begins = k >= len(model.ledger)
            if begins:
                tell(f"task {k + 1} of {len(names)}: {', '.join(classes)}")
                began = time.monotonic()
                model.fit_task(
                    [dataset[name] for name in classes],
                    progress=progress,
                    checkpoint=checkpoint,
                    callback=report,
                )
                tell(f"learned in {time.monotonic() - began:.0f} s; features: {model.features.name}"
                     + _told(model.ledger[-1]))
            # Within the next task weights are no longer what this one left.
            if k + 1 < len(model.ledger) or not begins and model.progress.get("step"):
                continue
            tested, file = not begins and _tested(writer, k, protocol, dataset), folder / "tasks" / f"{k}.safetensors"
            if not tested or not file.exists():
                model.save(file)
            if not tested:
                _test(model, dataset, protocol, k, writer, folder, progress, tell)
    except KeyboardInterrupt:
        model.save(checkpoint, keep_previous=True)
        tell(f"interrupted; the state is kept in {checkpoint}")
        raise
    except TrainingError:  # weights that are to be kept are in the checkpoint before
        raise
    except Exception:
        if model.progress.get("step"):  # training that is done is not to be done again
            model.save(checkpoint, keep_previous=True)
            tell(f"stopped; the state is kept in {checkpoint}")
        raise
    finally:
        losses.close()
    if finished_results(folder, protocol) is None:  # a crash left metrics.csv ahead of it
        writer.write()
    results = read_json(folder / JSON_NAME)
    _draw(results, folder, names, losses.path)
    return results


def run_or_resume(
    config: Config, dataset: Dataset, protocol: Protocol, folder: str | os.PathLike, **how: Any
) -> RunResults:
    """The results of a run that `run_protocol` (``how``: its other arguments) begins, goes on with or, where the folder
    holds all of them, needs not do again. ValueError: the folder's run has another configuration."""
    folder = Path(folder)
    check_same_run(config, folder)  # of a finished run, too
    if (results := finished_results(folder, protocol)) is not None:
        return results
    return run_protocol(config, dataset, protocol, folder, resume=holds_run(folder), **how)


def holds_run(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return (folder / CHECKPOINT).exists() or previous_of(folder / CHECKPOINT).exists()


def is_begun(folder: Path) -> bool:
    """Whether there is something of a run that its configuration belongs to: a checkpoint, or its results alone."""
    return holds_run(folder) or (folder / JSON_NAME).exists()


def check_same_run(config: Config, folder: Path) -> None:
    """ValueError, with the keys that differ, where the folder holds a run with another configuration, or its results alone. Files of
    weights may have moved: one of the same name stands for one that is gone."""
    if not (is_begun(folder) and (folder / CONFIG).exists()):
        return
    kept, wanted = (_flat(c.to_dict()) for c in (read_config(folder), config))

    def has_moved(before: str, now: str) -> bool:
        before, now = (path and os.path.abspath(path) for path in (before, now))
        return before == now or os.path.basename(before) == os.path.basename(now) and not os.path.exists(before)

    def is_same(key: str) -> bool:
        before, now = ([value] if isinstance(value, str) else value for value in (kept[key], wanted[key]))
        if kept[key] == wanted[key] or not key.endswith(".weights"):
            return kept[key] == wanted[key]
        return len(before) == len(now) and all(map(has_moved, before, now))

    differ = [f"{key} = {kept[key]!r}, not {wanted[key]!r}" for key in wanted if not is_same(key)]
    if differ:
        raise ValueError(f"{folder} was run with another configuration ({'; '.join(differ)}): choose another folder, or the same configuration")


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    parts = ({f"{key}.{name}": item for name, item in v.items()} if isinstance(v, dict) else {key: v} for key, v in tree.items())
    return {key: value for part in parts for key, value in part.items()}


def finished_results(folder: Path, protocol: Protocol) -> RunResults | None:
    """The results of the folder's run, where it has learned and tested all of the protocol's tasks."""
    if not (folder / JSON_NAME).exists():
        return None
    results = read_json(folder / JSON_NAME)
    same = results.matrix.tasks == tuple(map("+".join, protocol.tasks))
    return results if same and results.matrix.n_learned == len(protocol.tasks) else None


def _told(entry: dict) -> str:
    """What a task's line of the ledger says of it, but for what is told elsewhere."""
    text = ""
    if "condition_ratio" in entry:
        text += f"; x0 error under its own against another image's condition: {entry['condition_ratio']:.2f}"
    rest = {k: v for k, v in entry.items() if k not in ("classes", "steps", "seconds", "condition_ratio")}
    return text + "".join(f"; {k.replace('_', ' ')}: {v:.4g}" for k, v in rest.items())


def _tested(writer: ResultWriter, k: int, protocol: Protocol, dataset: Dataset) -> bool:
    done = {r.class_name for r in writer.results if r.after_task == k}
    return done >= {name for name in protocol.seen(k) if dataset[name].test}


def _test(model, dataset, protocol, k, writer, folder, progress, tell) -> None:
    """Test every class seen so far that has test images: the test set is cumulative."""
    sheets = folder / "sheets" / f"after{k}"
    sheets.mkdir(parents=True, exist_ok=True)
    for task in range(k + 1):
        for name in protocol.tasks[task]:
            if not dataset[name].test:
                tell(f"  {name}: no test images")
                continue
            result = evaluate_class(model, dataset[name], progress=progress)
            writer.record(k, task, name, result.measures)
            write_contact_sheet(result, sheets / f"{name}.png")
            m = result.measures
            tell(f"  {name}: image AUROC {m['image_auroc']:.3f}, pixel AUROC {m['pixel_auroc']:.3f}, "
                 f"PRO {m['pixel_aupro']:.3f}")
    writer.write()


_LOSSES = ("task", "step", "loss", "loss_cdm", "loss_amn", "grad_norm")


def _is_losses(row: list[str]) -> bool:
    """Whether this line of a log is whole."""
    if len(row) != len(_LOSSES) or not (row[0].isdecimal() and row[1].isdecimal()):
        return False
    try:
        return all(map(math.isfinite, map(float, row[2:])))
    except ValueError:
        return False


class _LossLog:
    """Losses as CSV, a line a step; a callback of `ContinualModel.fit_task`. Of an earlier log, the steps before
    ``done`` (task, step) are kept: a run that was killed has logged more than its checkpoint holds."""

    def __init__(self, path: Path, done: tuple[int, int]):
        self.path = path
        kept = []
        if path.exists():
            with open(path, errors="replace") as file:
                rows = (row for line in file if _is_losses(row := line.rstrip("\n").split(",")))  # nothing is quoted here
                kept = [row for row in rows if (int(row[0]), int(row[1])) < done]
        begun = io.StringIO(newline="")
        csv.writer(begun).writerows([_LOSSES, *kept])
        write_atomically(path, begun.getvalue().encode())
        self._file = open(path, "a", newline="")
        self._writer = csv.writer(self._file)

    def __call__(self, r: StepReport) -> None:
        values = (f"{x:.6g}" for x in (r.loss, r.loss_cdm, r.loss_amn, r.grad_norm))
        try:
            self._writer.writerow([r.task, r.step, *values])
            self._file.flush()
        except OSError as error:  # which names no file
            with suppress(OSError):  # what is left in its buffer fails again
                self._file.close()
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        self._file.close()


def _draw(results: RunResults, folder: Path, names: list[str], losses: Path) -> None:
    if results.matrix.n_learned:
        matrix_image(results.matrix["pixel_auroc"], folder / "task_matrix.png", tasks=names, title="pixel AUROC")
    with open(losses, newline="") as file:
        values = [float(row["loss_cdm"]) for row in csv.DictReader(file)]
    if len(values) > 1:
        n, window = len(values), 50  # at first of as many as there are
        smooth = np.convolve(values, np.ones(window))[:n] / np.minimum(np.arange(1, n + 1), window)
        loss_curve(folder / "loss.png", smooth, title=f"L_CDM, mean of the last {window} steps")


def read_config(folder: str | os.PathLike) -> Config:
    """The resolved configuration of a run folder."""
    return Config.from_toml(Path(folder) / CONFIG, whole=True)

