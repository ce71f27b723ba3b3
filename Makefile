# Every target sets up .venv by itself, once; a second call costs nothing until pyproject.toml or constraints.txt change.
#
#   PYTHON      the interpreter the environment is made from (3.10 or newer)
#   TORCH_ARGS  extra pip options for installing torch alone, such as the index of its CPU-only builds
PYTHON ?= python3
TORCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Two one-thread test processes are faster on two cores than one two-thread process.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest --color=no

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench docs pins lowest newest audit clean

help:
	@echo "make demo    the whole paper at pocket size, on a CPU, with its figures"
	@echo "make test    all tests"
	@echo "make check   formatting, lint, types, import floors"
	@echo "make bench   time and memory of a training step, beside plain SFT and the dense ways"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make pins    write constraints.txt anew from what is installed"
	@echo "make lowest  the tests with the lowest versions that pyproject.toml allows"
	@echo "make newest  the tests with the newest releases of everything"
	@echo "make audit   known vulnerabilities and licences of everything in constraints.txt"
	@echo "make clean   remove the environment and all that was built (never runs/)"

# torch goes in first and alone: later installations then find it present and never fetch another build of it.
$(VENV)/.base: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "setting up $(VENV), once; this takes a few minutes"; $(PYTHON) -m venv $(VENV); }
	@$(PIP) $(TORCH_ARGS) torch
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation -e .
	@touch $@

# One rule per extra: .venv/.dev, .venv/.bench, .venv/.docs
$(VENV)/.dev $(VENV)/.bench $(VENV)/.docs: $(VENV)/.%: $(VENV)/.base
	@$(PIP) --no-build-isolation -e ".[$*]"
	@touch $@

setup: $(VENV)/.dev

demo: $(VENV)/.base
	@$(BIN)/preceptor demo

test: $(VENV)/.dev
	@$(PYTEST) -n $(WORKERS) --dist worksteal

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	@$(BIN)/python benchmarks/step.py
	@$(BIN)/python benchmarks/growth.py
	@$(BIN)/python benchmarks/routed.py
	@$(BIN)/python benchmarks/stored.py
	@$(BIN)/python benchmarks/answers.py

docs: $(VENV)/.docs
	@$(BIN)/python scripts/recipe_reference.py
	@$(BIN)/python -m mkdocs build --strict

pins: $(VENV)/.dev $(VENV)/.bench $(VENV)/.docs
	@$(BIN)/python scripts/pins.py > constraints.new && mv constraints.new constraints.txt

# Environments of their own beside .venv, in which uv chooses the versions. Slow tests are left out.
lowest: RESOLUTION := lowest-direct
newest: RESOLUTION := highest
lowest newest:
	@test -x $(VENV)-$@/bin/python || $(PYTHON) -m venv $(VENV)-$@
	@$(VENV)-$@/bin/python -m pip install -qq --disable-pip-version-check uv
	@$(VENV)-$@/bin/uv pip install -q --python $(VENV)-$@ --upgrade --resolution $(RESOLUTION) -e ".[dev]"
	@$(subst $(BIN),$(VENV)-$@/bin,$(PYTEST)) -n $(WORKERS) --dist worksteal -m "not slow"

# Fails for a licence that asks more of users than naming it, and for what a public database of vulnerabilities lists.
audit: $(VENV)/.dev
	@test -x $(VENV)-audit/bin/python || $(PYTHON) -m venv $(VENV)-audit
	@$(VENV)-audit/bin/python -m pip install -qq --disable-pip-version-check pip-audit pip-licenses
	@$(VENV)-audit/bin/pip-licenses --python $(BIN)/python --order license --partial-match \
		--fail-on "GNU General Public License;GNU Affero;SSPL;UNKNOWN" --packages $$($(BIN)/python scripts/pins.py | sed -n "s/==.*//p")
	@$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-audit build dist site benchmarks/out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
