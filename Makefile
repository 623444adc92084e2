# coro's chores. Each environment is made from nothing, under .venv/, one per purpose and Python
# version, and made anew when what it is made from changes.
#
#   make test PYTHON=python3.13

PYTHON ?= python3
PYTEST_ARGS ?=

OLDEST := 3.11
# "3.13", "3.13t"; empty if PYTHON is missing or too old.
VERSION := $(shell $(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	print("%d.%d%s" % (v + (sys.abiflags,))) if v >= tuple(map(int, "$(OLDEST)".split("."))) else None' \
	2>/dev/null | grep -v None)

DEMO := .venv/demo-$(VERSION)
TEST := .venv/test-$(VERSION)
BENCH := .venv/bench-$(VERSION)
PIP := bin/python -m pip install -qq --disable-pip-version-check

.PHONY: help demo test suite lint format bench profile budgets soak test-asyncio clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO)/.made  ## A gateway, five services, many requests: what coro does, in seconds
	@$(DEMO)/bin/python examples/demo.py

test: lint suite  ## Lint, then the whole test suite

suite: $(TEST)/.made  ## The test suite alone (PYTEST_ARGS='-k name' chooses)
	@echo "== pytest, Python $(VERSION)"
	@$(TEST)/bin/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(TEST)/.made  ## Format check, ruff, mypy, and that imports go down only
	@echo "== ruff format"
	@$(TEST)/bin/python -m ruff format --check --quiet . || \
		{ echo "run: make format"; exit 1; }
	@echo "== ruff check"
	@$(TEST)/bin/python -m ruff check --quiet .
	@echo "== mypy"
	@$(TEST)/bin/python -m mypy --strict --no-error-summary
	@echo "== import-linter"
	@PYTHONPATH=. $(TEST)/bin/lint-imports > .venv/lint-imports.log || \
		{ sed -n '/^Contracts$$/,$$p' .venv/lint-imports.log; exit 1; }

format: $(TEST)/.made  ## Bring all files into ruff's format
	@$(TEST)/bin/python -m ruff format .
	@$(TEST)/bin/python -m ruff check --fix .

bench: $(BENCH)/.made  ## Measure coro beside its floors and its peers, for docs/benchmarks/ (20 minutes)
	@$(BENCH)/bin/python -m benchmarks --output docs/benchmarks/$(VERSION)

profile: $(BENCH)/.made  ## A flame graph of CASE=name of `make bench` (BY=callgrind: instructions)
	@$(BENCH)/bin/python -m benchmarks.profile $(CASE) \
		$(if $(AT),--at $(AT)) $(if $(SUBJECT),--subject '$(SUBJECT)') $(if $(BY),--by $(BY))

budgets: $(TEST)/.made  ## Record what the hot paths cost, in counts, as what they may cost
	@$(TEST)/bin/python -m tests.budgets --record

test-asyncio: $(TEST)/.made  ## CPython's own tests of asyncio, on asyncio's loop and on coro's
	@PYTHONPATH=. $(TEST)/bin/python -m tests.cpython_asyncio

soak: $(TEST)/.made  ## Simulate the suites under SEEDS seeds each (default 100,000), then fetch a million times
	@PYTHONPATH=. $(TEST)/bin/python -m tests.soak $(if $(SEEDS),--seeds $(SEEDS))

fuzz: $(TEST)/.made  ## Feed the decoders with bytes that nobody would send, for SECONDS (default 60)
	@PYTHONPATH=. $(TEST)/bin/python -m tests.fuzz $(if $(SECONDS),--seconds $(SECONDS))

clean:  ## Remove environments, caches and build products
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is whole when its .made file stands: it is written last.
define make-venv
	$(if $(VERSION),,$(error coro needs Python $(OLDEST) or newer, and "$(PYTHON)" is not. Name one: make $(MAKECMDGOALS) PYTHON=python$(OLDEST)))
	@echo "== making $(@D) (some seconds)"
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
endef

$(DEMO)/.made: pyproject.toml
	$(make-venv)
	@$(@D)/$(PIP) --editable .
	@touch $@

$(TEST)/.made: pyproject.toml
	$(make-venv)
	@$(@D)/$(PIP) --editable '.[dev]'
	@touch $@

$(BENCH)/.made: pyproject.toml benchmarks/requirements.txt
	$(make-venv)
	@$(@D)/$(PIP) --editable '.[cli]' --requirement benchmarks/requirements.txt
	@touch $@
