# make quickstart   train a small Code Llama on this machine's Python sources and look at the report
# make ablations    the paper's ablations at toy scale, one after another; resumes when restarted
# make test         lint, types and tests
# make test-slow    the tests that take many processes: two hosts, repeated kills
# All of them create .venv from python3 (3.11 or newer) and pip, with the script codellama-jax in it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

quickstart: $(VENV)/installed
	$(BIN)/python launch.py run experiments/quickstart.py

# Stages that several of them share are trained once. docs/results has the reports as last run.
ABLATIONS ?= scratch_vs_llama2 infilling_cost long_context_cost learning_rate psm_vs_spm rope_theta temperature self_instruct pangu_coder2 exact_lines
# Seeds that are trained side by side, each on its share of the cores.
PROCESSES ?= 2
ablations: $(VENV)/installed
	mkdir -p docs/results/figures
	set -e; for name in $(ABLATIONS); do \
	  $(BIN)/python launch.py run experiments/$$name.py --out runs/ablations/$$name --reuse runs/ablations --processes $(PROCESSES); \
	  cp runs/ablations/$$name/report.md docs/results/$$name.md; \
	  cp runs/ablations/$$name/finding.json docs/results/$$name.json; \
	  cp runs/ablations/$$name/figures/$$name-*.png docs/results/figures/; \
	done
	$(BIN)/python -m tools.verdicts

# README's table of verdicts, from docs/results/*.json.
verdicts: $(VENV)/installed
	$(BIN)/python -m tools.verdicts

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow" $(TESTS)

test-slow: $(VENV)/installed-dev
	$(BIN)/pytest -m slow

# --no-compile: Python compiles a module when it is first imported, and most never are.
$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: this project needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --require-hashes -r requirements-dev.txt
	touch $@

# torch and transformers: with them `make test` also compares weights and logits with theirs. They
# have no hashes, since indexes have several builds of one version of torch; without an index of CPU
# builds (PIP_EXTRA_INDEX_URL) pip downloads gigabytes for GPUs.
oracle: $(VENV)/installed-oracle

$(VENV)/installed-oracle: $(VENV)/installed-dev
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 transformers==5.24.0 accelerate==1.15.0
	touch $@

# Needs uv (pip install uv). Python 3.11 and newer ones get different JAX releases from one file.
LOCK = uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 pyproject.toml
NOTE = exact versions and hashes, CPU by default, for Python 3.11 to 3.13. Ranges are in pyproject.toml; `make lock` writes this file.
lock:
	(echo '# The lock: $(NOTE)'; $(LOCK)) > requirements.lock && mv requirements.lock requirements.txt
	(echo '# The lock with the tools of `make test`: $(NOTE)'; $(LOCK) --extra dev -c requirements.txt) > requirements.lock && mv requirements.lock requirements-dev.txt

# The resolved config of every experiment. Read the difference before you commit it.
golden: $(VENV)/installed-dev
	PYTHONPATH=.:tests $(BIN)/python tests/write_golden.py

# docs/tpu.md takes hours and resumes when restarted. Needs $(BIN)/pip install -e '.[tpu]'
tpu-table: $(VENV)/installed
	$(BIN)/python -m codellama_jax.compile.table

# The page of `codellama-jax serve`, whose built files are committed. Needs node 18 or newer.
page:
	cd codellama_jax/serving/page && npm ci --ignore-scripts && npm run check && npm run build

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache

.PHONY: quickstart ablations verdicts test test-slow oracle lock golden tpu-table page clean
