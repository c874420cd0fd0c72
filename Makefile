# The targets of the project. `make pretrain` needs nothing but Python >= 3.10 and make; all else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= quickstart
DS_CONFIG ?= ds_configs/zero2.json
CORES := $(shell $(PYTHON) -c "from scaler.core.limits import cores; print(cores())")
# one rank a GPU, or else one a core
RANKS ?= $(or $(shell nvidia-smi -L 2>/dev/null | wc -l | grep -v '^0$$'),$(CORES))
# the versions that CI used; they need Python 3.11, with 3.10 the ranges of setup.py hold
LOCK := $(shell $(PYTHON) -c "import sys; print('-c requirements.lock' if sys.version_info >= (3, 11) else '')")
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check

.PHONY: help pretrain data test test-fast test-bare test-slow test-slurm chaos resume-matrix lint docs reference tensorboard bench bench-checkpoint clean clean-runs
.DELETE_ON_ERROR:

help:
	@echo "make pretrain     set up, prepare data, train RECIPE ($(RECIPE)) on $(RANKS) ranks, fill some masks"
	@echo "make data         set up and prepare the data of RECIPE"
	@echo "make test         set up and run the tests"
	@echo "make test-fast    only tests that start no process (two minutes)"
	@echo "make test-bare    tests that depend on SLURM, MPI or ssh, as on a machine without them (root)"
	@echo "make test-slow    those that \`make test\` leaves out, because they take long"
	@echo "make test-slurm   only those on a SLURM of virtual nodes (root, and Debian's slurmctld slurmd slurm-client munge)"
	@echo "make chaos        interrupt a training 32 times at random, and compare it with one left alone (ten minutes)"
	@echo "make resume-matrix  resume from every world size, ZeRO stage and precision at every other (25 minutes)"
	@echo "make lint         ruff, mypy and import-linter"
	@echo "make docs         build these pages as a site with search: build/site/index.html"
	@echo "make reference    write the generated pages of docs/ again"
	@echo "make bench        measure the data path"
	@echo "make bench-checkpoint  measure what training waits for at a checkpoint"
	@echo "make tensorboard  show runs/ at http://localhost:6006"
	@echo "make clean        delete what make has built: .venv, build/ and the package's metadata"
	@echo "make clean-runs   ask, and then delete data/ and runs/"

$(VENV)/bin/python:
	@echo "== creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# torch comes first and by itself, so that a CPU build that pip knows of is taken as it is
$(VENV)/run.stamp: setup.py requirements.lock | $(VENV)/bin/python
	@echo "== installing torch, DeepSpeed, Transformers ... into $(VENV) (one to three minutes)"
	@$(PIP_INSTALL) "$$(grep '^torch==' requirements.lock)"
	@$(PIP_INSTALL) $(LOCK) -e '.[aws-docs]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "== installing the tools of the tests"
	@$(PIP_INSTALL) $(LOCK) -e '.[dev]'
	@touch $@

data: $(VENV)/run.stamp
	@echo "== preparing the data of $(RECIPE)"
	@$(BIN)/python -m data_prep --recipe $(RECIPE) $(OVERRIDES)

pretrain: data
	@echo "== training $(RECIPE) on $(RANKS) ranks with $(DS_CONFIG)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/deepspeed --quiet --num_gpus $(RANKS) scaler/train.py \
		--deepspeed_config $(DS_CONFIG) --recipe $(RECIPE) $(OVERRIDES)
	@echo "== filling masks with the new model"
	@$(BIN)/scaler fill-mask runs

test: $(VENV)/dev.stamp
	@echo "== running the tests"
	@PATH="$(CURDIR)/$(BIN):$$PATH" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/dev.stamp
	@PATH="$(CURDIR)/$(BIN):$$PATH" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-processes

test-bare: $(VENV)/dev.stamp
	@PATH="$(CURDIR)/$(BIN):$$PATH" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 tests/support/bare.sh $(BIN)/python -m pytest -n 2 \
		tests/core tests/distributed tests/cluster tests/data_prep/test_mpi.py tests/data_prep/test_workers.py \
		tests/end_to_end/test_job_scripts.py tests/end_to_end/test_launchers.py tests/end_to_end/test_slurm.py

test-slow: $(VENV)/dev.stamp
	@PATH="$(CURDIR)/$(BIN):$$PATH" HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

test-slurm: $(VENV)/dev.stamp
	@PATH="$(CURDIR)/$(BIN):$$PATH" HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'slow or not slow' tests/end_to_end/test_job_scripts.py \
		tests/end_to_end/test_slurm.py tests/end_to_end/test_launchers.py tests/cluster/test_preflight.py

chaos: data
	@rm -rf build/chaos
	@PYTHONPATH=tests/support HF_HUB_OFFLINE=1 $(BIN)/python tests/workers/chaos.py --recipe $(RECIPE) --folder build/chaos

resume-matrix: $(VENV)/run.stamp
	@rm -rf build/resume-matrix && mkdir -p build/resume-matrix
	@PYTHONPATH=tests/support HF_HUB_OFFLINE=1 $(BIN)/python tests/workers/resume_worker.py quickstart all build/resume-matrix

lint: $(VENV)/dev.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(VENV)/dev.stamp
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "== open build/site/index.html"

reference: $(VENV)/dev.stamp
	@$(BIN)/python docs/generate.py

bench: data
	@$(BIN)/python benchmarks/data_path.py --recipe $(RECIPE)

bench-checkpoint: $(VENV)/run.stamp
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/deepspeed --num_gpus 2 benchmarks/checkpoint_stall.py

tensorboard: $(VENV)/run.stamp
	@$(BIN)/tensorboard --logdir runs

clean:
	rm -rf $(VENV) build *.egg-info

clean-runs:
	@echo "All prepared data and all runs would go: $(wildcard data runs)"
	@printf 'Delete them? Type yes: ' && read -r answer && [ "$$answer" = yes ] || { echo "kept"; exit 1; }
	rm -rf data runs
