"""Bringing the products that benchmarks compare with into folders of their own, from npm, Go and PyPI."""

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
    """A peer could not be set up, and why; it is left out of the comparison."""


def run(*command: str | Path, **environment: str) -> str:
    """Run an installer or the like; return what it says. Raises CannotHave."""
    try:
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise CannotHave(f"{command[0]}: {said.splitlines()[-1]}") from error
    return done.stdout.strip()


def once(folder: Path, what: str, install: Callable[[], object]) -> None:
    """Install unless exactly this has been installed there before."""
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != what:
        folder.mkdir(parents=True, exist_ok=True)
        install()
        stamp.write_text(what)


def from_npm(folder: Path, packages: str, shown: Sequence[str]) -> str:
    """Install npm packages (separated by spaces); return the versions of those shown, and Node's."""
    command = ("npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages.split())
    once(folder, packages, lambda: run(*command))
    modules = folder / "node_modules"
    found = [f"{name} {json.loads((modules / name / 'package.json').read_text())['version']}" for name in shown]
    return ", ".join([*found, f"Node {run('node', '--version')}"])


def from_pypi(folder: Path, packages: str, shown: Sequence[str]) -> str:
    """Install PyPI packages (separated by spaces) into a venv; return the versions of those shown."""
    python = folder / "bin" / "python"

    def install() -> None:
        venv.create(folder, with_pip=True, clear=True)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages.split())

    once(folder, packages, install)
    program = f"from importlib.metadata import version as v; print(', '.join(n + ' ' + v(n) for n in {tuple(shown)}))"
    return run(python, "-c", program)


def from_go(folder: Path, module: str) -> str:
    """Install a Go program (module@version); return its version and Go's."""
    once(folder, module, lambda: run("go", "install", module, GOBIN=str(folder)))
    return f"{module.rpartition('@')[2]}, {run('go', 'version').split()[2]}"


def environment() -> dict[str, str]:
    """Return what peers are run with: as usual, but told to say at once what they print."""
    return os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def spawn(stack: ExitStack, command: Sequence[str | Path], **environment: str) -> tuple[int, str]:
    """Start a program that prints one line when it is ready; return its pid and the line. It ends with the stack."""
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
    """Return the interpreter of a peer's venv, ours for None."""
    return str(folder / "bin" / "python") if folder else sys.executable
