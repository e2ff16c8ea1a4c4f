"""The type stub of the compiled core names what the core has, and nothing else."""

import ast

from paths import ROOT

from cdad import _core

STUB = ast.parse((ROOT / "cdad" / "_core.pyi").read_text())


def names(body: list[ast.stmt]) -> set[str]:
    found = set()
    for item in body:
        if isinstance(item, ast.FunctionDef | ast.ClassDef):
            found.add(item.name)
        elif isinstance(item, ast.AnnAssign):
            found.add(item.target.id)
    return found


def public(thing) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_module():
    assert names(STUB.body) == public(_core)


def test_classes():
    for item in STUB.body:
        if isinstance(item, ast.ClassDef):
            cls = getattr(_core, item.name)
            stubbed = names(item.body)
            assert {n for n in stubbed if not n.startswith("_")} == public(cls), item.name
            assert all(hasattr(cls, name) for name in stubbed), item.name
