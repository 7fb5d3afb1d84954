"""Old assets and originals are removed, and images that no asset names are removed from every storage in use."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.assets.asset import AssetStatus
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable
from pipeline.hooks.threads import DaemonThreads
from pipeline.queue.job import FailedJob
from pipeline.usecases.expiry import PAGE, PAGES_PER_ROUND
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import UnfinishedAssets
from pipeline.usecases.retention import LEAST_AGE, OWNERS
from pipeline.usecases.submission import Submission
from tests.factories import make_asset
from tests.faults.asset_removal import DAY, AssetRemoval


@pytest.mark.gen_test
async def test_assets_are_removed_after_their_time(removal: AssetRemoval) -> None:
    """Of an asset of eight days, with seven allowed, all parts are removed; younger, open and archived assets stay."""
    old = await removal.add(8)
    dead = FailedJob(old.processing_job_id, old.created_at, {"userId": "user-1"}, "no", 3, 0, old.created_at, "")
    await removal.queue.restore_failed([dead])
    open_asset, archived = [await removal.add(9, status) for status in (AssetStatus.PROCESSING, AssetStatus.ARCHIVED)]
    stay = [await removal.add(6), open_asset, archived]
    await removal.expiry(assets=7).round()
    assert await removal.store.get(old.id) is None
    assert [await removal.store.get(asset.id) for asset in stay] == stay
    assert removal.stored() == {name.public_id for asset in stay for name in asset.image_names}
    assert await removal.queue.failed_job(dead.id) is None
    assert removal.metrics.registry.get_sample_value("pipeline_expired_total", {"kind": "assets"}) == 1


@pytest.mark.gen_test
async def test_originals_are_removed_alone_and_the_asset_cannot_be_run_again(removal: AssetRemoval) -> None:
    """The smaller picture and the results stay; a retry is a conflict that names the reason."""
    old, young = await removal.add(8, AssetStatus.FAILED), await removal.add(6)
    await removal.expiry(originals=7).round()
    current = await removal.store.get(old.id)
    assert current is not None and not current.has_original and current.previews == old.previews
    assert removal.stored() == {f"{old.id}/preview/320", *(name.public_id for name in young.image_names)}
    submission = Submission(
        *(removal.store, removal.storage, removal.queue, removal.metrics),
        orphaned_images=removal.orphaned_images,
        urls=ImageUrls(removal.storage),
        pool=DaemonThreads(1, "tested"),
    )
    with pytest.raises(Conflict, match="Its original is no longer kept"):
        await submission.retry(old.id, "user-1", "r-1")
    removal.redis.delete("pipeline:{ai-processing}:turn:expiry")
    await removal.expiry(assets=7).round()
    assert await removal.store.get(old.id) is None
    assert removal.stored() == {name.public_id for name in young.image_names}


@pytest.mark.gen_test
async def test_round_is_bounded_and_one_process_does_it(removal: AssetRemoval, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round removes a few pages, and the next round the rest; a second process does nothing meanwhile."""
    monkeypatch.setattr("pipeline.usecases.expiry.PAGE", 3)
    monkeypatch.setattr("pipeline.usecases.expiry.PAGES_PER_ROUND", 2)
    monkeypatch.setattr("pipeline.usecases.expiry.REST_SECONDS", 0)
    assert (PAGE, PAGES_PER_ROUND) == (100, 20)
    for _ in range(10):
        await removal.add(8)
    first, second = removal.expiry(assets=7), removal.expiry(assets=7)
    await first.round()
    assert len(await removal.store.expired(utc_now(), limit=100)) == 4
    await second.round()
    assert len(await removal.store.expired(utc_now(), limit=100)) == 4
    await first.round()
    assert await removal.store.expired(utc_now(), limit=100) == []


@pytest.mark.gen_test
async def test_every_storage_in_use_is_swept(removal: AssetRemoval) -> None:
    """Orphaned images are removed from the current storage and from the earlier one, once both have a mark.

    These are images and smaller pictures of removed assets, and superseded images. Images that an asset names stay.
    """
    mark = f"{OWNERS}{await removal.store.identity()}"
    removal.storage.old.put(mark, at=utc_now() - DAY)
    here, there = await removal.add(), await removal.add(backend="old")
    removed_id = make_asset().id
    orphans = f"{removed_id}/original-1", f"{removed_id}/preview/320", f"{here.id}/processed-1"
    for backend in ("memory", "old"):
        removal.storage.of(backend).put(*orphans)
    await removal.sweep()
    removal.storage.saved_at[mark] = utc_now() - LEAST_AGE
    removal.storage.backends = ("memory",)
    await removal.sweep()
    assert removal.stored() == {name.public_id for name in here.image_names}
    assert removal.stored("old") == {name.public_id for name in there.image_names}


@pytest.mark.gen_test
async def test_earlier_storage_without_the_mark_is_not_swept(removal: AssetRemoval) -> None:
    """Its images may belong to another installation. A storage that is away does not keep others from being swept."""
    removal.storage.old.put(f"{make_asset().id}/original-1")
    before = removal.stored("old")
    await removal.sweep()
    await removal.sweep()
    assert removal.stored("old") == before
    removal.storage.put(f"{make_asset().id}/original-1")
    removal.storage.old.is_away = True
    removal.storage.backends = ("old", "memory")
    with pytest.raises(DependencyUnavailable):
        await removal.sweep()
    assert removal.stored() == set()


@pytest.mark.gen_test
async def test_images_of_a_damaged_document_stay(removal: AssetRemoval) -> None:
    """Which images a damaged document names is not known, so they are not removed."""
    asset = await removal.add()
    await removal.store._write("UPDATE assets SET aiMetadata = 'damaged' WHERE id = :id", {"id": asset.id})
    await removal.sweep()
    await removal.sweep()
    assert removal.stored() == {name.public_id for name in asset.image_names}


@pytest.mark.gen_test
async def test_damaged_document_stops_no_search_for_lost_jobs(removal: AssetRemoval) -> None:
    """Of three unfinished assets, in pages of one, the damaged second one is skipped, and the third is enqueued."""
    assets = [await removal.add(number, AssetStatus.PROCESSING) for number in (3, 2, 1)]
    await removal.store._write("UPDATE assets SET original = '{' WHERE id = :id", {"id": assets[1].id})
    source = UnfinishedAssets(removal.store, removal.queue, ImageUrls(removal.storage), age_seconds=60, is_fair=False)
    after, found = None, 0
    for _ in assets:
        restored, after = await source.repair(utc_now(), after, 1)
        found += restored
        if after is None:
            break
    assert found == 2
    assert (await removal.queue.fields(assets[2].processing_job_id))["state"] == "waiting"


@pytest.mark.fault("U14")
@pytest.mark.gen_test
async def test_delete_while_redis_is_away_removes_the_dead_letter_later(
    removal: AssetRemoval, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The asset is removed at once, and its dead letter when Redis is back."""
    asset = await removal.add(1, AssetStatus.FAILED)
    dead = FailedJob(asset.processing_job_id, asset.created_at, {"userId": "user-1"}, "no", 3, 0, None, "")
    await removal.queue.restore_failed([dead])

    async def away(*_: Any) -> Any:
        raise DependencyUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(removal.queue, "_call", away)
        await removal.removing.delete(asset.id, "user-1")
    assert await removal.store.get(asset.id) is None
    assert await removal.queue.failed_job(dead.id) is not None
    await removal.removing.retry()
    assert await removal.queue.failed_job(dead.id) is None
