#!/usr/bin/env bash
# Builds the CUDA backend in place, tests it and times it beside PyTorch, on a machine that has an NVIDIA GPU and nothing
# else to do: see benchmarks/gpu.py.
#
#     benchmarks/gpu.sh [--wheels DIR] [options of benchmarks/gpu.py]
#
# Wanted there: Linux, CUDA 13 (nvcc), Python >= 3.11 with its headers, a C compiler, PyTorch >= 2.11 for CUDA 13 (whose
# cuBLAS is used), NumPy, pytest (and pytest-xdist, so that tests run side by side), and what pyproject.toml names. No network. Wheels of what is missing, which is often
# scipy-openblas32 alone, lie in DIR (.whl by default) and are installed into a temporary folder. To fetch them elsewhere,
# for Python 3.12 say, in the version that pyproject.toml asks for:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#         --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 -d .whl scipy-openblas32==VERSION
#
# PYTHON=... chooses another python3. A second call, --no-build --tests --only NAME ..., measures what the first one had no
# time for; --no-build --sanitize memcheck (then racecheck) runs the kernels under compute-sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=.whl
if [ "${1-}" = --wheels ]; then
    wheels=${2:?--wheels wants a folder}
    shift 2
fi
shopt -s nullglob
files=("$wheels"/*.whl)
if [ "${#files[@]}" -gt 0 ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "${files[@]}"
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
"$python" benchmarks/gpu.py "$@"
