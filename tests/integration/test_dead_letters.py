"""What operators do about jobs that failed for good, and about the queue as a whole: on the running service, and where
a fault must come between two steps, on the use case itself.
"""

from __future__ import annotations

import sqlite3
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, job_data
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, NotFound
from pipeline.hooks.threads import DaemonThreads
from pipeline.metrics import Metrics
from pipeline.queue.job import JobState
from pipeline.queue.queue import JobQueue
from pipeline.usecases import dead_letters
from pipeline.usecases.dead_letters import DeadLetters
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.submission import Submission
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage
from tests.service import AiService, Service

BASE = "pipeline:{ai-processing}:"


# on the running service


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
        ai_service.order(replies=[{"status": 400, "body": {"error": {"message": "No photo", "code": "X"}}}])
        asset_ids.append(upload(service))
        service.wait_status(failed=before + number)
    return asset_ids


def listed(service: Service) -> list[str]:
    return [item["jobId"] for item in call(service, "GET", "/api/queue/failed").json()["data"]["items"]]


def job_of(asset_id: str) -> str:
    return f"ai-processing:{asset_id}"


def test_dead_letter_tells_what_happened(service: Service, ai_service: AiService) -> None:
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


def test_pages_stay_in_step_while_dead_letters_go_and_come(service: Service, ai_service: AiService) -> None:
    """Four pages by cursor: what is removed or added in between is neither repeated nor makes one miss another."""
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
def test_dead_letter_runs_again(service: Service, ai_service: AiService, colon: str) -> None:
    """Its asset gets a new job and becomes active, the dead letter is gone, and the log says who did it."""
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


def test_asset_that_did_not_stay_failed_is_left_alone(service: Service, ai_service: AiService) -> None:
    """Its owner was faster: 409 says so, nothing runs, and the dead letter can be removed."""
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
    """Let the asset's document vanish, as with a store that was set back to a backup."""
    with closing(sqlite3.connect(service.data_dir / "assets.sqlite")) as connection, connection:
        connection.execute("DELETE FROM assets WHERE id = ?", (asset_id,))


def test_dead_letter_of_a_lost_asset_cannot_run(service: Service, ai_service: AiService) -> None:
    """404 says that the asset is gone; the dead letter stays until it is removed."""
    (asset_id,) = fail(service, ai_service)
    lose(service, asset_id)
    response = call(service, "POST", f"/api/queue/failed/{job_of(asset_id)}/retry")
    assert (response.status_code, "asset is gone" in response.json()["error"]["message"]) == (404, True)
    assert listed(service) == [job_of(asset_id)]


def test_all_dead_letters_run_again_except_those_that_cannot(service: Service, ai_service: AiService) -> None:
    """The oldest first; the one whose asset is gone is counted as skipped and stays."""
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
    """They go with their records; their assets stay failed."""
    asset_ids = fail(service, ai_service, 2)
    response = call(service, "DELETE", "/api/queue/failed")
    assert (response.status_code, response.json()["data"]) == (200, {"removed": 2, "remaining": 0})
    assert listed(service) == []
    assert service.asset(asset_ids[0])["status"] == "failed"
    assert service.wait_log("dead_letters_removed", operator="ops-1")["count"] == 2


@pytest.mark.parametrize("damage", ["missing", "of another type", "without payload"])
def test_dead_letter_with_a_damaged_record_runs_again_as_itself(service: Service, redis: Redis, damage: str) -> None:
    """Where only the job's record broke, the asset still waits for this very job, and gets it."""
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
    """Uploads are accepted meanwhile, wait, and start in their order after resume."""
    response = call(service, "POST", "/api/queue/pause")
    assert (response.status_code, response.json()["data"]) == (200, {"paused": True})
    asset_ids = [upload(service) for _ in range(3)]
    status = service.wait_status(waiting=3, paused=True)
    assert status["active"] == 0
    response = call(service, "POST", "/api/queue/resume")
    assert (response.status_code, response.json()["data"]) == (200, {"paused": False})
    service.wait_status(completed=3, paused=False)
    story = [line for line in service.lines if line["event"] in ("queue_paused", "queue_resumed", "job_claimed")]
    assert [line["event"] for line in story] == ["queue_paused", "queue_resumed", *["job_claimed"] * 3]
    assert [line["assetId"] for line in story[2:]] == asset_ids
    assert {line["operator"] for line in story[:2]} == {"ops-1"}


# on the use case


class FaultyQueue(JobQueue):
    """Redis goes away at the named method."""

    away_at = ""

    async def enqueue(self, *args: Any, **options: Any) -> bool:
        if self.away_at == "enqueue":
            raise DependencyUnavailable("The queue cannot be reached")
        return await super().enqueue(*args, **options)

    async def remove_failed(self, *job_ids: str) -> int:
        if self.away_at == "remove_failed":
            raise DependencyUnavailable("The queue cannot be reached")
        return await super().remove_failed(*job_ids)


class House(SimpleNamespace):
    """A store, a queue and the use case over them, and how dead letters come into them."""

    store: SqliteAssetStore
    queue: FaultyQueue
    redis: Redis
    submission: Submission
    dead_letters: DeadLetters
    deferred: list[bool]

    async def bury(self, asset: Asset, job_id: str, failed_at_ms: int, *, is_new: bool = True) -> None:
        """Leave the asset failed by that job, and the job's dead letter."""
        if is_new:
            assert await self.store.create(asset)
        begun = await self.store.begin(asset.id, asset.user_id, job_id)
        assert begun is not None
        assert await self.store.fail(asset.id, job_id, begun.fence, error="no", finished_at=utc_now())
        self.redis.set(BASE + "record:" + job_id, json.dumps({"data": job_data(asset)}))
        self.redis.set(BASE + "state:" + job_id, json.dumps({"state": "failed", "attempt": 3, "error": "no"}))
        self.redis.zadd(BASE + "failed", {job_id: failed_at_ms})

    async def bury_new(self, failed_at_ms: int) -> Asset:
        asset = make_asset()
        await self.bury(asset, asset.processing_job_id, failed_at_ms)
        return asset

    async def status(self, asset: Asset) -> AssetStatus:
        current = await self.store.get(asset.id)
        assert current is not None
        return current.status


@pytest.fixture
def house(io_loop: IOLoop, tmp_path: Path, redis_url: str, redis: Redis) -> Iterator[House]:
    store, queue = SqliteAssetStore(tmp_path / "assets.sqlite"), FaultyQueue(redis_url)
    deferred: list[bool] = []
    storage = MemoryStorage()
    pool = DaemonThreads(1, "tested")
    use_case = Submission(
        *(store, storage, queue, Metrics()),
        orphaned_images=OrphanedImages(store, storage),
        urls=ImageUrls(storage),
        pool=pool,
        on_deferred=lambda: deferred.append(True),
    )
    kept = JobRecords(store, queue, keep_failed_seconds=604_800, max_age_seconds=86_400)
    io_loop.run_sync(store.open)
    dead = DeadLetters(store, queue, kept, use_case)
    yield House(store=store, queue=queue, redis=redis, submission=use_case, deferred=deferred, dead_letters=dead)
    io_loop.run_sync(queue.close)
    io_loop.run_sync(store.close)


@pytest.mark.gen_test
async def test_retry_that_dies_half_way_leaves_the_dead_letter(house: House) -> None:
    """The asset is processing under its new job before the dead letter goes; what follows is told the truth."""
    asset = await house.bury_new(1000)
    house.queue.away_at = "remove_failed"
    with pytest.raises(DependencyUnavailable):
        await house.dead_letters.retry_failed(asset.processing_job_id, "r-1")
    current = await house.store.get(asset.id)
    assert current is not None and current.status is AssetStatus.PROCESSING
    assert (await house.queue.fields(current.processing_job_id))["state"] == JobState.WAITING
    assert await house.queue.failed_job(asset.processing_job_id)
    house.queue.away_at = ""
    with pytest.raises(Conflict, match=f"processing by {current.processing_job_id}"):
        await house.dead_letters.retry_failed(asset.processing_job_id, "r-1")


@pytest.mark.gen_test
async def test_retry_that_cannot_enqueue_leaves_it_to_the_reconciler(house: House) -> None:
    """The asset's new job id is the promise, as with an upload."""
    asset = await house.bury_new(1000)
    house.queue.away_at = "enqueue"
    receipt = await house.dead_letters.retry_failed(asset.processing_job_id, "r-1")
    assert house.deferred == [True]
    assert await house.status(asset) is AssetStatus.PROCESSING
    assert await house.queue.fields(receipt.job_id) == {}


@pytest.mark.gen_test
async def test_retry_settles_the_newer_dead_letter_of_its_asset_too(house: House) -> None:
    """An asset that failed twice, under two jobs, runs once again and leaves no dead letter behind."""
    asset = await house.bury_new(1000)
    again = f"ai-processing:{'b' * 24}"
    assert await house.store.requeue(asset.id, asset.user_id, again)
    await house.bury(asset, again, 2000, is_new=False)
    page = await house.dead_letters.retry_all_failed("r-1")
    assert (page.retried, page.skipped) == (1, 1)
    assert (await house.queue.failed_jobs(10)).jobs == []
    assert (await house.queue.stats()).waiting == 1


@pytest.mark.parametrize("status", [AssetStatus.ACTIVE, AssetStatus.PARTIAL])
@pytest.mark.gen_test
async def test_result_that_came_meanwhile_is_kept(house: House, status: AssetStatus) -> None:
    """A dead letter never costs its asset a result, not even a partial one, which its owner may run again."""
    asset = await house.bury_new(1000)
    again = f"ai-processing:{'b' * 24}"
    assert await house.store.requeue(asset.id, asset.user_id, again)
    begun = await house.store.begin(asset.id, asset.user_id, again)
    assert begun is not None
    found = AiMetadata(brand={"value": "Nike", "confidence": 0.9})
    finished = await house.store.finish(
        asset.id, again, begun.fence, status=status, ai_metadata=found, processed=None, finished_at=utc_now()
    )
    with pytest.raises(Conflict, match=f"{status.value} by {again}"):
        await house.dead_letters.retry_failed(asset.processing_job_id, "r-1")
    assert await house.store.get(asset.id) == finished


@pytest.mark.gen_test
async def test_retry_all_is_bounded_and_ends(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call takes so many and names where the next goes on; what is skipped or fails again is met only once."""
    monkeypatch.setattr(dead_letters, "RETRY_AT_MOST", 2)
    assets = [await house.bury_new(1000 + number) for number in range(5)]
    await house.store.delete(assets[2].id, "user-1")
    first = await house.dead_letters.retry_all_failed("r-1")
    assert (first.retried, first.skipped, first.remaining) == (2, 0, 3)
    newer = await house.bury_new(3000)
    second = await house.dead_letters.retry_all_failed("r-1", first.next_after)
    assert (second.retried, second.skipped, second.remaining) == (1, 1, 1)
    third = await house.dead_letters.retry_all_failed("r-1", second.next_after)
    assert (third.retried, third.skipped, third.remaining, third.next_after) == (1, 0, 0, None)
    left = [job.id for job in (await house.queue.failed_jobs(10)).jobs]
    assert left == [newer.processing_job_id, assets[2].processing_job_id]


@pytest.mark.parametrize("asset_id", ["../etc", "\ud800", 7, ["a"], {"a": 1}, "f" * 24])
@pytest.mark.gen_test
async def test_payload_that_names_no_asset_cannot_run(house: House, asset_id: Any) -> None:
    """Whatever a payload holds, the answer is that there is no such asset."""
    asset = await house.bury_new(1000)
    house.redis.set(BASE + "record:" + asset.processing_job_id, json.dumps({"data": {"assetId": asset_id}}))
    with pytest.raises(NotFound):
        await house.dead_letters.retry_failed(asset.processing_job_id, "r-1")
    assert await house.queue.failed_job(asset.processing_job_id)


@pytest.mark.gen_test
async def test_stopping_service_runs_nothing_again(house: House) -> None:
    """After stop the dead letter stays as it is, for the process that comes next."""
    asset = await house.bury_new(1000)
    await house.submission.drain(0)
    with pytest.raises(DependencyUnavailable):
        await house.dead_letters.retry_failed(asset.processing_job_id, "r-1")
    with pytest.raises(DependencyUnavailable):
        await house.dead_letters.retry_all_failed("r-1")
    assert await house.status(asset) is AssetStatus.FAILED
