"""What the documents show works as it stands there: commands, the Python of the README, keys, files, tests, and the demo."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import fields, is_dataclass

import pytest
from paths import ROOT

import cdad
from cdad import cli
from cdad.data import write_dataset

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = {f.name for f in fields(cdad.Config) if is_dataclass(getattr(cdad.preset("tiny"), f.name))}


def commands(text: str) -> list[str]:
    """Of blocks that are indented or fenced: lines that begin with `cdad`, joined over backslashes."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [line.strip() for line in lines if re.match(r"(    )?cdad [a-z]", line) and "..." not in line]


def shown(pattern: str) -> list[tuple[str, str]]:
    return [(path.name, found) for path in DOCUMENTS for found in sorted(set(re.findall(pattern, path.read_text())))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_commands_are_understood(path):
    for command in commands(path.read_text()):
        arguments = cli._parser().parse_args(shlex.split(command, comments=True)[1:])
        for setting in getattr(arguments, "set", []):
            assert known(setting.partition("=")[0]), command


def test_there_are_commands():
    assert len(commands((ROOT / "README.md").read_text())) > 8


def known(key: str) -> bool:
    section, _, name = key.partition(".")
    return name in {f.name for f in fields(getattr(cdad.preset("tiny"), section))}


def test_settings_exist():
    found = shown(rf"`((?:{'|'.join(sorted(SECTIONS))})\.[a-z_0-9]+)\b")
    files = {"safetensors", "ckpt", "toml", "py", "c", "h"}
    keys = [(document, key) for document, key in found if key.partition(".")[2] not in files]
    assert len(keys) > 20
    for document, key in keys:
        assert known(key), (document, key)


def test_files_and_tests_exist():
    files = shown(r"\b((?:benchmarks|csrc|tests|docs|notebooks|cdad)/[\w/.*]*\.(?:py|c|h|cu|cpp|md|ipynb|json|sh))")
    assert len(files) > 40
    for document, name in files:
        assert list(ROOT.glob(name)), (document, name)
    written = "".join(p.read_text() for folder in ("tests", "csrc/tests") for p in sorted((ROOT / folder).glob("*.*")) if p.is_file())
    tests = shown(r"`(test_[a-z_0-9]+)`")
    assert len(tests) > 5
    for document, name in tests:
        assert re.search(rf"\b{name}\b", written), (document, name)


def test_names_exist():
    names = shown(r"`cdad\.([A-Za-z_]+)\b")
    assert names
    for document, name in names:
        assert hasattr(cdad, name), (document, name)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, quick_config, capsys):
    """On three products instead of the reader's, by a configuration that hardly trains."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert '"small"' in code
    write_dataset(tmp_path / "mvtec", classes=["gear", "cloth", "steel"], size=64, n_train=6, n_good=2, n_defect=1, seed=0)
    (tmp_path / "mvtec" / "gear").rename(tmp_path / "mvtec" / "bottle")
    (tmp_path / "mvtec" / "cloth").rename(tmp_path / "mvtec" / "screw")
    for kind, of in (("good", "train/good"), ("new", "test/*"), ("held_out", "test/good")):
        (tmp_path / "caps" / kind).mkdir(parents=True)
        for i, path in enumerate(sorted((tmp_path / "mvtec" / "steel").glob(f"{of}/*.png"))):
            shutil.copy(path, tmp_path / "caps" / kind / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    names: dict = {"config": quick_config.updated({"training.steps": 2, "training.increment_steps": 2})}
    exec(code.replace('"small"', "config"), names)
    result, model = names["result"], names["model"]
    assert model.classes == ("bottle", "screw", "cap")
    assert result.scores.shape == (len(names["images"]),) and result.maps.shape == (len(names["images"]), 64, 64)
    told = capsys.readouterr().out
    assert all((path.name in told) == (score > names["threshold"]) for path, score in zip(names["images"], result.scores, strict=True))


def test_the_demo_runs_and_goes_on(tmp_path, monkeypatch, quick_config, capsys):
    monkeypatch.setattr(cli, "preset", lambda name: quick_config.updated({"scoring.calibration_images": 2}))
    out = tmp_path / "demo"
    assert cli.main(["demo", "--quick", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "fine-tuning" in told and str(out / "cdad" / "sheets" / "after3") in told
    assert len(list((out / "cdad" / "sheets" / "after3").glob("*.png"))) == 6
    # The table is all that a second call has to do.
    kept = (out / "cdad" / "results.json").read_bytes(), (out / "finetune" / "results.json").read_bytes()
    assert cli.main(["demo", "--quick", "--out", str(out)]) == 0
    again = capsys.readouterr().out
    assert again[again.index("A-:") :] == told[told.index("A-:") :] and "drawing" not in again
    assert kept == ((out / "cdad" / "results.json").read_bytes(), (out / "finetune" / "results.json").read_bytes())
