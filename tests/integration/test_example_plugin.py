"""The commands in the README of the example plugin, run unchanged in an environment of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import site
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requirements import program
from tests.service import ROOT

EXAMPLE = ROOT / "examples/pipeline-plugin-example"


def commands(readme: Path) -> str:
    """Return the commands of the README."""
    (block,) = re.findall(r"```bash\n(.*?)```", readme.read_text(), re.DOTALL)
    return str(block)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of a shell in a new virtual environment, in which the pipeline and pip are installed.

    It uses the packages of the tests' environment without writing there, so nothing is downloaded. At the end a service
    that still runs is killed.
    """
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "installed.pth").write_text(f"import site; site.addsitedir({site.getsitepackages()[0]!r})\n")
    for name, module in (("pipeline", "pipeline.start"), ("pip", "pip._internal.cli.main")):
        script = folder / "bin" / name
        script.write_text(f"#!{folder}/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        script.chmod(0o755)
    yield {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "COLUMNS": "200",
        "DATA_DIR": str(tmp_path / "data"),
        "PORT": "0",
        "LOG_FORMAT": "json",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # Pip reads 0 as: no isolation.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    service_file = tmp_path / "data/service.json"
    if service_file.exists():
        os.kill(json.loads(service_file.read_text())["pid"], signal.SIGKILL)


def test_readme_leads_from_pip_install_to_an_event(tmp_path: Path, environment: dict[str, str]) -> None:
    """The plugin is installed, tested, listed, verified and selected; then the socket gets its result."""
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    command = [program("bash"), "-euo", "pipefail", "-c", commands(folder / "README.md")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    assert "15 passed" in out and "5 passed" in out  # The tests of the plugin, and those that `verify` runs.
    assert re.findall(r"^example +(\w+) +(\S+) +1\.0\.0 +(\w+)", out, re.MULTILINE) == [
        ("hook", "pipeline-plugin-example", "available"),
        ("provider", "pipeline-plugin-example", "available"),
    ]
    printed = [json.loads(line) for line in re.findall(r"^\{.*photo.jpg.*\}$", out, re.MULTILINE)]
    accepted, event = printed
    assert (accepted["event"], event["event"], event["status"]) == ("accepted", "asset_processed", "partial")
    assert event["aiMetadata"]["colorway"] == {"value": "navy", "confidence": 1.0}
    lines = [json.loads(line) for line in (tmp_path / "data/service.log").read_text().splitlines()]
    assert len([line for line in lines if line["event"] == "example_job_finished"]) == 4
    assert not [line for line in lines if line["level"] in ("error", "critical")]
