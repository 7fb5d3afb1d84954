"""Installs and starts the products that benchmarks compare with: from npm, Go and PyPI, each into its own folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
FOLDER = CHECKOUT / "build" / "peers"
INSTALL_SECONDS = 900


class CannotHave(Exception):
    """A peer cannot be installed; the message says why. The comparison leaves it out."""


def run(*command: str | Path, **environment: str) -> str:
    """Run a command and return its output. Raises CannotHave when it fails."""
    try:
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        message = (getattr(error, "stderr", None) or str(error)).strip()
        raise CannotHave(f"{command[0]}: {message.splitlines()[-1]}") from error
    return done.stdout.strip()


def install_once(folder: Path, what: str, install: Callable[[], object]) -> None:
    """Call `install` unless the folder already has exactly `what`."""
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != what:
        folder.mkdir(parents=True, exist_ok=True)
        install()
        stamp.write_text(what)


def from_npm(folder: Path, packages: str, shown: Sequence[str]) -> str:
    """Install npm packages (separated by spaces); return the versions of the packages in `shown`, and Node's."""
    command = ("npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages.split())
    install_once(folder, packages, lambda: run(*command))
    modules = folder / "node_modules"
    versions = [f"{name} {json.loads((modules / name / 'package.json').read_text())['version']}" for name in shown]
    return ", ".join([*versions, f"Node {run('node', '--version')}"])


def from_pypi(folder: Path, packages: str, shown: Sequence[str]) -> str:
    """Install PyPI packages (separated by spaces) into a venv; return the versions of the packages in `shown`."""
    python = folder / "bin" / "python"

    def install() -> None:
        venv.create(folder, with_pip=True, clear=True)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages.split())

    install_once(folder, packages, install)
    program = f"from importlib.metadata import version as v; print(', '.join(n + ' ' + v(n) for n in {tuple(shown)}))"
    return run(python, "-c", program)


def from_go(folder: Path, module: str) -> str:
    """Install a Go program (module@version); return its version and Go's."""
    install_once(folder, module, lambda: run("go", "install", module, GOBIN=str(folder)))
    return f"{module.rpartition('@')[2]}, {run('go', 'version').split()[2]}"


def environment() -> dict[str, str]:
    """Return the environment of peers: ours, with unbuffered output."""
    return os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def spawn(stack: ExitStack, command: Sequence[str | Path], **environment: str) -> tuple[int, str]:
    """Start a program and return its pid and its first line, which it prints when it is ready. The stack ends it."""
    process = subprocess.Popen(
        command, cwd=CHECKOUT, env=os.environ | environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    line = process.stdout.readline()
    stack.callback(process.stdout.close)
    if not line:
        raise RuntimeError(f"{command} did not start")
    return process.pid, line.decode().strip()


def python_of(folder: Path | None) -> str:
    """Return the Python of a peer's venv, or ours for None."""
    return str(folder / "bin" / "python") if folder else sys.executable
