PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := $(shell find src csrc -type f -not -name '*.so' -not -path '*/__pycache__/*') CMakeLists.txt pyproject.toml

.PHONY: demo test lint native clean

# For working on the code: the extension built in place, to be used with PYTHONPATH=src (PYTHON must have nanobind, cmake and ninja).
native:
	cmake -S . -B build/native -G Ninja -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)') -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/src/qtransformers >/dev/null
	cmake --build build/native
