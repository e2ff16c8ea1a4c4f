"""Where networks run: the CPU, or an NVIDIA GPU where the CUDA backend, a driver and cuBLAS are found."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from contextlib import suppress
from pathlib import Path

from . import _core

# Of NVIDIA's wheels: CUDA 13 has one folder for all, earlier layouts one a library.
_WHEELS = ("cu13/lib", "cublas/lib")


def library_folders() -> str:
    """Folders of NVIDIA's wheels that hold libraries, ':' between; "" where none is installed."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return os.pathsep.join(str(root / part) for root in roots for part in _WHEELS if (root / part).is_dir())


def describe_cuda() -> list[tuple[str, bool, str]]:
    """(what, whether it is there, what was found or why not) of everything that the device "cuda" needs."""
    info = _core.cuda_info()
    if "archs" not in info:
        return [("CUDA backend", False, info["error"]), *_around_the_backend()]
    devices = [
        (f"cuda:{i}", major >= 8, f"{name}, compute capability {major}.{minor}, {size / 2**30:.1f} GiB")
        for i, (name, major, minor, size) in enumerate(info["devices"])
    ]
    return [
        ("CUDA backend", True, f"{info['library']}, for {info['archs']}, CUDA {_version(info['runtime'])}"),
        ("NVIDIA driver", info["driver"] > 0, f"for CUDA {_version(info['driver'])}" if info["driver"] else "none is loaded"),
        ("cuBLAS", info["has_cublas"], info["cublas"]),
        *(devices or [("GPU", False, info["error"])]),
    ]


def _around_the_backend() -> list[tuple[str, bool, str]]:
    """What the backend would need, looked for without it."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
        driver = f"for CUDA {_version(version.value)}"
    except (OSError, AttributeError):
        driver = "none is loaded (libcuda.so.1)"
    name = "libcublas.so.13"
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if home]
    places = [Path(folder) for folder in library_folders().split(os.pathsep) if folder] + [home / "lib64" for home in homes]
    found = [str(place / name) for place in places if (place / name).exists()]
    if not found:
        with suppress(OSError):  # where the system's loader looks
            found = [ctypes.CDLL(name)._name]
    nvcc = shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), *(str(home / "bin") for home in homes)]))
    return [
        ("NVIDIA driver", version.value > 0, driver),
        ("cuBLAS", bool(found), found[0] if found else f"no {name}: pip install 'cdad[cuda13]'"),
        ("nvcc", nvcc is not None, nvcc or "not found: where it is, installing cdad builds the backend"),
    ]


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
