"""A finished asset is analyzed again: its result stays until there is a new one; whatever happens meanwhile wins."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from pipeline.assets.asset import Asset, AssetStatus
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, PermanentJobError, ValidationError
from pipeline.hooks import Analysis, Attribute, ProcessedImage
from pipeline.metrics import Metrics
from pipeline.queue.job_handler import AlreadyOver
from pipeline.queue.job import Finish, Job, Outcome
from pipeline.queue.queue import JobQueue
from pipeline.usecases import orphaned_images as orphaned_images_module
from pipeline.usecases.analysis import PhotoAnalysis
from pipeline.usecases.cleaning import Cleaning
from pipeline.usecases.corrections import Corrections
from pipeline.usecases.new_assets import NewAssets
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.previews import Previews
from pipeline.usecases.processing import Processing
from pipeline.usecases.reanalysis import Reanalysis, Reanalyzing
from tests.constants import RENEWALS_PER_LEASE
from tests.contract.contracts import check_reply
from tests.factories import make_asset, make_image
from tests.integration.processed_jobs import FOUND, Plugins, make_job, run
from tests.redis_server import RedisServer
from tests.service import ROOT, AiService, Service
from tests.workers import Bench, Claimer

OTHER = Analysis(Attribute("Adidas", 0.9), Attribute("Samba", 0.8), Attribute("White", 0.7))
PNG = make_image("PNG")
QUICK = {"LEASE_SECONDS": "2", RENEWALS_PER_LEASE: "4"}


class House:
    """The use cases on a real queue and store, with a far end that remembers."""

    def __init__(self, store: SqliteAssetStore, queue: JobQueue) -> None:
        self.store, self.queue, self.plugins = store, queue, Plugins()
        self.claim, self.metrics = Claimer(queue), Metrics()
        self.job_records = JobRecords(store, queue, keep_failed_seconds=60, max_age_seconds=60)
        self.orphaned_images = OrphanedImages(store, self.plugins)
        urls, previews = ImageUrls(self.plugins), Previews(self.plugins, None, self.metrics)
        self.processing = Processing(
            store,
            PhotoAnalysis(store, self.plugins, urls=urls, previews=previews, cleaning=Cleaning()),
            *(self.plugins, self.job_records, self.metrics),
            orphaned_images=self.orphaned_images,
            urls=urls,
            new_assets=NewAssets(),
        )
        self.handler = Reanalyzing(
            *(store, self.processing, self.job_records, self.metrics),
            orphaned_images=self.orphaned_images,
            settle=self.settle,
        )
        self.reanalysis = Reanalysis(store, queue, self.job_records, providers={"acme"}, settle=self.settle)

    async def settle(self, job_id: str) -> None:
        await self.job_records.forget(job_id)
        await self.queue.remove_failed(job_id)

    async def finished(self, analysis: Analysis | Exception = FOUND) -> Asset:
        """Return an asset that its upload's job has finished, with a processed image where there is a result."""
        asset = make_asset()
        assert await self.store.create(asset)
        await self.process(make_job(asset), analysis)
        self.plugins.events.clear()
        return await self.asset(asset)

    async def process(self, job: Job, analysis: Analysis | Exception) -> None:
        """Do with the job what a worker does."""
        self.plugins.analysis = analysis
        try:
            await run(self.handler, job)  # type: ignore[arg-type]
        except PermanentJobError as error:
            await self.handler.give_up(job, error.message)

    async def asset(self, asset: Asset) -> Asset:
        current = await self.store.get(asset.id)
        assert current is not None
        return current

    async def ask(self, asset: Asset, provider: str = "", *, replaces: bool = False) -> Job:
        """Ask for a reanalysis and claim its job."""
        assert await self.reanalysis.request(asset, provider, "r-2", replaces=replaces)
        (job,) = await self.claim()
        return job

    def count(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("pipeline_reanalyses_total", {"outcome": outcome}) or 0


@pytest.fixture
def house(bench: Bench, store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(orphaned_images_module, "RETRY_SECONDS", (0,))
    return House(store, bench.queue)


@pytest.mark.gen_test
async def test_new_result_takes_the_place_of_the_old_one(house: House) -> None:
    """Until then the asset is as it was; the owner is told once, what a person said stands, the old image goes."""
    image = ProcessedImage(PNG, "image/png")
    before = await house.finished(replace(FOUND, processed_image=image))
    assert before.processed is not None
    before = await Corrections(house.store).correct(before.id, before.user_id, {"model": "Air Max 1"})
    seen: list[Asset] = []

    async def look() -> None:
        seen.append(await house.asset(before))

    house.plugins.before_answer = look
    job = await house.ask(before, "acme")
    assert not await house.reanalysis.request(before, "acme", "r-3")
    await house.process(job, replace(OTHER, processed_image=ProcessedImage(make_image("WEBP"), "image/webp")))
    assert house.plugins.only == "acme"
    shown = [each.to_json({}) | {"updatedAt": None} for each in (before, *seen)]
    assert shown[0] == shown[1]
    after = await house.asset(before)
    ((event, user_id),) = house.plugins.events
    assert user_id == before.user_id and event["timestamp"] == after.to_json({})["finishedAt"]
    assert event["aiMetadata"]["brand"]["value"] == "Adidas"
    assert event["aiMetadata"]["model"] == {"value": "Air Max 1", "confidence": 1}
    assert after.finished_at and before.finished_at and after.finished_at > before.finished_at
    assert after.processing_job_id == before.processing_job_id and len(after.attempts) == 2
    assert after.processed is not None and after.starts == before.starts
    await asyncio.gather(*house.orphaned_images.tasks)
    assert before.processed.public_id not in house.plugins.images
    assert after.processed.public_id in house.plugins.images
    assert await house.job_records.find(job.id) == {} and house.count("changed") == 1


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
async def test_result_that_tells_less_changes_nothing_unless_it_is_to_replace(
    house: House, new: Analysis, is_less: bool
) -> None:
    """The attempts and the counts say that it was there. In either case what a person said stands, and an image stays
    when the new result has none.
    """
    before = await house.finished(replace(FOUND, processed_image=ProcessedImage(PNG, "image/png")))
    before = await Corrections(house.store).correct(before.id, before.user_id, {"model": "Air Max 1"})
    await house.process(await house.ask(before), new)
    after = await house.asset(before)
    assert house.count("kept") == is_less and (house.plugins.events == []) is is_less
    assert (after.ai_metadata == before.ai_metadata) is is_less and after.processed == before.processed
    assert [bool(each["reason"]) for each in after.attempts] == [False, is_less]
    assert await house.store.records_of(before.user_id, before.id) == []
    await house.process(await house.ask(after, replaces=True), new)
    after = await house.asset(before)
    assert after.ai_metadata.brand == ({"value": "Adidas", "confidence": 0.9} if new.brand.value else None)
    assert after.corrected_metadata.model == {"value": "Air Max 1", "confidence": 1}
    assert (after.processed is None) is is_less or not is_less


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.gen_test
async def test_correction_during_the_run_stands(house: House, replaces: bool) -> None:
    """Whether the new result counts or not, and in the event; to give the field back shows what the AI said last."""
    before = await house.finished(Analysis(Attribute("Nike", 0.9)))
    assert before.status is AssetStatus.PARTIAL
    correcting = Corrections(house.store)

    async def correct() -> None:
        await correcting.correct(before.id, before.user_id, {"brand": "Puma", "model": "Suede"})

    house.plugins.before_answer = correct
    await house.process(await house.ask(before, replaces=replaces), OTHER if not replaces else Analysis())
    after = await house.asset(before)
    assert after.status is AssetStatus.ACTIVE
    assert [after.corrected_metadata.brand, after.corrected_metadata.model] == [
        {"value": each, "confidence": 1} for each in ("Puma", "Suede")
    ]
    for event, _ in house.plugins.events:
        assert event["aiMetadata"]["brand"]["value"] == "Puma"
    after = await correcting.correct(before.id, before.user_id, {"brand": None})
    assert after.corrected_metadata.brand == (None if replaces else {"value": "Adidas", "confidence": 0.9})


@pytest.mark.gen_test
async def test_same_result_is_not_told(house: House) -> None:
    """finishedAt stays, so no replay sends it either; where the result came from is kept."""
    image = ProcessedImage(PNG, "image/png")
    before = await house.finished(replace(FOUND, processed_image=image))
    await house.process(await house.ask(before), replace(FOUND, processed_image=image, ai_model="new"))
    after = await house.asset(before)
    assert house.plugins.events == [] and after.finished_at == before.finished_at
    assert after.provenance is not None and after.provenance["model"] == "new"
    assert house.count("unchanged") == 1 and await house.job_records.find(f"{house.queue.name}:x") == {}


@pytest.mark.gen_test
async def test_failed_asset_may_turn_out_well_and_a_failure_changes_nothing(house: House) -> None:
    """The dead letter of an asset that is failed no longer goes; a reanalysis that fails becomes one, and the owner is
    not told. Asking once more settles it.
    """
    before = await house.finished(PermanentJobError("No photo"))
    assert before.status is AssetStatus.FAILED and "failed" in await house.job_records.find(before.processing_job_id)
    job = await house.ask(before)
    await house.process(job, PermanentJobError("Still none"))
    await house.claim(0, Finish(job, Outcome.FAILED, error="Still none"))
    after = await house.asset(before)
    assert house.plugins.events == []
    assert (after.status, after.ai_metadata) == (before.status, before.ai_metadata)
    assert after.finished_at == before.finished_at
    assert [each["reason"] for each in after.attempts] == ["No photo", "Still none"]
    (dead,) = (await house.queue.failed_jobs(10)).jobs
    assert (dead.id, dead.error) == (job.id, "Still none")
    # Its process dies before the acknowledgement: it is a dead letter all the same.
    with pytest.raises(PermanentJobError, match="Still none"):
        await house.handler.process(job)
    await house.handler.give_up(job, "Still none")
    job = await house.ask(after)
    assert (await house.queue.failed_jobs(10)).jobs == []
    await house.process(job, OTHER)
    assert (await house.asset(before)).status is AssetStatus.ACTIVE and len(house.plugins.events) == 1
    assert await house.job_records.find(before.processing_job_id) == {}


@pytest.mark.gen_test
async def test_event_is_sent_after_a_crash_without_another_analysis(house: House) -> None:
    """Committed and not told: the job comes again, finds the new finishedAt, and only sends the event."""
    before = await house.finished()
    job = await house.ask(before)
    tell, house.plugins.announce = house.plugins.announce, _fail  # type: ignore[method-assign]
    with pytest.raises(DependencyUnavailable):
        await house.process(job, OTHER)
    house.plugins.announce = tell  # type: ignore[method-assign]
    asked = len(house.plugins.requests)
    await house.process(job, FOUND)
    assert len(house.plugins.requests) == asked and len(house.plugins.events) == 1
    assert await house.job_records.find(job.id) == {}
    # Repeated once more nobody wants it.
    assert await house.handler.process(job) is None
    with pytest.raises(AlreadyOver):
        await house.handler.give_up(job, "no")


@pytest.mark.parametrize("meanwhile", ["retry", "delete", "take back", "newer run"])
@pytest.mark.gen_test
async def test_what_happens_meanwhile_wins(house: House, meanwhile: str) -> None:
    """A retry, a delete, an operator who takes it back, and a newer run of the same job: nothing is written or sent."""
    before = await house.finished(Analysis(Attribute("Nike", 0.9)))
    assert before.status is AssetStatus.PARTIAL
    job = await house.ask(before)

    async def act() -> None:
        house.plugins.before_answer = None
        if meanwhile == "retry":
            assert await house.store.requeue(before.id, before.user_id, "ai-processing:again")
        elif meanwhile == "delete":
            await house.store.delete(before.id, before.user_id)
        elif meanwhile == "take back":
            assert await house.reanalysis.withdraw(before)
        else:
            assert await house.store.begin(before.id, before.user_id, before.processing_job_id, is_reanalysis=True)

    house.plugins.before_answer = act
    await house.process(job, replace(OTHER, processed_image=ProcessedImage(PNG, "image/png")))
    current = await house.store.get(before.id)
    assert house.plugins.events == [] and house.count("dropped") == 1
    assert current is None or current.ai_metadata.brand != {"value": "Adidas", "confidence": 0.9}
    await asyncio.gather(*house.orphaned_images.tasks)
    assert house.plugins.images == {}
    assert not await house.reanalysis.withdraw(before)


@pytest.mark.gen_test
async def test_wiped_redis_gets_each_once(house: House, redis: Redis) -> None:
    """Those that wait and the one that runs come back under their ids; the run that was lost commits nothing twice."""
    assets = [await house.finished() for _ in range(4)]
    for asset in assets:
        assert await house.reanalysis.request(asset, "", "r-2")
    (running,) = await house.claim()
    for key in redis.scan_iter("pipeline:{ai-processing}:*"):
        redis.delete(key)
    later = utc_now().replace(year=2100)
    assert (await house.job_records.repair(later, None, 100))[0] == 4
    assert (await house.job_records.repair(later, None, 100))[0] == 0
    assert (await house.queue.stats()).background == 4
    jobs = await house.claim(9)
    assert {job.data["assetId"] for job in jobs} == {asset.id for asset in assets}
    await house.process(running, OTHER)
    for job in jobs:
        await house.process(job, OTHER)
    assert len(house.plugins.events) == 4 and house.count("changed") == 4


@pytest.mark.gen_test
async def test_only_what_can_be_analyzed_again_is(house: House) -> None:
    """Not one that is under way, cancelled, or without its original; a provider must be one of those in use."""
    asset = make_asset()
    assert await house.store.create(asset)
    assert not await house.reanalysis.request(asset, "", "r")
    cancelled = await house.store.cancel(asset.id, asset.processing_job_id, finished_at=utc_now())
    assert cancelled is not None and not await house.reanalysis.request(cancelled, "", "r")
    gone = await house.finished()
    gone = await house.store.drop_original(gone.id, gone.processing_job_id) or gone
    assert not await house.reanalysis.request(gone, "", "r")
    with pytest.raises(ValidationError):
        house.reanalysis.check("nobody")
    house.reanalysis.check("acme")


async def _fail(*_: Any) -> None:
    raise DependencyUnavailable("away")


@pytest.fixture(scope="module")
def ai() -> Iterator[AiService]:
    with AiService() as ai_service:
        yield ai_service


def test_wipe_and_kill_lose_none_and_double_none(tmp_path: Path, ai: AiService) -> None:
    """`reanalyze` tells how many, then asks for them; an upload passes them; what is taken back does not run; the audit
    list tells who did what.
    """
    with RedisServer() as redis, Service(tmp_path, ai.url, REDIS_URL=redis.url, **QUICK) as service:
        ids = [service.upload().json()["data"]["assetId"] for _ in range(8)]
        service.wait_status(waiting=0, active=0)
        before = {each: service.asset(each) for each in ids}
        headers = service.headers("ops-1", role="admin")

        def bulk(action: str, where: dict[str, str], **more: Any) -> dict[str, Any]:
            said = {"action": action, "filter": where, "until": "2100-01-01T00:00:00.000Z"} | more
            path = "/api/queue/jobs/bulk"
            reply = httpx.post(service.url + path, json=said, headers=headers)
            check_reply("POST", path, reply.status_code, reply.json(), reply.headers)
            told: dict[str, Any] = reply.json()
            return told

        def look(path: str, **query: str) -> dict[str, Any]:
            reply = httpx.get(f"{service.url}{path}", params={"state": "background"} | query, headers=headers)
            check_reply("GET", path, reply.status_code, reply.json(), reply.headers)
            told: dict[str, Any] = reply.json()["data"]
            return told

        refused = bulk("reanalyze", {"user": "user-1"}, provider="nobody", dryRun=True)
        assert refused["error"]["details"] == [{"field": "provider", "message": "Must be one of: http"}]
        found = {"brand": "Puma", "model": "Suede", "colorway": "Red"}
        body = {name: {"value": value, "confidence": 0.9} for name, value in found.items()}
        ai.order(held=True, replies=[{"body": body, "times": 1000}])
        line = [sys.executable, "run.py", "reanalyze", "--where", "user=user-1", "--provider", "http", "--limit", "6"]
        done = subprocess.run(
            [*line, "--yes", "--json"], cwd=ROOT, env=service.environment, capture_output=True, text=True
        )
        preview, chunk = map(json.loads, done.stdout.splitlines())
        assert (preview["count"], len(preview["sample"]), chunk["done"]) == (6, 5, 6)
        assert bulk("reanalyze", {"user": "user-1"})["data"] | {"nextCursor": None} == {
            **{"done": 2, "skipped": 6, "refused": []},
            **{"nextCursor": None, "searchedTo": None},
        }
        service.wait_status(active=4)
        assert all(service.asset(each)["status"] == "active" for each in ids)
        # The fifth slot is free for whoever comes next.
        service.upload("user-2")
        service.wait_status(active=5, waiting=0)
        redis.client().flushall()
        service.wait_log("jobs_reconciled")
        # The upload, three of the background, and a slot that is free again.
        service.wait_status(active=4)
        service.kill()
        service.start()
        ai.order(held=False)
        service.wait_log("asset_reanalyzed", count=8, outcome="changed")
        service.wait_status(waiting=0, active=0, delayed=0)
        for each in ids:
            after = service.asset(each)
            assert after["aiMetadata"]["brand"]["value"] == "Puma" and after["provenance"]["provider"] == "http"
            assert after["finishedAt"] > before[each]["finishedAt"]
            assert after["processingJobId"] == before[each]["processingJobId"]
        assert len(service.find("asset_reanalyzed")) == 8
        httpx.post(f"{service.url}/api/queue/pause", headers=headers)
        assert bulk("reanalyze", {}, all=True)["data"]["done"] == 9
        # They are listed, page by page, counted, and can be cancelled, one or all that match.
        jobs, where = "/api/queue/jobs", {"user": "user-1", "limit": "5"}
        page = look(jobs, **where)
        rest = look(jobs, **where, cursor=page["nextCursor"])
        listed = [*page["items"], *rest["items"]]
        assert (len(page["items"]), sorted(each["assetId"] for each in listed)) == (5, sorted(ids))
        assert {(each["state"], each["status"], each["provider"]) for each in listed} == {("waiting", "active", "http")}
        counted = [look(f"{jobs}/count", **query)["count"] for query in ({}, {"user": "user-1"}, {"user": "user-2"})]
        assert counted == [9, 8, 1] and look(f"{jobs}/count", provider="http")["count"] == 0
        assert look(f"{jobs}/count", state="waiting")["count"] == 0
        assert bulk("retry", {"state": "background"})["error"]["details"][0]["field"] == "state"
        one = listed[0]["jobId"]
        assert one != after["processingJobId"]
        cancel = f"{service.url}{jobs}/{one}/cancel"
        replies = [httpx.post(cancel, headers=headers).status_code for _ in range(2)]
        assert replies[0] == 200 and replies[1] in (404, 409)
        found = bulk("cancel", {"state": "background", "user": "user-1"}, dryRun=True)["data"]
        assert (found["count"], len(found["sample"])) == (7, 5)
        assert bulk("cancel", {"state": "background", "user": "user-1"})["data"]["done"] == 7
        assert bulk("keep", {"user": "user-1"})["data"]["done"] == 0
        assert all(service.asset(each)["aiMetadata"]["brand"]["value"] == "Puma" for each in ids)
        assert {service.asset(each)["status"] for each in ids} == {"active"}
        httpx.post(f"{service.url}/api/queue/resume", headers=headers)
        service.wait_log("asset_reanalyzed", outcome="unchanged")
        audit = httpx.get(f"{service.url}/api/queue/audit", headers=headers).json()["data"]["items"]
        acts = {(each["action"], each["target"], each["count"]) for each in audit}
        assert ("cancel jobs", "state=background user=user-1", 7) in acts
        assert ("reanalyze jobs", 6) in {(each["action"], each["count"]) for each in audit}
