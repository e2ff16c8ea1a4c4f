"""Records of a run: measures by class, task matrices, their summary, and the files and tables of them.

A run folder holds ``metrics.csv``, one line for each (after_task, task, class), and ``results.json`` with the
configuration, the protocol, the task matrices and the summary. Each file is replaced as a whole, so a reader
or a restart after a crash finds the last complete one. Undefined values (nan) are empty in CSV and null in
JSON.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdad.atomic import write_atomically
from cdad.errors import FormatError, LimitError
from cdad.metrics import MEASURES, average_last, backward_transfer, forgetting

SCHEMA = "cdad.results"
SCHEMA_VERSION = 1
CSV_NAME, JSON_NAME = "metrics.csv", "results.json"
_KEY_COLUMNS = ("after_task", "task", "class")
_MAX_FILE_BYTES = 64 << 20
_MAX_TASKS = 1000


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """The measures of one class of one task after a task was learned; tasks count from 0."""

    after_task: int
    task: int
    class_name: str
    measures: Mapping[str, float]

    def __post_init__(self) -> None:
        if not 0 <= self.task <= self.after_task:
            raise ValueError(f"task {self.task} cannot be evaluated after task {self.after_task}: "
                             "0 <= task <= after_task is needed")
        for name, value in self.measures.items():
            if math.isinf(value):
                raise ValueError(f"{name} of class {self.class_name} after task {self.after_task} is {value}")


class TaskMatrix:
    """R[learned, evaluated] for each measure: the value of a task's test set after each learned task.

    Args:
        tasks: the names of the N tasks, in the order of learning.
        measures: the names of the measures.

    Entries are nan until set, and stay so above the diagonal.
    """

    def __init__(self, tasks: Sequence[str], measures: Sequence[str] = MEASURES):
        if not 1 <= len(tasks) <= _MAX_TASKS:
            raise ValueError(f"a task matrix needs 1 to {_MAX_TASKS} tasks, got {len(tasks)}")
        self.tasks = tuple(tasks)
        self.measures = tuple(measures)
        self._values = {name: np.full((len(self.tasks),) * 2, np.nan) for name in self.measures}

    def __repr__(self) -> str:
        last = {name: float(np.mean(values[-1])) for name, values in self._values.items()}
        averages = ", ".join(f"{name} {value:.3f}" for name, value in last.items() if not math.isnan(value))
        return f"TaskMatrix({' / '.join(self.tasks)}{'; after all: ' if averages else ''}{averages})"

    @classmethod
    def from_results(cls, tasks: Sequence[str], results: Iterable[ClassResult],
                     measures: Sequence[str] = MEASURES) -> TaskMatrix:
        """A task's value is the mean over its classes, nan where that of a class is."""
        cells: dict[tuple[int, int], list[Mapping[str, float]]] = {}
        for result in results:
            cells.setdefault((result.after_task, result.task), []).append(result.measures)
        matrix = cls(tasks, measures)
        for (learned, evaluated), classes in cells.items():
            matrix.update(learned, evaluated, {
                name: math.fsum(one.get(name, math.nan) for one in classes) / len(classes)
                for name in matrix.measures})
        return matrix

    def update(self, learned_task: int, evaluated_task: int, values: Mapping[str, float]) -> None:
        """Set the entry of each measure in `values`; a second value of an entry replaces the first.

        Raises:
            ValueError: not 0 <= evaluated_task <= learned_task < N, a value is infinite, or a measure is
                not of this matrix.
        """
        if not 0 <= evaluated_task <= learned_task < len(self.tasks):
            raise ValueError(f"no entry ({learned_task}, {evaluated_task}) in a matrix of {len(self.tasks)} "
                             "tasks: 0 <= evaluated_task <= learned_task < N is needed")
        for name, value in values.items():
            if name not in self._values:
                raise ValueError(f"unknown measure {name!r}, this matrix holds {', '.join(self.measures)}")
            if math.isinf(value):
                raise ValueError(f"{name} of entry ({learned_task}, {evaluated_task}) is {value}")
            self._values[name][learned_task, evaluated_task] = value

    def __getitem__(self, measure: str) -> np.ndarray:
        """A copy of R [N,N] of one measure."""
        return self._values[measure].copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskMatrix):
            return NotImplemented
        return ((self.tasks, self.measures) == (other.tasks, other.measures)
                and all(np.array_equal(values, other._values[name], equal_nan=True)
                        for name, values in self._values.items()))

    __hash__ = None  # it changes

    @property
    def n_learned(self) -> int:
        """The number of tasks learned so far: up to the last row that holds a value."""
        rows = np.any([~np.isnan(values).all(axis=1) for values in self._values.values()], axis=0)
        return int(np.flatnonzero(rows)[-1]) + 1 if rows.any() else 0

    def summary(self) -> dict[str, dict[str, float]]:
        """``{measure: {"average": A-, "forgetting": FM, "backward_transfer": BWT}}`` over the tasks learned so far.

        nan where it is not defined: an entry is missing, or FM and BWT before the second task.
        """
        n = self.n_learned
        return {name: {"average": average_last(values[:n, :n]) if n else math.nan,
                       "forgetting": forgetting(values[:n, :n]) if n > 1 else math.nan,
                       "backward_transfer": backward_transfer(values[:n, :n]) if n > 1 else math.nan}
                for name, values in self._values.items()}

    def untested(self) -> list[str]:
        """The learned tasks after which nothing was tested: another run learned them."""
        n = self.n_learned
        rows = np.any([~np.isnan(values[:n]).all(axis=1) for values in self._values.values()], axis=0)
        return [task for task, tested in zip(self.tasks[:n], rows, strict=True) if not tested]

    def undefined(self) -> list[str]:
        """The tasks that leave A-, FM or BWT of some measure undefined: an entry of theirs is missing."""
        n = self.n_learned
        missing = np.zeros(n, bool)
        for values in self._values.values():
            missing |= np.isnan(values[:n, :n]).any(axis=0, where=np.tri(n, dtype=bool))
        return [task for task, absent in zip(self.tasks[:n], missing, strict=True) if absent]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``{"tasks": [...], "measures": {name: rows}}``, nan as None."""
        return {"tasks": list(self.tasks),
                "measures": {name: to_json(values.tolist()) for name, values in self._values.items()}}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TaskMatrix:
        """The inverse of :meth:`to_dict`.

        Raises:
            FormatError: the record is not one of :meth:`to_dict`.
        """
        try:
            tasks, measures = record["tasks"], record["measures"]
            if not (isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)):
                raise FormatError("task matrix: tasks is not a list of names")
            matrix = cls(tasks, ())
            matrix.measures = tuple(measures)
            for name, rows in measures.items():
                values = np.array(rows, dtype=np.float64)  # None becomes nan
                if values.shape != (len(tasks),) * 2:
                    raise FormatError(f"task matrix {name}: shape {values.shape} for {len(tasks)} tasks")
                if np.isinf(values).any() or not np.isnan(values[np.triu_indices(len(tasks), 1)]).all():
                    raise FormatError(f"task matrix {name}: infinite values or values above the diagonal")
                matrix._values[name] = values
        except FormatError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"not a task matrix: {error!r}") from error
        return matrix


@dataclasses.dataclass(frozen=True)
class RunResults:
    """What ``results.json`` holds."""

    config: Mapping[str, Any]
    protocol: Mapping[str, Any]
    matrix: TaskMatrix

    def __repr__(self) -> str:
        return f"RunResults({self.matrix!r})"

    def summary(self) -> dict[str, dict[str, float]]:
        """See :meth:`TaskMatrix.summary`."""
        return self.matrix.summary()


class ResultWriter:
    """Collects the measures of a run and writes them to its folder.

    Args:
        folder: the run folder, made if missing.
        tasks: the names of the tasks, in the order of learning.
        config, protocol: what was run: dataclasses, mappings, sequences, paths and plain or NumPy scalars.
        environment: where, likewise; kept in ``results.json``, and no part of what is compared.
        measures: the names of the measures.
        resume: take over the lines of an earlier ``metrics.csv`` in the folder, if there is one.

    Raises:
        TypeError, ValueError: config or protocol cannot be written as JSON.
        FormatError: the file to resume from is damaged or of other tasks or measures.
    """

    def __init__(self, folder: str | os.PathLike, tasks: Sequence[str], *, config: Any = None,
                 protocol: Any = None, environment: Any = None, measures: Sequence[str] = MEASURES,
                 resume: bool = False):
        self.folder = Path(folder)
        self.tasks = tuple(tasks)
        self.measures = tuple(measures)
        self._config = to_json({} if config is None else config)
        self._protocol = to_json({} if protocol is None else protocol)
        self._environment = to_json({} if environment is None else environment)
        self._results: dict[tuple[int, int, str], ClassResult] = {}
        path = self.folder / CSV_NAME
        if resume and path.exists():
            for result in read_csv(path):
                if result.after_task >= len(self.tasks):
                    raise FormatError(f"a line after task {result.after_task} in a run of "
                                      f"{len(self.tasks)} tasks", path)
                if tuple(result.measures) != self.measures:
                    raise FormatError(f"measures {', '.join(result.measures)}, "
                                      f"expected {', '.join(self.measures)}", path)
                self._results[result.after_task, result.task, result.class_name] = result

    def record(self, after_task: int, task: int, class_name: str, measures: Mapping[str, float]) -> None:
        """Add the measures of a class; a second record of the same class replaces the first.

        Raises:
            ValueError: not 0 <= task <= after_task < N, or the measures are not those of this writer.
        """
        result = ClassResult(after_task, task, class_name, dict(measures))
        if after_task >= len(self.tasks):
            raise ValueError(f"after_task {after_task} in a run of {len(self.tasks)} tasks")
        if set(measures) != set(self.measures):
            raise ValueError(f"measures {', '.join(measures)}, expected {', '.join(self.measures)}")
        self._results[after_task, task, class_name] = result

    @property
    def results(self) -> tuple[ClassResult, ...]:
        """All records, by after_task, then task, then in the order of recording."""
        return tuple(sorted(self._results.values(), key=lambda result: (result.after_task, result.task)))

    def forget(self, after_task: int) -> bool:
        """Drop what was measured after this task and later ones; whether there was any."""
        kept = {key: result for key, result in self._results.items() if result.after_task < after_task}
        dropped, self._results = len(kept) < len(self._results), kept
        return dropped

    def matrix(self) -> TaskMatrix:
        """The task matrices of what was recorded so far."""
        return TaskMatrix.from_results(self.tasks, self.results, self.measures)

    def write(self) -> None:
        """Write ``metrics.csv`` and ``results.json``, each atomically; OSError where that fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_csv(self.folder / CSV_NAME, self.results, self.measures)
        write_json(self.folder / JSON_NAME, RunResults(self._config, self._protocol, self.matrix()), self._environment)


def write_csv(path: str | os.PathLike, results: Iterable[ClassResult],
              measures: Sequence[str] = MEASURES) -> None:
    """Write one line for each result; floats are written so that they are read back to the same bits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_KEY_COLUMNS + tuple(measures))
    for result in results:
        values = [float(result.measures[name]) for name in measures]
        writer.writerow([result.after_task, result.task, result.class_name,
                         *("" if math.isnan(value) else repr(value) for value in values)])
    write_atomically(path, text.getvalue().encode("utf-8", "backslashreplace"))


def read_csv(path: str | os.PathLike) -> tuple[ClassResult, ...]:
    """Read what :func:`write_csv` wrote.

    Raises:
        FormatError: the file is damaged; the message names the line.
        LimitError: the file is larger than 64 MiB.
        OSError: it cannot be read.
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    results = []
    try:
        header = next(reader, [])
        names = header[len(_KEY_COLUMNS):]
        if tuple(header[:len(_KEY_COLUMNS)]) != _KEY_COLUMNS or len(set(names)) != len(names):
            raise ValueError(f"header {header} does not begin with {list(_KEY_COLUMNS)} or repeats a name")
        for line in reader:
            if len(line) != len(header):
                raise ValueError(f"{len(line)} fields, the header has {len(header)}")
            values = [float(value) if value else math.nan for value in line[len(_KEY_COLUMNS):]]
            results.append(ClassResult(int(line[0]), int(line[1]), line[2], dict(zip(names, values))))
    except (csv.Error, ValueError) as error:
        raise FormatError(f"line {reader.line_num}: {error}", path) from error
    return tuple(results)


def write_json(path: str | os.PathLike, run: RunResults, environment: Mapping[str, Any] | None = None) -> None:
    """Write config, protocol, task matrices and their summary, with the version of the schema, and where it was run.

    Raises:
        TypeError, ValueError: config or protocol cannot be written as JSON.
    """
    record = {"schema": SCHEMA, "version": SCHEMA_VERSION, "config": run.config, "protocol": run.protocol,
              "environment": environment or {},
              "task_matrix": run.matrix.to_dict(), "summary": run.summary()}
    text = json.dumps(to_json(record), indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_json(path: str | os.PathLike) -> RunResults:
    """Read what :func:`write_json` wrote; the summary is computed anew from the matrices.

    Raises:
        FormatError: the file is damaged, of another kind or of a newer version.
        LimitError: the file is larger than 64 MiB.
        OSError: it cannot be read.
    """
    text = _read_text(path)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}", path) from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise FormatError(f"not a {SCHEMA} file", path)
    version = record.get("version")
    if version != SCHEMA_VERSION:
        raise FormatError(f"{SCHEMA} version {version!r}, this cdad reads version {SCHEMA_VERSION}", path)
    for key in ("config", "protocol", "task_matrix"):
        if not isinstance(record.get(key), dict):
            raise FormatError(f"{key} is missing or not an object", path)
    try:
        matrix = TaskMatrix.from_dict(record["task_matrix"])
    except FormatError as error:
        raise FormatError(error.reason, path) from error
    return RunResults(record["config"], record["protocol"], matrix)


def compare_summaries(summaries: Mapping[str, Mapping[str, Mapping[str, float]]],
                      measures: Sequence[str] = ("image_auroc", "pixel_auroc")) -> list[dict[str, object]]:
    """Rows for :func:`format_table`: one method a row, A- and FM in percent, as "image / pixel" in one cell.

    Args:
        summaries: of each method by its name, as from :meth:`TaskMatrix.summary`.
        measures: those to join in a cell, in this order.
    """
    def cell(summary: Mapping[str, Mapping[str, float]], kind: str) -> str:
        return " / ".join(_number(100.0 * summary[name][kind], 1) for name in measures)

    names = " / ".join(measures)
    return [{"method": method, f"A- {names} (%)": cell(summary, "average"),
             f"FM {names} (%)": cell(summary, "forgetting")} for method, summary in summaries.items()]


def format_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None, *,
                 digits: int = 3, title: str | None = None) -> str:
    """An aligned plain-text table: text to the left, numbers to the right.

    Args:
        rows: each a mapping from a column's name to its value; a missing value, None and nan show as "-".
        columns: the names to show, in order; by default all, in the order in which the rows bring them.
        digits: decimals of floats.
        title: a line above the table.
    """
    if columns is None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[" ".join(str(name).split()) for name in columns]]
    lines += [[_cell(row.get(name), digits) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    numeric = [all(isinstance(row.get(name), (int, float, np.number, type(None))) for row in rows)
               for name in columns]
    lines.insert(1, ["-" * width for width in widths])
    text = ["  ".join(value.rjust(width) if right else value.ljust(width)
                      for value, width, right in zip(line, widths, numeric)).rstrip() for line in lines]
    return "\n".join([title, *text] if title else text)


def _read_text(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise LimitError(f"larger than the {_MAX_FILE_BYTES} bytes that are read", path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8", path, error.start) from error


def to_json(value: Any, where: str = "") -> Any:
    """Plain JSON values of a record; nan is None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"{where or 'value'} is {value}, which JSON cannot hold")
        return None if math.isnan(value) else value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where or 'value'} of type {type(value).__name__} cannot be written as JSON")


def _cell(value: object, digits: int) -> str:
    if isinstance(value, (float, np.floating)):
        return _number(float(value), digits)
    return "-" if value is None else " ".join(str(value).split())


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"  # no -0.00
