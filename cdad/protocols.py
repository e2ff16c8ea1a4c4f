"""Protocols: which classes come in which task.

The tasks are learned in order; after each, the classes of all tasks so far are tested. The settings named
``mvtec-*`` and ``visa-*`` are those of the One-for-More paper, with the classes in alphabetical order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from .data.records import check_classes
from .errors import DataError

MVTEC_CLASSES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut",
    "pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip
VISA_CLASSES = (
    "candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2",
    "pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum",
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """A name and the classes of each task. No task is empty and no class comes twice (else DataError)."""

    name: str
    tasks: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if isinstance(self.tasks, str) or any(isinstance(task, str) for task in self.tasks):
            raise TypeError(f"protocol {self.name!r}: tasks are tuples of class names, not {self.tasks!r}; protocol() reads text")
        if not self.tasks:
            raise DataError(f"protocol {self.name!r} has no tasks")
        task_of: dict[str, int] = {}
        for number, task in enumerate(self.tasks, start=1):
            if not task:
                raise DataError(f"protocol {self.name!r}: task {number} is empty")
            for class_name in task:
                if not class_name:
                    raise DataError(f"protocol {self.name!r}: task {number} has a class without a name")
                if class_name in task_of:
                    raise DataError(
                        f"protocol {self.name!r}: class {class_name!r} is in task {task_of[class_name]} "
                        f"and again in task {number}"
                    )
                task_of[class_name] = number

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes in the order they are learned."""
        return self.seen(len(self.tasks) - 1)

    def seen(self, task: int) -> tuple[str, ...]:
        """The classes of task 0 to ``task``, which are tested after it. Raises IndexError beyond the last."""
        if not 0 <= task < len(self.tasks):
            raise IndexError(f"task is {task}, protocol {self.name!r} has tasks 0..{len(self.tasks) - 1}")
        return tuple(name for names in self.tasks[: task + 1] for name in names)

    def __str__(self) -> str:
        """The tasks as `protocol` parses them: "a,b/c/d"."""
        return "/".join(",".join(task) for task in self.tasks)


def _split(classes: tuple[str, ...], *sizes: int) -> tuple[tuple[str, ...], ...]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(classes[start : start + size] for start, size in zip(starts, sizes, strict=True))


def _parse(text: str) -> tuple[tuple[str, ...], ...]:
    tasks = (tuple(name.strip() for name in task.split(",")) for task in text.split("/"))
    return tuple(() if task == ("",) else task for task in tasks)


PROTOCOLS: dict[str, Protocol] = {
    name: Protocol(name, tasks)
    for name, tasks in {
        "mvtec-14-1": _split(MVTEC_CLASSES, 14, 1),
        "mvtec-10-5": _split(MVTEC_CLASSES, 10, 5),
        "mvtec-3x5": _split(MVTEC_CLASSES, 3, 3, 3, 3, 3),
        "mvtec-10-1x5": _split(MVTEC_CLASSES, 10, 1, 1, 1, 1, 1),
        "visa-11-1": _split(VISA_CLASSES, 11, 1),
        "visa-8-4": _split(VISA_CLASSES, 8, 4),
        "visa-8-1x4": _split(VISA_CLASSES, 8, 1, 1, 1, 1),
        "mvtec-visa": (MVTEC_CLASSES, VISA_CLASSES),
        "visa-mvtec": (VISA_CLASSES, MVTEC_CLASSES),
        "real-5": _parse("bottle,pill,screw/toothbrush/transistor"),
        "real-12": _parse(
            "bottle,pill,screw,magnetic_tile/toothbrush,transistor/metal_plate,tire/tile,wood/"
            "wood_board,nanofibre"
        ),
        "real-6x1": _parse("bottle/pill/magnetic_tile/transistor/wood_board/metal_plate"),
        "demo": _parse("cloth,gear,gelcap/steel/circuit/plank"),
    }.items()
}


def protocol(name: str, classes: Iterable[str] | None = None) -> Protocol:
    """The protocol called ``name``, held against the ``classes`` of the data where they are given.

    ``name`` is a key of `PROTOCOLS`; "each", one task for each of ``classes`` in their order; or the tasks
    themselves, as in "a,b/c/d": slashes between tasks, commas between classes.

    Raises DataError for an unknown name, an empty task, a class that comes twice or one that the data lack,
    with the nearest match.
    """
    if not isinstance(name, str):
        raise TypeError(f"a protocol's name is wanted, or its tasks as text (\"a,b/c\"), not {type(name).__name__}: Protocol(name, tasks) takes tuples")
    known = None if classes is None else tuple(classes)
    if name in PROTOCOLS:
        chosen = PROTOCOLS[name]
    elif name == "each":
        if known is None:
            raise ValueError("protocol 'each' needs the classes of the data")
        chosen = Protocol(name, tuple((class_name,) for class_name in known))
    elif "/" in name or "," in name or name in (known or ()):
        chosen = Protocol(name, _parse(name))
    else:
        near = difflib.get_close_matches(name, [*PROTOCOLS, "each", *(known or ())], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join([*PROTOCOLS, 'each'])}"
        raise DataError(f"no protocol {name!r}; {hint}")
    if known is not None:
        check_classes(chosen.classes, known)
    return chosen
