# Everything a newcomer runs. Needs Python 3.11 or newer with venv, and make; the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# For all processors; the Python is that of the image.
LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.13 --generate-hashes \
	--custom-compile-command "make lock"

.PHONY: demo run setup test chaos bench lint lock pristine clean .venv/installed .venv/installed-test .venv/installed-bench

demo: .venv/installed  ## start the service, upload three photos, print the events; the service stays
	@$(BIN)/python run.py demo

run: .venv/installed  ## serve in the foreground
	@$(BIN)/python run.py

setup: .venv/installed-test  ## install all that demo, test and lint need

test: .venv/installed-test  ## all tests; what needs a part this machine lacks skips with a reason
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

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

pristine:  ## what a newcomer sees on Debian bookworm, trixie and sid; needs root and debootstrap
	@for suite in bookworm trixie sid; do .ci/pristine $$suite || exit 1; done

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache

# install.py sees what is there already. It says in one line what this machine lacks.
.venv/installed:
	$(call install,local)

.venv/installed-test:
	$(call install,local object apprise webpush otel test)

.venv/installed-bench:
	$(call install,local object apprise webpush otel test bench)

define install
@command -v "$(PYTHON)" > /dev/null || { echo "Error: there is no $(PYTHON): install Python 3.11 or newer, or name it: make PYTHON=python3.12" >&2; exit 1; }
@"$(PYTHON)" install.py $(1)
endef
