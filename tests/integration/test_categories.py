"""The categories of photos are one setting: uploads, lists, contracts, demo and command line use it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.shell_completion import ShellComplete
from openapi_spec_validator import OpenAPIV31SpecValidator

from pipeline.cli import main
from pipeline.demo import pictures, shown
from pipeline.handlers.contracts import asyncapi, openapi, with_categories
from pipeline.settings import DEFAULT_CATEGORIES, Settings
from tests.contract.contracts import JOB, check_event, check_value, load
from tests.factories import make_image
from tests.service import ROOT, AiService, Service

pytestmark = pytest.mark.fault("U26")

FIFTH = (*DEFAULT_CATEGORIES, "watch")
OTHERS = ("guitar", "boots_2", "vinyl-record")
URL = "https://photos.example.com"


def finished(service: Service, category: str) -> dict[str, Any]:
    """Upload a photo of that category and return its finished asset."""
    reply = service.upload(category=category, image=make_image(seed=len(category)))
    assert reply.status_code == 202, reply.text
    asset: dict[str, Any] = service.get(f"/api/assets/{reply.json()['data']['assetId']}", wait=30).json()["data"]
    return asset


@pytest.mark.parametrize("categories", [FIFTH, OTHERS], ids=["a fifth", "all others"])
def test_uploads_and_contracts_use_the_setting(
    tmp_path: Path, ai_service: AiService, categories: Sequence[str]
) -> None:
    """Uploads, refusals, the filter, the AI service's request and the contracts know these categories and no others."""
    with Service(tmp_path, ai_service.url, CATEGORIES=",".join(categories)) as service:
        assets = [finished(service, category) for category in categories]
        assert [(asset["category"], asset["status"]) for asset in assets] == [(each, "active") for each in categories]
        assert [each["body"]["category"] for each in ai_service.state()["requests"]] == list(categories)

        listed = f"Must be one of: {', '.join(categories)}"
        for unknown in ("shoe", *(set(DEFAULT_CATEGORIES) - set(categories))):
            refused = service.upload(category=unknown)
            assert refused.status_code == 400
            assert refused.json()["error"]["details"] == [{"field": "category", "message": listed}]
        (last,) = service.get("/api/assets", category=categories[-1]).json()["data"]["items"]
        assert last["id"] == assets[-1]["id"]
        assert service.get("/api/assets", category="shoe").json()["error"]["details"][0]["message"] == listed

        contract = service.get("/openapi.json").json()
        assert contract["components"]["schemas"]["Category"]["enum"] == list(categories)
        assert listed in json.dumps(contract)
        if categories is OTHERS:
            assert not re.search(r"sneaker|lego", json.dumps(contract))
        OpenAPIV31SpecValidator(contract).validate()


def test_assets_of_a_removed_category_stay_usable(tmp_path: Path, ai_service: AiService) -> None:
    """The assets are read, listed, retried and deleted; the dead letter names the category; uploads are refused."""
    ai_service.configure(replies=[{"status": 422}])
    with Service(tmp_path, ai_service.url) as service:
        asset_id = finished(service, "lego")["id"]
    with Service(tmp_path, ai_service.url, CATEGORIES="watch") as service:
        asset = service.asset(asset_id)
        assert (asset["category"], asset["status"]) == ("lego", "failed")
        assert [each["id"] for each in service.get("/api/assets").json()["data"]["items"]] == [asset_id]
        headers = service.headers(role="admin")
        (letter,) = httpx.get(f"{service.url}/api/queue/failed", headers=headers).json()["data"]["items"]
        assert letter["category"] == "lego"
        url = f"{service.url}/api/assets/{asset_id}"
        assert httpx.post(f"{url}/retry", headers=service.headers()).status_code == 202
        assert service.get(f"/api/assets/{asset_id}", wait=30).json()["data"]["status"] == "active"
        assert ai_service.state()["requests"][-1]["body"]["category"] == "lego"
        assert httpx.delete(url, headers=service.headers()).status_code == 204
        assert service.upload(category="lego").status_code == 400


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (",", "CATEGORIES must have 1 to 50 names, not 0"),
        (",".join(f"c{number}" for number in range(51)), "CATEGORIES must have 1 to 50 names, not 51"),
        ("lego,Camera", "CATEGORIES: name 2 must be 1 to 40 characters a-z, 0-9, _ and -"),
        ("lego,a b", "CATEGORIES: name 2 must be"),
        ("schön", "CATEGORIES: name 1 must be"),
        ("x" * 41, "must be 1 to 40 characters"),
        ("lego,camera,lego", "CATEGORIES has 'lego' twice"),
    ],
    ids=["none", "too many", "capital", "space", "not ASCII", "too long", "twice"],
)
def test_bad_list_is_refused_with_the_reason(given: str, fault: str) -> None:
    """The error names the setting and the fault of the list."""
    with pytest.raises(ValueError, match=re.escape(fault)):
        Settings(categories=given)


def test_good_lists_are_accepted() -> None:
    """Blanks and empty names are ignored; 50 names and a name of 40 characters are accepted."""
    assert Settings(categories=" lego , a_b-2,, ").categories == ("lego", "a_b-2")
    assert len(Settings(categories=",".join(f"c{number}" for number in range(50))).categories) == 50
    assert Settings(categories="x" * 40).categories == ("x" * 40,)


def test_provider_of_an_unknown_category_is_refused() -> None:
    """AI_PROVIDER_BY_CATEGORY may name only categories of CATEGORIES."""
    message = "AI_PROVIDER_BY_CATEGORY: there is no category 'lego'; there are watch, other"
    with pytest.raises(ValueError, match=message):
        Settings(categories="watch,other", ai_provider_by_category="lego=local")
    chosen = Settings(categories="watch,other", ai_provider_by_category="watch=local")
    assert chosen.ai_provider_by_category == {"watch": ("local",)}


def test_default_contracts_are_the_files_themselves() -> None:
    """With the four categories of the specification, only the address of the service changes."""
    assert json.loads(openapi(DEFAULT_CATEGORIES, "http://0.0.0.0:8080")) == load("analyze-queue.openapi.json")
    rooms = load("rooms.asyncapi.json")
    assert json.loads(asyncapi(DEFAULT_CATEGORIES, "http://[::]:80"))["servers"] == rooms["servers"]
    assert json.loads(asyncapi(DEFAULT_CATEGORIES, URL))["info"] == rooms["info"]
    assert json.loads(asyncapi(OTHERS, URL)) == json.loads(asyncapi(DEFAULT_CATEGORIES, URL))


def test_job_schema_has_the_categories_of_the_setting() -> None:
    """A job of a configured category is valid; a job of a default category that is not configured is not."""
    schema = with_categories(JOB, OTHERS)
    job = schema["examples"][0]
    check_value(schema, job)
    with pytest.raises(AssertionError):
        check_value(schema, job | {"category": "lego"})


def test_demo_pictures_have_a_configured_category() -> None:
    """A demo picture has its own category, or else `other`, or else the last category of the list."""
    assert [category for _, category in pictures()] == ["camera", "lego", "sneaker", "other"]
    assert [category for _, category in pictures(("lego", "other"))] == ["other", "lego", "other", "other"]
    assert {category for _, category in pictures(OTHERS)} == {OTHERS[-1]}
    assert [category for _, category in shown()] == ["camera", "lego", "sneaker"]
    assert {category for _, category in shown(OTHERS)} == {OTHERS[-1]}


def test_shell_completes_the_categories_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """`submit --category` completes the names of CATEGORIES."""
    monkeypatch.setenv("CATEGORIES", ",".join(OTHERS))
    complete = ShellComplete(main, {}, "pipeline", "_PIPELINE_COMPLETE")
    found = [each.value for each in complete.get_completions(["submit", "--category"], "")]
    assert found == list(OTHERS)
    assert [each.value for each in complete.get_completions(["submit", "--category"], "bo")] == ["boots_2"]


def test_demo_and_submit_use_the_categories_of_the_setting(tmp_path: Path, ai_service: AiService) -> None:
    """The command line accepts the configured categories, and its error for another one lists them."""
    service = Service(tmp_path, ai_service.url, CATEGORIES="guitar,boots")
    environment = service.environment

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "run.py", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    done = run("demo", "--exit")
    assert done.returncode == 0, done.stdout + done.stderr
    photo = str(pictures()[0][0])
    with service:
        assert run("submit", photo, "--category", "guitar", "--watch").returncode == 0
        refused = run("submit", photo, "--category", "lego")
        assert refused.returncode == 2 and "must be one of: guitar, boots" in refused.stderr
        refused = run("submit", photo, "--category", "lego", "--url", service.url)
        assert refused.returncode == 1 and "Invalid category" in refused.stderr


def test_event_of_a_configured_category_matches_the_contract(tmp_path: Path, ai_service: AiService) -> None:
    """The event names no category, so its contract is the same for all settings."""
    with Service(tmp_path, ai_service.url, CATEGORIES="watch") as service:
        asset = finished(service, "watch")
        headers = service.headers() | {"Accept": "text/event-stream"}
        since = {"since": asset["createdAt"]}
        with httpx.stream("GET", f"{service.url}/api/events", headers=headers, params=since, timeout=30) as stream:
            data = (json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:"))
            check_event(next(each for each in data if each["event"] == "asset_processed"))
