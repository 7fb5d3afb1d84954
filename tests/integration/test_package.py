"""The wheel, installed where no checkout is near, holds all it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_installed_wheel_holds_its_data_files(tmp_path: Path) -> None:
    """Lua scripts, contracts, pages, pictures and plugins load from an installed wheel."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(wheel, check=True)
    (path,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(path)], check=True)
    code = f"""
import pipeline, plugins, contracts
assert all(m.__file__.startswith({str(target)!r}) for m in (pipeline, plugins, contracts)), pipeline.__file__
from importlib import resources
from pipeline.queue.queue import JobQueue
JobQueue("redis://127.0.0.1:1/0")
from pipeline.client import Client
from pipeline.demo import pictures
assert all(path.stat().st_size > 10_000 for path, _ in pictures()) and len(pictures()) >= 3
assert resources.files("contracts").joinpath("analyze-queue.openapi.json").is_file()
from pipeline import pages
assert set(("index.html", "console.html", "client/pipeline-client.js", "client/photos/row.js")) <= set(pages.files())
from pipeline.hooks.catalogue import list_plugins
from pipeline.settings import Settings
broken = [info for info in list_plugins(Settings()) if info.state == "broken"]
assert not broken, broken
"""
    environment = os.environ | {"PYTHONPATH": str(target)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
