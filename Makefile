# Two commands for a newcomer: `make serve` and `make test`. Each does its own set-up in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: serve test check bench sbom train-deps clean

serve: $(VENV)/.serve
	$(BIN)/python -m service

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

# What deploy/Dockerfile installs, as a CycloneDX bill of materials: each distribution, its version, its licence.
sbom: $(VENV)/.serve
	$(PYTHON) -m venv --clear --without-pip build/sbom/shipped
	$(BIN)/python -m pip --python build/sbom/shipped/bin/python install --disable-pip-version-check --quiet \
	    --constraint constraints.txt .
	$(PYTHON) -m venv --clear build/sbom/tool
	build/sbom/tool/bin/python -m pip install --disable-pip-version-check --quiet \
	    --constraint constraints.txt cyclonedx-bom
	build/sbom/tool/bin/cyclonedx-py environment build/sbom/shipped/bin/python --pyproject pyproject.toml \
	    --output-reproducible --output-file build/carousel.cdx.json
	@echo build/carousel.cdx.json

train-deps: $(VENV)/.train

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[train]'
	touch $@ $(VENV)/.serve

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[train,otel,dev]'
	touch $@ $(VENV)/.train $(VENV)/.serve

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
