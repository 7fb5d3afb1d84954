"""The package `acme` of a plugin author, installed in a folder, and commands that find the package."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from tests.service import ROOT, inherited

Invoke = Callable[..., Result]
ACME = """
    import io
    import urllib.request
    import warnings

    from PIL import Image
    from pydantic import Field, SecretStr

    from pipeline.hooks import Analysis, Attribute, PluginSettings, hookimpl


    class AcmeSettings(PluginSettings):
        confidence: float = Field(0.5, description="How sure it is [0 to 1].")
        colors: tuple[str, ...] = Field(("red", "blue"), description="What it knows.")
        api_key: SecretStr = Field(description="The key.")


    class Acme:
        def __init__(self, own):
            self.own = own

        async def analyze(self, request):
            assert request.image in (None, b"not an image")
            return self.ask(self.own.api_key.get_secret_value(), request)

        def ask(self, key, request):
            if request.image and self.own.confidence > 1:
                raise ValueError("a stray error")
            return Analysis(brand=Attribute("Acme", self.own.confidence))


    class Looker:
        needs_image = True

        def analyze(self, request):
            warnings.warn("old-fashioned", DeprecationWarning)
            if request.image != b"not an image":
                assert Image.open(io.BytesIO(request.image)).width > 100
            return Analysis()


    class Fetcher:
        def analyze(self, request):
            with urllib.request.urlopen(request.image_url) as photo:
                assert Image.open(photo).width > 100
            return Analysis()


    @hookimpl
    def register_settings():
        yield "acme", AcmeSettings


    @hookimpl
    def register_ai_providers(settings):
        yield "acme", lambda: Acme(settings.plugin("acme", AcmeSettings))
        yield "looker", Looker
        yield "fetcher", Fetcher


    @hookimpl
    def job_finished(event):
        pass
"""
KEY = "acme-key-7f3a"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder on the import path with the package `acme` and a package that is broken, also as a plugin of pytest."""
    for name, source in (("acme", ACME), ("broken", "raise RuntimeError('out of order')")):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        about = tmp_path / f"{name}-2.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
        (about / "entry_points.txt").write_text(f"[ai_queue_pipeline]\n{name} = {name}\n")
    with (tmp_path / "broken-2.0.dist-info/entry_points.txt").open("a") as file:
        file.write("[pytest11]\nbroken = broken\n")
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a new process."""
    own = {"DATA_DIR": str(folder / "data"), "PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=inherited() | own | environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def invoke(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Return a function that runs a command in this process: quicker, for commands that do not start pytest."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "acme", raising=False)

    def invoke(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(main, arguments, env={"DATA_DIR": str(folder / "data")} | environment)

    return invoke
