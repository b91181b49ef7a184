# codexd: `make demo` to see it, `make test` to check it. Everything happens in .venv, from hash-pinned lock files.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install -qq --disable-pip-version-check --require-hashes

.PHONY: help demo test lint format lock clients clients-node clients-python clean
help:
	@echo "make demo    run codexd over a simulated ChatGPT"
	@echo "make test    run the whole suite"
	@echo "make clients install the clients (Node and Python) that the suite then runs too"
	@echo "make lint    ruff, flake8-async, mypy, import-linter"
	@echo "make lock    make the lock files anew from pyproject.toml"

demo: $(VENV)/.runtime
	@$(BIN)/python -m codexd --demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest --cov --cov-fail-under=100 $(ARGS)

# 110: another process's lock has no event to wait for. 127: httpx's successor has another name; codexd is built for
# httpx. 128: wrappers hand their task_status on. 124 and 9xx: optional rules that thin wrappers and fixtures break.
ASYNC_OFF = ASYNC110,ASYNC124,ASYNC127,ASYNC128,ASYNC900,ASYNC910,ASYNC911,ASYNC912,ASYNC913
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8-async --disable=$(ASYNC_OFF) $$(git ls-files -co --exclude-standard '*.py')
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# All locks are made without the address of any package index.
COMPILE = $(BIN)/pip-compile --quiet --upgrade --allow-unsafe --generate-hashes --strip-extras \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --annotation-style=line
lock: $(VENV)/.dev
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	$(COMPILE) --output-file tests/clients/python/requirements.lock tests/clients/python/requirements.in

# Clients that the suite runs when they are there, apart from codexd's own environment.
clients: clients-node clients-python
clients-node: tests/clients/node_modules/.done
clients-python: tests/clients/python/.venv/.done
tests/clients/node_modules/.done: tests/clients/package-lock.json
	npm ci --prefix tests/clients --no-audit --no-fund
	@touch $@
tests/clients/python/.venv/.done: tests/clients/python/requirements.lock
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -qq --disable-pip-version-check --require-hashes -r $<
	@touch $@

# ---

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "codexd needs Python 3.11 or newer as $(PYTHON): apt-get install python3 python3-venv, or make PYTHON=python3.x demo"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
		|| { echo "codexd needs Python's venv module: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.venv requirements.lock
	@echo "Setting up $(VENV) (once) ..."
	@$(PIP) -r requirements.lock
	@echo "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/codexd-checkout.pth"
	@printf '#!%s\nfrom codexd.__main__ import cli\n\ncli()\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/codexd
	@printf '#!%s\nfrom codexd.ctl.__main__ import cli\n\ncli()\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/codexctl
	@chmod +x $(BIN)/codexd $(BIN)/codexctl
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@$(PIP) -r requirements-dev.lock
	@touch $@

clean:
	rm -rf $(VENV) tests/clients/node_modules tests/clients/python/.venv .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build
