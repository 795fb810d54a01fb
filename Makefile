# What it needs is in README.md, "Two commands". Everything else goes into $(VENV).

VENV ?= .venv
BIN := $(VENV)/bin
# Newer than the virtual environment's contents are the files that say what belongs in it.
READY := $(VENV)/.ready
# Arguments for pytest, such as PYTEST_ARGS="-k setup -x".
PYTEST_ARGS ?=
# Versions of vLLM for `make matrix`, such as VERSIONS="0.27.0 0.32.0", or of Python for
# `make pythons`, such as VERSIONS=3.13; all where none is named.
VERSIONS ?=

# Python keeps what it compiled: to compile vLLM at every start takes longer than to load a model.
unexport PYTHONDONTWRITEBYTECODE

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Make the virtual environment: the package, vLLM for the CPU, the tools

$(READY): pyproject.toml tools/setup.sh hatch_build.py sched_profiler/engines/_vllm_hook.c
	@tools/setup.sh --venv $(VENV)
	@touch $@

.PHONY: demo
demo: $(READY) ## Profile a real vLLM server under load; ends with a log, a picture and a report in .demo/
	@$(BIN)/python examples/demo.py

.PHONY: test
test: lint docs ## Run everything: lint, docs and all tests with the coverage gate
	$(BIN)/coverage erase
	@$(BIN)/python tools/tests.py $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: lint
lint: $(READY) ## Check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	bash -n tools/setup.sh .ci/run

.PHONY: docs
docs: $(READY) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: links
links: $(READY) ## Ask for each page of another host that the documentation links to; wants a network
	@$(BIN)/python tools/links.py

.PHONY: bench
bench: export PYTHONPATH := bench:examples:tests
bench: export VLLM_LOGGING_LEVEL := ERROR
bench: $(READY) ## Measure what profiling costs, beside other ways; wants a quiet machine, an hour and more
	$(BIN)/python bench/hook_cost.py
	$(BIN)/python bench/writer_cost.py
	$(BIN)/python bench/sink_cost.py
	$(BIN)/python bench/writer_share.py
	$(BIN)/python bench/end_to_end.py --layers 2
	$(BIN)/python bench/end_to_end.py --layers 12
	$(BIN)/python bench/delivery_rate.py
	$(BIN)/python bench/validate_rate.py
	$(BIN)/python bench/top_cost.py
	$(BIN)/python bench/findings.py --real
	$(BIN)/python bench/compare_coverage.py
	$(BIN)/python bench/tuning_check.py
	$(BIN)/python bench/capacity_check.py
	$(BIN)/python bench/analysis_rate.py

.PHONY: faults
faults: export PYTHONPATH := bench:examples:tests:tests/engines
faults: export VLLM_LOGGING_LEVEL := ERROR
faults: $(READY) ## Measure throughput while each fault of delivery lasts; wants a quiet machine, a quarter of an hour
	$(BIN)/python bench/faults_in_pairs.py

.PHONY: fuzz
fuzz: $(READY) ## Throw damaged logs at the reader, and random histories at the adapter; an hour
	$(BIN)/python -m pytest --hypothesis-profile=long --timeout=0 \
		tests/test_fuzz.py tests/test_validate.py tests/analysis/test_lines.py $(PYTEST_ARGS)
	$(BIN)/python -m pytest --hypothesis-profile=histories --timeout=0 \
		tests/engines/test_vllm_oracle.py -k any_history $(PYTEST_ARGS)

.PHONY: package
package: $(READY) ## Build into dist/ and check: the same bytes twice, small, complete, works alone
	@$(BIN)/python tools/package.py

.PHONY: pythons
pythons: $(READY) ## Test what needs no vLLM on every Python that is declared; a quarter of an hour
	@$(BIN)/python tools/pythons.py $(VERSIONS)

.PHONY: matrix
matrix: $(READY) ## Test on every vLLM from the oldest declared to the newest; half an hour
	@$(BIN)/python tools/matrix.py $(VERSIONS)

.PHONY: soak
soak: $(READY) ## Step vLLM's real scheduler a million times: memory stays flat; ten minutes
	@mkdir -p build/bench
	SCHED_PROFILER_SOAK_STEPS=1000000 SCHED_PROFILER_SOAK_OUT=build/bench/soak.json \
		$(BIN)/python -m pytest -q -k "does_not_grow and not python" \
		tests/engines/test_vllm_probe.py

.PHONY: clean
clean: ## Remove everything that was made here, the virtual environment included
	rm -rf $(VENV) .cache .demo build dist site .coverage .coverage.* \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache
