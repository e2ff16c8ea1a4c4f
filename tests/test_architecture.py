"""That csrc keeps to the layers of docs/ARCHITECTURE.md."""

from __future__ import annotations

import re

import pytest
from paths import ROOT

LAYERS = re.findall(r"^    csrc/(\w+)/ ", (ROOT / "docs/ARCHITECTURE.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_uses_what_stands_below_it(layer):
    below = LAYERS[LAYERS.index(layer) :]
    found = [
        f"{path.relative_to(ROOT)} includes {used}/"
        for path in sorted((ROOT / "csrc" / layer).rglob("*.*"))
        for used in re.findall(r'^\s*#\s*include "(\w+)/', path.read_text("utf-8"), re.MULTILINE)
        if used not in below
    ]
    assert not found


def test_every_folder_is_a_layer():
    assert sorted(LAYERS) == sorted(path.name for path in (ROOT / "csrc").iterdir() if path.is_dir() and path.name != "tests")
