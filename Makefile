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
# `python` in dvc.yaml is to be the environment's, whether or not it is activated.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help env run serve retrain promote rollback repro test test-slow lint ui preset clean lock bench

help:
	@sed -n '1,3s/^# //p' Makefile
	@echo 'make repro      the same through DVC alone'
	@echo 'make retrain    looks for new data, trains what it changes, promotes what is no worse'
	@echo 'make promote    judges the challengers now; make rollback puts the champion before this one back'
	@echo 'make serve      answers chat requests with the champion (OpenAI API on 127.0.0.1), until Ctrl-C'
	@echo 'make ui         the MLflow and Prefect pages on what was made'
	@echo 'make preset     lists the presets; NAME=smoke makes one the active one'
	@echo 'make bench      what Prefect, DVC and MLflow cost on top of the bare stage programs'
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

test-slow: env
	$(RUN) -m pytest -m slow

lint: env
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

ui: env
	$(RUN) -m flows.pages

preset: env
	$(RUN) -m flows.preset $(NAME) $(if $(FORCE),--force)

bench: env
	$(RUN) -m bench.orchestration

lock: env
	$(RUN) requirements/lock.py

clean:
	rm -rf .work .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
