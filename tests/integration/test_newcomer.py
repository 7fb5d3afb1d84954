"""A new machine: what `make`, run.py and `pipeline` print when something is missing, and which files they leave.

`.ci/pristine` tests the same on a Debian without any packages of this project.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.requirements import program
from tests.service import ROOT

FILES = ("Makefile", "install.py", "setup.cfg", "pyproject.toml", "run.py", "pipeline/__init__.py", "pipeline/start.py")
Done = subprocess.CompletedProcess[str]
MISSING = "import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A new clone in a folder whose name has a space, without .venv."""
    folder = tmp_path / "photo queue"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder: Path, *command: str, **environment: str) -> Done:
    """Run a command in the environment of a new account."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
    if command[0] == "make":
        program("make")
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60)


def errors(done: Done) -> list[str]:
    """Return the lines of an error, without the last line, which make itself prints."""
    assert done.returncode != 0 and "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]


def without(folder: Path, *names: str) -> dict[str, str]:
    """Return an environment in which Python cannot import these modules."""
    (folder / "sitecustomize.py").write_text(MISSING.format(names=names))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.fault("O1")
@pytest.mark.parametrize("name", ["ensurepip", "venv"])
def test_make_without_venv_says_what_to_install_and_leaves_nothing(checkout: Path, tmp_path: Path, name: str) -> None:
    """Debian's python3 has no venv: one line names the package, and no incomplete .venv is left for a later run."""
    done = run(checkout, "make", "demo", f"PYTHON={sys.executable}", **without(tmp_path, name))
    (line,) = errors(done)
    assert line.startswith(f"Error: Python's own {name} is missing. ")
    assert "venv; then run this again." in line
    assert not (checkout / ".venv").exists()


@pytest.mark.fault("O1")
def test_make_without_python_prints_one_line(checkout: Path) -> None:
    """Without python3, or with a make variable that names no Python, make prints one line."""
    (line,) = errors(run(checkout, "make", "demo", "PYTHON=no python"))
    assert line.startswith("Error: there is no no python: install Python 3.11 or newer")
    assert not (checkout / ".venv").exists()


@pytest.mark.fault("O1")
@pytest.mark.fault("O8")
@pytest.mark.parametrize("file", ["install.py", "run.py", "pipeline/__init__.py", "pipeline/start.py"])
def test_old_pythons_can_parse_the_files_that_refuse_them(file: str) -> None:
    """Python 3.6 and newer can run the line that prints that they are too old."""
    ast.parse((ROOT / file).read_text(), feature_version=(3, 6))


@pytest.mark.fault("O1")
@pytest.mark.fault("O8")
@pytest.mark.parametrize("command", [["make", "demo", "PYTHON=old"], ["old", "run.py"]], ids=["make", "run.py"])
def test_old_python_is_refused_with_the_needed_version(checkout: Path, tmp_path: Path, command: list[str]) -> None:
    """Python 3.9 exits with one line that names 3.11."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 9, 2, 'final', 0)\n")
    old = tmp_path / "old"
    old.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    old.chmod(0o755)
    (line,) = errors(run(checkout, *command, PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert line.startswith("Error: Python 3.11 or newer is needed") and "3.9" in line


class Machine:
    """install.py on a checkout. Its venv and pip do not run: the test chooses their results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[str] = []
        self.pip_result: tuple[int, str] = (0, "")
        self.venv_works = True
        self.module = self._load()

    def _load(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("install", self.folder / "install.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        has_venv = (self.folder / ".venv" / "pyvenv.cfg").exists
        vars(module).update(_run=self._run, _works=lambda: self.venv_works and has_venv())
        return module

    def _run(self, command: list[str]) -> Any:
        name = command[2] if command[1] == "-m" else command[1]
        self.steps.append(name)
        if name == "venv":
            (self.folder / ".venv" / "pyvenv.cfg").touch()
        code, output = self.pip_result if name == "pip" else (0, "")
        return subprocess.CompletedProcess(command, code, output.encode())

    def install(self, *extras: str) -> list[str]:
        """Install and return the names of the steps that were run."""
        self.steps = []
        self.module.main(list(extras))
        return self.steps

    def fails(self, *extras: str) -> str:
        """Expect that the installation fails, and return its error line."""
        with pytest.raises(SystemExit) as ended:
            self.install(*extras)
        return str(ended.value)


ALL_STEPS = ["venv", "pip", "run.py"]


@pytest.mark.fault("O1")
def test_install_runs_only_the_missing_steps(checkout: Path) -> None:
    """A second installation runs no step. Another extra, or a changed setup.cfg, is installed into the same .venv."""
    machine = Machine(checkout)
    assert machine.install("local") == ALL_STEPS
    assert machine.install("local") == []
    assert machine.install("local", "test") == ["pip", "run.py"]
    assert machine.install("local") == []
    with (checkout / "setup.cfg").open("a") as setup:
        setup.write("\n# newer\n")
    assert machine.install("local") == ["pip", "run.py"]


@pytest.mark.fault("O1")
def test_killed_install_is_started_from_the_beginning(checkout: Path) -> None:
    """kill -9 leaves a marker file. The next run waits until the old pip has ended, and makes a new .venv."""
    marker = checkout / ".venv" / "installing"
    command = [sys.executable, "install.py", "local"]
    with subprocess.Popen(command, cwd=checkout, start_new_session=True) as killed:
        while not marker.exists():
            assert killed.poll() is None
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)
    leftover = checkout / ".venv" / "lib" / "leftover"
    leftover.parent.mkdir(exist_ok=True)
    leftover.touch()
    assert Machine(checkout).install("local") == ALL_STEPS
    assert not leftover.exists() and not marker.exists()


@pytest.mark.fault("O1")
def test_stopped_install_removes_its_files(checkout: Path) -> None:
    """After Ctrl-C the installation prints one line, and the incomplete .venv is removed."""
    command = [sys.executable, "install.py", "local"]
    with subprocess.Popen(command, cwd=checkout, stderr=subprocess.PIPE, text=True, start_new_session=True) as stopped:
        while not (checkout / ".venv" / "installing").exists():
            assert stopped.poll() is None
            time.sleep(0.01)
        os.killpg(stopped.pid, signal.SIGINT)
        _, printed = stopped.communicate()
    assert printed == "Error: stopped while installing. Run this again.\n"
    assert not (checkout / ".venv").exists()


@pytest.mark.fault("O1")
def test_venv_that_does_not_work_is_made_again(checkout: Path, tmp_path: Path) -> None:
    """A moved checkout has a .venv with the old path; an upgraded Python has no packages. Files of other tools stay."""
    machine = Machine(checkout)
    machine.install("local")
    tool = checkout / ".venv" / "tools" / "tool"
    tool.parent.mkdir()
    tool.touch()
    machine.venv_works = False
    assert machine.install("local") == ALL_STEPS
    machine.venv_works = True
    moved = Machine(checkout.rename(tmp_path / "moved"))
    assert moved.install("local") == ALL_STEPS
    assert (moved.folder / ".venv" / "tools" / "tool").exists()


@pytest.mark.fault("O1")
@pytest.mark.parametrize(
    ("code", "output", "reason"),
    [
        (1, "WARNING: Retrying after connection broken by 'NewConnectionError(...)'", "index does not answer (New"),
        (1, "ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        (-9, "", "it was ended by SIGKILL"),
        (1, "error: no wheel", "is needed: error: no wheel"),
        (1, "error: no wheel\nhint: none", "why is above"),
    ],
    ids=["offline", "full disk", "killed", "one line", "more lines"],
)
def test_failed_pip_is_one_line_and_a_later_run_works(checkout: Path, code: int, output: str, reason: str) -> None:
    """The line gives the reason for which pip failed. The next run installs all."""
    machine = Machine(checkout)
    machine.pip_result = (code, output)
    assert reason in machine.fails("local")
    assert not (checkout / ".venv" / "installing").exists()
    machine.pip_result = (0, "")
    assert "pip" in machine.install("local")
    assert machine.install("local") == []


@pytest.mark.fault("O1")
def test_offline_update_keeps_what_was_installed(checkout: Path) -> None:
    """Without network pip changes nothing: the old .venv stays, and a later run updates it."""
    machine = Machine(checkout)
    machine.install("local")
    (checkout / "pyproject.toml").write_text("")
    machine.pip_result = (1, "ReadTimeoutError")
    machine.fails("local")
    machine.pip_result = (0, "")
    assert machine.install("local") == ["pip", "run.py"]


@pytest.mark.fault("O1")
def test_small_disk_is_reported_before_any_file_is_written(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line gives the space that is needed and the space that is free."""
    machine = Machine(checkout)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=300_000_000))
    line = machine.fails("local")
    assert "MB must be free" in line and "there are 300 MB" in line
    assert not (checkout / ".venv").exists()


@pytest.mark.fault("O1")
def test_file_in_the_place_of_venv_is_named(checkout: Path) -> None:
    """A file named .venv ends the installation with one line that names the file."""
    (checkout / ".venv").write_text("")
    (line,) = errors(run(checkout, sys.executable, "install.py", "local"))
    assert line == f"Error: {checkout / '.venv'} cannot be used: File exists"


@pytest.mark.fault("O8")
@pytest.mark.parametrize("has_venv", [True, False])
def test_run_py_outside_its_venv_says_what_to_do(checkout: Path, tmp_path: Path, has_venv: bool) -> None:
    """One line names the missing package and a command: with the Python of .venv if there is one, else with make."""
    if has_venv:
        (checkout / ".venv" / "bin").mkdir(parents=True)
        (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (checkout / "pipeline" / "cli.py").write_text("import tornado\n")
    done = run(checkout, sys.executable, "run.py", "submit", "a b.jpg", **without(tmp_path, "tornado"))
    advice = "run .venv/bin/python run.py submit 'a b.jpg'" if has_venv else "run `make demo` or `make run`"
    (line,) = errors(done)
    assert line.startswith(f"Error: tornado is not installed for {sys.executable}: {advice}")


@pytest.mark.fault("O8")
def test_command_of_a_broken_install_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    """`pipeline` prints one line when a package is missing, and when a library of a package does not load."""
    (checkout / "install.py").unlink()  # as in site-packages
    command = [sys.executable, "-c", "from pipeline.start import main; main()"]
    (checkout / "pipeline" / "cli.py").write_text("import orjson\n")
    (line,) = errors(run(checkout, *command, **without(tmp_path, "orjson")))
    assert line.startswith("Error: orjson is not installed") and "--force-reinstall" in line
    (checkout / "orjson.py").write_text("raise ImportError('libc.so: no such file', name='orjson')\n")
    (line,) = errors(run(checkout, *command))
    assert "does not work (libc.so: no such file)" in line and "--force-reinstall" in line
