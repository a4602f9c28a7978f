# `make` alone lists the targets. Everything runs in .venv, which `make setup` builds from requirements.lock.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

# The lock was resolved on 3.11. A version manager may offer a command that does not run, so it is tried, not looked up.
PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)

# Public data sets for tests and studies; tests that need one are skipped, by name, where it is absent.
FAIRFLARE_DATA ?= $(abspath $(CURDIR)/../shared/data)
export FAIRFLARE_DATA
# Set iteration order must not depend on the process: seeds have to give the same run twice.
export PYTHONHASHSEED := 0
# Nothing is fetched from a model hub while tests or demos run.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo poc provisioned distributed test test-all lint bench fuzz real study private wheel wheelhouse deploy lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## build .venv with the locked versions (first time: several minutes, about 6 GB)

# Written last, so that an interrupted installation is taken up again by the next call.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "requirements.lock needs Python 3.11 to 3.13, got: $$($(PYTHON) --version 2>&1)." \
	       "Next step: make setup PYTHON=<path of such a python>"; exit 1; }
	@echo "[1/3] creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/3] installing the locked packages: about 6 GB on disk with CUDA; the first time takes several minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@echo "[3/3] installing fairflare itself (editable: the tests see the sources)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "done: $(BIN)/fairflare"

demo: setup  ## train a fair model over synthetic hospitals, on this machine
	$(BIN)/fairflare demo

poc: setup  ## two masked jobs through nvflare poc and the simulator, the same models as in one process
	$(BIN)/python -m poc.run poc

provisioned: setup  ## the same from real start-up kits: mutual TLS, four hospitals as processes of their own
	$(BIN)/python -m poc.run provisioned

distributed: setup  ## the same from kits that every party makes and hardens itself: no key leaves its owner
	$(BIN)/python -m poc.run distributed

test: lint  ## static checks, then all tests but the slow ones
	$(BIN)/python -m pytest

test-all: lint  ## static checks, then every test
	$(BIN)/python -m pytest -m ""

lint: setup  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup  ## measure time and memory
	$(BIN)/python -m tests.benchmarks

# The fuzzer has a folder of its own: the locked environment stays what it is, and no test needs it.
fuzz: setup $(VENV)-fuzz/.complete  ## a million changed messages against secure aggregation (FUZZ_RUNS=<inputs>)
	PYTHONPATH=$(VENV)-fuzz $(BIN)/python -m tests.fuzz

$(VENV)-fuzz/.complete:
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)-fuzz 'atheris>=2.3'
	@touch $@

real: setup  ## the study on public medical images in FAIRFLARE_DATA
	$(BIN)/python poc/real_study.py

study: setup  ## every method on heart disease, five seeds, masked: UCI data in FAIRFLARE_DATA, in minutes
	$(BIN)/fairflare data import uci_heart --from $(FAIRFLARE_DATA)/uci_heart --to runs/study_data --overwrite
	$(BIN)/fairflare study poc/heart_study.json --to runs/heart_study

private: setup  ## the study of differential privacy, epsilon 8, 3 and 1 through FLARE: UCI heart and HAM10000, half an hour
	$(BIN)/python poc/private_study.py --out runs/private_study

wheel: setup  ## build dist/fairflare-*.whl: the same bytes from the same sources, wherever it is built
	$(BIN)/python -m provision.deploy.wheel --to dist

wheelhouse: setup  ## all that an installation without internet needs, by hash, with its bill of materials (dist/wheelhouse)
	$(BIN)/python -m provision.deploy.wheelhouse --to dist/wheelhouse

# Helm, Checkov and others, about 700 MB in an environment of their own; no test of `make test` needs them.
deploy: setup $(VENV)-deploy/.complete  ## check charts, image recipe and compose file with other people's validators
	FAIRFLARE_DEPLOY_TOOLS=$(abspath $(VENV)-deploy) $(BIN)/python -m pytest -m "" tests/unit/deploy

$(VENV)-deploy/.complete: provision/deploy/validators.txt
	$(PYTHON) -m venv --clear $(VENV)-deploy
	grep -v '^aws-cdk' $< > $(VENV)-deploy/with.txt && grep '^aws-cdk' $< > $(VENV)-deploy/alone.txt
	$(VENV)-deploy/bin/python -m pip install --quiet --disable-pip-version-check -r $(VENV)-deploy/with.txt
	$(VENV)-deploy/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(VENV)-deploy/alone.txt
	@touch $@

# The packages that torch brings for CUDA exist for Linux on x86_64 only in these versions, hence their markers.
# pip itself is left out: an installer that replaces itself half-way helps nobody.
lock:  ## resolve requirements.lock anew, in an environment of its own
	$(PYTHON) -m venv --clear $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --upgrade setuptools wheel
	$(VENV)-lock/bin/python -m pip install --quiet --no-build-isolation '.[dev]'
	@{ echo "# Every package of the environment, at the version it was tested with. Made by 'make lock' on Python 3.11."; \
	   $(VENV)-lock/bin/python -m pip freeze --all --exclude pip --exclude fairflare \
	   | sed -E '/^(nvidia-|cuda-|triton==)/ s/$$/ ; platform_system == "Linux" and platform_machine == "x86_64"/'; \
	 } > requirements.lock.new
	@! grep -nE ' @ |://|^-' requirements.lock.new || { echo "the lock would name a place; not replaced"; exit 1; }
	mv requirements.lock.new requirements.lock
	rm -rf $(VENV)-lock build

clean:  ## remove caches and build products; .venv and runs/ stay
	rm -rf build dist custom/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache \
	  .coverage .coverage.* htmlcov $(VENV)-lock requirements.lock.new
	find custom tests $(wildcard poc) -type d -name __pycache__ -prune -exec rm -rf {} +
