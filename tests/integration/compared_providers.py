"""The AI providers, assets and folders that tests of the command `eval` compare."""

from __future__ import annotations

import io
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.assets.asset import Asset, ImageRef
from pipeline.cli import main
from pipeline.commands import evaluating
from pipeline.commands.moving import open_backends
from pipeline.settings import Settings
from pipeline.usecases.corrections import Corrections
from tests.factories import make_asset, make_image

Invoke = Callable[..., Result]
PROVIDERS = """
    from pathlib import Path

    from pipeline.errors import PermanentJobError, RetryableJobError
    from pipeline.hooks import UNKNOWN, Analysis, Attribute, PluginSettings, Rate, Usage, hookimpl
    from pydantic import Field

    API_VERSION = 2


    class KnowingSettings(PluginSettings):
        boldness: int = Field(default=0, description="Whether it guesses.")
        prompt_path: str = Field(default="", description="What it is asked.")


    class Knowing:
        needs_image = True
        rate = Rate(1000)

        def __init__(self, own):
            self.own = own
            self.is_busy = True

        async def start(self, context):
            self.started = context.data_dir

        async def analyze(self, request):
            assert self.started and request.image[:2] == b"\\xff\\xd8" and request.content_type == "image/jpeg"
            if self.is_busy:
                self.is_busy = False
                raise RetryableJobError("AI service is busy", retry_after_seconds=0.01)
            model = {"sneaker": "air-max 90", "lego": "10255" if self.own.boldness else "", "camera": "M10"}
            version = Path(self.own.prompt_path).read_text() if self.own.prompt_path else "1"
            usage = Usage(1000, 10, 0.25)
            brand = Attribute("NIKE" if request.category == "sneaker" else "Lego", 0.9)
            found = model.get(request.category, "")
            return Analysis(brand, Attribute(found, 0.9) if found else UNKNOWN, usage=usage, ai_model="knowing-1",
                            prompt_version=version, confidence_kind="self_reported")


    class Choosy:
        categories = ("sneaker",)

        def analyze(self, request):
            assert request.image is None and request.image_url.startswith("http")
            return Analysis(brand=Attribute("[red]Adidas", 0.9))


    class Shut:
        needs_image = True
        calls = 0

        def analyze(self, request):
            Shut.calls += 1
            assert Shut.calls <= 3, "asked although it is shut"
            error = RetryableJobError("AI service is not set up", retry_after_seconds=0.01)
            raise error from ValueError("see SHUT_KEY")


    class Closed(Shut):
        def check(self):
            raise ValueError("see CLOSED_KEY")


    class Fussy:
        needs_image = True

        def analyze(self, request):
            if request.category == "lego":
                raise PermanentJobError("not this one")
            return {"brand": "Nike"}


    class Muddled:
        needs_image = True

        def analyze(self, request):
            return Analysis(brand="Nike", usage=Usage(1000, 10, 0.25))


    @hookimpl
    def register_settings():
        yield "knowing", KnowingSettings


    @hookimpl
    def register_ai_providers(settings):
        yield "knowing", lambda: Knowing(settings.plugin("knowing", KnowingSettings))
        yield "choosy", Choosy
        yield "shut", Shut
        yield "fussy", Fussy
        yield "closed", Closed
        yield "muddled", Muddled
"""
CORRECTIONS = {
    "sneaker": {"brand": "Nike", "model": "Air Max 90"},
    "lego": {"brand": "LEGO", "model": "10255"},
    "camera": {"brand": "Leica", "model": "M11"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the plugins; it is the working directory."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/knowing.py").write_text(textwrap.dedent(PROVIDERS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # The command adds the folder of plugins to this list.
    monkeypatch.setattr(evaluating, "BACKOFF_SECONDS", 0.01)
    return tmp_path


@pytest.fixture
def invoke(folder: Path) -> Iterator[Invoke]:
    """Return a function that runs `eval` with arguments."""

    def invoke(*arguments: str, **options: Any) -> Result:
        environment = {"DATA_DIR": str(folder / "data"), "PLUGINS_DIR": str(folder / "plugins")}
        return CliRunner().invoke(main, ("eval", *arguments), env=environment, **options)

    yield invoke
    sys.modules.pop("knowing", None)


def results(result: Result) -> dict[str, dict[str, Any]]:
    """Return the results that were printed as JSON, by provider."""
    assert result.stdout, result.stderr
    return {each["provider"]: each for each in json.loads(result.stdout)["results"]}


async def store_assets(settings: Settings) -> dict[str, Asset]:
    """Store a corrected asset of each category, one without a correction and one corrected asset without an original.

    Return the first asset of each category.
    """
    first: dict[str, Asset] = {}
    async with open_backends(settings) as (store, storages):
        everything = [*CORRECTIONS.items(), ("other", {}), ("sneaker", {"brand": "Dropped"})]
        for number, (category, corrections) in enumerate(everything):
            asset = make_asset(category=category)
            public_id, content = f"{asset.id}/original-0", make_image(seed=number)
            saved = await storages.save(public_id, io.BytesIO(content), "image/jpeg")
            original = ImageRef(saved.backend, public_id, saved.url, content_type="image/jpeg")
            if corrections.get("brand") == "Dropped":
                original = ImageRef("", "", content_type="image/jpeg")
            asset = make_asset(category=category, original=original)
            await store.create(asset)
            if corrections:
                await Corrections(store).correct(asset.id, asset.user_id, corrections)
            first.setdefault(category, asset)
    return first
