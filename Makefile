# SPDX-License-Identifier: Apache-2.0
# make demo | demo-memory | eval | test | build | bench | gpu | fuzz | faults | soak | kilted | lint | clean: each sets up what it needs in .venv first (tools/setup_env.py).
#   PYTHON=python3.12     another Python, 3.10 to 3.13
#   TORCH_INDEX=URL       a package index with CPU builds of torch; PyPI's own is the CUDA build, some GB larger
#   SEED=N                another held-out home for the demo (demo-memory is the second half of demo alone)
#   VIEW=1                the demo in a browser as well
#   DEMO_IMAGES=FOLDER    photographs for the demo instead of a simulated home
#   DEMO_OUT=FOLDER       where the demo leaves its report and clouds
#   MINUTES=N             of fuzz and soak
#   PYTEST="-k word -x"   arguments for pytest; -n 0 runs the tests in one process
PYTHON ?= python3
DEMO_OUT ?= demo_output
SETUP = $(PYTHON) tools/setup_env.py
export TORCH_INDEX

.PHONY: demo demo-memory eval test build bench gpu fuzz faults soak kilted lint clean

demo:
	@$(SETUP) $(if $(VIEW),view,demo) -m g2vlm_ros.demo.nodes.run_demo --out "$(DEMO_OUT)" $(if $(VIEW),--view) \
	  $(if $(SEED),--home "$(SEED)") $(if $(DEMO_IMAGES),--images "$(DEMO_IMAGES)")

demo-memory:
	@$(SETUP) demo -m g2vlm_ros.demo.nodes.run_memory_demo --out "$(DEMO_OUT)/memory" $(if $(SEED),--home "$(SEED)")

eval:
	@$(SETUP) demo -m g2vlm_ros.demo.train.evaluate --checkpoint engines/demo --out eval_output

test:
	@$(SETUP) test -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST)

build:
	@$(SETUP) build

bench:
	@$(SETUP) bench -m benchmarks

gpu:
	@$(SETUP) bench -m benchmarks.gpu

fuzz:
	@PYTHONPATH=test $(SETUP) test -m g2vlm_tests.fuzz $(if $(MINUTES),--minutes $(MINUTES))

faults:
	@PYTHONPATH=test $(SETUP) test -m g2vlm_tests.faults --out benchmarks/results/faults.json --page docs/faults.md

soak:
	@PYTHONPATH=test $(SETUP) test -m g2vlm_tests.soak $(if $(MINUTES),--minutes $(MINUTES))

kilted:
	@$(PYTHON) tools/kilted.py

lint:
	@$(SETUP) lint -m ruff check .
	@$(SETUP) lint -m ruff format --check .

clean:
	rm -rf .venv .venv-kilted .setup.lock build install log demo_output eval_output bench_output soak_output .hypothesis .pytest_cache .ruff_cache \
	  g2vlm_ros/kernels/compiled
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
