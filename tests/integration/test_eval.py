"""The command `eval`: several providers and two settings of one, on corrected assets of a store and on a folder."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets.asset import Asset
from pipeline.commands.scores import is_same
from pipeline.settings import Settings
from tests.factories import make_image
from tests.integration.compared_providers import Invoke, results, store_assets
from tests.integration.compared_providers import folder, invoke  # noqa: F811

__all__ = ["folder", "invoke"]
BOLD = "knowing:boldness=1,prompt=prompt.md"
CHOSEN = [part for name in ("knowing", BOLD, "choosy", "shut", "fussy") for part in ("--provider", name)]


@pytest.fixture
def assets(folder: Path) -> dict[str, Asset]:
    """The first stored asset of each category, and a file with a prompt."""
    (folder / "prompt.md").write_text("2-new")
    return asyncio.run(store_assets(Settings(data_dir=folder / "data")))


def test_eval_asks_before_it_calls_a_provider(invoke: Invoke, assets: dict[str, Asset]) -> None:
    """Before the first call the command prints the number of photos for each provider and asks for a confirmation."""
    refused = invoke(*CHOSEN, input="n\n")
    assert refused.exit_code == 1 and refused.stdout == ""
    assert f"knowing: 3 photos, {BOLD}: 3 photos, choosy: 1 photos" in refused.stderr
    assert sys.modules["knowing"].Shut.calls == 0


def test_eval_compares_providers_on_corrected_assets(
    folder: Path, invoke: Invoke, assets: dict[str, Asset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The JSON has right, wrong and unsure fields, mistakes, cost, tokens and seconds of each provider and setting.

    A provider is called only for its categories. A provider that is not set up is called three times at most. A result
    of the wrong type is a failure.
    """
    # A setting of the command line has priority over a setting in a file.
    (folder / "boldness").write_text("0\n")
    monkeypatch.setenv("PLUGIN_KNOWING_BOLDNESS_FILE", str(folder / "boldness"))
    result = invoke(*CHOSEN, "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    found = results(result)
    check_knowing(found["knowing"], assets["camera"].id)
    assert found[BOLD]["fields"]["model"] == {"right": 2, "wrong": 1, "unsure": 0}
    assert found[BOLD]["promptVersion"] == "2-new"
    assert (found["choosy"]["answered"], found["choosy"]["cost"]) == (1, None)
    shut = found["shut"]
    assert (shut["answered"], shut["failed"], shut["calls"]) == (0, 1, 3) and "see SHUT_KEY" in shut["stopped"]
    assert found["fussy"]["failures"] == {
        "not this one": 1,
        "AI service sent an invalid result: ValueError: analyze returned dict, not Analysis": 2,
    }


def check_knowing(knowing: dict[str, Any], camera_id: str) -> None:
    """Check all values of the result of the provider `knowing`."""
    assert knowing["fields"] == {
        "brand": {"right": 2, "wrong": 1, "unsure": 0},
        "model": {"right": 1, "wrong": 1, "unsure": 1},
        "colorway": {"right": 0, "wrong": 0, "unsure": 0},
    }
    camera = {"photo": camera_id, "category": "camera", "confidence": 0.9}
    assert knowing["mistakes"] == [
        camera | {"field": "brand", "wanted": "Leica", "said": "Lego"},
        camera | {"field": "model", "wanted": "M11", "said": "M10"},
    ]
    assert (knowing["answered"], knowing["failed"], knowing["calls"]) == (3, 0, 4)
    assert (knowing["cost"], knowing["tokens"]) == ({"USD": 0.75}, {"input": 3000, "output": 30})
    assert (knowing["aiModel"], knowing["promptVersion"], knowing["stopped"]) == ("knowing-1", "1", None)
    assert knowing["seconds"]["mean"] >= 0


def test_eval_prints_a_table(invoke: Invoke, assets: dict[str, Asset]) -> None:
    """The table has the scores of each field and the totals of each provider, but no value of a result."""
    table = invoke("--provider", "knowing", "--provider", "choosy", "--category", "sneaker", "--yes")
    assert table.exit_code == 0 and "Adidas" not in table.stdout
    rows = [line.split() for line in table.stdout.splitlines()]
    assert ["knowing", "brand", "1", "0", "0"] in rows and ["choosy", "brand", "0", "1", "0"] in rows
    (totals,) = (row for row in rows if row[0] == "knowing" and row[-1] == "10")
    assert totals[:3] + totals[4:6] == ["knowing", "1", "0", "0.2500", "USD"]
    assert any(row[:3] == ["choosy", "1", "0"] and "unknown" in row for row in rows)


def test_eval_stops_at_the_budget_of_the_day(folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of each call counts to the budget, also of a call with an invalid result.

    At the budget the command stops, also when an earlier command spent it. A provider without a known price is called
    once.
    """
    asyncio.run(store_assets(Settings(data_dir=folder / "data")))
    monkeypatch.setenv("AI_BUDGET_PER_DAY", "0.5")
    chosen = ("--yes", "--json", "--provider", "fussy", "--provider")
    found = results(invoke(*chosen, "knowing"))
    assert (found["knowing"]["answered"], found["knowing"]["cost"]) == (2, {"USD": 0.5})
    assert found["knowing"]["stopped"] == "the day's AI budget is reached (AI_BUDGET_PER_DAY)"
    stopped = invoke("--provider", "knowing", "--yes")
    assert stopped.exit_code == 1 and "not asked about the rest: the day's AI budget is reached" in stopped.stderr
    monkeypatch.setenv("AI_BUDGET_PER_DAY", "9")
    assert results(invoke(*chosen, "knowing"))["knowing"]["answered"] == 3
    choosy = invoke("--provider", "choosy", "--yes", "--json")
    assert results(choosy)["choosy"]["calls"] == 1
    assert "what its calls cost is not known" in choosy.stderr or "not known" in results(choosy)["choosy"]["stopped"]
    monkeypatch.setenv("AI_BUDGET_PER_DAY", "1.5")
    muddled = results(invoke("--provider", "muddled", "--yes", "--json"))["muddled"]
    assert (muddled["answered"], muddled["calls"]) == (0, 1) and "budget is reached" in muddled["stopped"]


@pytest.fixture
def photos(folder: Path) -> Path:
    """A folder with two photos, a damaged photo and their labels."""
    photos = folder / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(make_image())
    (photos / "b.png").write_bytes(make_image("PNG"))
    (photos / "c.jpg").write_bytes(b"\xff\xd8 no photo at all")
    (photos / "labels.csv").write_text(
        "\ufefffile,category,brand,model,remark\na.jpg,sneaker,Nike,Air Max 90,x\nb.png,lego,LEGO,,\nc.jpg,camera,,,\n"
    )
    return photos


def test_eval_compares_on_a_folder_with_labels(invoke: Invoke, photos: Path) -> None:
    """Only labelled fields are compared."""
    chosen = ("--folder", str(photos), "--yes", "--json")
    found = results(invoke("--provider", "fussy", "--provider", "knowing", *chosen, "--limit", "1"))
    assert found["knowing"]["fields"]["model"] == {"right": 1, "wrong": 0, "unsure": 0}
    assert found["fussy"]["failed"] == 1


def test_eval_refuses_providers_that_cannot_be_compared(invoke: Invoke, photos: Path) -> None:
    """The error names the provider, setting or category that does not fit, and nothing is printed as a result."""
    chosen = ("--folder", str(photos), "--yes", "--json")
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


def test_eval_refuses_damaged_labels(invoke: Invoke, photos: Path) -> None:
    """The error names the line and the fault of the labels, or that there are none."""
    chosen, labels = ("--folder", str(photos), "--yes", "--json"), photos / "labels.csv"
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
    ("value", "wanted", "same"),
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
def test_values_are_compared_without_case_and_punctuation(value: str, wanted: str, same: bool) -> None:
    """Capitals, accents, blanks and punctuation are ignored, except in a value without letters."""
    assert is_same(value, wanted) is same
