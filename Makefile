# Every target sets up what it needs: only python3 and make have to be there.
export MLFLOW_DISABLE_TELEMETRY = true
export DO_NOT_TRACK = true
export DVC_NO_ANALYTICS = 1
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export UV_PYTHON_DOWNLOADS = never
ARGS ?=
UV = $(shell command -v uv || echo .venv/bin/uv)

.PHONY: setup repro test check bench dashboard params report weights lock clean

setup: .venv/ok

.venv/ok: requirements.lock
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@test -x .venv/bin/python || python3 -m venv .venv
	@command -v uv >/dev/null || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip sync --quiet --python .venv/bin/python requirements.lock
	@touch $@

.venv-peers/ok: requirements-peers.lock .venv/ok
	@true

repro: .venv/ok            ## run every stage whose inputs changed (ARGS=-f runs all)
	@dvc repro $(ARGS)

test: .venv/ok             ## the whole test suite
	@python -m pytest $(ARGS)

check: .venv/ok            ## lint and types
	@ruff check .
	@mypy
	@python -m pipeline.params --check

bench: .venv/ok .venv-peers/ok   ## speed beside the peers, as ratios
	@.venv-peers/bin/python -m benchmarks $(ARGS)

dashboard: .venv/ok        ## the MLflow dashboard on this machine
	@python -m pipeline.tracking dashboard $(ARGS)

params: .venv/ok           ## compose params.yaml from conf/
	@python -m pipeline.params

report: .venv/ok           ## write the report from the results that are there
	@python -m stages.report --config-dir . --config-name params hydra.run.dir=outputs/repro/report

weights: .venv/ok          ## export the trained embedded networks as those that come with the library
	@python -m stages.weights

lock:                      ## resolve requirements.lock anew
	$(UV) pip compile pyproject.toml --group dev --universal --generate-hashes -o requirements.lock --quiet

clean:                     ## remove results, caches and environments; keeps what git tracks
	@rm -rf work outputs multirun reports mlruns mlflow.db* .mlflow.lock .dvc/cache .dvc/tmp .venv .venv-peers
	@git clean -fdXq results
