"""A newcomer's machine: what `make`, run.py and `pipeline` say where something is missing, and what they leave behind.

`.ci/pristine` sees the same on a Debian that has nothing yet.
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
    """What a newcomer has cloned, in a folder with a space, without .venv."""
    folder = tmp_path / "photo queue"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder: Path, *command: str, **environment: str) -> Done:
    """Run a command as a newcomer's shell does."""
    known = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
    if command[0] == "make":
        program("make")
    return subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, timeout=60)


def errors(done: Done) -> list[str]:
    """Return the lines of an error, without make's own last one."""
    assert done.returncode != 0 and "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]


def without(folder: Path, *names: str) -> dict[str, str]:
    """Return an environment in which Python cannot import these."""
    (folder / "sitecustomize.py").write_text(MISSING.format(names=names))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.fault("O1")
@pytest.mark.parametrize("name", ["ensurepip", "venv"])
def test_make_without_venv_says_what_to_install_and_leaves_nothing(checkout: Path, tmp_path: Path, name: str) -> None:
    """Debian's python3 has no venv: one line names the package, and no half .venv stays for a later run."""
    done = run(checkout, "make", "demo", f"PYTHON={sys.executable}", **without(tmp_path, name))
    (line,) = errors(done)
    assert line.startswith(f"Error: Python's own {name} is missing. ")
    assert "venv; then run this again." in line
    assert not (checkout / ".venv").exists()


@pytest.mark.fault("O1")
def test_make_without_python_says_so(checkout: Path) -> None:
    """No python3, or a make variable that names none, is one line."""
    (line,) = errors(run(checkout, "make", "demo", "PYTHON=no python"))
    assert line.startswith("Error: there is no no python: install Python 3.11 or newer")
    assert not (checkout / ".venv").exists()


@pytest.mark.fault("O1")
@pytest.mark.fault("O8")
@pytest.mark.parametrize("file", ["install.py", "run.py", "pipeline/__init__.py", "pipeline/start.py"])
def test_old_pythons_can_read_what_refuses_them(file: str) -> None:
    """Python 3.6 and newer get as far as the line that says that they are too old."""
    ast.parse((ROOT / file).read_text(), feature_version=(3, 6))


@pytest.mark.fault("O1")
@pytest.mark.fault("O8")
@pytest.mark.parametrize("command", [["make", "demo", "PYTHON=old"], ["old", "run.py"]], ids=["make", "run.py"])
def test_old_python_is_told_which_one_is_needed(checkout: Path, tmp_path: Path, command: list[str]) -> None:
    """Python 3.9 ends with one line that names 3.11."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 9, 2, 'final', 0)\n")
    old = tmp_path / "old"
    old.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    old.chmod(0o755)
    (line,) = errors(run(checkout, *command, PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert line.startswith("Error: Python 3.11 or newer is needed") and "3.9" in line


class Machine:
    """install.py on a checkout, with a venv and a pip that do as they are ordered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[str] = []
        self.pip_says: tuple[int, str] = (0, "")
        self.works = True
        self.module = self._load()

    def _load(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("install", self.folder / "install.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        has_venv = (self.folder / ".venv" / "pyvenv.cfg").exists
        vars(module).update(_run=self._run, _works=lambda: self.works and has_venv())
        return module

    def _run(self, command: list[str]) -> Any:
        name = command[2] if command[1] == "-m" else command[1]
        self.ran.append(name)
        if name == "venv":
            (self.folder / ".venv" / "pyvenv.cfg").touch()
        code, words = self.pip_says if name == "pip" else (0, "")
        return subprocess.CompletedProcess(command, code, words.encode())

    def install(self, *extras: str) -> list[str]:
        """Install; return what was run for it."""
        self.ran = []
        self.module.main(list(extras))
        return self.ran

    def fails(self, *extras: str) -> str:
        """Install, which fails; return the line."""
        with pytest.raises(SystemExit) as ended:
            self.install(*extras)
        return str(ended.value)


ALL = ["venv", "pip", "run.py"]


@pytest.mark.fault("O1")
def test_install_does_what_is_left_to_do(checkout: Path) -> None:
    """Once installed nothing is run; another extra, or a new setup.cfg, is installed into the same .venv."""
    machine = Machine(checkout)
    assert machine.install("local") == ALL
    assert machine.install("local") == []
    assert machine.install("local", "test") == ["pip", "run.py"]
    assert machine.install("local") == []
    with (checkout / "setup.cfg").open("a") as setup:
        setup.write("\n# newer\n")
    assert machine.install("local") == ["pip", "run.py"]


@pytest.mark.fault("O1")
def test_killed_install_is_not_taken_for_whole(checkout: Path) -> None:
    """kill -9 at any moment leaves a mark, with which .venv is made anew; what it left running is waited for."""
    begun = checkout / ".venv" / "installing"
    command = [sys.executable, "install.py", "local"]
    with subprocess.Popen(command, cwd=checkout, start_new_session=True) as killed:
        while not begun.exists():
            assert killed.poll() is None
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)
    half = checkout / ".venv" / "lib" / "half"
    half.parent.mkdir(exist_ok=True)
    half.touch()
    assert Machine(checkout).install("local") == ALL
    assert not half.exists() and not begun.exists()


@pytest.mark.fault("O1")
def test_stopped_install_leaves_nothing(checkout: Path) -> None:
    """Ctrl-C is one line, and what was half made has gone."""
    command = [sys.executable, "install.py", "local"]
    with subprocess.Popen(command, cwd=checkout, stderr=subprocess.PIPE, text=True, start_new_session=True) as stopped:
        while not (checkout / ".venv" / "installing").exists():
            assert stopped.poll() is None
            time.sleep(0.01)
        os.killpg(stopped.pid, signal.SIGINT)
        _, said = stopped.communicate()
    assert said == "Error: stopped while installing. Run this again.\n"
    assert not (checkout / ".venv").exists()


@pytest.mark.fault("O1")
def test_venv_that_no_longer_fits_is_made_anew(checkout: Path, tmp_path: Path) -> None:
    """A moved checkout's has the old path in it, an upgraded Python's has no packages; what is not ours stays."""
    machine = Machine(checkout)
    machine.install("local")
    tool = checkout / ".venv" / "tools" / "tool"
    tool.parent.mkdir()
    tool.touch()
    machine.works = False
    assert machine.install("local") == ALL
    machine.works = True
    moved = Machine(checkout.rename(tmp_path / "moved"))
    assert moved.install("local") == ALL
    assert (moved.folder / ".venv" / "tools" / "tool").exists()


@pytest.mark.fault("O1")
@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (1, "WARNING: Retrying after connection broken by 'NewConnectionError(...)'", "index does not answer (New"),
        (1, "ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        (-9, "", "it was ended by SIGKILL"),
        (1, "error: no wheel", "is needed: error: no wheel"),
        (1, "error: no wheel\nhint: none", "why is above"),
    ],
    ids=["offline", "full disk", "killed", "one line", "more lines"],
)
def test_failed_pip_is_one_line_and_a_later_run_works(checkout: Path, code: int, said: str, words: str) -> None:
    """Whatever pip fails of, the reason is told, and the next run installs all."""
    machine = Machine(checkout)
    machine.pip_says = (code, said)
    assert words in machine.fails("local")
    assert not (checkout / ".venv" / "installing").exists()
    machine.pip_says = (0, "")
    assert "pip" in machine.install("local")
    assert machine.install("local") == []


@pytest.mark.fault("O1")
def test_offline_update_keeps_what_was_installed(checkout: Path) -> None:
    """pip that finds no network has changed nothing: the .venv of before stays, and is brought up to date later."""
    machine = Machine(checkout)
    machine.install("local")
    (checkout / "pyproject.toml").write_text("")
    machine.pip_says = (1, "ReadTimeoutError")
    machine.fails("local")
    machine.pip_says = (0, "")
    assert machine.install("local") == ["pip", "run.py"]


@pytest.mark.fault("O1")
def test_small_disk_is_told_before_anything_is_made(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is needed and how much there is."""
    machine = Machine(checkout)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=300_000_000))
    line = machine.fails("local")
    assert "MB must be free" in line and "there are 300 MB" in line
    assert not (checkout / ".venv").exists()


@pytest.mark.fault("O1")
def test_file_in_the_place_of_venv_is_named(checkout: Path) -> None:
    """An unusable path is one line with its name."""
    (checkout / ".venv").write_text("")
    (line,) = errors(run(checkout, sys.executable, "install.py", "local"))
    assert line == f"Error: {checkout / '.venv'} cannot be used: File exists"


@pytest.mark.fault("O8")
@pytest.mark.parametrize("has_venv", [True, False])
def test_run_py_outside_its_venv_says_what_to_do(checkout: Path, tmp_path: Path, has_venv: bool) -> None:
    """Packages that are missing are one line: the command with .venv's Python where there is one, else make."""
    if has_venv:
        (checkout / ".venv" / "bin").mkdir(parents=True)
        (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (checkout / "pipeline" / "cli.py").write_text("import tornado\n")
    done = run(checkout, sys.executable, "run.py", "submit", "a b.jpg", **without(tmp_path, "tornado"))
    way_out = "run .venv/bin/python run.py submit 'a b.jpg'" if has_venv else "run `make demo` or `make run`"
    (line,) = errors(done)
    assert line.startswith(f"Error: tornado is not installed for {sys.executable}: {way_out}")


@pytest.mark.fault("O8")
def test_command_of_a_broken_install_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    """`pipeline` whose packages were removed, or whose libraries do not load, is one line as well."""
    (checkout / "install.py").unlink()  # as in site-packages
    command = [sys.executable, "-c", "from pipeline.start import main; main()"]
    (checkout / "pipeline" / "cli.py").write_text("import orjson\n")
    (line,) = errors(run(checkout, *command, **without(tmp_path, "orjson")))
    assert line.startswith("Error: orjson is not installed") and "--force-reinstall" in line
    (checkout / "orjson.py").write_text("raise ImportError('libc.so: no such file', name='orjson')\n")
    (line,) = errors(run(checkout, *command))
    assert "does not work (libc.so: no such file)" in line and "--force-reinstall" in line
