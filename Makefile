# Everything a newcomer runs. Needs Python 3.11 or newer, make and pip; the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# For all processors; the Python is that of the image.
LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.13 --generate-hashes \
	--custom-compile-command "make lock"

.PHONY: demo run setup test chaos bench lint lock clean

demo: .venv/installed  ## start the service, upload three photos, print the events; the service stays
	@$(BIN)/python run.py demo

run: .venv/installed  ## serve in the foreground
	@$(BIN)/python run.py

setup: .venv/installed-test  ## install all that demo, test and lint need

test: .venv/installed-test  ## all tests; what needs a part this machine lacks skips with a reason
	@$(BIN)/python -m pytest -n 3 --dist loadfile

chaos: .venv/installed-test  ## 10,000 uploads under 210 faults, on SQLite and on DocumentDB or MongoDB; twenty minutes
	@$(BIN)/python -m tests.faults.chaos --store sqlite --uploads 10000 --faults 210
	@$(BIN)/python -m tests.faults.chaos --store sqlite --uploads 1000 --faults 50 --embedded
	@$(BIN)/python -m tests.faults.chaos --store mongo --uploads 10000 --faults 210

bench: .venv/installed-bench  ## side by side with what you would pick instead; half an hour, npm and PyPI are needed
	@$(BIN)/python -m benchmarks

lint: .venv/installed-test  ## style and types
	@$(BIN)/python -m flake8
	@$(BIN)/python -m mypy

lock: .venv/installed-test  ## pin anew, with hashes, what the container image installs
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(LOCK) --extra local --extra object --extra apprise --extra webpush --extra otel setup.cfg -o deploy/requirements.txt
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])' \
		| $(LOCK) - -o deploy/build-requirements.txt

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	@echo "Installing into .venv (about 250 MB, a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local]'
	@touch $@

.venv/installed-test: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local,object,apprise,webpush,otel,test]'
	@touch $@

.venv/installed-bench: .venv/installed-test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local,test,bench]'
	@touch $@
