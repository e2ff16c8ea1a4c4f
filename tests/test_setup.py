"""Which nvcc setup.py takes, by stand-ins that tell a release."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from paths import ROOT

errors = pytest.importorskip("setuptools.errors")


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """`choose_nvcc` where nvcc is of a release (None: there is none), under CDAD_CUDA and CDAD_CUDA_ARCHS."""

    def run(release: str | None, choice: str, archs: str = "80 90 100") -> bool:
        nvcc = tmp_path / "nvcc"
        if release is not None:
            nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{release}.99"\n')
            nvcc.chmod(0o755)
        for name, value in (("CDAD_CUDA", choice), ("CDAD_CUDA_ARCHS", archs)):
            monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("cdad_setup", ROOT / "setup.py")
        setup = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, setup)
        spec.loader.exec_module(setup)
        monkeypatch.setattr(setup, "find_nvcc", lambda: str(nvcc) if release is not None else None)
        found = setup.choose_nvcc()
        assert found in (None, str(nvcc))
        return found is not None

    return run


@pytest.mark.parametrize(("release", "archs"), [("12.8", "80 90 100"), ("13.0", "80 90 100"), ("12.0", "80 90"), ("11.8", "80 89")])
def test_a_new_enough_nvcc_is_taken(choose, release, archs):
    assert choose(release, "auto", archs) and choose(release, "1", archs) and not choose(release, "0", archs)


@pytest.mark.parametrize(("release", "message"), [("12.6", "is of CUDA 12.6, and .* want 12.8 or newer"), ("X", "tells no release")])
def test_an_older_nvcc_is_left_or_refused(choose, capsys, release, message):
    assert not choose(release, "auto")
    assert "CUDA is left out: " in capsys.readouterr().err
    with pytest.raises(errors.PlatformError, match=f"CDAD_CUDA=1: .*{message}"):
        choose(release, "1")


def test_without_nvcc(choose, capsys):
    assert not choose(None, "auto") and not capsys.readouterr().err
    with pytest.raises(errors.PlatformError, match="there is no nvcc"):
        choose(None, "1")
    with pytest.raises(errors.OptionError, match="auto, 0 or 1"):
        choose(None, "yes")
