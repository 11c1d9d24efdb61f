# Everything a fresh machine needs is Python 3.11 and make. `make` alone lists the commands.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test check format bench bench-peers bench-control soak chaos fuzz clean

help:
	@echo "make venv     set up $(VENV) with the pinned dependencies (done by the others when needed)"
	@echo "make demo     run the digits example: start it, post held-out images, print accuracy and latency"
	@echo "make test     run the tests"
	@echo "make check    ruff, mypy --strict, the house rules"
	@echo "make format   let ruff put the source into its form"
	@echo "make bench    run the short benchmark (a minute, beside uvicorn)"
	@echo "make bench-peers  run all of it beside all peers (20 minutes; ARGS=--quick: 5); needs wrk"
	@echo "make bench-control  scaling, updates, deaths under load, decisions and statuses (about three minutes)"
	@echo "make soak     all kinds of calls at once for SOAK_SECONDS (180), then: nothing lost, nothing open, nothing grown"
	@echo "make chaos    everything is killed, halted, changed, filled and cut for CHAOS_SECONDS (180), by CHAOS_SEED (1)"
	@echo "make fuzz     the property tests of wire and HTTP, with thousands of new examples (some minutes)"
	@echo "make clean    remove $(VENV), the peers' environments and everything built"

venv: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3 on PATH; install Python 3.11 or say make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11; say make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m examples.digits.demo

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -q tests/test_tidy.py

format: $(STAMP)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

soak: $(STAMP)
	$(BIN)/python -m soak.run

chaos: $(STAMP)
	$(BIN)/python -m chaos.run

bench-control: $(STAMP)
	$(BIN)/python -m benchmarks.control

fuzz: $(STAMP)
	$(BIN)/python -m pytest --hypothesis-profile=fuzz --timeout=1200 tests/wire tests/proxy/test_fuzz.py

bench-peers: $(STAMP)
	$(BIN)/python -m benchmarks.compare $(ARGS)

clean:
	rm -rf $(VENV) .venv-peers build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
