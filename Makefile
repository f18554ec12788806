# Two commands: `make demo` and `make test`. Everything else is `make help`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup system demo test test-all bench check fmt gpu slurm-up slurm-down clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: system .venv/ready .venv-render/ready ## make both environments (training, rendering)

system: ## find missing system libraries; install them if this is root on Debian or Ubuntu
	@PYTHON="$(PYTHON)" sh docker/system.sh

.venv/ready: requirements.txt pyproject.toml | system
	@echo "making .venv: torch and the rest of requirements.txt (a few minutes the first time)"
	@PYTHON="$(PYTHON)" sh docker/install-train.sh .venv
	@touch $@

.venv-render/ready: requirements-render.txt | system
	@echo "making .venv-render: Blender as a Python module (about 350 MB the first time)"
	@PYTHON="$(PYTHON)" sh docker/install-render.sh .venv-render
	@touch $@

demo: setup ## the whole way on this machine: models, Blender, training, preemption, meshes, report
	@$(PY) launch.py demo

test: setup ## the tests that this machine can run; on a SLURM of their own where that can be had
	@$(call tests_with_packages,not long and not gpu and not bench,)

test-all: setup ## the long ones, too
	@$(call tests_with_packages,not gpu and not bench,--timeout 3600)

# Unit tests on all cores, then those of real processes in turn; beside them those that mostly wait: SLURM and e2e.
# Installs SLURM, OpenGL and the glTF validator as root on Debian or Ubuntu; where it cannot, says so before and after.
define tests_with_packages
{ why=$$(sh docker/slurm/packages.sh 2>&1 >&3) && why=; no_gl=$$(sh docker/mesa.sh 2>&1 >&3) && no_gl=; \
no_gltf=$$(sh docker/gltf.sh 2>&1 >&3) && no_gltf=; } 3>&1; \
loudly() { test -z "$$why" || echo "SLURM tests are skipped: $$why" >&2; \
test -z "$$no_gl" || echo "tests against OpenGL are skipped: $$no_gl" >&2; \
test -z "$$no_gltf" || echo "GLB FILES ARE NOT VALIDATED: $$no_gltf" >&2; }; loudly; \
log=$$(mktemp); $(PY) -m pytest -m "$(1)" $(2) tests/slurm tests/e2e >$$log 2>&1 & beside=$$!; \
trap 'kill $$beside; wait $$beside; rm -f $$log; exit 130' INT TERM; \
OMP_NUM_THREADS=1 $(PY) -m pytest -m "$(1)" $(2) -n auto --maxprocesses 8 --dist loadfile tests/unit; units=$$?; \
$(PY) -m pytest -m "$(1)" $(2) --ignore tests/unit --ignore tests/slurm --ignore tests/e2e tests; others=$$?; \
echo "tests/slurm and tests/e2e, which ran beside:"; wait $$beside; waited=$$?; cat $$log; rm -f $$log; loudly; \
test $$units = 0 && test $$others = 0 && test $$waited = 0
endef

bench: setup ## measurements that have to stay within limits, on a machine that does nothing else
	@$(PY) -m pytest tests/bench -m bench -s

check: .venv/ready ## formatter, ruff, mypy, import layers: seconds
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo 2>/dev/null || .venv/bin/lint-imports

fmt: .venv/ready ## format the code
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix --quiet .

gpu: ## checks that need CUDA, or one part: PART=parity|exact|exchange|fullsize|speed|cost; installs nothing; GPU_PYTHON=...
	@$${GPU_PYTHON:-python3} -m tests.gpu $(PART)

slurm-up: ## a SLURM of 4 nodes on this machine, in GET3D_SLURM or ~/.local/state/get3d_cluster/slurm
	@sh docker/slurm/packages.sh
	@sh docker/slurm/up.sh

slurm-down: ## stop it
	@sh docker/slurm/down.sh

clean: ## remove the environments and what the demo made
	rm -rf .venv .venv-render .node demo
