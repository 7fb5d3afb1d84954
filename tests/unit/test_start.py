"""How the program is started again, and what is told when it cannot be imported."""

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


def test_demo_of_the_module_starts_the_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`python -m pipeline demo` does not run __main__.py as a file, whose neighbour `queue` is not Python's."""
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
def test_command_to_type_is_the_one_typed(monkeypatch: pytest.MonkeyPatch, program: str, command: str) -> None:
    """Python comes before a file of its own, and not before the installed command."""
    monkeypatch.setattr(sys, "argv", [program])
    assert service_target.this_command().endswith(command)


def test_module_of_ours_that_is_missing_leaves_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installing again would not help; a package of others that is missing is one line."""
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
