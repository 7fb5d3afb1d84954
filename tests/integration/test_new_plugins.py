"""`plugins new` writes packages that pass their own tests, the type checker and `plugins verify` without a change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.commands import making
from tests.service import ROOT, inherited


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the plugin's package on the import path, as if it were installed."""
    own = {
        "PYTHONPATH": f"{folder / 'src'}:{ROOT}",
        "MYPYPATH": str(ROOT),
        "DATA_DIR": str(folder / "data"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=inherited() | own, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("kind", making.KINDS)
def test_new_plugin_passes_its_tests_and_verify(tmp_path: Path, kind: str) -> None:
    """The package passes its own tests without a warning. `plugins verify` has no finding about it."""
    folder = tmp_path / "made"
    making.write(folder, "acme-1", kind)
    tested = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    about = folder / "src/pipeline_acme_1-0.1.0.dist-info"
    about.mkdir()
    target = "pipeline_acme_1:plugin" if kind in making.OBJECTS else "pipeline_acme_1"
    assert f'acme-1 = "{target}"' in (folder / "pyproject.toml").read_text()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pipeline-acme-1\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(f"[ai_queue_pipeline]\nacme-1 = {target}\n")
    verified = run(folder, str(ROOT / "run.py"), "plugins", "verify", "acme-1")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "found" not in verified.stdout and " passed" in verified.stdout
    has_url = kind in ("provider", "notifier")
    note = "note: not set: PLUGIN_ACME_1_URL; services that need these settings were not called\n"
    assert (note in verified.stdout) == has_url


def test_new_plugins_are_typed(tmp_path: Path) -> None:
    """`mypy --strict` reports no error in a new package of any kind, tests included."""
    for kind in making.KINDS:
        making.write(tmp_path / kind, f"acme_{kind}", kind)
    sources = [str(tmp_path / kind / "src") for kind in making.KINDS]
    # Each package has a conftest.py: for mypy that is the same module several times.
    files = [str(path) for path in tmp_path.rglob("*.py") if path.name != "conftest.py"]
    options = ["--strict", "--config-file", str(tmp_path / "provider/pyproject.toml")]
    command = [sys.executable, "-m", "mypy", *options, *files]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=inherited() | {"MYPYPATH": ":".join([*sources, str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Acme", "use 2 to 40 characters of a-z"),
        ("1st", "beginning with a letter"),
        ("acme--one", "in a row"),
        ("acme-", "none at the end"),
        ("class", "it is a keyword or a module of Python"),
        ("webhook", "a built-in plugin has it"),
        ("../acme", "use 2 to 40 characters of a-z"),
    ],
)
def test_bad_names_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    """The command exits with code 2, prints one line and writes no file."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["plugins", "new", name, "--kind", "filter"])
    assert (done.exit_code, done.stdout, os.listdir()) == (2, "", [])
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_existing_folder_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plugins new` refuses a folder that exists. `--into` names another folder."""
    monkeypatch.chdir(tmp_path)
    Path("pipeline-acme").mkdir()
    done = CliRunner().invoke(main, ["plugins", "new", "acme", "--kind", "filter"])
    assert done.exit_code == 2 and "exists already" in done.stderr and os.listdir("pipeline-acme") == []
    done = CliRunner().invoke(main, ["plugins", "new", "acme", "--kind", "filter", "--into", "other/acme"])
    assert done.exit_code == 0 and Path("other/acme/.github/workflows/test.yml").exists(), done.output
