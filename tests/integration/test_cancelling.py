"""Cancelling an asset on the running service: its job waits or runs, on each process, with and without Redis."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.client import Client
from tests.constants import RENEWALS_PER_LEASE
from tests.contract.contracts import check_event, check_reply
from tests.factories import make_token
from tests.fake_receiver import FakeReceiver
from tests.integration.webhook_service import admin, wait_metric, webhook
from tests.redis_server import RedisServer
from tests.service import AiService, Service


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    with Service(tmp_path, ai_service.url, CONCURRENCY="1") as service:
        yield service


def upload(service: Service, sub: str = "user-1") -> str:
    response = service.upload(sub)
    assert response.status_code == 202, response.text
    return str(response.json()["data"]["assetId"])


def cancel(service: Service, asset_id: str, sub: str = "user-1", **claims: Any) -> httpx.Response:
    """Cancel the asset; return the reply, checked against the contract."""
    path = f"/api/assets/{asset_id}/cancel"
    response = httpx.post(service.url + path, headers=service.headers(sub, **claims), timeout=30)
    check_reply("POST", path, response.status_code, response.json(), response.headers)
    return response


def cancelled(service: Service, asset_id: str, sub: str = "user-1", **claims: Any) -> dict[str, Any]:
    """Cancel the asset; return it from the reply."""
    response = cancel(service, asset_id, sub, **claims)
    assert response.status_code == 200, response.text
    asset: dict[str, Any] = response.json()["data"]
    assert (asset["status"], asset["aiMetadata"]["error"]) == ("failed", "Cancelled")
    return asset


@pytest.mark.gen_test(timeout=60)
async def test_waiting_job_ends_at_once(service: Service, ai_service: AiService) -> None:
    """The cancelled asset is failed, its owner gets the event, its job leaves the queue, and a retry is accepted."""
    ai_service.configure(paused=True)
    async with Client(service.url, make_token()) as client:
        await client.listen()
        running, waiting = [await asyncio.to_thread(upload, service) for _ in range(2)]
        await asyncio.to_thread(service.wait_status, active=1, waiting=1)
        asset = await asyncio.to_thread(cancelled, service, waiting)
        event = await asyncio.wait_for(anext(client.events()), 30)
        check_event(event)
        assert event == {
            "event": "asset_processed",
            "assetId": waiting,
            "status": "failed",
            "error": "Cancelled",
            "timestamp": asset["finishedAt"],
        }
        status = await asyncio.to_thread(service.wait_status, waiting=0)
        assert (status["active"], status["completed"], status["failed"]) == (1, 1, 0)
        assert service.asset(waiting) == asset
        retried = httpx.post(f"{service.url}/api/assets/{waiting}/retry", headers=service.headers())
        assert retried.status_code == 202
        ai_service.configure(paused=False)
        events = client.events()
        ends = {each["assetId"]: each["status"] for each in [await asyncio.wait_for(anext(events), 30) for _ in "ab"]}
        assert ends == {running: "active", waiting: "active"}
    assert admin(service, "GET", "/api/queue/failed")["items"] == []


def test_running_job_frees_its_slot_at_once(service: Service, ai_service: AiService) -> None:
    """The next job starts before the provider replies to the cancelled job; no job becomes a dead letter."""
    ai_service.configure(paused=True)
    first = upload(service)
    service.wait_log("job_claimed", assetId=first)
    second = upload(service)
    cancelled(service, first)
    service.wait_log("job_cancelled", assetId=first)
    service.wait_log("job_claimed", assetId=second)
    ai_service.configure(paused=False)
    service.wait_status(active=0, completed=2)
    assert service.asset(first)["status"] == "failed" and service.asset(second)["status"] == "active"
    assert admin(service, "GET", "/api/queue/failed")["items"] == []
    assert service.find("lease_lost") == []


def test_running_job_ends_on_another_process(tmp_path: Path, ai_service: AiService, redis_url: str) -> None:
    """The worker process gets the cancel when it renews its lease, and its slot takes the next job."""
    shared = {"REDIS_URL": redis_url, "CONCURRENCY": "1", RENEWALS_PER_LEASE: "30"}
    ai_service.configure(paused=True)
    with (
        Service(tmp_path, ai_service.url, ROLE="web", **shared) as web,
        Service(tmp_path, ai_service.url, ROLE="worker", **shared) as worker,
    ):
        first = upload(web)
        worker.wait_log("job_claimed", assetId=first)
        second = upload(web)
        cancelled(web, first)
        worker.wait_log("job_cancelled", assetId=first)
        worker.wait_log("job_claimed", assetId=second)
        ai_service.configure(paused=False)
        web.wait_status(active=0, completed=2, failed=0)
        assert web.asset(first)["aiMetadata"]["error"] == "Cancelled" and web.asset(second)["status"] == "active"


def test_cancel_refuses_other_users_and_finished_assets(service: Service, ai_service: AiService) -> None:
    """The reply is 404 for another user's asset, 409 for a finished one, 400 for a malformed id; admins may cancel."""
    done = upload(service)
    service.wait_log("asset_finished", assetId=done)
    response = cancel(service, done)
    assert response.status_code == 409
    assert response.json()["error"]["message"].endswith("this one is active")
    ai_service.configure(paused=True)
    asset_id = upload(service)
    assert cancel(service, asset_id, "user-2").status_code == 404
    assert cancel(service, "f" * 24).status_code == 404
    assert cancel(service, "none").status_code == 400
    path = f"{service.url}/api/assets/{asset_id}/cancel"
    assert httpx.post(path).status_code == 401
    assert service.asset(asset_id)["status"] == "processing"
    assert cancelled(service, asset_id, "boss", role="admin")["userId"] == "user-1"
    assert cancel(service, asset_id).status_code == 409


@pytest.mark.gen_test(timeout=60)
async def test_one_of_ten_concurrent_cancels_succeeds(service: Service, ai_service: AiService) -> None:
    """One reply has the asset, the other nine are conflicts; the owner gets one event."""
    ai_service.configure(paused=True)
    async with Client(service.url, make_token()) as client:
        await client.listen()
        asset_id = await asyncio.to_thread(upload, service)
        replies = await asyncio.gather(*(asyncio.to_thread(cancel, service, asset_id) for _ in range(10)))
        assert Counter(reply.status_code for reply in replies) == {200: 1, 409: 9}
        other = await asyncio.to_thread(upload, service)
        await asyncio.to_thread(cancelled, service, other)
        events = client.events()
        assert [(await asyncio.wait_for(anext(events), 30))["assetId"] for _ in "ab"] == [asset_id, other]


@pytest.mark.gen_test(timeout=120)
async def test_concurrent_cancel_and_commit_agree_everywhere(tmp_path: Path, ai_service: AiService) -> None:
    """Sixty assets are cancelled while their results are committed: reply, asset and events agree for each asset."""
    ai_service.configure(delay_ms=100)
    seen: dict[str, set[str]] = {}
    wait_seconds = 0.1
    with Service(tmp_path, ai_service.url) as service:
        async with Client(service.url, make_token()) as client:
            await client.listen()

            async def cancel_near_the_commit() -> tuple[str, int]:
                nonlocal wait_seconds
                asset_id = await asyncio.to_thread(upload, service)
                # Each asset a little nearer to the moment of the commit.
                await asyncio.sleep(wait_seconds)
                code = (await asyncio.to_thread(cancel, service, asset_id)).status_code
                wait_seconds = wait_seconds * 1.1 if code == 200 else wait_seconds * 0.9
                return asset_id, code

            replies = dict([await cancel_near_the_commit() for _ in range(60)])
            events = client.events()
            while len(seen) < 60:
                event = await asyncio.wait_for(anext(events), 30)
                seen.setdefault(event["assetId"], set()).add(event["status"])
        service.wait_status(active=0, waiting=0, delayed=0, failed=0, completed=60)
        assert set(replies.values()) == {200, 409}, "only one of the two outcomes occurred"
        for asset_id, code in replies.items():
            expected = "failed" if code == 200 else "active"
            assert (service.asset(asset_id)["status"], seen[asset_id]) == (expected, {expected})


def test_cancel_needs_no_redis(tmp_path: Path, ai_service: AiService, own_redis: RedisServer) -> None:
    """A cancel is answered within four seconds without Redis; when Redis is back, the jobs end as completed."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url, CONCURRENCY="1", REDIS_URL=own_redis.url) as service:
        running, waiting = upload(service), upload(service)
        service.wait_log("job_claimed", assetId=running)
        own_redis.stop()
        for asset_id in (running, waiting):
            started_at = time.monotonic()
            cancelled(service, asset_id)
            assert time.monotonic() - started_at < 4
        service.wait_log("job_cancelled", assetId=running)
        own_redis.start()
        service.wait_status(active=0, waiting=0, delayed=0, completed=2, failed=0)
        for asset_id in (running, waiting):
            assert service.asset(asset_id)["aiMetadata"]["error"] == "Cancelled"
        assert ai_service.state()["calls"] == 1


def test_durable_notifiers_get_a_cancel(tmp_path: Path, ai_service: AiService, receiver: FakeReceiver) -> None:
    """The webhook gets the event of a cancelled running job and of a cancelled waiting job."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url, CONCURRENCY="1", **webhook(receiver.url)) as service:
        ids = [upload(service), upload(service)]
        service.wait_log("job_claimed", assetId=ids[0])
        for asset_id in ids:
            cancelled(service, asset_id)
        wait_metric(service, 'pipeline_jobs_finished_total{outcome="completed",queue="notifications"}', 2.0)
        service.wait_status(active=0, waiting=0, completed=2)
    bodies = [json.loads(request.body) for request in receiver.accepted]
    assert {body["data"]["assetId"]: body["data"]["error"] for body in bodies} == dict.fromkeys(ids, "Cancelled")
