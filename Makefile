# Two commands: `make demo` trains and samples handwritten digits, `make test` runs every check.
PYTHON ?= python3
RUN := runs/digits
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test figures

demo: .venv/installed
	$(BIN)/rectiflow train digits --run $(RUN)
	$(BIN)/rectiflow sample $(RUN) --count 10 --guidance 1 --out $(RUN)/samples.png
	$(BIN)/rectiflow sample $(RUN) --filmstrip 11 --guidance 1 --out $(RUN)/denoising.png
	@echo
	@echo "Handwritten digits out of noise, one row a class:  $(RUN)/samples.png"
	@echo "The same model from noise (left) to digit (right): $(RUN)/denoising.png"
	@echo "Next: $(BIN)/rectiflow sample $(RUN) --classes 3 7 --count 16 --guidance 2 --seed 1 --out mine.png"
	@echo "      $(BIN)/rectiflow info $(RUN)"
	@echo "      $(BIN)/rectiflow train digits --run runs/mine --set network.preset=tiny/2 steps=1000"

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto

# The judged figures of README.md: trains the demo if need be, about 10 minutes in all.
figures: .venv/installed-dev demo
	$(BIN)/python benchmarks/digits.py $(RUN)
	$(BIN)/python benchmarks/speed.py $(RUN)
	$(BIN)/python benchmarks/tables.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed as '$(PYTHON)'; install it, or name it: make PYTHON=python3.12 demo"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	@touch $@

