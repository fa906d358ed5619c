PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart
OUT_IMAGES ?= runs/quickstart-images
OUT_RL ?= runs/quickstart-rl
QUICKSTART ?=
STUDY ?=
REAL ?=
FAULTS ?=
TEST_JOBS ?= auto

.PHONY: quickstart quickstart-images quickstart-rl real test test-long test-fast test-statistical test-install test-reasoning-gym test-trl faults lint docs bench study study-real clean

quickstart: $(VENV)/.installed
	$(BIN)/stabledllm quickstart --out $(OUT) $(QUICKSTART)

quickstart-images: $(VENV)/.installed
	$(BIN)/stabledllm quickstart-images --out $(OUT_IMAGES) $(QUICKSTART)

quickstart-rl: $(VENV)/.installed
	$(BIN)/stabledllm quickstart-rl --out $(OUT_RL) $(QUICKSTART)

PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadscope --no-loadscope-reorder
CORE := noise stats forward ppots variance gradient config test_loss.py test_doctests.py

test: $(VENV)/.installed-dev
	$(PYTEST) tests --ignore tests/install -m "not long"

# What `make test` leaves out: whole walks (notebooks, quickstarts, a study, the guide, a sample of faults).
test-long: $(VENV)/.installed-dev
	$(PYTEST) tests --ignore tests/install -m long

# The mathematics alone, in a minute; tests/README.md says what each tier holds.
test-fast: $(VENV)/.installed-dev
	$(PYTEST) $(CORE:%=tests/%) -m "not statistical and not slow and not processes"

test-statistical: $(VENV)/.installed-dev
	$(PYTEST) tests -m statistical

# The wheel in fresh environments, beside the versions that other trainers pin: needs a package registry, under a minute.
test-install: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/install -rs

# The task reasoning-gym, whose package wants a C compiler (pycosat has no wheel) and is no part of `make test`.
test-reasoning-gym: $(VENV)/.installed-reasoning-gym
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/tasks/gym tests/rewards tests/recipes/test_shipped.py tests/cli/test_help.py -k "gym or symbolic or countdown" -rs

# TRL's trainers with the mixins of `integrations/trl`; the package is an extra and no part of `make test`.
test-trl: $(VENV)/.installed-trl
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integrations/trl -rs

# A fault at every file-system event of every command, and damaged stored files: an hour. FAULTS="train merge --every 5".
faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.faults $(FAULTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests scripts benchmarks studies notebooks
	$(BIN)/ruff format --check src tests scripts benchmarks studies notebooks
	$(BIN)/lint-imports --no-logo --no-cache

# The site, into site/: a broken link or anchor, and a page outside the navigation, are errors.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "the site: site/index.html"

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/noise_cost.py
	$(BIN)/python benchmarks/adaptive_cost.py
	$(BIN)/python benchmarks/probe_throughput.py
	$(BIN)/python benchmarks/probe_error.py
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/decoding_shortcuts.py
	$(BIN)/python benchmarks/decoding_blocks.py
	$(BIN)/python benchmarks/loss_head.py
	$(BIN)/python benchmarks/experts.py
	$(BIN)/python benchmarks/pictures.py
	$(BIN)/python benchmarks/busy.py
	-$(BIN)/python benchmarks/packing.py $(GSM8K)

# On one GPU: LLaDA-8B's shape against plain baselines, in 8 minutes at most. GPU=--rehearse: on the CPU, in seconds.
OUT_GPU ?= runs/gpu
GPU ?=
.PHONY: gpu
gpu: $(VENV)/.installed
	mkdir -p $(OUT_GPU)
	$(BIN)/python benchmarks/gpu.py --out $(OUT_GPU)/gpu.json $(GPU)

# A real pretrained model through the whole machine: 10 minutes on 2 cores. REAL=--small: 2 of its layers, 3 minutes.
real: $(VENV)/.installed-real
	$(BIN)/python scripts/real_model.py $(REAL)

# The study of a real pretrained model: hours on one core, minutes on a GPU. STUDY="--rehearse": its steps in small.
study-real: $(VENV)/.installed-study
	$(BIN)/python -m studies.real_model.study $(STUDY)

study: $(VENV)/.installed
	$(BIN)/python studies/equal_compute/study.py $(STUDY)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[train]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[train,dev]"
	touch $@

$(VENV)/.installed-real: $(VENV)/.installed pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[train,gguf]"
	touch $@

$(VENV)/.installed-study: $(VENV)/.installed pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[train,gguf,reasoning-gym]"
	touch $@

$(VENV)/.installed-reasoning-gym: $(VENV)/.installed-dev pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[train,dev,reasoning-gym]"
	touch $@

$(VENV)/.installed-trl: $(VENV)/.installed-dev pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[train,dev,trl]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[train,docs]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist site
