"""The wheel, installed without a checkout, contains all files that operators and plugin authors need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PLUGIN = """
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.errors import PermanentJobError
from pipeline.hooks import AIProvider, Analysis, AnalyzeRequest, Attribute, Context, NotReady, PluginSettings
from pipeline.hooks import Progress, Rate, Usage, hookimpl
from pipeline.hooks import JobEvent
from pydantic import Field

API_VERSION = 2


class AcmeSettings(PluginSettings):
    url: str = Field("https://acme.example", description="Where it is.")


class Acme:
    categories = ("sneaker",)
    rate = Rate(1, 2)

    async def start(self, context: Context) -> None:
        self._context = context
        self._asked = context.counter("asked", "How often.")
        if await context.store.get("key") is None:
            raise NotReady("no key", retry_after_seconds=5)

    async def analyze(self, request: AnalyzeRequest, progress: Progress) -> Analysis:
        await progress(0.5, brand=Attribute("Acme", 0.5))
        async with self._context.http.post("https://acme.example", json={"image": request.image_url}) as reply:
            if reply.status == 422:
                raise PermanentJobError("refused")
            found: Mapping[str, Any] = await reply.json()
        self._asked.inc()
        return Analysis(brand=Attribute(str(found["brand"]), 0.9), usage=Usage(1, 2, 0.01))


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    yield "acme", AcmeSettings


@hookimpl
def register_ai_providers() -> Iterator[tuple[str, Callable[[], AIProvider]]]:
    yield "acme", Acme  # EXPECTED: it takes progress, which AIProvider does not


@hookimpl
def job_finished(event: JobEvent) -> None:
    event.outcom  # EXPECTED
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the installed wheel."""
    folder = tmp_path_factory.mktemp("package")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(wheel, check=True)
    (path,) = folder.glob("*.whl")
    target = folder / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(path)], check=True)
    return target


def test_installed_wheel_contains_its_data_files(installed: Path, tmp_path: Path) -> None:
    """Lua scripts, contracts, pages, pictures and plugins load from an installed wheel."""
    code = f"""
import pipeline, pipeline.plugins, pipeline.contracts
modules = (pipeline, pipeline.plugins, pipeline.contracts)
assert all(each.__file__.startswith({str(installed / "pipeline")!r}) for each in modules), modules
assert [*pipeline.__path__] == [{str(installed / "pipeline")!r}]
from importlib import resources
from pipeline.queue.queue import JobQueue
JobQueue("redis://127.0.0.1:1/0")
from pipeline.client import Client
from pipeline.demo import pictures
assert all(path.stat().st_size > 10_000 for path, _ in pictures()) and len(pictures()) >= 3
assert resources.files("pipeline.contracts").joinpath("analyze-queue.openapi.json").is_file()
from pipeline import pages
from pipeline.pages import runbooks
assert b'id="pipelinedependencydown"' in runbooks.document().content
assert set(("index.html", "console.html", "client/pipeline-client.js", "client/photos/row.js")) <= set(pages.files())
from pipeline.hooks.catalogue import list_plugins
from pipeline.settings import Settings
from pipeline.plugins.vision import prompt
assert prompt.load(None, "").text
broken = [info for info in list_plugins(Settings()) if info.state == "broken"]
assert not broken, broken
"""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


@pytest.mark.fault("P7")
def test_strict_type_checker_reads_the_types_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    """mypy --strict reports the mistakes in a plugin and no other line."""
    (tmp_path / "acme.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file", os.devnull, "acme.py"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = [int(line.split(":")[1]) for line in found.stdout.splitlines() if "error:" in line]
    expected = [at for at, line in enumerate(PLUGIN.splitlines(), 1) if "EXPECTED" in line]
    assert lines == expected, found.stdout + found.stderr


OWN_NAMES = """
import json, sys
from pathlib import Path
import plugins, contracts
assert [Path(each.__file__).parents[1] for each in (plugins, contracts)] == [Path.cwd()] * 2
from pipeline.handlers.contracts import openapi
from pipeline.hooks.catalogue import Catalogue
from pipeline.settings import Settings
catalogue = Catalogue(Settings())
states = {(info.name, info.state) for info in catalogue.infos()}
assert json.loads(openapi(("sneaker",), "http://127.0.0.1:8080"))["openapi"]
assert not [state for state in states if "broken" in state], states
print(sys.modules["pipeline.plugins"].__file__)
"""


@pytest.mark.fault("P6")
@pytest.mark.parametrize("where", ["wheel", "checkout"])
def test_project_may_have_folders_named_plugins_and_contracts(where: str, installed: Path, tmp_path: Path) -> None:
    """`import plugins` finds the project's folder; the built-in plugins and contracts of the pipeline still load."""
    for name in ("plugins", "contracts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("WHOSE = 'the project'\n")
    source = installed if where == "wheel" else ROOT
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(source)))}
    command = [sys.executable, "-c", OWN_NAMES]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    expected = installed / "pipeline" if where == "wheel" else ROOT
    assert done.stdout.strip() == str(expected / "plugins" / "__init__.py")
