"""What the tests find outside of them: the repository, its benchmarks, shared data, which may be missing, and a disk, which may be full."""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CDAD_SHARED", ROOT.parent / "shared"))
REAL = SHARED / "data"

needs_real_images = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real images at {REAL}; CDAD_SHARED names the folder above")


@contextmanager
def full_disk(size: int):
    """No file grows beyond so many bytes meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def golden_file(name: str) -> Path:
    """Numbers of the authors' own code; the test is skipped where they are missing."""
    path = SHARED / "golden" / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no golden values at {path}; CDAD_SHARED names the folder above golden/")
    return path


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/, loaded as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
