# Every target first installs what it needs into .venv. Nothing outside this folder changes.
#
#   PYTHON=python3.12 make test     another interpreter (3.11 or newer)
#   make test ARGS="-k adam -x"     arguments for pytest (-n0: in one process); for bench: --only, --repeat, --size tiny

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.PHONY: help demo test test-slow soak bench check lint-proto format proto classes clean

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
BUF := .ci/buf/node_modules
# What is formatted and linted: examples and tests, too.
SOURCES := proto server client examples tests checks

export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "make %-9s %s\n", $$1, $$2 }'

demo: .venv/.installed-demo ## start a server and two workers that learn to read digits, in under a minute
	@exec $(BIN)/python examples/demo.py

test: .venv/.installed-dev ## run the quick tests, in under five minutes
	@exec $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not soak" $(ARGS)

test-slow: .venv/.installed-dev ## run the slow tests, for about twenty minutes more
	@exec $(BIN)/python -m pytest -n auto --dist loadfile -m "slow and not soak" $(ARGS)

soak: .venv/.installed-dev ## run the long tests
	@exec $(BIN)/python -m pytest -m soak --timeout 3600 $(ARGS)

bench: .venv/.installed-dev ## measure optd beside torch and bare gRPC, into docs/benchmarks.md; takes many minutes
	@exec env PYTHONPATH=tests$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m bench $(ARGS)

check: .venv/.installed-dev ## check format, lint, types, import rules, structure, generated code, contract
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python checks/structure.py
	$(BIN)/python proto/generate.py --check
	$(BIN)/python client/generate.py --check
	@$(MAKE) --no-print-directory lint-proto

format: .venv/.installed-dev ## format the code, and fix what the linter can fix
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

proto: .venv/.installed-dev ## generate the code and the table that follow from the .proto files and the errors
	$(BIN)/python proto/generate.py

classes: .venv/.installed-dev ## generate the client's optimizer classes from the server's declarations
	$(BIN)/python client/generate.py

clean: ## remove everything that the other targets made, including .venv
	rm -rf .venv $(BUF) examples/node/node_modules dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

# npm installs buf. Without npm, tests/contract/test_naming.py still checks the same rules for names.
lint-proto:
	@if { [ $(BUF)/.installed -nt .ci/buf/package-lock.json ] || { command -v npm >/dev/null && timeout 180 npm install \
	      --prefix .ci/buf --no-save --ignore-scripts --no-audit --no-fund --loglevel error >/dev/null \
	      && touch $(BUF)/.installed; }; } && $(BUF)/.bin/buf --version >/dev/null; then \
	  echo "buf lint proto"; $(BUF)/.bin/buf lint proto; \
	else \
	  echo "buf lint: skipped, as buf does not run here; tests/contract/test_naming.py checks the names"; \
	fi

# .venv -----------------------------------------------------------------------

# Installs this folder, editable, with one extra, and prints a word for each package that pip has to fetch.
define install
	@echo "installing optd[$(1)] into .venv"
	@$(BIN)/python -m pip install --progress-bar off -e '.[$(1)]' | awk ' \
	  /^Collecting / { sub(/[][<>=!~;].*/, "", $$2); printf " %s", $$2; fflush() } \
	  /Downloading .* (MB|GB)\)$$/ { printf " %s %s", $$(NF - 1), $$NF; fflush() } \
	  /^Installing collected/ { printf "\nunpacking\n"; fflush() }'
endef

.venv/.installed-dev: pyproject.toml | .venv/.created
	$(call install,dev)
	@touch .venv/.installed-demo $@

.venv/.installed-demo: pyproject.toml | .venv/.created
	$(call install,demo)
	@touch $@

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "optd needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@
