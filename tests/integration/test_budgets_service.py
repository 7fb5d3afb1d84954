"""Daily AI budgets and the result cache on a running service."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.factories import make_image
from tests.packages import install
from tests.service import Service

PRICED = """
import json, os, time
from pipeline.clock import CLOCK
from pipeline.hooks import Analysis, Attribute, Usage, hookimpl

API_VERSION = 2

class Priced:
    calls = 0

    async def analyze(self, request):
        self.calls += 1
        if self.calls == 4 and "NEAR_MIDNIGHT" in os.environ:
            # From now on it is two seconds before midnight, in UTC.
            offset = -CLOCK.now() % 86400 - 2
            CLOCK.learn = lambda reading: None
            CLOCK._course = None
            CLOCK._wall = lambda: time.time() + offset
        leica, m6, usage = Attribute("Leica", 0.9), Attribute("M6", 0.9), Usage(100, 10, 0.25)
        return Analysis(leica, m6, extra={"call": self.calls}, usage=usage, ai_model="m")

class Free(Priced):
    cost = 0

    async def analyze(self, request):
        return Analysis(Attribute("Lego", 0.9), Attribute("42083", 0.9))

@hookimpl
def register_ai_providers(settings):
    yield "priced", Priced
    yield "free", Free
"""


@pytest.mark.parametrize("is_near_midnight", [False, True])
def test_photos_over_the_budget_wait_for_the_next_day(tmp_path: Path, is_near_midnight: bool) -> None:
    """Four photos use up the budget. The other photos wait with a reason and lose no attempt until the next day.

    A provider that costs nothing is still called. Operators see the cost of the day.
    """
    settings = install(tmp_path / "packages", priced=PRICED) | {"CONCURRENCY": "1"}
    settings |= {"AI_PROVIDER": "priced", "AI_PROVIDER_BY_CATEGORY": "lego=free", "AI_BUDGET_PER_DAY": "1"}
    settings |= {"NEAR_MIDNIGHT": "1"} if is_near_midnight else {}
    with Service(tmp_path / "data", **settings) as service:
        # The token is also valid on the next day.
        caller = service.headers(exp=int(time.time()) + 200_000)
        ids = [service.upload(headers=caller).json()["data"]["assetId"] for _ in range(6)]
        held = service.wait_log("plugin_held", plugin="priced")
        assert held["reason"] == "Daily AI budget reached"
        service.wait_log("job_parked")
        if is_near_midnight:
            for asset_id in ids:
                service.wait_log("asset_finished", assetId=asset_id, status="active")
        else:
            free = service.upload(category="lego").json()["data"]["assetId"]
            service.wait_log("asset_finished", assetId=free)
            assert [service.asset(each)["status"] for each in ids] == ["active"] * 4 + ["processing"] * 2
            progress = service.asset(ids[-1])["progress"]
            assert (progress["state"], progress["reason"]) == ("held", "Daily AI budget reached")
            assert progress["nextAt"]
            admin = service.headers("ops-1", role="admin")
            listed = httpx.get(f"{service.url}/api/plugins", headers=admin).json()["data"]
            today = {each["name"]: each["today"] for each in listed["items"] if each["kind"] == "provider"}
            of_priced = {"calls": 4, "inputTokens": 400, "outputTokens": 40, "cost": 1, "currency": "USD"}
            assert today["priced"] == of_priced | {"unpricedCalls": 0}
            assert (today["free"]["calls"], today["free"]["unpricedCalls"]) == (1, 0)
            assert listed["aiBudget"] == {"perDay": 1, "perUserPerDay": None, "spent": 1, "currency": "USD"}
        assert {line["attempt"] for line in service.find("job_claimed")} == {1}
        assert not service.find("job_failed")


def test_same_photo_gets_the_cached_result(tmp_path: Path) -> None:
    """The same photo in the same category gets the cached result, also for another user, and costs nothing."""
    settings = install(tmp_path / "packages", priced=PRICED) | {"AI_PROVIDER": "priced", "AI_CACHE": "true"}
    settings |= {"AI_BUDGET_PER_DAY": "0.75"}
    with Service(tmp_path / "data", **settings) as service:

        def analyzed(sub: str, **photo: Any) -> dict[str, Any]:
            asset_id = service.upload(sub, **photo).json()["data"]["assetId"]
            service.wait_log("asset_finished", assetId=asset_id, status="active")
            return service.asset(asset_id, sub)

        other = make_image(size=(40, 30))
        calls = [
            analyzed("ann"),
            analyzed("ann", category="lego"),
            analyzed("ben", image=other),
            analyzed("ben"),
            analyzed("cem", image=other),
        ]
        assert [each["aiMetadata"]["extra"]["call"] for each in calls] == [1, 2, 3, 1, 3]
        assert [each["provenance"]["cached"] for each in calls] == [False] * 3 + [True] * 2
        assert [each["provenance"]["usage"]["cost"] for each in calls] == [0.25] * 3 + [0] * 2
        assert {(each["provenance"]["provider"], each["provenance"]["model"]) for each in calls} == {("priced", "m")}
