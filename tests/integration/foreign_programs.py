"""Programs of other languages, and the compilers that make them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.requirements import program
from tests.service import inherited

TOOL = "tests/clients_generated/install FOLDER has it"


def tool(name: str) -> Path:
    """Return the path of the program of that name."""
    return Path(program(name, hint=TOOL)).resolve()


def run(folder: Path, *command: str | Path, **environment: str) -> str:
    """Return what the command prints; it must succeed."""
    ran = subprocess.run(
        [*map(str, command)], cwd=folder, env=inherited() | environment, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
