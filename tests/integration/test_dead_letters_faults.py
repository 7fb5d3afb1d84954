"""Retries of dead letters with faults between two steps: Redis is away, a newer job, a stopping service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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

BASE = "pipeline:{ai-processing}:"


class FaultyQueue(JobQueue):
    """A queue that cannot reach Redis in the named method."""

    failing_method = ""

    async def enqueue(self, *args: Any, **options: Any) -> bool:
        if self.failing_method == "enqueue":
            raise DependencyUnavailable("The queue cannot be reached")
        return await super().enqueue(*args, **options)

    async def remove_failed(self, *job_ids: str) -> int:
        if self.failing_method == "remove_failed":
            raise DependencyUnavailable("The queue cannot be reached")
        return await super().remove_failed(*job_ids)


class RetryBench(SimpleNamespace):
    """A store, a queue and the use case that retries dead letters, with methods that add dead letters."""

    store: SqliteAssetStore
    queue: FaultyQueue
    redis: Redis
    submission: Submission
    dead_letters: DeadLetters
    deferred: list[bool]

    async def add_dead_letter(self, asset: Asset, job_id: str, failed_at_ms: int, *, is_new: bool = True) -> None:
        """Make the asset failed by that job, and add the dead letter of the job."""
        if is_new:
            assert await self.store.create(asset)
        begun = await self.store.begin(asset.id, asset.user_id, job_id)
        assert begun is not None
        assert await self.store.fail(asset.id, job_id, begun.fence, error="no", finished_at=utc_now())
        self.redis.set(BASE + "record:" + job_id, json.dumps({"data": job_data(asset)}))
        self.redis.set(BASE + "state:" + job_id, json.dumps({"state": "failed", "attempt": 3, "error": "no"}))
        self.redis.zadd(BASE + "failed", {job_id: failed_at_ms})

    async def add_new_dead_letter(self, failed_at_ms: int) -> Asset:
        asset = make_asset()
        await self.add_dead_letter(asset, asset.processing_job_id, failed_at_ms)
        return asset

    async def status(self, asset: Asset) -> AssetStatus:
        current = await self.store.get(asset.id)
        assert current is not None
        return current.status


@pytest.fixture
def retry_bench(io_loop: IOLoop, tmp_path: Path, redis_url: str, redis: Redis) -> Iterator[RetryBench]:
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
    records = JobRecords(store, queue, keep_failed_seconds=604_800, max_age_seconds=86_400)
    io_loop.run_sync(store.open)
    dead = DeadLetters(store, queue, records, use_case)
    yield RetryBench(store=store, queue=queue, redis=redis, submission=use_case, deferred=deferred, dead_letters=dead)
    io_loop.run_sync(queue.close)
    io_loop.run_sync(store.close)


@pytest.mark.gen_test
async def test_interrupted_retry_leaves_the_dead_letter(retry_bench: RetryBench) -> None:
    """The asset is processing under its new job before the dead letter is removed; a second retry is a conflict."""
    asset = await retry_bench.add_new_dead_letter(1000)
    retry_bench.queue.failing_method = "remove_failed"
    with pytest.raises(DependencyUnavailable):
        await retry_bench.dead_letters.retry_failed(asset.processing_job_id, "r-1")
    current = await retry_bench.store.get(asset.id)
    assert current is not None and current.status is AssetStatus.PROCESSING
    assert (await retry_bench.queue.fields(current.processing_job_id))["state"] == JobState.WAITING
    assert await retry_bench.queue.failed_job(asset.processing_job_id)
    retry_bench.queue.failing_method = ""
    with pytest.raises(Conflict, match=f"processing by {current.processing_job_id}"):
        await retry_bench.dead_letters.retry_failed(asset.processing_job_id, "r-1")


@pytest.mark.gen_test
async def test_retry_without_redis_is_finished_by_the_reconciler(retry_bench: RetryBench) -> None:
    """The asset has its new job id, and the reconciler enqueues the job later, as after an upload."""
    asset = await retry_bench.add_new_dead_letter(1000)
    retry_bench.queue.failing_method = "enqueue"
    receipt = await retry_bench.dead_letters.retry_failed(asset.processing_job_id, "r-1")
    assert retry_bench.deferred == [True]
    assert await retry_bench.status(asset) is AssetStatus.PROCESSING
    assert await retry_bench.queue.fields(receipt.job_id) == {}


@pytest.mark.gen_test
async def test_retry_also_removes_the_newer_dead_letter_of_its_asset(retry_bench: RetryBench) -> None:
    """An asset that failed under two jobs gets one new job, and both dead letters are removed."""
    asset = await retry_bench.add_new_dead_letter(1000)
    newer_job = f"ai-processing:{'b' * 24}"
    assert await retry_bench.store.requeue(asset.id, asset.user_id, newer_job)
    await retry_bench.add_dead_letter(asset, newer_job, 2000, is_new=False)
    page = await retry_bench.dead_letters.retry_all_failed("r-1")
    assert (page.retried, page.skipped) == (1, 1)
    assert (await retry_bench.queue.failed_jobs(10)).jobs == []
    assert (await retry_bench.queue.stats()).waiting == 1


@pytest.mark.parametrize("status", [AssetStatus.ACTIVE, AssetStatus.PARTIAL])
@pytest.mark.gen_test
async def test_retry_does_not_overwrite_a_newer_result(retry_bench: RetryBench, status: AssetStatus) -> None:
    """A retry is refused when a newer job finished the asset, also with a partial result."""
    asset = await retry_bench.add_new_dead_letter(1000)
    newer_job = f"ai-processing:{'b' * 24}"
    assert await retry_bench.store.requeue(asset.id, asset.user_id, newer_job)
    begun = await retry_bench.store.begin(asset.id, asset.user_id, newer_job)
    assert begun is not None
    found = AiMetadata(brand={"value": "Nike", "confidence": 0.9})
    finished = await retry_bench.store.finish(
        asset.id, newer_job, begun.fence, status=status, ai_metadata=found, processed=None, finished_at=utc_now()
    )
    with pytest.raises(Conflict, match=f"{status.value} by {newer_job}"):
        await retry_bench.dead_letters.retry_failed(asset.processing_job_id, "r-1")
    assert await retry_bench.store.get(asset.id) == finished


@pytest.mark.gen_test
async def test_retry_of_all_is_limited_and_ends(retry_bench: RetryBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call retries a limited number and returns the cursor of the next call; no dead letter is tried twice."""
    monkeypatch.setattr(dead_letters, "RETRY_AT_MOST", 2)
    assets = [await retry_bench.add_new_dead_letter(1000 + number) for number in range(5)]
    await retry_bench.store.delete(assets[2].id, "user-1")
    first = await retry_bench.dead_letters.retry_all_failed("r-1")
    assert (first.retried, first.skipped, first.remaining) == (2, 0, 3)
    newer = await retry_bench.add_new_dead_letter(3000)
    second = await retry_bench.dead_letters.retry_all_failed("r-1", first.next_after)
    assert (second.retried, second.skipped, second.remaining) == (1, 1, 1)
    third = await retry_bench.dead_letters.retry_all_failed("r-1", second.next_after)
    assert (third.retried, third.skipped, third.remaining, third.next_after) == (1, 0, 0, None)
    left = [job.id for job in (await retry_bench.queue.failed_jobs(10)).jobs]
    assert left == [newer.processing_job_id, assets[2].processing_job_id]


@pytest.mark.parametrize("asset_id", ["../etc", "\ud800", 7, ["a"], {"a": 1}, "f" * 24])
@pytest.mark.gen_test
async def test_payload_without_a_valid_asset_id_cannot_be_retried(retry_bench: RetryBench, asset_id: Any) -> None:
    """A retry of a payload with an invalid or unknown asset id raises NotFound, and the dead letter stays."""
    asset = await retry_bench.add_new_dead_letter(1000)
    retry_bench.redis.set(BASE + "record:" + asset.processing_job_id, json.dumps({"data": {"assetId": asset_id}}))
    with pytest.raises(NotFound):
        await retry_bench.dead_letters.retry_failed(asset.processing_job_id, "r-1")
    assert await retry_bench.queue.failed_job(asset.processing_job_id)


@pytest.mark.gen_test
async def test_stopping_service_retries_nothing(retry_bench: RetryBench) -> None:
    """After the drain a retry fails, and the dead letter stays for the next process."""
    asset = await retry_bench.add_new_dead_letter(1000)
    await retry_bench.submission.drain(0)
    with pytest.raises(DependencyUnavailable):
        await retry_bench.dead_letters.retry_failed(asset.processing_job_id, "r-1")
    with pytest.raises(DependencyUnavailable):
        await retry_bench.dead_letters.retry_all_failed("r-1")
    assert await retry_bench.status(asset) is AssetStatus.FAILED
