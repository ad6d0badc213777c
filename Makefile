# make            what there is
# make run        the environment, then the whole pipeline through Prefect; again: only what has changed
# make test       the quick tests; make test-slow the others
PYTHON ?= python3
VENV ?= .venv
# cpu or cuda: which lock file, and where torch's wheels of that kind are.
DEVICE ?= cpu
TORCH_INDEX_cpu = https://download.pytorch.org/whl/cpu
TORCH_INDEX_cuda = https://download.pytorch.org/whl/cu130
TORCH_INDEX ?= $(TORCH_INDEX_$(DEVICE))
LOCK = requirements/$(DEVICE).lock
RUN = $(VENV)/bin/python
# Slow tests that start servers and workers which stay; they take about as long as all other slow ones.
FLEETS = tests/flows/test_operations.py tests/flows/test_two_clones.py tests/flows/test_deployed_retrain.py
# `python` in dvc.yaml is to be the environment's, whether or not it is activated.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help env run serve retrain promote rollback repro test test-slow slow-fleets slow-others lint ui up down worker preset clean clean-cache lock bench

help:
	@sed -n '1,3s/^# //p' Makefile
	@echo 'make repro      the same through DVC alone'
	@echo 'make retrain    looks for new data, trains what it changes, promotes what is no worse'
	@echo 'make promote    judges the challengers now; make rollback puts the champion before this one back'
	@echo 'make serve      answers chat requests with the champion (OpenAI API on 127.0.0.1), until Ctrl-C'
	@echo 'make ui         the MLflow and Prefect pages on what was made'
	@echo 'make up         Prefect and MLflow servers and a worker that stay, for deployments; make down ends them'
	@echo 'make worker     another worker, on this machine or the next: docs/operations.md'
	@echo 'make preset     lists the presets; NAME=smoke makes one the active one'
	@echo 'make bench      what Prefect, DVC and MLflow cost on top of the bare stage programs'
	@echo 'make clean-cache  removes from DVC'"'"'s cache what neither this checkout nor a registered model needs'
	@echo 'make clean      removes work in progress and caches of tools, never results'

env: $(VENV)/.made-$(DEVICE)

# Made anew only when the lock changes. The stamp's content is what was installed.
$(VENV)/.made-$(DEVICE): $(LOCK) requirements/install.py
	$(PYTHON) requirements/install.py --venv $(VENV) --lock $(LOCK) --torch-index "$(TORCH_INDEX)"
	@touch $@

params.yaml:
	cp presets/tiny.yaml $@

run: env params.yaml
	$(RUN) -m flows.pipeline

retrain: env params.yaml
	$(RUN) -m flows.retrain

promote: env params.yaml
	$(RUN) -m flows.promote $(if $(MODEL),--model $(MODEL)) $(if $(VERSION),--version $(VERSION)) $(if $(FORCE),--force "$(FORCE)")

rollback: env params.yaml
	$(RUN) -m flows.rollback $(if $(MODEL),--model $(MODEL)) $(if $(REASON),--reason "$(REASON)")

repro: env params.yaml
	$(RUN) -m dvc repro

serve: env
	$(RUN) -m tasks.serve

test: env
	$(RUN) -m pytest -m "not slow"

# Two at a time, a thread each: most of the time goes to waiting for servers, kills and restarts.
test-slow: env
	$(MAKE) --no-print-directory -j2 slow-fleets slow-others

slow-fleets: env
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow $(FLEETS)

slow-others: env
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow $(FLEETS:%=--ignore=%)

lint: env
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

ui: env
	$(RUN) -m flows.pages

# HOST=0.0.0.0 for other machines; STORE=postgresql://... and ARTIFACTS=s3://... for MLflow; WORKER=no for servers alone.
up: env params.yaml
	$(RUN) -m flows.services up $(if $(HOST),--host $(HOST)) $(if $(STORE),--store '$(STORE)') \
		$(if $(ARTIFACTS),--artifacts '$(ARTIFACTS)') $(if $(filter no,$(WORKER)),--no-worker)

down: env
	$(RUN) -m flows.services down

# PREFECT_API_URL and MLFLOW_TRACKING_URI name the servers; QUEUES="gpu" LIMIT=1 for a machine with one GPU.
worker: env
	$(RUN) -m flows.worker $(if $(QUEUES),--queues $(QUEUES)) $(if $(LIMIT),--limit $(LIMIT))

preset: env
	$(RUN) -m flows.preset $(NAME) $(if $(FORCE),--force)

bench: env
	$(RUN) -m bench.orchestration

lock: env
	$(RUN) requirements/lock.py

# What is under way, registered or in a checkout of a preset stays; CLOUD=1 cleans the DVC remote, too.
clean-cache: env
	$(RUN) -m flows.clean_cache $(if $(CLOUD),--cloud)

# Notes of running services, checkouts of presets and records that MLflow has not taken yet are no leftovers.
clean:
	find .work -mindepth 1 -maxdepth 1 -not -name services -not -name checkouts -not -name tracking -exec rm -rf {} + || true
	rm -rf .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
