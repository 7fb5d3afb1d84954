"""The command `eval`: several providers and two settings of one, over corrected assets of a store and over a folder."""

from __future__ import annotations

import asyncio
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
from pipeline.commands.scores import is_same
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
SAID = {
    "sneaker": {"brand": "Nike", "model": "Air Max 90"},
    "lego": {"brand": "LEGO", "model": "10255"},
    "camera": {"brand": "Leica", "model": "M11"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the plugins."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/knowing.py").write_text(textwrap.dedent(PROVIDERS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the folder is added
    monkeypatch.setattr(evaluating, "BACKOFF_SECONDS", 0.01)
    return tmp_path


@pytest.fixture
def invoke(folder: Path) -> Iterator[Invoke]:
    """Return a function that runs `eval`."""

    def invoke(*arguments: str, **options: Any) -> Result:
        environment = {"DATA_DIR": str(folder / "data"), "PLUGINS_DIR": str(folder / "plugins")}
        return CliRunner().invoke(main, ("eval", *arguments), env=environment, **options)

    yield invoke
    sys.modules.pop("knowing", None)


def results(result: Result) -> dict[str, dict[str, Any]]:
    """Return what was printed as JSON, by provider."""
    assert result.stdout, result.stderr
    return {each["provider"]: each for each in json.loads(result.stdout)["results"]}


async def keep_assets(settings: Settings) -> dict[str, Asset]:
    """Store a photo of each category, correct all but one, and lose the original of one more."""
    kept = {}
    async with open_backends(settings) as (store, storages):
        for number, (category, said) in enumerate([*SAID.items(), ("other", {}), ("sneaker", {"brand": "Gone"})]):
            asset = make_asset(category=category)
            public_id, content = f"{asset.id}/original-0", make_image(seed=number)
            saved = await storages.save(public_id, io.BytesIO(content), "image/jpeg")
            original = ImageRef(saved.backend, public_id, saved.url, content_type="image/jpeg")
            gone = ImageRef("", "", content_type="image/jpeg")
            asset = make_asset(category=category, original=gone if said.get("brand") == "Gone" else original)
            await store.create(asset)
            if said:
                await Corrections(store).correct(asset.id, asset.user_id, said)
            kept[category] = kept.get(category, asset)
    return kept


def test_eval_compares_over_corrected_assets(
    folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right, wrong and unsure per field, mistakes, cost, tokens and seconds; settings of one provider beside those of
    the other; who takes only some categories is asked about those, who is shut is not asked again and again, and what
    comes back is not believed. Nothing is asked before somebody says yes.
    """
    assets = asyncio.run(keep_assets(Settings(data_dir=folder / "data")))
    (folder / "prompt.md").write_text("2-new")
    bold = "knowing:boldness=1,prompt=prompt.md"
    chosen = [part for name in ("knowing", bold, "choosy", "shut", "fussy") for part in ("--provider", name)]
    unsure = invoke(*chosen, input="n\n")
    assert unsure.exit_code == 1 and unsure.stdout == ""
    assert f"knowing: 3 photos, {bold}: 3 photos, choosy: 1 photos" in unsure.stderr
    # What is changed for the comparison also takes the place of what a file sets.
    (folder / "boldness").write_text("0\n")
    monkeypatch.setenv("PLUGIN_KNOWING_BOLDNESS_FILE", str(folder / "boldness"))
    result = invoke(*chosen, "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    found = results(result)
    knowing = found["knowing"]
    assert knowing["fields"] == {
        "brand": {"right": 2, "wrong": 1, "unsure": 0},
        "model": {"right": 1, "wrong": 1, "unsure": 1},
        "colorway": {"right": 0, "wrong": 0, "unsure": 0},
    }
    camera = {"photo": assets["camera"].id, "category": "camera", "confidence": 0.9}
    assert knowing["mistakes"] == [
        camera | {"field": "brand", "wanted": "Leica", "said": "Lego"},
        camera | {"field": "model", "wanted": "M11", "said": "M10"},
    ]
    assert (knowing["answered"], knowing["failed"], knowing["calls"]) == (3, 0, 4)
    assert (knowing["cost"], knowing["tokens"]) == ({"USD": 0.75}, {"input": 3000, "output": 30})
    assert (knowing["aiModel"], knowing["promptVersion"], knowing["stopped"]) == ("knowing-1", "1", None)
    assert knowing["seconds"]["mean"] >= 0
    assert found[bold]["fields"]["model"] == {"right": 2, "wrong": 1, "unsure": 0}
    assert found[bold]["promptVersion"] == "2-new"
    assert (found["choosy"]["answered"], found["choosy"]["cost"]) == (1, None)
    shut = found["shut"]
    assert (shut["answered"], shut["failed"], shut["calls"]) == (0, 1, 3) and "see SHUT_KEY" in shut["stopped"]
    assert found["fussy"]["failures"] == {
        "not this one": 1,
        "AI service sent an invalid result: ValueError: analyze returned dict, not Analysis": 2,
    }
    table = invoke("--provider", "knowing", "--provider", "choosy", "--category", "sneaker", "--yes")
    assert table.exit_code == 0 and "Adidas" not in table.stdout
    rows = [line.split() for line in table.stdout.splitlines()]
    assert ["knowing", "brand", "1", "0", "0"] in rows and ["choosy", "brand", "0", "1", "0"] in rows
    (totals,) = (row for row in rows if row[0] == "knowing" and row[-1] == "10")
    assert totals[:3] + totals[4:6] == ["knowing", "1", "0", "0.2500", "USD"]
    assert any(row[:3] == ["choosy", "1", "0"] and "unknown" in row for row in rows)


def test_eval_keeps_to_the_budget_of_the_day(folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it spends is there for the service to count, also for a result that is none; it ends when the budget is
    reached, whoever spent it, and asks nobody twice of whom the price is not known.
    """
    asyncio.run(keep_assets(Settings(data_dir=folder / "data")))
    monkeypatch.setenv("AI_BUDGET_PER_DAY", "0.5")
    chosen = ("--yes", "--json", "--provider", "fussy", "--provider")
    found = results(invoke(*chosen, "knowing"))
    assert (found["knowing"]["answered"], found["knowing"]["cost"]) == (2, {"USD": 0.5})
    assert found["knowing"]["stopped"] == "the day's AI budget is reached (AI_BUDGET_PER_DAY)"
    told = invoke("--provider", "knowing", "--yes")
    assert told.exit_code == 1 and "not asked about the rest: the day's AI budget is reached" in told.stderr
    monkeypatch.setenv("AI_BUDGET_PER_DAY", "9")
    assert results(invoke(*chosen, "knowing"))["knowing"]["answered"] == 3
    choosy = invoke("--provider", "choosy", "--yes", "--json")
    assert results(choosy)["choosy"]["calls"] == 1
    assert "what its calls cost is not known" in choosy.stderr or "not known" in results(choosy)["choosy"]["stopped"]
    monkeypatch.setenv("AI_BUDGET_PER_DAY", "1.5")
    muddled = results(invoke("--provider", "muddled", "--yes", "--json"))["muddled"]
    assert (muddled["answered"], muddled["calls"]) == (0, 1) and "budget is reached" in muddled["stopped"]


def test_eval_takes_a_folder_with_labels(folder: Path, invoke: Invoke) -> None:
    """Only what is labelled is judged; a file that is no photo, and a line that is wrong, are named."""
    photos = folder / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(make_image())
    (photos / "b.png").write_bytes(make_image("PNG"))
    (photos / "c.jpg").write_bytes(b"\xff\xd8 no photo at all")
    labels = photos / "labels.csv"
    labels.write_text(
        "\ufefffile,category,brand,model,remark\na.jpg,sneaker,Nike,Air Max 90,x\nb.png,lego,LEGO,,\nc.jpg,camera,,,\n"
    )
    chosen = ("--folder", str(photos), "--yes", "--json")
    found = results(invoke("--provider", "fussy", "--provider", "knowing", *chosen, "--limit", "1"))
    assert found["knowing"]["fields"]["model"] == {"right": 1, "wrong": 0, "unsure": 0}
    assert found["fussy"]["failed"] == 1
    refused = [
        (("--provider", "choosy", *chosen), "choosy fetches photos by their address, and these have none"),
        (("--provider", "choosy", "--category", "lego", *chosen), "choosy takes photos of none of these categories"),
        (("--provider", "knowing", "--category", "camera", *chosen), "labels.csv names no such photo"),
        (("--provider", "knowing:boldnes=1", *chosen), "there are: boldness, prompt_path (did you mean boldness?)"),
        (("--provider", "knowing:boldness", *chosen), "no SETTING=VALUE"),
        (("--provider", "knowing:boldness=very", *chosen), "PLUGIN_KNOWING_BOLDNESS"),
        (("--provider", "fussy:prompt=x", *chosen), "there are: none"),
        (("--provider", "knwing", *chosen), "did you mean knowing?"),
        (("--provider", "knowing", "--provider", "closed", *chosen), "closed cannot be asked: ValueError: see CLOSED"),
    ]
    for arguments, words in refused:
        result = invoke(*arguments)
        assert result.exit_code in (1, 2) and words in result.stderr and not result.stdout, (arguments, result.stderr)
    for text, words in (
        ("file,brand\na.jpg,Nike\n", "the first line must name the columns"),
        ("file,category,brand\nz.jpg,sneaker,Nike\n", "line 2: there is no file 'z.jpg'"),
        ("file,category,brand\na.jpg,hat,Nike\n", "line 2: the category 'hat' is none of sneaker"),
        ("", "the first line must name the columns"),
    ):
        labels.write_text(text)
        result = invoke("--provider", "knowing", *chosen)
        assert result.exit_code == 2 and words in result.stderr, result.stderr
    labels.unlink()
    assert "labels.csv: No such file" in invoke("--provider", "knowing", *chosen).stderr
    nothing = invoke("--provider", "knowing", "--yes")
    assert nothing.exit_code == 1 and "no asset was corrected" in nothing.stderr


@pytest.mark.parametrize(
    ("said", "wanted", "same"),
    [
        ("air-max 90", "Air Max 90", True),
        ("Citroën", "CITROEN", True),
        ("Straße", "STRASSE", True),
        ("Air Max 90", "Air Max 95", False),
        ("", "Nike", False),
        ("++", "+++", False),
        ("Black/White", "black white", True),
        ("エア", "エア ", True),
    ],
)
def test_values_are_the_same_but_for_how_they_are_written(said: str, wanted: str, same: bool) -> None:
    """Capitals, accents, blanks and punctuation do not matter; of what has no letters every sign does."""
    assert is_same(said, wanted) is same
