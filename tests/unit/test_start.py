"""The command with which the program starts itself, and the message when a package is missing."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import start
from pipeline.commands import demonstrating, service_target
from pipeline.settings import Settings
from tests.service import ROOT


def test_demo_of_the_module_starts_the_service_as_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`python -m pipeline demo` does not run __main__.py as a file: `queue` next to it would hide Python's `queue`."""
    ran: list[list[str]] = []

    def popen(command: list[str], **_options: Any) -> None:
        ran.append(command)
        raise InterruptedError

    monkeypatch.setattr(sys, "argv", [str(ROOT / "pipeline" / "__main__.py"), "demo"])
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(subprocess, "Popen", popen)
        demonstrating._start_service(Settings(data_dir=tmp_path))
    assert subprocess.run([*ran[0][:-1], "--version"], capture_output=True, cwd=tmp_path).returncode == 0
    assert service_target.this_command().endswith(" -m pipeline")


@pytest.mark.parametrize(
    ("program", "command"), [("run.py", " run.py"), ("/usr/bin/pipeline", "pipeline")], ids=["run.py", "installed"]
)
def test_shown_command_is_the_one_the_user_typed(monkeypatch: pytest.MonkeyPatch, program: str, command: str) -> None:
    """The shown command begins with Python for a file, and not for the installed command."""
    monkeypatch.setattr(sys, "argv", [program])
    assert service_target.this_command().endswith(command)


def test_missing_module_of_ours_shows_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module of ours raises the error itself; a missing package of others is one line that names it."""
    real, missing = builtins.__import__, ""

    def fake(name: str, *arguments: Any) -> Any:
        if name == "pipeline.cli":
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", fake)
    missing = "pipeline.queue.qeue"
    with pytest.raises(ModuleNotFoundError):
        start.main()
    missing = "tornado"
    with pytest.raises(SystemExit, match="tornado is not installed"):
        start.main()
