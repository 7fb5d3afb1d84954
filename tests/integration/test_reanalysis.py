"""A finished asset is analyzed a second time, on a real queue and store.

Its result stays until there is a new one; a change during the run takes precedence over the new result.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from pipeline.assets.asset import Asset, AssetStatus
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, PermanentJobError, ValidationError
from pipeline.hooks import Analysis, Attribute, ProcessedImage
from pipeline.queue.job_handler import AlreadyOver
from pipeline.queue.job import Finish, Outcome
from pipeline.usecases import orphaned_images as orphaned_images_module
from pipeline.usecases.corrections import Corrections
from tests.factories import make_asset, make_image
from tests.integration.processed_jobs import FOUND
from tests.integration.reanalysis_use_cases import UseCases
from tests.workers import Bench

OTHER = Analysis(Attribute("Adidas", 0.9), Attribute("Samba", 0.8), Attribute("White", 0.7))
PNG = make_image("PNG")


@pytest.fixture
def use_cases(bench: Bench, store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch) -> UseCases:
    """The use cases, without a wait before the deletion of an image is repeated."""
    monkeypatch.setattr(orphaned_images_module, "RETRY_SECONDS", (0,))
    return UseCases(store, bench.queue)


@pytest.mark.gen_test
async def test_new_result_replaces_the_old_one(use_cases: UseCases) -> None:
    """The asset is unchanged until the commit; then one event is sent, corrections stay, the old image is deleted."""
    image = ProcessedImage(PNG, "image/png")
    before = await use_cases.finished(replace(FOUND, processed_image=image))
    assert before.processed is not None
    before = await Corrections(use_cases.store).correct(before.id, before.user_id, {"model": "Air Max 1"})
    seen: list[Asset] = []

    async def look() -> None:
        seen.append(await use_cases.asset(before))

    use_cases.plugins.before_answer = look
    job = await use_cases.request_and_claim(before, "acme")
    assert not await use_cases.reanalysis.request(before, "acme", "r-3")
    await use_cases.process(job, replace(OTHER, processed_image=ProcessedImage(make_image("WEBP"), "image/webp")))
    assert use_cases.plugins.only == "acme"
    shown = [each.to_json({}) | {"updatedAt": None} for each in (before, *seen)]
    assert shown[0] == shown[1]
    after = await use_cases.asset(before)
    ((event, user_id),) = use_cases.plugins.events
    assert user_id == before.user_id and event["timestamp"] == after.to_json({})["finishedAt"]
    assert event["aiMetadata"]["brand"]["value"] == "Adidas"
    assert event["aiMetadata"]["model"] == {"value": "Air Max 1", "confidence": 1}
    assert after.finished_at and before.finished_at and after.finished_at > before.finished_at
    assert after.processing_job_id == before.processing_job_id and len(after.attempts) == 2
    assert after.processed is not None and after.starts == before.starts
    await asyncio.gather(*use_cases.orphaned_images.tasks)
    assert before.processed.public_id not in use_cases.plugins.images
    assert after.processed.public_id in use_cases.plugins.images
    assert await use_cases.job_records.find(job.id) == {} and use_cases.count("changed") == 1


@pytest.mark.parametrize(
    ("new", "is_less"),
    [
        (Analysis(), True),
        (Analysis(Attribute("Adidas", 0.9)), True),
        (Analysis(Attribute("Adidas", 0.9), Attribute("Samba", 0.9)), True),
        (Analysis(Attribute("Adidas", 0.9), colorway=Attribute("White", 0.9)), True),
        (OTHER, False),
    ],
)
@pytest.mark.gen_test
async def test_result_with_less_values_changes_nothing_unless_it_replaces(
    use_cases: UseCases, new: Analysis, is_less: bool
) -> None:
    """A result with fewer values is only recorded in the attempts and counted, unless `replaces` was requested.

    In both cases corrections stay, and the image stays if the new result has none.
    """
    before = await use_cases.finished(replace(FOUND, processed_image=ProcessedImage(PNG, "image/png")))
    before = await Corrections(use_cases.store).correct(before.id, before.user_id, {"model": "Air Max 1"})
    await use_cases.process(await use_cases.request_and_claim(before), new)
    after = await use_cases.asset(before)
    assert use_cases.count("kept") == is_less and (use_cases.plugins.events == []) is is_less
    assert (after.ai_metadata == before.ai_metadata) is is_less and after.processed == before.processed
    assert [bool(each["reason"]) for each in after.attempts] == [False, is_less]
    assert await use_cases.store.records_of(before.user_id, before.id) == []
    await use_cases.process(await use_cases.request_and_claim(after, replaces=True), new)
    after = await use_cases.asset(before)
    assert after.ai_metadata.brand == ({"value": "Adidas", "confidence": 0.9} if new.brand.value else None)
    assert after.corrected_metadata.model == {"value": "Air Max 1", "confidence": 1}
    assert (after.processed is None) is is_less or not is_less


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.gen_test
async def test_correction_during_the_run_stays(use_cases: UseCases, replaces: bool) -> None:
    """The correction is in the asset and in the event; without the correction the newest AI value is shown."""
    before = await use_cases.finished(Analysis(Attribute("Nike", 0.9)))
    assert before.status is AssetStatus.PARTIAL
    correcting = Corrections(use_cases.store)

    async def correct() -> None:
        await correcting.correct(before.id, before.user_id, {"brand": "Puma", "model": "Suede"})

    use_cases.plugins.before_answer = correct
    job = await use_cases.request_and_claim(before, replaces=replaces)
    await use_cases.process(job, OTHER if not replaces else Analysis())
    after = await use_cases.asset(before)
    assert after.status is AssetStatus.ACTIVE
    assert [after.corrected_metadata.brand, after.corrected_metadata.model] == [
        {"value": each, "confidence": 1} for each in ("Puma", "Suede")
    ]
    for event, _ in use_cases.plugins.events:
        assert event["aiMetadata"]["brand"]["value"] == "Puma"
    after = await correcting.correct(before.id, before.user_id, {"brand": None})
    assert after.corrected_metadata.brand == (None if replaces else {"value": "Adidas", "confidence": 0.9})


@pytest.mark.gen_test
async def test_same_result_sends_no_event(use_cases: UseCases) -> None:
    """finishedAt stays, so no replay sends an event either; the new provenance is stored."""
    image = ProcessedImage(PNG, "image/png")
    before = await use_cases.finished(replace(FOUND, processed_image=image))
    job = await use_cases.request_and_claim(before)
    await use_cases.process(job, replace(FOUND, processed_image=image, ai_model="new"))
    after = await use_cases.asset(before)
    assert use_cases.plugins.events == [] and after.finished_at == before.finished_at
    assert after.provenance is not None and after.provenance["model"] == "new"
    assert use_cases.count("unchanged") == 1 and await use_cases.job_records.find(f"{use_cases.queue.name}:x") == {}


@pytest.mark.gen_test
async def test_failed_asset_can_become_active_and_a_failed_reanalysis_changes_nothing(use_cases: UseCases) -> None:
    """A reanalysis that fails becomes a dead letter and sends no event; the next request removes the dead letter.

    A reanalysis that succeeds removes the dead letter of the upload.
    """
    before = await use_cases.finished(PermanentJobError("No photo"))
    assert before.status is AssetStatus.FAILED
    assert "failed" in await use_cases.job_records.find(before.processing_job_id)
    job = await use_cases.request_and_claim(before)
    await use_cases.process(job, PermanentJobError("Still none"))
    await use_cases.claim(0, Finish(job, Outcome.FAILED, error="Still none"))
    after = await use_cases.asset(before)
    assert use_cases.plugins.events == []
    assert (after.status, after.ai_metadata) == (before.status, before.ai_metadata)
    assert after.finished_at == before.finished_at
    assert [each["reason"] for each in after.attempts] == ["No photo", "Still none"]
    (dead,) = (await use_cases.queue.failed_jobs(10)).jobs
    assert (dead.id, dead.error) == (job.id, "Still none")
    # Its process dies before the acknowledgement: the job still becomes a dead letter.
    with pytest.raises(PermanentJobError, match="Still none"):
        await use_cases.handler.process(job)
    await use_cases.handler.give_up(job, "Still none")
    job = await use_cases.request_and_claim(after)
    assert (await use_cases.queue.failed_jobs(10)).jobs == []
    await use_cases.process(job, OTHER)
    assert (await use_cases.asset(before)).status is AssetStatus.ACTIVE and len(use_cases.plugins.events) == 1
    assert await use_cases.job_records.find(before.processing_job_id) == {}


@pytest.mark.gen_test
async def test_event_is_sent_after_a_crash_without_another_analysis(use_cases: UseCases) -> None:
    """After a commit without its event the job is repeated, finds the new finishedAt and only sends the event."""
    before = await use_cases.finished()
    job = await use_cases.request_and_claim(before)
    announce, use_cases.plugins.announce = use_cases.plugins.announce, _fail  # type: ignore[method-assign]
    with pytest.raises(DependencyUnavailable):
        await use_cases.process(job, OTHER)
    use_cases.plugins.announce = announce  # type: ignore[method-assign]
    asked = len(use_cases.plugins.requests)
    await use_cases.process(job, FOUND)
    assert len(use_cases.plugins.requests) == asked and len(use_cases.plugins.events) == 1
    assert await use_cases.job_records.find(job.id) == {}
    # The next repetition finds no reanalysis to do.
    assert await use_cases.handler.process(job) is None
    with pytest.raises(AlreadyOver):
        await use_cases.handler.give_up(job, "no")


@pytest.mark.parametrize("change", ["retry", "delete", "withdraw", "newer run"])
@pytest.mark.gen_test
async def test_result_is_dropped_after_a_change_during_the_run(use_cases: UseCases, change: str) -> None:
    """After a retry, a delete, a withdrawal or a newer run of the same job, nothing is written or sent."""
    before = await use_cases.finished(Analysis(Attribute("Nike", 0.9)))
    assert before.status is AssetStatus.PARTIAL
    job = await use_cases.request_and_claim(before)

    async def act() -> None:
        use_cases.plugins.before_answer = None
        if change == "retry":
            assert await use_cases.store.requeue(before.id, before.user_id, "ai-processing:retry")
        elif change == "delete":
            await use_cases.store.delete(before.id, before.user_id)
        elif change == "withdraw":
            assert await use_cases.reanalysis.withdraw(before)
        else:
            assert await use_cases.store.begin(before.id, before.user_id, before.processing_job_id, is_reanalysis=True)

    use_cases.plugins.before_answer = act
    await use_cases.process(job, replace(OTHER, processed_image=ProcessedImage(PNG, "image/png")))
    current = await use_cases.store.get(before.id)
    assert use_cases.plugins.events == [] and use_cases.count("dropped") == 1
    assert current is None or current.ai_metadata.brand != {"value": "Adidas", "confidence": 0.9}
    await asyncio.gather(*use_cases.orphaned_images.tasks)
    assert use_cases.plugins.images == {}
    assert not await use_cases.reanalysis.withdraw(before)


@pytest.mark.gen_test
async def test_wiped_redis_gets_each_job_once(use_cases: UseCases, redis: Redis) -> None:
    """Waiting jobs and the active job are enqueued with their ids; the run before the wipe commits nothing twice."""
    assets = [await use_cases.finished() for _ in range(4)]
    for asset in assets:
        assert await use_cases.reanalysis.request(asset, "", "r-2")
    (running,) = await use_cases.claim()
    for key in redis.scan_iter("pipeline:{ai-processing}:*"):
        redis.delete(key)
    later = utc_now().replace(year=2100)
    assert (await use_cases.job_records.repair(later, None, 100))[0] == 4
    assert (await use_cases.job_records.repair(later, None, 100))[0] == 0
    assert (await use_cases.queue.stats()).background == 4
    jobs = await use_cases.claim(9)
    assert {job.data["assetId"] for job in jobs} == {asset.id for asset in assets}
    await use_cases.process(running, OTHER)
    for job in jobs:
        await use_cases.process(job, OTHER)
    assert len(use_cases.plugins.events) == 4 and use_cases.count("changed") == 4


@pytest.mark.gen_test
async def test_request_is_refused_without_a_finished_asset_and_its_original(use_cases: UseCases) -> None:
    """A processing asset, a cancelled asset and an asset without its original are refused, and an unknown provider."""
    asset = make_asset()
    assert await use_cases.store.create(asset)
    assert not await use_cases.reanalysis.request(asset, "", "r")
    cancelled = await use_cases.store.cancel(asset.id, asset.processing_job_id, finished_at=utc_now())
    assert cancelled is not None and not await use_cases.reanalysis.request(cancelled, "", "r")
    finished = await use_cases.finished()
    without_original = await use_cases.store.drop_original(finished.id, finished.processing_job_id) or finished
    assert not await use_cases.reanalysis.request(without_original, "", "r")
    with pytest.raises(ValidationError):
        use_cases.reanalysis.check("unknown")
    use_cases.reanalysis.check("acme")


async def _fail(*_: Any) -> None:
    raise DependencyUnavailable("away")
