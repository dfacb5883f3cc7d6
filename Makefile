# Two commands do everything, set-up included:
#   make demo    the quick study; opens with a report at runs/quick/report.html
#   make test    the tests
# Python ≥ 3.11 with its headers and a C++ compiler are all they need. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/quick
OLDEST_PEFT := 0.18.0
PARALLEL := -n auto --maxprocesses 4 --dist loadfile  # a process a core; tests of threads set their number themselves
NATIVE := setup.py pyproject.toml artent_ext/_version.py $(shell find csrc -type f)
CPP := $(shell find csrc tests/simt -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test lint format docs bench bench-requirements wheel clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.built ## run the quick study (≤ 5 minutes on 2 cores) and write its report
	$(BIN)/artent study --config quick --out $(RUN) --resume

test: $(VENV)/.built $(VENV)/peft-$(OLDEST_PEFT) ## run the tests that need no GPU, the adapter's with the oldest PEFT too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests $(PARALLEL)
	OMP_NUM_THREADS=1 ARTENT_TESTS_PEFT=$(OLDEST_PEFT) PYTHONPATH="$(CURDIR)/$(VENV)/peft-$(OLDEST_PEFT)" \
	  $(BIN)/python -m pytest tests/artent/adapters $(PARALLEL) -k 'not without_peft and not works_on' \
	  --ignore-glob='*_compile.py' --ignore-glob='*_trl.py' --ignore-glob='*_product.py' --ignore-glob='*_truncation.py'

lint: $(VENV)/.ready ## check style: ruff and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.ready ## put everything in style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

docs: $(VENV)/.built $(VENV)/.docs ## build the documentation into docs/_build/html; warnings are errors
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -E -a -q -b html docs docs/_build/html
	@echo "Documentation: docs/_build/html/index.html"

bench: $(VENV)/.built bench-requirements ## compare with peers, side by side (a quiet machine, minutes)
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/profile_table.py --json benchmarks/results/cpu-profile.json
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/attention_table.py --json benchmarks/results/cpu-attention.json
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/spectral_table.py --json benchmarks/results/cpu-spectral.json
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/attention_training.py --json benchmarks/results/cpu-training.json
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/mps_training.py --json benchmarks/results/cpu-mps.json
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/model_table.py --json benchmarks/results/cpu-models.json
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/callback_table.py --json benchmarks/results/cpu-callback.json
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest benchmarks/bench_attention.py --benchmark-columns=median,iqr,rounds
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/rsvd_table.py --json benchmarks/results/cpu-rsvd.json
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest benchmarks/bench_rsvd.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

bench-requirements: $(VENV)/.ready
	$(BIN)/python -m pip install -r benchmarks/requirements.txt

wheel: $(VENV)/.ready ## build a wheel into dist/
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps -w dist .

clean: ## remove everything that make made, runs/ excepted
	rm -rf $(VENV) build dist docs/_build *.egg-info artent_ext/*.so

$(VENV)/.ready: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "artent needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sysconfig, pathlib, sys; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file())' || \
	  { echo "Python.h is missing beside $(PYTHON): install Python's headers (package python3-dev or python3-devel)"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "There is no C++ compiler (c++): install g++ or clang"; exit 1; }
	@echo "== Virtual environment $(VENV) (once; downloads torch)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on -r requirements-dev.txt
	@touch $@

$(VENV)/.docs: docs/requirements.txt $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -r docs/requirements.txt
	@touch $@

$(VENV)/peft-$(OLDEST_PEFT): $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ peft==$(OLDEST_PEFT)
	@touch $@

$(VENV)/.built: $(VENV)/.ready $(NATIVE)
	@echo "== Native library (about half a minute)"
	@$(BIN)/python -m pip install -v --no-build-isolation --no-deps -e . > $(VENV)/build.log 2>&1 & pid=$$!; \
	  tail -f --pid=$$pid $(VENV)/build.log 2>/dev/null | grep --line-buffered -oE 'artent: building.*|^ *\[[0-9]+/[0-9]+\]|[^ ]+: (fatal )?error: .*' || true; \
	  wait $$pid || { tail -n 40 $(VENV)/build.log; echo "The build failed; the whole log is $(VENV)/build.log"; exit 1; }
	@# A path entry beside the editable install's hook: in the clone's parent, its folder would pass for the package.
	@echo "$(CURDIR)/python" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/artent-source.pth"
	@touch $@
