"""The promises of AssetStore for the runs of a job: fences, results, cancels, requeues and refunds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from pipeline.assets.asset import ATTEMPTS_AT_MOST, AiMetadata, AssetStatus
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from tests.integration.asset_stores import FOUND, MINUTE, NOON, PROCESSED, begin, create, create_finished, finish
from tests.integration.asset_stores import make_store, store  # noqa: F811

__all__ = ["make_store", "store"]


@pytest.mark.gen_test
async def test_begin_takes_a_new_fence_each_time(store: AssetStore) -> None:
    """Twenty concurrent starts get twenty different fences, 1 to 20."""
    asset = await create(store)
    begun = await asyncio.gather(*(begin(store, asset) for _ in range(20)))
    assert sorted(each.fence for each in begun) == list(range(1, 21))


@pytest.mark.gen_test
async def test_begin_starts_only_the_current_job_of_the_owner(store: AssetStore) -> None:
    """With another user, another job or a finished asset, begin returns None and takes no fence."""
    asset = await create(store)
    assert await store.begin(asset.id, "user-2", asset.processing_job_id) is None
    assert await store.begin(asset.id, "user-1", "ai-processing:other") is None
    assert (await begin(store, asset)).fence == 1
    assert await finish(store, asset, 1)
    assert await store.begin(asset.id, "user-1", asset.processing_job_id) is None
    current = await store.get(asset.id)
    assert current is not None and current.fence == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("status", [AssetStatus.ACTIVE, AssetStatus.PARTIAL])
async def test_finish_commits_the_result(store: AssetStore, status: AssetStatus) -> None:
    """Finish returns the committed asset, and get returns the same asset."""
    asset = await create(store)
    begun = await begin(store, asset)
    done = await finish(store, asset, begun.fence, status=status)
    assert done is not None
    assert (done.status, done.ai_metadata, done.processed, done.finished_at) == (status, FOUND, PROCESSED, NOON)
    assert done.updated_at >= asset.updated_at
    assert await store.get(asset.id) == done


@pytest.mark.gen_test
async def test_fail_commits_the_error(store: AssetStore) -> None:
    """A failed asset has the error and no result."""
    asset = await create(store)
    begun = await begin(store, asset)
    failed = await store.fail(asset.id, asset.processing_job_id, begun.fence, error="too bad", finished_at=NOON)
    assert failed is not None
    assert (failed.status, failed.ai_metadata, failed.processed) == (
        AssetStatus.FAILED,
        AiMetadata(error="too bad"),
        None,
    )


@pytest.mark.gen_test
async def test_cancel_ends_a_job_that_is_running(store: AssetStore) -> None:
    """The first cancel fails the asset with the error "Cancelled"; a run that began before can commit nothing."""
    asset = await create(store)
    begun = await begin(store, asset)
    cancelled = await store.cancel(asset.id, asset.processing_job_id, finished_at=NOON)
    assert cancelled is not None and cancelled.is_cancelled and cancelled.fence == begun.fence + 1
    assert (cancelled.ai_metadata, cancelled.processed) == (AiMetadata(error="Cancelled"), None)
    assert cancelled.finished_at == NOON and cancelled.updated_at >= begun.updated_at
    assert await finish(store, asset, begun.fence) is None
    assert await store.fail(asset.id, asset.processing_job_id, begun.fence, error="x", finished_at=NOON) is None
    assert await store.begin(asset.id, asset.user_id, asset.processing_job_id) is None
    assert await store.cancel(asset.id, asset.processing_job_id, finished_at=NOON + MINUTE) is None
    assert await store.get(asset.id) == cancelled
    requeued = await store.requeue(asset.id, asset.user_id, "ai-processing:new")
    assert requeued is not None and requeued.status is AssetStatus.PROCESSING and requeued.starts == 0


@pytest.mark.gen_test
async def test_cancel_matches_only_the_job_that_is_processing(store: AssetStore) -> None:
    """Cancelling another job, an unknown asset or a finished asset changes nothing."""
    asset = await create(store)
    assert await store.cancel(asset.id, "ai-processing:other", finished_at=NOON) is None
    assert await store.cancel("f" * 24, asset.processing_job_id, finished_at=NOON) is None
    assert await store.get(asset.id) == asset
    done = await create_finished(store, AssetStatus.PARTIAL)
    assert await store.cancel(done.id, done.processing_job_id, finished_at=NOON) is None
    assert await store.get(done.id) == done


@pytest.mark.gen_test(timeout=60)
async def test_concurrent_cancel_and_finish_commit_only_one(store: AssetStore) -> None:
    """Of a cancel and a finish at the same time, one commits, the other returns None; forty assets prove it."""

    async def cancel_and_finish() -> None:
        asset = await create(store)
        fence = (await begin(store, asset)).fence
        cancelled, finished = await asyncio.gather(
            store.cancel(asset.id, asset.processing_job_id, finished_at=NOON), finish(store, asset, fence)
        )
        assert (cancelled is None) != (finished is None)
        assert await store.get(asset.id) == (cancelled or finished)

    await asyncio.gather(*(cancel_and_finish() for _ in range(40)))


@pytest.mark.gen_test
async def test_old_fence_matches_nothing(store: AssetStore) -> None:
    """A run with an old fence can neither finish nor fail the asset, before or after the newer run commits."""
    asset = await create(store)
    old, new = await begin(store, asset), await begin(store, asset)
    for _ in range(2):
        assert await finish(store, asset, old.fence) is None
        assert await store.fail(asset.id, asset.processing_job_id, old.fence, error="x", finished_at=NOON) is None
        await finish(store, asset, new.fence)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.ACTIVE


@pytest.mark.gen_test(timeout=30)
async def test_finish_with_the_seen_asset_returns_the_stored_asset(store: AssetStore) -> None:
    """The returned asset has a correction that was made after the run read it, also in a batch of commits.

    A stale commit and a second commit still match nothing.
    """
    seen = [await begin(store, await create(store)) for _ in range(8)]
    seen += [await create(store) for _ in range(2)]
    overtaken = seen.pop(0)
    await begin(store, overtaken)
    corrections = {"brand": {"value": "A", "by": "u", "at": "t"}}
    assert await store.correct(seen[3], replace(seen[3], corrections=corrections)) is not None
    rest: dict[str, Any] = {"attempt": {"attempt": 1, "reason": "é"}, "provenance": {"provider": "x"}}
    rest["previews"] = {"256": replace(PROCESSED, public_id="x/preview-256")}
    for _ in range(2):
        assert await finish(store, overtaken, overtaken.fence, seen=overtaken, **rest) is None
    done = await asyncio.gather(*(finish(store, each, each.fence, seen=each, **rest) for each in seen))
    assert list(done) == [await store.get(each.id) for each in seen]
    assert [each.corrections for each in done if each] == [corrections if each is seen[3] else {} for each in seen]
    assert await asyncio.gather(*(finish(store, each, each.fence, seen=each, **rest) for each in seen)) == [None] * 9


@pytest.mark.gen_test
async def test_result_is_committed_once(store: AssetStore) -> None:
    """Of ten commits with one fence, one succeeds."""
    asset = await create(store)
    fence = (await begin(store, asset)).fence
    done = await asyncio.gather(*(finish(store, asset, fence) for _ in range(10)))
    assert sum(each is not None for each in done) == 1


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("status", [AssetStatus.ACTIVE, AssetStatus.PARTIAL, AssetStatus.FAILED])
async def test_reanalysis_of_a_finished_asset_needs_the_newest_fence(store: AssetStore, status: AssetStatus) -> None:
    """The asset keeps its status and result until the newest run commits.

    A reanalysis counts as no start. A new job of the asset makes the run of the reanalysis stale.
    """
    done = await create_finished(store, status)
    asset_id, user_id, job_id = done.id, done.user_id, done.processing_job_id
    assert await store.begin(asset_id, user_id, job_id) is None
    assert await store.begin(asset_id, "user-2", job_id, is_reanalysis=True) is None
    old, new = [await store.begin(asset_id, user_id, job_id, is_reanalysis=True) for _ in range(2)]
    assert old is not None and new is not None
    assert new.starts == done.starts and new.fence == done.fence + 2
    assert (new.status, new.ai_metadata, new.finished_at) == (status, done.ai_metadata, NOON)
    attempt = {"attempt": 1, "outcome": "failed"}
    await store.add_attempt(asset_id, job_id, old.fence, attempt)
    await store.add_attempt(asset_id, job_id, new.fence, attempt)
    assert await finish(store, new, new.fence) is None
    assert await finish(store, new, old.fence, is_reanalysis=True) is None
    finished = await finish(store, new, new.fence, finished_at=NOON + timedelta(seconds=1), is_reanalysis=True)
    assert finished is not None and finished.status is AssetStatus.ACTIVE
    assert finished.finished_at == NOON + timedelta(seconds=1) and list(finished.attempts) == [attempt]
    begun = await begin(store, await create(store))
    assert await store.begin(begun.id, begun.user_id, begun.processing_job_id, is_reanalysis=True) is None
    assert await finish(store, begun, begun.fence, is_reanalysis=True) is None
    if status is not AssetStatus.ACTIVE:
        other = await create_finished(store, status)
        run = await store.begin(other.id, other.user_id, other.processing_job_id, is_reanalysis=True)
        assert run is not None and await store.requeue(other.id, other.user_id, "ai-processing:new") is not None
        assert await finish(store, run, run.fence, is_reanalysis=True) is None


@pytest.mark.gen_test(timeout=30)
async def test_refunded_starts_do_not_count(store: AssetStore) -> None:
    """A refund counts for the current job while it is processing; a new job has no starts."""
    asset = await create(store)
    for _ in range(3):
        await store.begin(asset.id, asset.user_id, asset.processing_job_id)
    await store.refund_start(asset.id, asset.processing_job_id)
    await store.refund_start(asset.id, "ai-processing:another")
    begun = await store.begin(asset.id, asset.user_id, asset.processing_job_id)
    assert begun is not None and (begun.fence, begun.excused, begun.starts) == (4, 1, 3)
    await store.fail(asset.id, asset.processing_job_id, 4, error="no", finished_at=utc_now())
    await store.refund_start(asset.id, asset.processing_job_id)
    requeued = await store.requeue(asset.id, asset.user_id, "ai-processing:new")
    assert requeued is not None and (requeued.fence, requeued.starts) == (4, 0)


@pytest.mark.gen_test
@pytest.mark.parametrize("status", [AssetStatus.FAILED, AssetStatus.PARTIAL])
async def test_requeue_starts_over_and_keeps_the_fence(store: AssetStore, status: AssetStatus) -> None:
    """The asset is processing under the new job and has no result; older runs can commit nothing."""
    done = await create_finished(store, status)
    new = await store.requeue(done.id, "user-1", "ai-processing:new")
    assert new is not None
    assert (new.status, new.processing_job_id, new.fence) == (AssetStatus.PROCESSING, "ai-processing:new", 1)
    assert (new.ai_metadata, new.processed, new.finished_at) == (AiMetadata(), None, None)
    assert await finish(store, done, done.fence) is None
    assert (await begin(store, new)).fence == 2


@pytest.mark.gen_test
async def test_requeue_refuses_active_processing_and_foreign_assets(store: AssetStore) -> None:
    """Requeue returns None for an active asset, a processing asset and an asset of another user."""
    active = await create_finished(store, AssetStatus.ACTIVE)
    processing = await create(store)
    failed = await create_finished(store, AssetStatus.FAILED)
    assert await store.requeue(active.id, "user-1", "new") is None
    assert await store.requeue(processing.id, "user-1", "new") is None
    assert await store.requeue(failed.id, "user-2", "new") is None
    assert await store.get(failed.id) == failed


@pytest.mark.gen_test
async def test_refunded_starts_never_exceed_the_starts(store: AssetStore) -> None:
    """Of ten refunds at the same time after three starts, three count."""
    asset = await create(store)
    await store.refund_start(asset.id, asset.processing_job_id)
    for _ in range(3):
        await begin(store, asset)
    await asyncio.gather(*(store.refund_start(asset.id, asset.processing_job_id) for _ in range(10)))
    current = await store.get(asset.id)
    assert current is not None and (current.fence, current.excused) == (3, 3)


@pytest.mark.gen_test
async def test_attempts_and_provenance_are_stored(store: AssetStore) -> None:
    """The attempts of all runs of the job are stored, the newest of them; a stale run adds none."""
    asset = await create(store)
    begun = await begin(store, asset)
    for number in range(ATTEMPTS_AT_MOST + 1):
        await store.add_attempt(asset.id, asset.processing_job_id, begun.fence, {"attempt": number, "reason": "é"})
    await store.add_attempt(asset.id, asset.processing_job_id, begun.fence + 1, {"attempt": 99})
    done = await finish(store, begun, begun.fence, attempt={"attempt": 20}, provenance={"provider": "x"}, previews={})
    assert done is not None and done.provenance == {"provider": "x"}
    assert [each["attempt"] for each in done.attempts] == [*range(2, ATTEMPTS_AT_MOST + 1), 20]
    assert await store.get(asset.id) == done
