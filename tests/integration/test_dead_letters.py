"""Dead letters and the paused queue on a running service: lists, retries and removals by an operator."""

from __future__ import annotations

import sqlite3
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.service import AiService, Service

BASE = "pipeline:{ai-processing}:"


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService, redis_url: str) -> Iterator[Service]:
    with Service(tmp_path, ai_service.url, REDIS_URL=redis_url) as service:
        yield service


def call(service: Service, method: str, path: str, **params: Any) -> httpx.Response:
    """Call a route as an admin."""
    headers = service.headers("ops-1", role="admin")
    return httpx.request(method, service.url + path, headers=headers, params=params, timeout=60)


def upload(service: Service, sub: str = "user-1") -> str:
    asset_id: str = service.upload(sub).json()["data"]["assetId"]
    return asset_id


def fail(service: Service, ai_service: AiService, count: int = 1) -> list[str]:
    """Upload photos that the AI service refuses, one after the other; return their asset ids."""
    before = service.wait_status()["failed"]
    asset_ids = []
    for number in range(1, count + 1):
        ai_service.configure(replies=[{"status": 400, "body": {"error": {"message": "No photo", "code": "X"}}}])
        asset_ids.append(upload(service))
        service.wait_status(failed=before + number)
    return asset_ids


def listed(service: Service) -> list[str]:
    return [item["jobId"] for item in call(service, "GET", "/api/queue/failed").json()["data"]["items"]]


def job_of(asset_id: str) -> str:
    return f"ai-processing:{asset_id}"


def test_dead_letter_names_its_job_and_reason(service: Service, ai_service: AiService) -> None:
    """The list names job, asset, owner, reason, counts and times; nextCursor is null on the last page."""
    (asset_id,) = fail(service, ai_service)
    asset = service.asset(asset_id)
    data = call(service, "GET", "/api/queue/failed").json()["data"]
    (item,) = data["items"]
    assert (item["jobId"], item["assetId"], item["userId"]) == (job_of(asset_id), asset_id, "user-1")
    assert (item["category"], item["reason"], item["attempts"], item["stalls"]) == ("sneaker", "No photo", 1, 0)
    assert item["requestId"] == service.find("asset_submitted")[0]["requestId"]
    assert asset["createdAt"] <= item["enqueuedAt"] <= asset["finishedAt"] <= item["failedAt"]
    assert data["nextCursor"] is None


def test_pages_are_complete_while_dead_letters_change(service: Service, ai_service: AiService) -> None:
    """Four pages by cursor list each dead letter once, although others are removed and added between them."""
    asset_ids = fail(service, ai_service, 8)
    jobs = [job_of(asset_id) for asset_id in reversed(asset_ids)]

    def page(**params: Any) -> tuple[list[str], str | None]:
        data = call(service, "GET", "/api/queue/failed", limit=2, **params).json()["data"]
        return [item["jobId"] for item in data["items"]], data["nextCursor"]

    items, cursor = page()
    assert items == jobs[:2]
    assert call(service, "DELETE", f"/api/queue/failed/{jobs[1]}").status_code == 204
    assert call(service, "DELETE", f"/api/queue/failed/{jobs[2]}").status_code == 204
    fail(service, ai_service)
    items, cursor = page(cursor=cursor)
    assert items == jobs[3:5]
    assert call(service, "POST", f"/api/queue/failed/{jobs[4]}/retry").status_code == 202
    items, cursor = page(cursor=cursor)
    assert items == jobs[5:7]
    items, cursor = page(cursor=cursor)
    assert (items, cursor) == (jobs[7:], None)


@pytest.mark.parametrize("colon", [":", "%3A", "%3a"])
def test_retry_of_a_dead_letter_starts_a_new_job(service: Service, ai_service: AiService, colon: str) -> None:
    """The asset gets a new job and becomes active, the dead letter is removed, and the log names the operator."""
    (asset_id,) = fail(service, ai_service)
    response = call(service, "POST", f"/api/queue/failed/ai-processing{colon}{asset_id}/retry")
    assert response.status_code == 202
    data = response.json()["data"]
    assert data["assetId"] == asset_id and data["jobId"] != job_of(asset_id)
    service.wait_log("job_completed", jobId=data["jobId"])
    asset = service.asset(asset_id)
    assert (asset["status"], asset["processingJobId"]) == ("active", data["jobId"])
    assert listed(service) == []
    service.wait_log("dead_letter_retried", jobId=job_of(asset_id), newJobId=data["jobId"], operator="ops-1")


def test_retry_refuses_a_dead_letter_of_an_active_asset(service: Service, ai_service: AiService) -> None:
    """After the owner's own retry, the operator's retry gets 409 and starts no job; the dead letter can be removed."""
    (asset_id,) = fail(service, ai_service)
    job_id = httpx.post(f"{service.url}/api/assets/{asset_id}/retry", headers=service.headers()).json()["data"]["jobId"]
    service.wait_log("job_completed", jobId=job_id)
    response = call(service, "POST", f"/api/queue/failed/{job_of(asset_id)}/retry")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT")
    assert f"active by {job_id}" in response.json()["error"]["message"]
    assert listed(service) == [job_of(asset_id)]
    assert service.asset(asset_id)["processingJobId"] == job_id
    assert call(service, "DELETE", f"/api/queue/failed/{job_of(asset_id)}").status_code == 204
    assert listed(service) == []
    service.wait_log("dead_letter_removed", jobId=job_of(asset_id), operator="ops-1")


def lose(service: Service, asset_id: str) -> None:
    """Delete the asset's document, as when an older backup of the store is restored."""
    with closing(sqlite3.connect(service.data_dir / "assets.sqlite")) as connection, connection:
        connection.execute("DELETE FROM assets WHERE id = ?", (asset_id,))


def test_dead_letter_of_a_lost_asset_cannot_be_retried(service: Service, ai_service: AiService) -> None:
    """The reply is 404 and names the reason; the dead letter stays until an operator removes it."""
    (asset_id,) = fail(service, ai_service)
    lose(service, asset_id)
    response = call(service, "POST", f"/api/queue/failed/{job_of(asset_id)}/retry")
    assert (response.status_code, "asset is gone" in response.json()["error"]["message"]) == (404, True)
    assert listed(service) == [job_of(asset_id)]


def test_retry_of_all_skips_a_lost_asset(service: Service, ai_service: AiService) -> None:
    """The oldest is retried first; a dead letter whose asset is lost counts as skipped and stays."""
    asset_ids = fail(service, ai_service, 3)
    lose(service, asset_ids[1])
    response = call(service, "POST", "/api/queue/failed/retry")
    assert response.status_code == 202
    assert response.json()["data"] == {"retried": 2, "skipped": 1, "remaining": 0, "nextCursor": None}
    service.wait_status(completed=2)
    claimed = [line["assetId"] for line in service.find("job_claimed")]
    assert claimed == [*asset_ids, asset_ids[0], asset_ids[2]]
    assert listed(service) == [job_of(asset_ids[1])]


def test_all_dead_letters_are_removed(service: Service, ai_service: AiService) -> None:
    """The dead letters are removed with their records; their assets stay failed."""
    asset_ids = fail(service, ai_service, 2)
    response = call(service, "DELETE", "/api/queue/failed")
    assert (response.status_code, response.json()["data"]) == (200, {"removed": 2, "remaining": 0})
    assert listed(service) == []
    assert service.asset(asset_ids[0])["status"] == "failed"
    assert service.wait_log("dead_letters_removed", operator="ops-1")["count"] == 2


@pytest.mark.parametrize("damage", ["missing", "of another type", "without payload"])
def test_retry_of_a_damaged_record_restores_the_same_job(service: Service, redis: Redis, damage: str) -> None:
    """When only the record of the job is damaged, the asset still waits for this job, and the retry enqueues it."""
    call(service, "POST", "/api/queue/pause")
    asset_id = upload(service)
    redis.delete(BASE + "waiting")
    record, state = BASE + "record:" + job_of(asset_id), BASE + "state:" + job_of(asset_id)
    if damage == "without payload":
        redis.set(record, '{"data": [')
        redis.set(state, '{"state": "failed"}')
    else:
        redis.delete(record)
    if damage == "of another type":
        redis.lpush(record, "x")
        redis.lpush(state, "x")
    redis.zadd(BASE + "failed", {job_of(asset_id): time.time_ns() // 1_000_000})
    data = call(service, "GET", "/api/queue/failed").json()["data"]
    assert [(item["jobId"], item["assetId"], item["reason"]) for item in data["items"]] == [
        (job_of(asset_id), None, "Unknown")
    ]
    response = call(service, "POST", f"/api/queue/failed/{job_of(asset_id)}/retry")
    assert (response.status_code, response.json()["data"]["jobId"]) == (202, job_of(asset_id))
    assert listed(service) == []
    assert json.loads(redis.get(record))["data"]["assetId"] == asset_id
    call(service, "POST", "/api/queue/resume")
    service.wait_log("job_completed", jobId=job_of(asset_id))
    assert service.asset(asset_id)["status"] == "active"


def test_paused_queue_starts_nothing_until_it_is_resumed(service: Service) -> None:
    """While the queue is paused, uploads are accepted and wait; after resume they start in their order."""
    response = call(service, "POST", "/api/queue/pause")
    assert (response.status_code, response.json()["data"]) == (200, {"paused": True})
    asset_ids = [upload(service) for _ in range(3)]
    status = service.wait_status(waiting=3, paused=True)
    assert status["active"] == 0
    response = call(service, "POST", "/api/queue/resume")
    assert (response.status_code, response.json()["data"]) == (200, {"paused": False})
    service.wait_status(completed=3, paused=False)
    logged = [line for line in service.lines if line["event"] in ("queue_paused", "queue_resumed", "job_claimed")]
    assert [line["event"] for line in logged] == ["queue_paused", "queue_resumed", *["job_claimed"] * 3]
    assert [line["assetId"] for line in logged[2:]] == asset_ids
    assert {line["operator"] for line in logged[:2]} == {"ops-1"}
