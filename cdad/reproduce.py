"""The paper's tables as commands: `cdad reproduce table2 --setting 4 --data DIR --weights DIR --out DIR`.

A table is a view of runs, one a setting and strategy, in ``OUT/SETTING/STRATEGY``: tables that show other measures of the same
runs (2, 6, 9 and 3, 7, 10) train nothing again in the same folder, and the same command goes on where it stood.

Of the paper's numbers none comes with the package. What each table holds, and which settings the ablation has, could not be
checked against the paper's text; every run keeps every measure of every class.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _core
from .atomic import write_atomically
from .autoencoder import Autoencoder
from .checkpoint import previous_of
from .config import PAPER_RECIPE, Config
from .config_checks import STRATEGIES
from .data import ClassData, Dataset, list_classes, open_dataset
from .data.records import list_folders
from .data.split_tables import VISA_SPLIT
from .errors import DataError
from .model import StepReport
from .planning import plan
from .protocols import MVTEC_CLASSES, PROTOCOLS, VISA_CLASSES, Protocol
from .results import CSV_NAME, compare_summaries, format_table, read_csv
from .run import CHECKPOINT, LOSSES, check_same_run, finished_results, run_or_resume
from .text import text_network
from .weights.resnet import RESNETS
from .weights.search import Shapes, find_weights

_MVTEC = ("mvtec-14-1", "mvtec-10-5", "mvtec-3x5", "mvtec-10-1x5")
_VISA = ("visa-11-1", "visa-8-4", "visa-8-1x4")
_CROSS = ("mvtec-visa", "visa-mvtec")
_AUROC, _AUPR = ("image_auroc", "pixel_auroc"), ("image_ap", "pixel_ap")


@dataclass(frozen=True)
class Table:
    """``settings``: protocols, numbered from 1 as in the published code; ``measures``: shown as A- and FM of each, or, with
    ``by_class``, of each class after the last task; ``strategies``: its rows."""

    title: str
    settings: tuple[str, ...]
    measures: tuple[str, ...]
    strategies: tuple[str, ...] = ("cdad",)
    by_class: bool = False


TABLES: dict[str, Table] = {
    "table2": Table("MVTec, AUROC", _MVTEC, _AUROC),
    "table3": Table("VisA, AUROC", _VISA, _AUROC),
    "table4": Table("across data sets, AUROC", _CROSS, _AUROC),
    "table5": Table("ablation on MVTec, AUROC", _MVTEC, _AUROC, ("cdad", "without_cdm", "without_amn", "controlnet")),
    "table6": Table("MVTec, AUPR", _MVTEC, _AUPR),
    "table7": Table("VisA, AUPR", _VISA, _AUPR),
    "table9": Table("MVTec, AUROC of each class", _MVTEC, _AUROC, by_class=True),
    "table10": Table("VisA, AUROC of each class", _VISA, _AUROC, by_class=True),
}

DATA_SETS = {"MVTec": MVTEC_CLASSES, "VisA": VISA_CLASSES}

# Epochs of the first task and of increments, as the paper's 500 and 100 are taken here (the published code's default is 500 for each);
# the learning rate of 1e-5 and batches of 12 are those of the preset "sd15".
_SCHEDULE: dict[str, Any] = {"training.epochs": 500, "training.increment_epochs": 100, "scoring.backbone": "resnet50"}
# What a fork of the published code sets for VisA alone: the stem, layer2 and layer4, and two samples of three perturbed.
_PAPER_VISA: dict[str, Any] = {"scoring.layers": [4, 1, 3], "training.perturb_share": 2 / 3}
# Which key names the file of a family of models.
_KEYS = {"unet": "unet.weights", "vae": "autoencoder.weights", "clip_text": "text.weights", "resnet": "scoring.weights"}
# They train on the first task as "cdad" does, and go on from its checkpoint.
_SAME_FIRST_TASK = ("without_cdm", "finetune")
_PACE_STEPS = 10


@dataclass(frozen=True)
class Run:
    """One setting under one strategy. ``steps`` of each task: 0 for one that is taken from ``start_from``."""

    setting: str
    config: Config
    folder: Path
    start_from: Path | None
    steps: tuple[int, ...]

    @property
    def strategy(self) -> str:
        return self.config.continual.strategy

    @property
    def protocol(self) -> Protocol:
        return PROTOCOLS[self.setting]

    @property
    def steps_left(self) -> int:
        """Steps to train, by the log of those that were."""
        if not (self.folder / LOSSES).exists():
            return sum(self.steps)
        with open(self.folder / LOSSES, "rb") as file:
            return max(0, sum(self.steps) - max(0, sum(1 for _ in file) - 1))


@dataclass(frozen=True)
class Reproduction:
    """A table's runs, all checked; ``notes``: in what they are not the paper's."""

    name: str
    out: Path
    dataset: Dataset
    runs: tuple[Run, ...]
    notes: tuple[str, ...]

    @property
    def table(self) -> Table:
        return TABLES[self.name]

    @property
    def steps_left(self) -> int:
        return sum(run.steps_left for run in self.runs)


def describe_tables() -> str:
    """What can be reproduced, as text."""
    rows = []
    for name, table in TABLES.items():
        for number, setting in enumerate(table.settings, start=1):
            tasks = " + ".join(str(len(task)) for task in PROTOCOLS[setting].tasks)
            first = number == 1
            rows.append({
                "table": name if first else "",
                "what": table.title if first else "",
                "rows": ", ".join(table.strategies) if first else "",
                "--setting": f"{number}: {setting}",
                "classes": tasks,
            })
    return format_table(rows) + (
        "\n\nA setting is named by its number or its protocol; all of a table's are run where none is named. Tables that show"
        "\nthe same runs share them in one --out. Every run keeps all measures of all classes (metrics.csv, results.json); what"
        "\nthe paper's tables hold could not be checked against its text, and its numbers do not come with this package."
    )


def prepare(
    name: str,
    config: Config,
    *,
    data: Sequence[str | os.PathLike],
    weights: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    settings: Sequence[str] = (),
    strategies: Sequence[str] = (),
    recipe: str = "default",
    changes: Mapping[str, Any] | None = None,
) -> Reproduction:
    """Everything that ``TABLES[name]`` wants, found and checked; nothing is trained.

    ``config``: a preset, which the schedule, the weights and the ``recipe`` ("default" or "paper") change, and last ``changes`` by
    key. ``data``: the data sets' folders, or one that holds them; ``weights``: files and folders, looked through by content.
    ``settings`` (numbers or protocols' names) and ``strategies``: instead of all of the table's. DataError: everything that is
    missing, in one message; ValueError: an unknown setting or key, or a run in ``out`` with another configuration.
    """
    table, user = TABLES[name], dict(changes or {})
    chosen = tuple(dict.fromkeys(_setting(name, text) for text in settings)) or table.settings
    rows = tuple(dict.fromkeys(strategies)) or table.strategies
    if "continual.strategy" in user:
        raise ValueError("continual.strategy is of the table's rows: --strategies chooses some of them")
    unknown = [strategy for strategy in rows if strategy not in STRATEGIES]
    if unknown:
        raise ValueError(f"no strategy {unknown[0]!r}; known: {', '.join(STRATEGIES)}")
    draft = config.updated(_SCHEDULE | {"scoring.weights": "?"} | user)
    wanted = {family: shapes for family, shapes in _wanted_weights(draft).items() if _KEYS[family] not in user}
    files, problems = find_weights(weights, wanted)
    problems = [f"weights: {problem}" for problem in problems]
    dataset, notes, missing = _find_data(data, [PROTOCOLS[setting] for setting in chosen])
    if problems or missing:
        raise DataError("; ".join(missing + problems))
    found = {_KEYS[family]: [str(path)] if family == "vae" else str(path) for family, path in files.items()}

    def configure(setting: str, strategy: str) -> Config:
        recipes = dict(PAPER_RECIPE) if recipe == "paper" else {}
        if recipe == "paper" and setting in _VISA:
            recipes |= _PAPER_VISA
        return config.updated(_SCHEDULE | found | recipes | user | {"continual.strategy": strategy})

    runs = []
    for setting in chosen:
        folders = {strategy: Path(out) / setting / strategy for strategy in rows}
        for strategy in sorted(rows, key=lambda strategy: strategy in _SAME_FIRST_TASK):
            shared = strategy in _SAME_FIRST_TASK and "cdad" in folders
            start_from = folders["cdad"] / "tasks" / "0.safetensors" if shared else None
            resolved = configure(setting, strategy)
            steps = _task_steps(resolved, dataset, PROTOCOLS[setting])
            run = Run(setting, resolved, folders[strategy], start_from, ((0, *steps[1:]) if shared else steps))
            check_same_run(resolved, run.folder)
            runs.append(run)
    return Reproduction(name, Path(out), dataset, tuple(runs), notes)


def _setting(name: str, text: str) -> str:
    settings = TABLES[name].settings
    if text in settings:
        return text
    if text.isdigit() and 1 <= int(text) <= len(settings):
        return settings[int(text) - 1]
    known = ", ".join(f"{number}: {setting}" for number, setting in enumerate(settings, start=1))
    raise ValueError(f"{name} has no setting {text!r}; it has {known}")


# ---- what is on the disk ----------------------------------------------------------------------------------------------


def _find_data(paths: Sequence[str | os.PathLike], protocols: Iterable[Protocol]) -> tuple[Dataset, tuple[str, ...], list[str]]:
    """(the classes that the protocols want, notes, what is missing). Each class is taken from its own data set alone: another
    folder of the same name does no harm."""
    needed = {name for protocol in protocols for name in protocol.classes}
    folders, wrong = _class_folders(paths)
    missing = [f"data: {path} does not exist" for path in map(Path, paths) if not path.exists()]
    notes: list[str] = []
    taken: list[ClassData] = []
    for title, classes in DATA_SETS.items():
        wanted = [name for name in classes if name in needed]
        if not wanted:
            continue
        root = max(folders, key=lambda folder: len(folders[folder].intersection(wanted)), default=None)
        if root is None or not folders[root].intersection(wanted):
            missing.append("; ".join([f"data: no folder with the classes of {title} in {', '.join(map(str, paths))}", *wrong]))
            continue
        lacking = [name for name in wanted if name not in folders[root]]
        if lacking:
            missing.append(f"data: {title} in {root} lacks {len(lacking)} of {len(wanted)} classes: {', '.join(lacking)}")
            continue
        try:
            opened = open_dataset(root)
            untested = [name for name in wanted if not opened[name].test]
            if untested:
                missing.append(f"data: {title} in {root} has no test images of {', '.join(untested)}")
            taken += [opened[name] for name in wanted]
        except (DataError, OSError) as error:
            missing.append(f"data: {error}")
        if (root / wanted[0] / "Data").is_dir() and not (root / VISA_SPLIT).is_file():
            notes.append(f"{root} has no {VISA_SPLIT}: every tenth normal image is held out for testing, not the published ones")
    return Dataset(taken), tuple(notes), missing


def _class_folders(paths: Sequence[str | os.PathLike]) -> tuple[dict[Path, set[str]], list[str]]:
    """The classes of every folder, and of those right below it, that looks like a data set; why a named one does not."""
    found: dict[Path, set[str]] = {}
    wrong: list[str] = []
    for path in map(Path, paths):
        for folder in (path, *list_folders(path)):
            try:
                found[folder] = set(list_classes(folder))
            except (DataError, OSError) as error:
                if folder == path and path.exists():
                    wrong.append(str(error))
    return found, wrong


def _wanted_weights(config: Config) -> dict[str, Shapes]:
    """The parameters of each model that the configuration takes from a file."""

    def shapes(make: Callable[[_core.Params], object]) -> Shapes:
        params = _core.Params()
        make(params)
        return params.shapes()

    unet, side = config.unet, (config.image_size, config.image_size)
    wanted: dict[str, Shapes] = {}
    if unet.context_dim:
        both = shapes(lambda params: _core.Sampler(params, config.denoiser(), 1))
        wanted["unet"] = {name: shape for name, shape in both.items() if name.startswith("unet.")}
        wanted["clip_text"] = shapes(lambda params: text_network(params, config.text, unet.context_dim, unet.context_length))
    if config.autoencoder.kind == "vae":
        wanted["vae"] = Autoencoder(config.autoencoder, config.image_size, 1, load=False, device="planned").params.shapes()
    if config.scoring.backbone in RESNETS:
        core = RESNETS[config.scoring.backbone].core_config()
        wanted["resnet"] = shapes(lambda params: _core.Network(params, "resnet", core, 1, side))
    return wanted


# ---- what it will take ------------------------------------------------------------------------------------------------


def _trained(config: Config, protocol: Protocol) -> list[tuple[str, ...]]:
    """The classes whose images each task trains on."""
    joint = config.continual.strategy == "joint"
    return [tuple(protocol.seen(k) if joint else task) for k, task in enumerate(protocol.tasks)]


def _task_steps(config: Config, dataset: Dataset, protocol: Protocol) -> tuple[int, ...]:
    trained = _trained(config, protocol)
    images = [sum(len(dataset[name].train) for name in names) for names in trained]
    return tuple(config.training.task_steps(k, len(names), images[k]) for k, names in enumerate(trained))


def describe(reproduction: Reproduction, *, step_seconds: float | None = None) -> str:
    """What the runs are, and an estimate of their time and memory. ``step_seconds``: of a training step, if known. ValueError: that is
    no time."""
    if step_seconds is not None and not 0 < step_seconds < math.inf:
        raise ValueError(f"a training step of {step_seconds} s is no estimate; more than 0 is wanted")
    rows, tests = [], 0
    for run in reproduction.runs:
        tasks = run.protocol.tasks
        for k, names in enumerate(tasks):
            classes = [reproduction.dataset[name] for name in names]
            first = k == 0
            rows.append({
                "setting": run.setting if first else "",
                "method": run.strategy if first else "",
                "task": k + 1,
                "classes": len(names),
                "images": sum(len(data.train) for data in classes),
                "steps": run.steps[k],
            })
            tests += (len(tasks) - k) * sum(len(data.test) for data in classes)
    config, left = reproduction.runs[0].config, reproduction.steps_left
    text = [
        format_table(rows, title=f"{reproduction.name}: {reproduction.table.title}; preset {config.preset}, seed {config.seed}"),
        f"\nweights: {', '.join(_weight_files(config)) or 'none'}",
        f"time: {left} of {sum(sum(run.steps) for run in reproduction.runs)} training steps are left"
        + (f", {duration(left * step_seconds)} at {step_seconds:.3g} s each" if step_seconds else "")
        + f"; {tests} test images are scored",
        _describe_memory(reproduction),
        *(f"note: {note}" for note in reproduction.notes),
    ]
    return "\n".join(text)


def _weight_files(config: Config) -> list[str]:
    files = [config.unet.weights, *config.autoencoder.weights, config.text.weights, config.scoring.weights]
    return list(dict.fromkeys(file for file in files if file))


def _describe_memory(reproduction: Reproduction) -> str:
    """The phase of a run that takes most, on the CPU."""
    most: tuple[int, str, dict[str, int]] = (0, "", {})
    for run in reproduction.runs:
        trained = _trained(run.config, run.protocol)
        sizes = [(sum(len(reproduction.dataset[name].train) for name in names), len(names)) for names in trained]
        images, classes = max(sizes)
        planned = plan(run.config, images=images, classes=classes)
        phase = max(planned.peak, key=planned.peak.__getitem__)
        most = max(most, (planned.peak[phase], f"{run.setting}, {run.strategy}: {phase}", planned.memory[phase]), key=lambda m: m[0])
    total, phase, parts = most
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    listed = ", ".join(f"{name} {size / 2**30:.3g}" for name, size in parts.items() if size >= 0.01 * total)
    return f"memory in GiB: at most {total / 2**30:.3g} ({phase}: {listed}); this machine has {machine / 2**30:.3g}"


def duration(seconds: float) -> str:
    """A time in its two largest units, e.g. "3 d 4 h"."""
    left, parts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        n, left = divmod(left, size)
        if n or (unit == "s" and not parts):
            parts.append(f"{n} {unit}")
    return " ".join(parts[:2])


class _Pace:
    """Told of each step, it tells once what the first steps took, and what that makes for those that are left."""

    def __init__(self, left: int, tell: Callable[[str], None]):
        self._left, self._tell = left, tell
        self._seen, self._began = 0, 0.0

    def __call__(self, report: StepReport) -> None:
        self._seen += 1
        if self._seen == 1:  # which warms the caches
            self._began = time.monotonic()
        elif self._seen == 1 + _PACE_STEPS:
            seconds = (time.monotonic() - self._began) / _PACE_STEPS
            left = max(0, self._left - self._seen)
            self._tell(f"{seconds:.3g} s a step: {duration(left * seconds)} for the {left} training steps left, without testing")


# ---- running and showing ----------------------------------------------------------------------------------------------


def execute(
    reproduction: Reproduction, *, previous: bool = False, progress: bool = True, tell: Callable[[str], None] = print
) -> str:
    """Train and test every run that is not finished; return the table, which is written to the folder, too. ``previous``: go on
    from the checkpoints before the last ones, where one is damaged."""
    pace = _Pace(reproduction.steps_left, tell)
    for number, run in enumerate(reproduction.runs, start=1):
        tell(f"\n{run.setting}, {run.strategy} (run {number} of {len(reproduction.runs)}) in {run.folder}")
        run_or_resume(
            run.config,
            reproduction.dataset,
            run.protocol,
            run.folder,
            previous=previous and previous_of(run.folder / CHECKPOINT).exists(),
            start_from=run.start_from,
            progress=progress,
            tell=tell,
            callback=pace,
        )
    text = results_table(reproduction.name, reproduction.out)
    write_atomically(reproduction.out / f"{reproduction.name}.txt", (text + "\n").encode())
    return text


def results_table(name: str, out: str | os.PathLike) -> str:
    """The table of every finished run of it that the folder holds, in percent."""
    table, finished = TABLES[name], []
    for setting in table.settings:
        folders = [path for path in list_folders(Path(out) / setting) if path.name in STRATEGIES]
        known = [*table.strategies, *STRATEGIES]
        for folder in sorted(folders, key=lambda path: known.index(path.name)):
            results = finished_results(folder, PROTOCOLS[setting])
            if results is not None:
                finished.append((setting, folder, results))
    title = f"{name}: {table.title}"
    if table.by_class:
        return format_table(_rows_by_class(table, finished), title=f"{title}, after the last task")
    rows = [
        {"setting": setting} | compare_summaries({folder.name: results.summary()}, table.measures)[0]
        for setting, folder, results in finished
    ]
    return format_table(rows, title=f"{title}; A-: mean after the last task, FM: forgetting")


def _rows_by_class(table: Table, finished: Sequence[tuple]) -> list[dict[str, object]]:
    """A row a class, a column a run: the measures as "image / pixel", and their means last."""
    classes = sorted(PROTOCOLS[table.settings[0]].classes)
    rows: dict[str, dict[str, object]] = {name: {"class": name} for name in (*classes, "mean")}
    for setting, folder, results in finished:
        last = [r for r in read_csv(folder / CSV_NAME) if r.after_task == len(PROTOCOLS[setting].tasks) - 1]
        values = {r.class_name: [100 * r.measures[m] for m in table.measures] for r in last}
        values["mean"] = [sum(column) / len(column) for column in zip(*values.values(), strict=True)]
        for name, measured in values.items():
            rows[name][f"{setting} {folder.name}"] = " / ".join(f"{value:.1f}" for value in measured)
    return list(rows.values())
