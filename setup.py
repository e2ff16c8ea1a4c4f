"""Builds ``cdad._core`` from csrc/, and puts the OpenBLAS it is linked with beside it in ``cdad/_libs``.

Objects are kept in build/objects, by a digest of how they were compiled, and reused while they are newer than
their source and every header. Environment:

- ``CC``, ``CFLAGS``, ``LDFLAGS``: the compiler (gcc or clang) and further flags.
- ``CDAD_BLAS``: ``scipy-openblas32`` (default; copied into the package), ``system``, or an OpenBLAS' prefix.
- ``CDAD_CUDA``: whether the CUDA backend is built: ``auto`` (default: where a new enough nvcc is found), ``0`` or ``1``.
- ``CDAD_CUDA_ARCHS``: the GPUs it is built for, oldest first (default: ``80 90 100``; newer ones translate it as they load it).
- ``CDAD_WERROR=1``: warnings are errors.
- ``CDAD_SANITIZE``: sanitizers, such as ``address,undefined``.

``python setup.py build_ctests [--sanitize]`` builds the C tests and prints the program's path;
``python setup.py build_cuda_on_host`` the CUDA kernels for the CPU (``CXX``), for tests.
"""

from __future__ import annotations

import filecmp
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, OptionError, PlatformError

CSRC = Path("csrc")
OBJECTS = Path("build/objects")
CUDA_LIBRARY = "_cuda.so"
CTESTS = Path("build/ctests/cdad_ctests")
CUDA_ON_HOST = Path("build/ctests/cuda_on_host.so")
X86 = platform.machine().lower() in ("x86_64", "amd64")

CFLAGS = shlex.split(
    "-std=gnu11 -D_GNU_SOURCE -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fPIC "
    "-fvisibility=hidden -pthread -Wall -Wextra -Wshadow -Wvla"
)
# Bound at once: a function that no source defines fails the import, not a later call.
LINK_CORE = shlex.split("-shared -Wl,-Bsymbolic -Wl,-z,relro,-z,now")
# csrc/kernels/cpu is compiled once for each of these.
ISAS = {"portable": ["-DCDAD_VBYTES=16"]}
if X86:
    CFLAGS.append("-DCDAD_HAVE_X86=1")
    ISAS["avx2"] = shlex.split("-DCDAD_VBYTES=32 -mavx2 -mfma -mf16c")
    ISAS["avx512"] = shlex.split(
        "-DCDAD_VBYTES=64 -mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx2 -mfma -mf16c "
        "-mprefer-vector-width=512"
    )

# The GPUs that csrc/kernels/cuda is compiled for, and code that newer ones translate when they load it.
CUDA_ARCHS = os.environ.get("CDAD_CUDA_ARCHS", "80 90 100").split()
# The first CUDA that knows a generation of them (90: as 90a, see own_features); every nvcc of C++17 knows older ones.
FIRST_CUDA = {"86": (11, 1), "89": (11, 8), "90": (12, 0), "100": (12, 8), "103": (12, 9), "120": (12, 8)}
NVCC_FLAGS = shlex.split("-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wshadow")

# OpenBLAS releases whose matrix products are wrong or race on some processors.
BAD_OPENBLAS = range(28, 31)  # 0.3.x
# Debian's OpenBLAS has no LAPACKE within; a call tells (an address would be folded away).
LAPACKE_PROBE = "LAPACKE_ssyevd(LAPACK_COL_MAJOR, 'N', 'U', 0, NULL, 1, NULL)"


def choose_nvcc() -> str | None:
    """The nvcc to build with; None: CUDA is left out. PlatformError: CDAD_CUDA=1, and there is none, or one that is too old."""
    choice = os.environ.get("CDAD_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise OptionError(f"CDAD_CUDA={choice}: auto, 0 or 1 expected")
    nvcc = find_nvcc() if choice != "0" else None
    missing = "there is no nvcc in PATH, CUDA_HOME or /usr/local/cuda" if nvcc is None else too_old(nvcc)
    if choice == "1" and missing:
        raise PlatformError(f"CDAD_CUDA=1: {missing}")
    if nvcc and missing:
        print(f"cdad: CUDA is left out: {missing}", file=sys.stderr, flush=True)
    return None if missing else nvcc


def too_old(nvcc: str) -> str:
    """What is wrong with an nvcc for the GPUs asked for; "" where nothing is."""
    try:
        release = re.search(r"release (\d+)\.(\d+)", run([nvcc, "--version"], CompileError))
    except CompileError as e:
        return str(e)
    if not release:
        return f"{nvcc} --version tells no release"
    wanted = max((FIRST_CUDA.get(n.rstrip("af"), (11, 0)) for n in CUDA_ARCHS), default=(11, 0))
    if tuple(map(int, release.groups())) >= wanted:
        return ""
    gpus = ", ".join(f"sm_{n}" for n in CUDA_ARCHS)
    return (
        f"{nvcc} is of CUDA {release[1]}.{release[2]}, and {gpus} want {wanted[0]}.{wanted[1]} or newer "
        "(CDAD_CUDA_ARCHS chooses others)"
    )


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def device_defines() -> list[str]:
    """What tells the core and a device's backend that they were built from the same headers."""
    shared = [*sorted((CSRC / "base").glob("*.h")), *sorted((CSRC / "kernels").glob("*.h")), CSRC / "kernels/cuda/entry.h"]
    abi = hashlib.sha256(b"".join(h.read_bytes() for h in shared)).hexdigest()[:12]
    return [f'-DCDAD_DEVICE_ABI="{abi}"']


def own_features(arch: str) -> str:
    """Code for 9.0 may have what that generation alone has (csrc/kernels/cuda/conv_hopper.cu): it runs on no other anyway."""
    return "90a" if arch == "90" else arch


def cuda_defines() -> list[str]:
    """The same, and for people what the backend was compiled for."""
    return [*device_defines(), f'-DCDAD_CUDA_ARCHS="{", ".join(f"sm_{n}" for n in CUDA_ARCHS)} and newer"']


def environ_flags(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def run(command: list[str], error: type[Exception], stdin: str | None = None) -> str:
    """Standard output of the command; what the compiler says is shown; raises `error` when it fails."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    except OSError as e:
        raise error(f"cannot run {command[0]}: {e.strerror}; set CC to a C compiler (gcc or clang)") from e
    if done.returncode:
        raise error(f"exit status {done.returncode} of: {shlex.join(command)}\n{done.stderr}")
    sys.stderr.write(done.stderr)
    return done.stdout


@dataclass(frozen=True)
class Blas:
    """The OpenBLAS to build with: its name, flags to compile and to link, files to copy into the package."""

    name: str
    cflags: tuple[str, ...]
    ldflags: tuple[str, ...]
    bundle: tuple[Path, ...] = ()

    def install(self, folder: Path) -> None:
        """Makes `folder` hold the bundled files alone. Unchanged ones stay: a process may use them."""
        if not self.bundle:
            shutil.rmtree(folder, ignore_errors=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for source in self.bundle:
            target = folder / source.name
            if not target.exists() or not filecmp.cmp(source, target):
                partial = target.with_name(f".{target.name}.{os.getpid()}")
                shutil.copy2(source, partial)
                partial.replace(target)


def bundled_blas() -> Blas:
    try:
        import scipy_openblas32 as package
    except ImportError as e:
        raise PlatformError("scipy-openblas32 is not installed: install it, or set CDAD_BLAS=system") from e
    folder = Path(package.get_lib_dir())
    files = importlib.metadata.files("scipy-openblas32") or []
    licenses = [Path(f.locate()) for f in files if f.name.startswith("LICENSE")]
    return Blas(
        name="scipy-openblas32",
        cflags=("-DCDAD_BLAS_SCIPY=1", "-isystem", package.get_include_dir()),
        ldflags=(f"-L{folder}", f"-l{package.get_library()}", "-Wl,-rpath,$ORIGIN/_libs"),
        bundle=(*sorted(folder.glob("*.so*")), *licenses),
    )


def external_blas(choice: str) -> Blas:
    if choice == "system":
        try:
            command = ["pkg-config", "--cflags", "--libs", "openblas"]
            found = subprocess.run(command, capture_output=True, text=True)
            flags = shlex.split(found.stdout) if found.returncode == 0 else []
        except FileNotFoundError:
            flags = []
        cflags = tuple(f for f in flags if f.startswith("-I"))
        return Blas(choice, cflags, tuple(f for f in flags if f not in cflags) or ("-lopenblas",))
    prefix = Path(choice).resolve()
    if not any(prefix.glob("lib/libopenblas*")):
        raise OptionError(f"CDAD_BLAS={choice}: neither scipy-openblas32, system nor a prefix of OpenBLAS")
    lib = prefix / "lib"
    return Blas(
        name=str(prefix),
        cflags=("-isystem", str(prefix / "include")),
        ldflags=(f"-L{lib}", "-lopenblas", f"-Wl,-rpath,{lib}"),
    )


class Toolchain:
    """The compiler, the BLAS library and the flags of one build."""

    def __init__(self, sanitize: str = "") -> None:
        if sys.platform != "linux":
            raise PlatformError(f"cdad builds on Linux only, not on {sys.platform}")
        self.nvcc = choose_nvcc()
        self.cc = environ_flags("CC") or shlex.split(shutil.which("gcc") or shutil.which("clang") or "cc")
        self.compiler = run([*self.cc, "--version"], CompileError).splitlines()[0]
        self.sanitize = os.environ.get("CDAD_SANITIZE", "") or sanitize
        self.sanitize_flags = []
        if self.sanitize:
            self.sanitize_flags = [f"-fsanitize={self.sanitize}", "-fno-sanitize-recover=all"]
            self.sanitize_flags += ["-fno-omit-frame-pointer", "-g", "-O1"]
        choice = os.environ.get("CDAD_BLAS", "scipy-openblas32")
        self.blas = self.check_blas(bundled_blas() if choice == "scipy-openblas32" else external_blas(choice))

    def check_blas(self, blas: Blas) -> Blas:
        """`blas` with its version in its name and, where it needs one, a LAPACKE apart from it."""
        compile_c = [*self.cc, *blas.cflags, "-x", "c", "-"]
        macros = run([*compile_c, "-E", "-dM"], CompileError, "#include <cblas.h>\n#include <lapacke.h>\n")
        version = re.search(r'OPENBLAS_VERSION "\s*OpenBLAS\s+((\d+)\.(\d+)\.(\d+)[^\s"]*)', macros)
        if not version:
            raise PlatformError(f"the cblas.h of BLAS {blas.name} is not OpenBLAS's")
        if "OPENBLAS_USE64BITINT" in macros:
            raise PlatformError(f"OpenBLAS {version[1]} ({blas.name}) has 64-bit integers; 32 are needed")
        major, minor, patch = map(int, version.groups()[1:])
        if (major, minor) == (0, 3) and patch in BAD_OPENBLAS:
            raise PlatformError(
                f"OpenBLAS {version[1]} ({blas.name}) is refused: 0.3.28 to 0.3.30 compute wrong matrix"
                " products on some processors; use an older or a newer one (CDAD_BLAS chooses)"
            )
        name, ldflags = f"{blas.name} {version[1]}", blas.ldflags
        probe = f'#include "{CSRC.resolve()}/base/blas.h"\nint main(void) {{ return {LAPACKE_PROBE}; }}\n'
        with tempfile.TemporaryDirectory() as folder:
            link_c = [*compile_c, "-o", f"{folder}/probe", *ldflags, *environ_flags("LDFLAGS")]
            for extra in ((), ("-llapacke",)):
                try:
                    run([*link_c, *extra], LinkError, probe)
                    return Blas(name, blas.cflags, (*ldflags, *extra), blas.bundle)
                except LinkError as e:
                    error = e
        raise error

    def link_cuda(self, target: Path) -> None:
        """The CUDA backend, by nvcc: cudart is linked in, cuBLAS is found at run time."""
        version = run([self.nvcc, "--version"], CompileError)
        OBJECTS.mkdir(parents=True, exist_ok=True)
        headers = max(h.stat().st_mtime for h in CSRC.rglob("*.h"))
        newest, archs = CUDA_ARCHS[-1], [own_features(n) for n in CUDA_ARCHS]
        flags = [*NVCC_FLAGS, *(f"-gencode=arch=compute_{n},code=sm_{n}" for n in archs)]
        flags += ["-DCDAD_CUDA_SM90A=1"] if "90a" in archs else []
        flags += [f"-gencode=arch=compute_{newest},code=compute_{newest}", *cuda_defines(), f"-I{CSRC}"]
        if os.environ.get("CDAD_WERROR") == "1":
            flags += ["--Werror", "all-warnings"]

        def compile_unit(source: Path) -> str:
            own = [os.environ.get(f"NVCC_{when}_FLAGS") for when in ("PREPEND", "APPEND")]  # nvcc reads them itself
            key = hashlib.sha256(repr([self.nvcc, version, flags, own, str(source)]).encode()).hexdigest()[:12]
            unit = OBJECTS / f"{source.stem}.cuda.{key}.o"
            if unit.exists() and unit.stat().st_mtime > max(headers, source.stat().st_mtime):
                return str(unit)
            start = time.time()
            partial = unit.with_suffix(f".{os.getpid()}.part.o")
            run([self.nvcc, *flags, "-c", str(source), "-o", str(partial)], CompileError)
            os.utime(partial, (start, start))
            partial.replace(unit)
            return str(unit)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = list(pool.map(compile_unit, sorted((CSRC / "kernels/cuda").glob("*.cu"))))
        target.parent.mkdir(parents=True, exist_ok=True)
        run([self.nvcc, "-shared", "-cudart", "static", *objects, "-o", str(target), "-ldl"], LinkError)

    def compile(self, sources: list[Path], defines: tuple[str, ...] = ()) -> list[str]:
        """The objects of the sources, compiled in parallel where they are out of date."""
        OBJECTS.mkdir(parents=True, exist_ok=True)
        headers = max((h.stat().st_mtime for h in CSRC.rglob("*.h")), default=0)
        device = device_defines()
        units = []
        for source in sources:
            isas = ISAS.items() if source.parent == CSRC / "kernels/cpu" else [("", [])]
            units += [(source, isa, flags) for isa, flags in isas]

        def compile_unit(unit: tuple[Path, str, list[str]]) -> str:
            source, isa, flags = unit
            flags = [*CFLAGS, *flags, *device, *([f"-DCDAD_ISA={isa}"] if isa else [])]
            include = [f"-I{CSRC}", *self.blas.cflags]
            identity = [self.compiler, self.blas.name]
            if source.parent == CSRC / "python":
                import numpy

                flags += defines
                include += ["-isystem", sysconfig.get_path("include"), "-isystem", numpy.get_include()]
                identity += [sysconfig.get_config_var("SOABI"), numpy.__version__]
            flags += self.sanitize_flags + environ_flags("CFLAGS")
            flags += ["-Werror"] if os.environ.get("CDAD_WERROR") == "1" else []
            # Include folders are left out of the digest: an isolated build has new ones each time.
            key = hashlib.sha256(repr([self.cc, flags, identity, str(source)]).encode()).hexdigest()[:12]
            target = OBJECTS / f"{source.stem}{isa and '.' + isa}.{key}.o"
            if target.exists() and target.stat().st_mtime > max(headers, source.stat().st_mtime):
                return str(target)
            start = time.time()
            partial = target.with_suffix(f".{os.getpid()}.part")
            run([*self.cc, *flags, *include, "-c", str(source), "-o", str(partial)], CompileError)
            os.utime(partial, (start, start))  # a source edited meanwhile is newer
            partial.replace(target)
            return str(target)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(compile_unit, units))

    def link(self, objects: list[str], target: Path, flags: list[str]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [*self.cc, *flags, *self.sanitize_flags, "-pthread", *objects, "-o", str(target)]
        run([*command, *self.blas.ldflags, "-lm", "-ldl", *environ_flags("LDFLAGS")], LinkError)
        self.blas.install(target.parent / "_libs")

    def __str__(self) -> str:
        cuda = f"CUDA by {self.nvcc}" if self.nvcc else "no CUDA"
        sanitize = f"; sanitizers {self.sanitize}" if self.sanitize else ""
        return f"{self.compiler}; BLAS {self.blas.name}; kernels {', '.join(ISAS)}; {cuda}{sanitize}"


def sources(*, tests: bool) -> list[Path]:
    """The core, with the bindings or with the C tests."""
    left_out = CSRC / ("python" if tests else "tests")
    return sorted(s for s in CSRC.rglob("*.c") if left_out not in s.parents)


class BuildCore(build_ext):
    def build_extension(self, ext: Extension) -> None:
        tools = Toolchain()
        defines = (f'-DCDAD_VERSION="{self.distribution.get_version()}"',)
        objects = tools.compile(sources(tests=False), defines)
        tools.link(objects, Path(self.get_ext_fullpath(ext.name)), LINK_CORE)
        self.blas, self.cuda = tools.blas, Path(self.get_ext_fullpath(ext.name)).with_name(CUDA_LIBRARY)
        self.cuda.unlink(missing_ok=True)
        if tools.nvcc:
            tools.link_cuda(self.cuda)
        print(f"cdad: {tools}", flush=True)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        package = Path(self.get_finalized_command("build_py").get_package_dir("cdad"))
        self.blas.install(package / "_libs")
        (package / CUDA_LIBRARY).unlink(missing_ok=True)  # of an earlier build
        if self.cuda.exists():
            shutil.copy2(self.cuda, package / CUDA_LIBRARY)

    def get_output_mapping(self) -> dict[str, str]:
        """With the bundled files, which a strict editable installation links one by one."""
        mapping = super().get_output_mapping()
        for built, source in list(mapping.items()):
            if self.cuda.exists():
                mapping[str(Path(built).with_name(CUDA_LIBRARY))] = str(Path(source).with_name(CUDA_LIBRARY))
            for name in (file.name for file in self.blas.bundle):
                mapping[f"{Path(built).parent}/_libs/{name}"] = f"{Path(source).parent}/_libs/{name}"
        return mapping


class BuildCTests(Command):
    """Builds build/ctests/cdad_ctests from csrc/tests and the core; no Python headers are needed."""

    description = "build the C test program"
    user_options = [("sanitize", None, "find memory errors and undefined behaviour (slower)")]
    boolean_options = ["sanitize"]

    def initialize_options(self) -> None:
        self.sanitize = False

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        tools = Toolchain("address,undefined" if self.sanitize else "")
        tools.link(tools.compile(sources(tests=True)), CTESTS, [])
        print(f"cdad: {tools}\n{CTESTS}", flush=True)


class BuildCudaOnHost(Command):
    """Builds build/ctests/cuda_on_host.so: the CUDA backend as C++ that runs on the CPU, for tests without a GPU."""

    description = "build the CUDA kernels for the CPU"
    user_options: list[tuple] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        compiler = environ_flags("CXX") or ["g++"]
        flags = shlex.split("-std=c++17 -O2 -shared -fPIC -fvisibility=hidden -Wall -Wextra -Wshadow -DCDAD_CUDA_ON_HOST")
        flags += ["-Werror"] if os.environ.get("CDAD_WERROR") == "1" else []
        folder = CSRC / "kernels/cuda"
        files = [*sorted(folder.glob("*.cu")), folder / "on_host.cpp"]
        CUDA_ON_HOST.parent.mkdir(parents=True, exist_ok=True)
        command = [*compiler, *flags, *cuda_defines(), f"-I{CSRC}", "-x", "c++", *map(str, files)]
        run([*command, "-o", str(CUDA_ON_HOST), "-pthread", "-ldl"], CompileError)
        print(CUDA_ON_HOST, flush=True)


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("cdad._core", [str(s) for s in sources(tests=False)])],
        cmdclass={"build_ext": BuildCore, "build_ctests": BuildCTests, "build_cuda_on_host": BuildCudaOnHost},
    )
