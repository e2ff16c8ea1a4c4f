"""A pickle reader that runs nothing: the opcodes of pickle protocols 2 to 5 that ``torch.save`` writes.

A pickle is a program whose GLOBAL opcodes name any importable function and whose REDUCE calls it, so
Python's own unpickler must never see a foreign file. Here a global is only its name. The reader's caller
lists the few that may be called and what a call yields; a call of any other one yields a `Stub`, which
takes what the program stores in it and keeps nothing. Work and memory are bounded by the caps below.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import FormatError, LimitError

MAX_BYTES = 1 << 23  # of one pickle: a Stable Diffusion checkpoint's has some 10^5
MAX_OPCODES = 10_000_000
FREE_OPCODES = 80_000  # more only as the file is larger: see `opcode_cap`
MAX_OBJECTS = 300_000  # allocated by the program: some 40 MB at worst
MAX_STACK = 300_000
MAX_DEPTH = 1_000  # open marks
MAX_MEMO = 300_000
MAX_STRING = 1 << 20
MAX_NAME = 1_024  # of a global's module or name


@dataclass(frozen=True, slots=True)
class Global:
    """A function or class that the pickle names: never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Stub:
    """What stands for an object of a class that is not on the list; `origin` is the class or function."""

    origin: Global


def opcode_cap(size: int) -> int:
    """The opcodes that a file of ``size`` bytes may have run: a small one cannot ask for more than some 0.1 s. A Stable
    Diffusion checkpoint has 30 for each of its 2000 tensors."""
    return min(MAX_OPCODES, FREE_OPCODES + size // 1024)


def load_pickle(
    data: bytes,
    start: int,
    calls: Mapping[Global, Callable[[tuple], object]],
    persistent: Callable[[object], object] | None = None,
    path: str | os.PathLike | None = None,
    base: int = 0,
    opcodes: int | None = None,
) -> tuple[object, int]:
    """(value, end): the object that the pickle at ``data[start:]`` describes and where the next byte is.

    ``calls`` gives, for each global that may be called, the result for its tuple of arguments;
    ``persistent`` the object for a persistent id. Either raises FormatError for arguments that it does not
    accept. ``path`` and ``base`` (the offset of ``data`` in that file) serve the messages; ``opcodes`` is the most that
    are run, by default `opcode_cap` of ``data``. Sets become lists, frozen sets tuples.
    FormatError: malformed, or an opcode that torch.save does not write; LimitError: over a cap.
    """
    machine = _Machine(data, start, calls, persistent, path, base)
    return machine.run(opcode_cap(len(data)) if opcodes is None else opcodes), machine.position


class _Machine:
    def __init__(self, data, start, calls, persistent, path, base):
        self.data, self.position, self.opcode_at = data, start, start
        self.calls, self.persistent = calls, persistent
        self.path, self.base = path, base
        self.stack: list = []  # the items since the last mark
        self.below: list[list] = []  # the stacks under the open marks
        self.memo: dict[int, object] = {}
        self.objects = 0

    def error(self, reason: str) -> FormatError:
        return FormatError(f"pickle: {reason}", self.path, self.base + self.opcode_at)

    def limit(self, what: str, cap: int) -> LimitError:
        return LimitError(f"pickle: more than {cap} {what}", self.path, self.base + self.opcode_at)

    def run(self, opcodes: int) -> object:
        if self.data[self.position : self.position + 1] != b"\x80":
            raise self.error("does not begin with the PROTO opcode")
        for _ in range(opcodes):
            self.opcode_at = self.position
            code = self.take(1)
            if code == b".":
                if len(self.stack) != 1 or self.below:
                    found = f"{len(self.stack)} values and {len(self.below)} open marks"
                    raise self.error(f"ends with {found} on the stack, expected one value")
                return self.stack[0]
            step = _STEPS.get(code)
            if step is None:
                raise self.error(f"opcode {code!r} is not one that torch.save writes")
            step(self)
        raise self.limit("opcodes", opcodes)

    # Operands of opcodes.

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise self.error(f"{count} bytes expected, {len(self.data) - self.position} left")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def text(self, count: int) -> str:
        if count > MAX_STRING:
            raise self.limit("bytes in a string", MAX_STRING)
        try:
            return self.take(count).decode()
        except UnicodeDecodeError as error:
            raise self.error(f"a string is not UTF-8: {error.reason}") from None

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + MAX_NAME + 1)
        if end < 0:
            raise self.error(f"a global's name does not end within {MAX_NAME} bytes")
        result = self.text(end - self.position)
        self.position = end + 1
        return result

    # The stack.

    def push(self, value: object) -> None:
        if len(self.stack) >= MAX_STACK:
            raise self.limit("values on the stack", MAX_STACK)
        self.stack.append(value)

    def create(self, value: object) -> None:
        """Push what takes memory of its own."""
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise self.limit("objects", MAX_OBJECTS)
        self.push(value)

    def pop(self, kind: type | tuple[type, ...] = object) -> object:
        if not self.stack:
            raise self.error("the stack is empty")
        return self.typed(self.stack.pop(), kind)

    def top(self, kind: type | tuple[type, ...] = object) -> object:
        if not self.stack:
            raise self.error("the stack is empty")
        return self.typed(self.stack[-1], kind)

    def typed(self, value: object, kind: type | tuple[type, ...]) -> object:
        if not isinstance(value, kind):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise self.error(f"{type(value).__name__} where {names} is expected")
        return value

    def mark(self) -> None:
        if len(self.below) >= MAX_DEPTH:
            raise self.limit("open marks", MAX_DEPTH)
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list:
        if not self.below:
            raise self.error("there is no mark")
        items, self.stack = self.stack, self.below.pop()
        return items

    # Opcodes with more to them than one line.

    def protocol(self) -> None:
        version = self.unsigned(1)
        if not 2 <= version <= 5:
            raise self.error(f"protocol {version}, expected 2 to 5")

    def frame(self) -> None:
        size = self.unsigned(8)
        if size > len(self.data) - self.position:
            raise self.error(f"a frame of {size} bytes, {len(self.data) - self.position} left")

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()
        if len(self.memo) > MAX_MEMO:
            raise self.limit("memo entries", MAX_MEMO)

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.error(f"memo entry {index} is not set")
        self.push(self.memo[index])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise self.error(f"a tuple of {count} from {len(self.stack)} values")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.create(items)

    def extend(self, items: list) -> None:
        target = self.top((list, Stub))
        if isinstance(target, list):
            target.extend(items)

    def set_items(self, items: list) -> None:
        target = self.top((dict, Stub))
        if len(items) % 2:
            raise self.error("a key without a value")
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                self.typed(key, _KEYS)
                # Python's hash of an int is no secret: wider ones could be made to collide by the thousand.
                if isinstance(key, int) and not -(1 << 63) <= key < 1 << 63:
                    raise self.error("a key is wider than 64 bits")
                target[key] = value

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def stack_global(self) -> None:
        name, module = self.pop(str), self.pop(str)
        if max(len(name), len(module)) > MAX_NAME:
            raise self.limit("characters in a global's name", MAX_NAME)
        self.create(Global(module, name))

    def call(self) -> None:
        arguments, function = self.pop(tuple), self.pop((Global, Stub))
        if function in self.calls:
            self.create(self.accepted(self.calls[function], arguments))
        else:
            self.create(Stub(function.origin if isinstance(function, Stub) else function))

    def call_with_keywords(self) -> None:
        self.pop(dict)
        self.call()

    def accepted(self, function: Callable[[object], object], argument: object) -> object:
        try:
            return function(argument)
        except FormatError as error:
            raise self.error(error.reason) from None

    def build(self) -> None:
        # Attributes (a state_dict's _metadata, a module's __dict__): a dict's tensors are not among them.
        self.pop()
        self.top((dict, Stub))

    def persistent_id(self) -> None:
        identity = self.pop()
        if self.persistent is None:
            raise self.error("a persistent id where none is expected")
        self.create(self.accepted(self.persistent, identity))


_KEYS = (str, bytes, int, float, type(None), Global, Stub)

_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.protocol,
    b"\x95": _Machine.frame,
    b"(": _Machine.mark,
    b"0": lambda m: m.pop(),
    b"1": lambda m: m.since_mark(),
    # Values.
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.unsigned(1)),
    b"M": lambda m: m.create(m.unsigned(2)),
    b"J": lambda m: m.create(int.from_bytes(m.take(4), "little", signed=True)),
    b"\x8a": lambda m: m.create(int.from_bytes(m.take(m.unsigned(1)), "little", signed=True)),
    b"G": lambda m: m.create(struct.unpack(">d", m.take(8))[0]),
    b"\x8c": lambda m: m.create(m.text(m.unsigned(1))),
    b"X": lambda m: m.create(m.text(m.unsigned(4))),
    b"\x8d": lambda m: m.create(m.text(m.unsigned(8))),
    b"C": lambda m: m.create(m.take(m.unsigned(1))),
    b"B": lambda m: m.create(m.take(m.unsigned(4))),
    b"\x8e": lambda m: m.create(m.take(m.unsigned(8))),
    # Containers.
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"t": lambda m: m.create(tuple(m.since_mark())),
    b"]": lambda m: m.create([]),
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.since_mark()),
    b"}": lambda m: m.create({}),
    b"s": _Machine.set_item,
    b"u": lambda m: m.set_items(m.since_mark()),
    b"\x8f": lambda m: m.create([]),
    b"\x90": lambda m: m.extend(m.since_mark()),
    b"\x91": lambda m: m.create(tuple(m.since_mark())),
    # The memo.
    b"q": lambda m: m.remember(m.unsigned(1)),
    b"r": lambda m: m.remember(m.unsigned(4)),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.recall(m.unsigned(1)),
    b"j": lambda m: m.recall(m.unsigned(4)),
    # Objects.
    b"c": lambda m: m.create(Global(m.line(), m.line())),
    b"\x93": _Machine.stack_global,
    b"R": _Machine.call,
    b"\x81": _Machine.call,
    b"\x92": _Machine.call_with_keywords,
    b"b": _Machine.build,
    b"Q": _Machine.persistent_id,
}
