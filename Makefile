# One target for each task of a developer or of CI. Prerequisites: Python 3.11 or newer with venv, nginx.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules
# Debian installs nginx in a directory that only root has on PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

IMAGE ?= sagemaker-serve
TORCH ?= cpu
MODELS ?= local_test/models
VENV := .venv
PY := $(VENV)/bin/python
# One more than the cores: the live tests wait for processes half of their time. On two cores 12 minutes in place of 19.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 2 ? 3 : cores > 7 ? 8 : cores + 1)))
# The tests of a file share servers. The files that take longest come first, so that no worker is left with one of them.
PARALLEL = --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
SHELLS = $(shell find . -name '*.sh' -not -path './.venv*/*' -not -path './.lambda/*' -not -path './local_test/models/*') container/serve .ci/run
CODE = $(wildcard serve deploy local_test tests bench docs/reference.py container/slim.py container/smoke.py)

# $(call step,title,command): one line with the seconds it took; the output of the command is shown only if it fails.
step = printf '%-58s' "$(1)"; begun=$$SECONDS; \
	output=$$({ $(2); } 2>&1) || { echo 'failed'; printf '%s\n' "$$output" >&2; exit 1; }; echo "$$((SECONDS - begun)) s"

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## */make \1\t/' | expand -t 14

run: nginx $(VENV)/runtime ## serve the sample models on http://127.0.0.1:8080 (Ctrl-C stops it)
	@$(PY) -m local_test.make_models $(MODELS) || echo 'Some sample models could not be made (see above): the server starts with the others.'
	@SERVE_MODEL_DIR="$${SERVE_MODEL_DIR:-$(MODELS)}" exec $(PY) -m serve

install: nginx $(VENV)/runtime ## .venv with the server and the commands sagemaker-* (then: . .venv/bin/activate)
	@$(call step,the commands sagemaker-*,$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .)

setup: nginx $(VENV)/dev .lambda/made ## all that the tests and checks need

test: setup ## run the tests: pure, with real processes, in Chromium where it is installed, of the image where Docker answers
	@browser=; if command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null; then browser=tests/browser; \
	else echo 'no Chromium is installed: tests/browser is left out (Debian, Ubuntu: sudo apt-get install chromium)'; fi; \
	image=; if [[ -n "$${IMAGE_BUILD-}" ]] || docker info >/dev/null 2>&1; then image='tests/image/test_rehearse.py tests/image'; \
	else echo 'no Docker engine answers: tests/image is left out'; fi; \
	exec $(PY) -m pytest $(PARALLEL) tests/live $$browser $$image tests/unit

storm: setup ## an hour of right calls, hostile inputs and kills; writes docs/reliability.md (STORM='--seconds 60 --calls 10000')
	@exec $(PY) -m tests.storm long $(STORM)

conformance: setup ## run the cases that compare with AWS's containers, transformers, XGBoost..., and write docs/conformance.md
	@exec $(PY) -m pytest $(PARALLEL) -m peer --conformance=docs/conformance.md tests/live tests/unit

test-sdk: .venv-sdk/made ## AWS's SageMaker SDK runs IMAGE in its local mode (slow; needs docker-compose)
	@IMAGE=$(IMAGE) exec .venv-sdk/bin/python -m pytest -W ignore tests/sdk

.venv-sdk/made: tests/sdk/requirements.txt
	@python=$$(container/find_python.sh); $(call step,.venv-sdk with $$python,$$python -m venv .venv-sdk)
	@$(call step,AWS's SageMaker SDK (some 400 MB),.venv-sdk/bin/python -m pip install --quiet --no-deps -r $<)
	@touch $@

notebooks: $(VENV)/platform .venv-sdk2/made .venv-sdk3/made .venv-aws/made ## run notebooks of AWS on the emulator, and write docs/notebooks.md (an hour; NOTEBOOKS='words of titles')
	@$(PY) -m tests.notebooks $(NOTEBOOKS)

.venv-sdk2/made .venv-sdk3/made: .venv-sdk%/made: tests/notebooks/requirements-sdk%.txt
	@python=$$(container/find_python.sh); $(call step,.venv-sdk$* with $$python,$$python -m venv .venv-sdk$*)
	@$(call step,AWS's SageMaker SDK $* and what notebooks import,.venv-sdk$*/bin/python -m pip install --quiet --no-deps -r $<)
	@touch $@

.venv-aws/made: tests/image/requirements.txt
	@python=$$(container/find_python.sh); $(call step,.venv-aws with $$python,$$python -m venv .venv-aws)
	@$(call step,the AWS CLI,.venv-aws/bin/python -m pip install --quiet --no-deps -r $<)
	@touch $@

check: check-style check-types check-shell check-nginx ## run ruff, mypy --strict, shellcheck, nginx -t

check-style: $(VENV)/dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

check-types: $(VENV)/dev
	$(PY) -m mypy $(CODE)

check-shell: $(VENV)/dev
	$(VENV)/bin/shellcheck $(SHELLS)

check-nginx: nginx $(VENV)/dev
	@conf=$$(mktemp -d); trap 'rm -rf "$$conf"' EXIT; SERVE_RUN_DIR="$$conf" $(PY) -m serve conf >"$$conf/nginx.conf"; \
	nginx -t -q -e stderr -c "$$conf/nginx.conf" && echo 'nginx -t: good'

lambda: .lambda/made ## AWS's emulator of Lambda's runtime, for pipelines on this machine

.lambda/made: local_test/pipelines/requirements.txt $(VENV)/platform
	@rm -rf .lambda
	@$(call step,AWS's emulator of Lambda's runtime (9 MB),$(PY) -m pip install --quiet --no-deps --target .lambda -r $<)
	@touch $@

platform: nginx $(VENV)/platform ## SageMaker on this machine, for any boto3 script (PLATFORM='--port 4566 --memory 2g')
	@exec $(PY) -m local_test.platform $(PLATFORM)

docs: .venv-docs/made docs-reference ## the documentation as a web site, in site/
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet
	@echo 'open site/index.html'

docs-reference: $(VENV)/dev ## write the tables of settings, errors, metrics and options in docs/ from the code
	@$(PY) -m docs.reference

docs-pictures: $(VENV)/dev ## photograph the emulator's page for docs/ (needs Chromium; two minutes)
	@$(PY) -m tests.browser.pictures

.venv-docs/made: docs/requirements.txt
	@python=$$(container/find_python.sh); $(call step,.venv-docs with $$python,$$python -m venv .venv-docs)
	@$(call step,packages for the documentation,.venv-docs/bin/python -m pip install --quiet --no-deps -r $<)
	@touch $@

bench: nginx $(VENV)/dev $(if $(PEERS),.venv-peers/made) ## measure the workloads; PEERS=1: other projects' engines as well
	@exec $(PY) -m bench $(if $(PEERS),--peers) $(BENCH)

bench-check: $(VENV)/dev ## compare handlers with plain libraries, and the ratios with the committed ones (a minute)
	@exec $(PY) -m bench.check

.venv-peers/made: bench/peers/requirements.txt
	@python=$$(container/find_python.sh); $(call step,.venv-peers with $$python,$$python -m venv .venv-peers)
	@$(call step,PyTorch (some 200 MB),container/install_torch.sh .venv-peers/bin/python cpu)
	@$(call step,the peers of the bench (some 250 MB),.venv-peers/bin/python -m pip install --quiet --no-deps -r $<)
	@touch $@

image: ## build the container image (IMAGE=sagemaker-serve TORCH=cpu; cu130 for CUDA)
	docker build --platform linux/amd64 --build-arg TORCH=$(TORCH) --tag $(IMAGE) .

models: $(VENV)/runtime ## make the sample models that are missing (minutes the first time)
	@$(PY) -m local_test.make_models $(MODELS)

clean: ## remove the environments, the models, the caches
	rm -rf $(VENV) .venv-sdk .venv-sdk2 .venv-sdk3 .notebooks .venv-aws .venv-docs .venv-peers site .lambda local_test/models local_test/.cache bench/results .mypy_cache .ruff_cache .pytest_cache .hypothesis build sagemaker_serve.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip would compile all files, one after the other, in 100 s of the 200 s of `make setup`. Here every core compiles, and
# not the tests of packages, nor the 2,500 files of transformers' architectures: Python compiles those it imports.
$(VENV)/runtime $(VENV)/platform $(VENV)/dev: export PIP_NO_COMPILE = 1
COMPILE = { $(PY) -m compileall -q -j 0 -x '/tests?/|/torch/testing/|/transformers/models/' $(VENV)/lib || true; }

# Each target is a stamp: its packages are installed again only when its requirements change.
$(VENV)/runtime: container/requirements.txt container/install_torch.sh
	@python=$$(container/find_python.sh); $(call step,.venv with $$python,$$python -m venv $(VENV))
	@$(call step,Python packages (some 150 MB),$(PY) -m pip install --quiet --no-deps -r container/requirements.txt)
	@$(call step,PyTorch $(TORCH) (some 200 MB),container/install_torch.sh $(PY) $(TORCH))
	@$(call step,their bytecode,$(COMPILE))
	@$(PY) -m pip check >/dev/null || { $(PY) -m pip check >&2; exit 1; }
	@touch $@

$(VENV)/platform: local_test/requirements.txt $(VENV)/runtime
	@$(call step,packages for the platform emulator,$(PY) -m pip install --quiet --no-deps -r local_test/requirements.txt && $(COMPILE))
	@$(PY) -m pip check >/dev/null || { $(PY) -m pip check >&2; exit 1; }
	@touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/platform
	@$(call step,packages for tests and checks,$(PY) -m pip install --quiet --no-deps -r requirements-dev.txt && $(COMPILE))
	@touch $@

nginx:
	@command -v nginx >/dev/null && exit; \
	if [[ $$(id -u) == 0 ]] && command -v apt-get >/dev/null; then \
	  $(call step,nginx by apt-get,apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y nginx); \
	else echo 'nginx is missing: install it (Debian, Ubuntu: sudo apt-get install nginx), then run make again' >&2; exit 1; fi

.PHONY: help run install test storm conformance test-sdk notebooks docs docs-reference docs-pictures check check-style check-types check-shell check-nginx platform bench bench-check image models clean nginx lambda
