# Two commands matter: `make run` (try it) and `make test` (everything CI runs). Each installs what it needs.
.DEFAULT_GOAL := help
SHELL := bash
PY := .venv/bin/python
DATA ?= .agentkeep
JOBS ?= 2

COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo .venv/bin/docker-compose)

# Where it is set, each of the processes that tests start compiles all it imports, and pytest rewrites every assertion.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-dev run demo compose-up compose-down demo-compose images test check lint generate bench load kill-test clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup:  ## Install what running needs (project environment in .venv, bubblewrap)
	@tools/setup.sh embedded

setup-dev:  ## Install what tests need besides
	@tools/setup.sh dev

run: setup  ## Start the platform, hold a conversation as two users, stay up
	@$(PY) examples/demo.py --data-dir $(DATA) --stay-up

demo: setup  ## The same without staying up; exit status 0 only if every turn was right
	@$(PY) examples/demo.py --data-dir $(DATA)

compose-up:  ## Start the five services and their stores in Docker; returns when they are healthy
	@$(COMPOSE) up --detach --wait --build

compose-down:  ## Stop them, and what is left of their sessions; their volumes keep everything
	@$(COMPOSE) stop --timeout 60 edge runtime
	@docker ps --all --quiet --filter label=agentkeep | xargs -r docker rm --force
	@$(COMPOSE) down --timeout 60

demo-compose: setup  ## The demo on the services in Docker; exit status 0 only if every turn was right
	@$(PY) examples/demo_compose.py

lint: setup-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/deptry .
	$(PY) tools/generate_types.py --check
	$(PY) tools/generate_compatibility.py --check
	$(PY) tools/generate_settings.py --check
	$(PY) tools/generate_routes.py --check

generate: setup-dev  ## Write generated files anew (types, compatibility table, settings page)
	$(PY) tools/generate_types.py
	$(PY) tools/generate_compatibility.py
	$(PY) tools/generate_settings.py
	$(PY) tools/generate_routes.py

check: lint  ## Lint, types and the quick tests, in under five minutes
	$(PY) -m pytest -n $(JOBS) -m "not slow and not official"

# Tests that share the one Docker engine with the one session endpoint run in one process, after each other.
GROUPED := --dist loadgroup
# A test that fails is run again, and named (R): machines are noisy. One named there twice is a defect to mend.
AGAIN := --reruns 2 --reruns-delay 2 -rR --durations 60 --durations-min 5

images: setup-dev  ## Build the images tests need from package registries (kept in /var/tmp)
	@$(PY) tests/images/build.py || echo "!! no images: tests that need Docker will say NOT SHOWN"

test: lint images  ## Everything CI runs
	COVERAGE_FILE=.coverage $(PY) -m pytest -n $(JOBS) $(GROUPED) $(AGAIN) --cov --cov-report=term -m "not official"
	$(PY) -m pytest -n $(JOBS) $(AGAIN) -m official

LONG := benchmarks/load.py benchmarks/kill_replicas.py

bench: setup-dev  ## Benchmarks; figures are appended to benchmarks/history.jsonl
	@for each in $(filter-out benchmarks/_% $(LONG),$(wildcard benchmarks/*.py)); do echo "== $$each"; $(PY) $$each || exit 1; done

load: setup-dev  ## 100,000 invocations and 2,000 sessions: does anything leak? (some minutes)
	$(PY) benchmarks/load.py
	$(PY) benchmarks/storm.py

kill-test: setup-dev  ## Five minutes of replicas killed under load: is anything lost, or served twice?
	$(PY) benchmarks/kill_replicas.py

clean:  ## Remove the environment and the demo's data
	rm -rf .venv $(DATA) .mypy_cache .ruff_cache .hypothesis .coverage*
