"""Photos whose provider is never available: they wait, delay no other photo, and fail in time with the reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.client import Client
from tests.constants import BREAKER_PROBE_SECONDS
from tests.factories import make_token
from tests.faults.uploads import attempts, upload
from tests.slowdown import slowdown
from tests.service import AiService, Service

BUSY, AWAY = "AI service is busy", "AI service unavailable"


def asks_to_wait(seconds: int) -> Callable[[AiService], str]:
    def prepare(ai_service: AiService) -> str:
        ai_service.configure(replies=[{"status": 429, "headers": {"Retry-After": str(seconds)}, "times": 1_000_000}])
        return ai_service.url

    return prepare


def refuses(ai_service: AiService) -> str:
    ai_service.kill()
    return ai_service.url


def is_a_wrong_name(ai_service: AiService) -> str:
    return "http://unknown.invalid:8080"


def speaks_no_tls(ai_service: AiService) -> str:
    return ai_service.url.replace("http://", "https://")


@pytest.mark.fault("E8")
@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (asks_to_wait(1), BUSY),
        (asks_to_wait(600), BUSY),
        (refuses, AWAY),
        (is_a_wrong_name, AWAY),
        (speaks_no_tls, AWAY),
    ],
    ids=["429, 1 s", "429, 600 s", "refused", "wrong name", "no TLS"],
)
def test_photo_that_is_never_analyzed_fails_in_time(
    tmp_path: Path, ai_service: AiService, prepare: Callable[[AiService], str], reason: str
) -> None:
    """All photos, not only the first few, fail after JOB_MAX_AGE_SECONDS with the last reason and no lost attempt.

    The owner gets the events, and each photo is a dead letter.
    """
    url = prepare(ai_service)
    with Service(tmp_path, url, JOB_MAX_AGE_SECONDS="3") as service:

        async def follow() -> list[dict[str, Any]]:
            """Return the events of eight photos."""
            async with Client(service.url, make_token()) as client:
                await client.listen()
                events = client.events()
                ids.extend(await asyncio.to_thread(upload, service, 8))
                return [await asyncio.wait_for(anext(events), 30) for _ in range(8)]

        ids: list[str] = []
        started_at = time.monotonic()
        events = asyncio.run(follow())
        # A connection may take ten seconds to fail; the photos do not wait for the 600 s.
        assert 2.5 < time.monotonic() - started_at < 28 * slowdown()
        assert sorted(event["assetId"] for event in events) == sorted(ids)
        assert {event["error"] for event in events} == {f"{reason}, given up after 3 seconds"}
        assert {service.asset(asset_id)["status"] for asset_id in ids} == {"failed"}
        assert attempts(service, ids) == {1} and not service.find("job_retrying")
        service.wait_status(failed=8, waiting=0, active=0, delayed=0)
        assert all(line["cause"] for line in service.find("job_failed"))


@pytest.mark.fault("E8")
def test_photo_that_was_given_up_can_be_run_again(tmp_path: Path, ai_service: AiService) -> None:
    """Its age is counted from the new start; otherwise an old dead letter would be given up at once."""
    ai_service.kill()
    settings = {"JOB_MAX_AGE_SECONDS": "4", BREAKER_PROBE_SECONDS: "1"}
    with Service(tmp_path, ai_service.url, **settings) as service:
        (asset_id,) = upload(service, 1)
        service.wait_log("job_failed", assetId=asset_id)
        service.wait_status(failed=1)
        time.sleep(4)  # the length matters: the photo now has twice the allowed age
        retried = httpx.post(f"{service.url}/api/assets/{asset_id}/retry", headers=service.headers())
        assert retried.status_code == 202
        job_id = retried.json()["data"]["jobId"]
        service.wait_log("job_parked", jobId=job_id)
        ai_service.start()
        service.wait_log("job_completed", jobId=job_id)
        assert service.asset(asset_id)["status"] == "active"
