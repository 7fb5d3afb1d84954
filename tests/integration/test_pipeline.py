"""From upload to event in a real process, with the embedded Redis, SQLite and an AI service on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.client import Client
from tests.contract.contracts import check_event, check_job, check_reply
from tests.factories import make_token
from tests.redis_server import RedisServer
from tests.service import AiService, Service


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    with Service(tmp_path, ai_service.url, BACKOFF_MS="200") as service:
        yield service


@asynccontextmanager
async def listening(service: Service, sub: str = "user-1") -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Connect a socket of the user; yield the events that it gets from now on."""
    async with Client(service.url, make_token(sub)) as client:
        assert await client.listen() == f"user:{sub}"
        yield client.events()


async def upload(service: Service, sub: str = "user-1", **options: Any) -> str:
    """Upload a photo and return its asset id."""
    response = await asyncio.to_thread(service.upload, sub, **options)
    assert response.status_code == 202, response.text
    return str(response.json()["data"]["assetId"])


async def next_event(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """Return the next event, checked against the contract."""
    async with asyncio.timeout(30):
        event = await anext(events)
    check_event(event)
    return event


@pytest.mark.spec("T040")
@pytest.mark.spec("T042")
@pytest.mark.gen_test(timeout=60)
async def test_upload_becomes_active_and_its_owner_gets_the_event(service: Service, ai_service: AiService) -> None:
    """The job calls the AI service, the asset becomes active with the result, and the socket gets the event."""
    async with listening(service) as events:
        asset_id = await upload(service)
        event = await next_event(events)
    asset = service.asset(asset_id)
    check_reply("GET", "/api/assets/{id}", 200, {"success": True, "data": asset})
    assert asset["status"] == "active"
    assert asset["aiMetadata"]["brand"] == {"value": "Nike", "confidence": 0.93}
    assert asset["aiMetadata"]["processedAt"] and asset["aiMetadata"]["error"] is None
    assert event == {
        "event": "asset_processed",
        "assetId": asset_id,
        "status": "active",
        "aiMetadata": {name: asset["aiMetadata"][name] for name in ("brand", "model", "colorway")},
        "processedImageUrl": asset["images"]["processed"]["url"],
        "timestamp": asset["finishedAt"],
    }
    (request,) = ai_service.state()["requests"]
    assert request["body"] == {"imageUrl": asset["images"]["original"]["url"], "category": "sneaker"}
    assert request["headers"]["X-Asset-Id"] == asset_id


@pytest.mark.spec("T041")
@pytest.mark.gen_test(timeout=60)
async def test_processed_image_url_is_stored(service: Service) -> None:
    """images.processed.url is the URL of the AI service's reply."""
    async with listening(service) as events:
        asset_id = await upload(service)
        await next_event(events)
    expected = f"https://images.example/processed/{asset_id}.webp"
    assert service.asset(asset_id)["images"]["processed"] == {"url": expected}


@pytest.mark.gen_test(timeout=60)
async def test_missing_model_makes_the_asset_partial(service: Service, ai_service: AiService) -> None:
    """A missing field is "" with confidence 0 in the event, and the status is partial."""
    ai_service.configure(replies=[{"body": {"brand": "LEGO"}}])
    async with listening(service) as events:
        asset_id = await upload(service, category="lego")
        event = await next_event(events)
    assert event["status"] == "partial" == service.asset(asset_id)["status"]
    assert event["aiMetadata"]["model"] == {"value": "", "confidence": 0}


@pytest.mark.spec("T043")
@pytest.mark.gen_test(timeout=60)
async def test_server_errors_are_tried_three_times(service: Service, ai_service: AiService) -> None:
    """Two 5xx answers cause two waits, the second twice the first. The third attempt makes the asset active."""
    ai_service.configure(replies=[{"status": 503}, {"status": 500}])
    async with listening(service) as events:
        asset_id = await upload(service)
        assert (await next_event(events))["status"] == "active"
    assert ai_service.state()["calls"] == 3
    retries = service.find("job_retrying", assetId=asset_id)
    assert [(line["attempt"], line["delayMs"]) for line in retries] == [(1, 200), (2, 400)]


@pytest.mark.spec("T044")
@pytest.mark.gen_test(timeout=60)
async def test_asset_fails_after_the_last_attempt(service: Service, ai_service: AiService) -> None:
    """After three failures the asset is failed with the reason, and the owner gets the failure event."""
    ai_service.configure(replies=[{"status": 503, "times": 3}])
    async with listening(service) as events:
        asset_id = await upload(service)
        event = await next_event(events)
    message = "AI service unavailable after 3 attempts"
    asset = service.asset(asset_id)
    assert event == {
        "event": "asset_processed",
        "assetId": asset_id,
        "status": "failed",
        "error": message,
        "timestamp": asset["finishedAt"],
    }
    assert (asset["status"], asset["aiMetadata"]["error"]) == ("failed", message)
    status = await wait_for_status(service, failed=1)
    assert status["active"] == 0
    assert ai_service.state()["calls"] == 3


@pytest.mark.gen_test(timeout=60)
async def test_refused_image_fails_at_once(service: Service, ai_service: AiService) -> None:
    """After a 4xx of the AI service the asset is failed; the service is called once."""
    ai_service.configure(replies=[{"status": 422, "body": {"error": {"message": "Not a product", "code": "X"}}}])
    async with listening(service) as events:
        await upload(service)
        event = await next_event(events)
    assert (event["status"], event["error"]) == ("failed", "Not a product")
    assert ai_service.state()["calls"] == 1


@pytest.mark.spec("T045")
@pytest.mark.gen_test(timeout=60)
async def test_job_of_a_deleted_asset_ends_without_event(service: Service, ai_service: AiService) -> None:
    """Assets are deleted while their jobs run or wait: the jobs end, and no event is sent."""
    ai_service.configure(paused=True)
    running = [await upload(service) for _ in range(5)]
    service.wait_log("job_claimed", count=5)
    waiting = await upload(service)
    for asset_id in (running[0], waiting):
        response = httpx.delete(f"{service.url}/api/assets/{asset_id}", headers=service.headers())
        assert response.status_code == 204
    async with listening(service) as events:
        ai_service.configure(paused=False)
        received = {(await next_event(events))["assetId"] for _ in range(4)}
    assert received == set(running[1:])
    await wait_for_status(service, completed=6)
    assert service.find("job_cancelled", assetId=running[0])


@pytest.mark.gen_test(timeout=60)
async def test_only_the_sockets_of_the_owner_get_the_event(service: Service) -> None:
    """Both sockets of the owner get the event. The first event of another user is about their own asset."""
    async with listening(service) as one, listening(service) as two, listening(service, "user-2") as other:
        mine = await upload(service)
        assert (await next_event(one))["assetId"] == mine == (await next_event(two))["assetId"]
        theirs = await upload(service, "user-2")
        assert (await next_event(other))["assetId"] == theirs


@pytest.mark.gen_test(timeout=60)
async def test_failed_asset_can_be_retried(service: Service, ai_service: AiService) -> None:
    """A retry starts a new job, which has a new result. The retry of an active asset is refused."""
    ai_service.configure(replies=[{"status": 422}])
    async with listening(service) as events:
        asset_id = await upload(service)
        first = await next_event(events)
        response = httpx.post(f"{service.url}/api/assets/{asset_id}/retry", headers=service.headers())
        check_reply("POST", "/api/assets/{id}/retry", response.status_code, response.json())
        assert response.status_code == 202
        second = await next_event(events)
    assert (first["status"], second["status"]) == ("failed", "active")
    assert service.asset(asset_id)["processingJobId"] == response.json()["data"]["jobId"]
    refused = httpx.post(f"{service.url}/api/assets/{asset_id}/retry", headers=service.headers())
    check_reply("POST", "/api/assets/{id}/retry", refused.status_code, refused.json())
    assert refused.status_code == 409


@pytest.mark.gen_test(timeout=60)
async def test_list_shows_own_assets_newest_first(service: Service) -> None:
    """The list has pages with cursors and a filter. Another user cannot read the assets."""
    ids = [await upload(service, category=category) for category in ("lego", "camera", "lego")]
    await upload(service, "user-2")
    page = service.get("/api/assets", limit=2).json()
    check_reply("GET", "/api/assets", 200, page)
    assert [item["id"] for item in page["data"]["items"]] == [ids[2], ids[1]]
    rest = service.get("/api/assets", limit=2, cursor=page["data"]["nextCursor"]).json()["data"]
    assert ([item["id"] for item in rest["items"]], rest["nextCursor"]) == ([ids[0]], None)
    lego = service.get("/api/assets", category="lego").json()["data"]["items"]
    assert [item["id"] for item in lego] == [ids[2], ids[0]]
    assert service.get(f"/api/assets/{ids[0]}", "user-2").status_code == 404


@pytest.mark.spec("T026")
@pytest.mark.spec("T055")
@pytest.mark.gen_test(timeout=60)
async def test_log_lines_of_an_upload_share_its_ids(service: Service) -> None:
    """The lines of submission and job have the same request, asset and job ids; the job's have attempt and duration."""
    async with listening(service) as events:
        asset_id = await upload(service, headers={"X-Request-Id": "request-7"})
        await next_event(events)
    ids = {"requestId": "request-7", "assetId": asset_id, "jobId": f"ai-processing:{asset_id}"}
    service.wait_log("asset_submitted", **ids)
    service.wait_log("job_claimed", attempt=1, **ids)
    assert service.wait_log("job_completed", attempt=1, **ids)["durationMs"] >= 0


@pytest.mark.gen_test(timeout=60)
async def test_job_in_redis_has_exactly_the_payload_of_the_contract(
    tmp_path: Path, ai_service: AiService, redis_server: RedisServer, redis_url: str
) -> None:
    """The record in Redis has the payload of the contract and never the image."""
    redis = redis_server.client()
    with Service(tmp_path, ai_service.url, REDIS_URL=redis_url, ROLE="web") as service:
        asset_id = await upload(service)
        (key,) = redis.keys(f"*:ai-processing:{asset_id}")
        record = redis.get(key)
        check_job(json.loads(record)["data"])
        assert len(record) < 2000
    with Service(tmp_path, ai_service.url, REDIS_URL=redis_url, ROLE="worker") as service:
        service.wait_log("job_completed", assetId=asset_id)
    assert redis.keys(f"*:ai-processing:{asset_id}") == []


async def wait_for_status(service: Service, **counts: int) -> dict[str, Any]:
    """Wait until the queue status shows these counts and return it; a job is acknowledged after its event."""
    async with asyncio.timeout(30):
        while True:
            status: dict[str, Any] = service.get("/api/assets/queue-status").json()["data"]
            if counts.items() <= status.items():
                return status
            await asyncio.sleep(0.02)
