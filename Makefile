# Every target sets up what it needs: only python3 and make have to be there.
PYTHON := $(shell command -v python3)
export MLFLOW_DISABLE_TELEMETRY = true
export DO_NOT_TRACK = true
export DVC_NO_ANALYTICS = 1
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export UV_PYTHON_DOWNLOADS = never
unexport PYTHONDONTWRITEBYTECODE   # without stored bytecode every process compiles the libraries anew, 15 seconds each
ARGS ?=
UV := $(shell command -v uv || echo .uv/bin/uv)

.PHONY: setup repro repro-slurm test test-services check faults peers bench bench-gpu dashboard remote params report crate weights plan rehearse docs gallery lock clean

setup: .venv/ok

.uv/bin/uv:                # where uv is not installed, it gets an environment of its own
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

.venv/ok: requirements.lock | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv
	@$(UV) pip sync --quiet --python .venv/bin/python requirements.lock
	@touch $@

.venv-peers/ok: requirements-peers.lock | $(UV)
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv-peers
	@printf 'setuptools<81\n' > .venv-peers/build.txt   # visdom, which adv-lib needs, builds with no newer one
	@$(UV) pip sync --quiet --python .venv-peers/bin/python --build-constraints .venv-peers/build.txt requirements-peers.lock
	@touch $@

.venv-services/ok: requirements-services.lock | $(UV)
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv-services
	@$(UV) pip sync --quiet --python .venv-services/bin/python requirements-services.lock
	@touch $@

.venv-docs/ok: requirements-docs.lock | $(UV)
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv-docs
	@$(UV) pip sync --quiet --python .venv-docs/bin/python requirements-docs.lock
	@touch $@

repro: .venv/ok            ## run every stage whose inputs changed (ARGS=-f runs all)
	@test -e .git || dvc config --quiet --local core.no_scm true   # a copy without git
	@dvc repro $(ARGS)

repro-slurm: .venv/ok      ## the same as jobs of Slurm, one a stage and network (ARGS="--partition gpu --gpus 1")
	@test -e .git || dvc config --quiet --local core.no_scm true
	@python -m pipeline.cluster $(ARGS)

test: .venv/ok             ## the whole test suite
	@python -m pytest -n 2 --dist worksteal $(ARGS)

check: .venv/ok            ## lint and types
	@ruff check .
	@mypy
	@ruff format --check --quiet . || (echo "run ruff format" >&2; exit 1)
	@python -m stages.generate --check
	@python -m pipeline.params --check
	@python -m docsite.gallery --check

test-services: .venv-services/ok  ## Slurm, S3 and PostgreSQL started on this machine, and the tests against them
	@PATH=$(CURDIR)/.venv-services/bin:$$PATH python -m pytest tests/services $(ARGS)

faults: .venv/ok           ## kills, full disks, damaged files: what was tried, and how it ended (some ten minutes)
	@python -m pytest tests/faults $(ARGS)

peers: .venv-peers/ok      ## compare results with the other libraries
	@.venv-peers/bin/python -m pytest tests/peers $(ARGS)

bench: .venv-peers/ok      ## speed and norms beside the other libraries (ARGS="--only minimum_norm": a part)
	@.venv-peers/bin/python -m benchmarks $(ARGS)

bench-gpu: .venv-peers/ok  ## speed and memory on a GPU, beside the CPU and the other libraries
	@.venv-peers/bin/python -m benchmarks.gpu $(ARGS)

dashboard: .venv/ok        ## the runs and the committed results in MLflow, on this machine
	@python -m pipeline.dashboard $(ARGS)

remote: .venv/ok | $(UV)   ## where the team's results are: URL=s3://BUCKET/PATH [ENDPOINT=http://...] [REGION=...]
	@case "$(URL)" in s3:*) python -c 'import dvc_s3' 2>&- || $(UV) pip install --quiet --python .venv/bin/python \
		--constraints requirements-services.lock dvc-s3;; esac
	@python -m pipeline.remote $(if $(URL),"$(URL)") $(if $(ENDPOINT),--endpoint "$(ENDPOINT)") $(if $(REGION),--region "$(REGION)")

params: .venv/ok           ## compose params.yaml from conf/
	@python -m stages.generate
	@python -m pipeline.params

report: .venv/ok           ## write the report from the results that are there
	@python -m stages.report --config-dir . --config-name params hydra.run.dir=outputs/repro/report

crate: .venv/ok            ## pack a suite's results as a Workflow Run RO-Crate (needs the extra "crate")
	@python -m pipeline.crate $(ARGS)

weights: .venv/ok          ## export the trained embedded networks as those that come with the library
	@python -m stages.weights

SUITE ?= thesis
SUITE_ARGS = suite=$(SUITE) $(if $(NETWORKS),networks=$(NETWORKS)) $(ARGS)

plan: .venv/ok             ## what a machine needs (SUITE=thesis BUDGET=full NETWORKS=a,b ARGS=rate=a:4000)
	@python -m pipeline.plan $(if $(BUDGET),budget=$(BUDGET)) $(SUITE_ARGS)

rehearse: .venv/ok         ## a suite's stages, tiny, on made-up pictures (SUITE=thesis NETWORKS=a,b)
	@python -m pipeline.rehearsal $(SUITE_ARGS)

docs: .venv-docs/ok        ## build the pages in docs/ into site/, and look for dead links
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --quiet --strict --clean
	@.venv-docs/bin/python -m docsite.links site

gallery: .venv/ok          ## execute the gallery's scripts and write their pages (ARGS="nearest path": these alone)
	@python -m docsite.gallery $(ARGS)

lock: | $(UV)              ## resolve the lock files anew
	@$(UV) pip compile pyproject.toml --extra pipeline --group dev --universal --generate-hashes -o requirements.lock --quiet
	@mkdir -p work && printf 'setuptools<81\n' > work/build.txt && printf 'requests\n' > work/override.txt
	@UV_CUSTOM_COMPILE_COMMAND='make lock' $(UV) pip compile requirements-peers.in --universal --generate-hashes \
		--build-constraints work/build.txt --overrides work/override.txt -o requirements-peers.lock --quiet
	@UV_CUSTOM_COMPILE_COMMAND='make lock' $(UV) pip compile requirements-services.in --universal --generate-hashes \
		-o requirements-services.lock --quiet
	@UV_CUSTOM_COMPILE_COMMAND='make lock' $(UV) pip compile requirements-docs.in --universal --generate-hashes \
		-o requirements-docs.lock --quiet

clean:                     ## remove what runs wrote, caches and environments; keeps what git tracks, and what is not from here
	@$(PYTHON) -B -m pipeline.cleaning
	@rm -rf .dvc/cache .dvc/tmp .venv .venv-peers .venv-services .venv-docs .uv
	@test ! -f site/search/search_index.js || rm -rf site
