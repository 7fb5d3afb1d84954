"""A plugin of API version 1 still works: the old example package, in tests/plugins_v1/."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import ROOT, inherited

PACKAGE = ROOT / "tests/plugins_v1/pipeline-plugin-example"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the package with the files that an installation adds."""
    folder = tmp_path / "example"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    about = folder / "src/pipeline_plugin_example-1.0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pipeline-plugin-example\nVersion: 1.0.0\n")
    (about / "entry_points.txt").write_text("[ai_queue_pipeline]\nexample = pipeline_plugin_example\n")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        [str(ROOT / "run.py"), "plugins", "verify", "example", "--kind", "provider"],
        [str(ROOT / "run.py"), "plugins", "verify", "example", "--kind", "hook"],
    ],
    ids=["tests", "provider", "observer"],
)
def test_plugin_of_version_1_works_unchanged(installed: Path, command: list[str]) -> None:
    """The tests of the package pass, and `plugins verify` has no finding."""
    own = {
        "PYTHONPATH": f"{installed / 'src'}:{ROOT}",
        "DATA_DIR": str(installed / "data"),
        "PLUGIN_EXAMPLE_PSEUDONYM_KEY": "any text",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=installed, env=inherited() | own, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, " passed, 3 " in done.stdout) == (0, True), done.stdout + done.stderr
