# What people do here. `make demo` and `make test` install what is missing first.
PYTHON := .venv/bin/python
# The lab starts many programs: each would compile every module again.
unexport PYTHONDONTWRITEBYTECODE
# Processes that share the tests: many tests wait, so one more than there are CPUs.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 6 ? n + 1 : 6)))

.PHONY: help install demo test bench lint format bpf lock clean

help:
	@echo "make demo    install what is missing, run the main job, print what happens"
	@echo "make test    install what is missing, run every test"
	@echo "make bench   measure against plain kernel networking, print ratios"
	@echo "make lint    formats, lints, types, import contracts, C headers"
	@echo "make format  put everything into the house's format"
	@echo "make lock    renew requirements.lock from pyproject.toml"

install:
	@tools/bootstrap.sh

demo: install
	@.venv/bin/cilia demo

test: install
	@$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 2

bench: install
	@$(PYTHON) -m bench

lint: install
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	$(MAKE) --silent -C bpf check

format: install
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(MAKE) --silent -C bpf format

bpf:
	@$(MAKE) --silent -C bpf

lock:
	$(PYTHON) -m pip install -q uv
	.venv/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--python-version 3.11 --extra dev --output-file requirements.lock pyproject.toml

clean:
	$(MAKE) --silent -C bpf clean
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench/netbench
