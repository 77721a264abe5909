# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The build of PyTorch without gigabytes of GPU packages; constraints.txt asks for exactly that one. Where pip
# knows no place that has it, it is asked to look here, too.
TORCH_CPU := https://download.pytorch.org/whl/cpu
DEMO_OUT ?= demo-out
NAME ?=

# Every organisation of the demo and of many tests is a process of its own: where the environment forbids Python
# to keep what it compiled, each would compile everything anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-long check bench stubs clean

demo: $(VENV)/.installed
	@$(BIN)/minshu-demo run --out $(DEMO_OUT)

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -n auto --dist worksteal -q -m "not long and not alone"

test-long: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -q

check: $(VENV)/.installed-dev
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint proto

# `make bench` renders docs/benchmarks.md from bench-out/*.json; `make bench NAME=tagging` measures that one first.
bench: $(VENV)/.installed-dev
	@if [ -n "$(NAME)" ]; then $(BIN)/python -m bench $(NAME); fi
	@$(BIN)/python -m bench --render

stubs: $(VENV)/.installed-dev
	@$(BIN)/python proto/generate.py

clean:
	rm -rf $(VENV) .bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed; found: $$($(PYTHON) --version 2>&1)."; \
	  echo "Install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This Python cannot make virtual environments: its ensurepip module is missing."; \
	  echo "Install it (Debian, Ubuntu: apt-get install python3-venv) and run make again."; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Minshu into $(VENV) …"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Minshu and its development tools into $(VENV) …"
	@$(PIP) --editable '.[dev,train]' 2>/dev/null || $(PIP) --extra-index-url $(TORCH_CPU) --editable '.[dev,train]'
	@touch $@ $(VENV)/.installed
