"""One job becomes one finished asset and one event, also when it runs twice, too late or for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from pipeline.assets.asset import Asset, AssetStatus, job_data
from pipeline.clock import utc_now
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.errors import DependencyUnavailable, PermanentJobError, RetryableJobError
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute, ProcessedImage
from pipeline.hooks.job_protocols import Permit, AnalysisListener
from pipeline.hooks.notifiers import EventContext
from pipeline.images import ImageName
from pipeline.metrics import Metrics
from pipeline.queue.job_handler import AlreadyOver
from pipeline.queue.queue import JobQueue
from pipeline.usecases.analysis import Attempt, PhotoAnalysis, Result
from pipeline.usecases.cleaning import Cleaning
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.previews import PreviewMaker, Previews
from pipeline.usecases.processing import Processing
from pipeline.queue.job import Job
from pipeline.usecases.new_assets import NewAssets
from pipeline.usecases.image_urls import ImageUrls
from tests.contract.contracts import check_event
from tests.factories import make_asset, make_image
from tests.memory_storage import MemoryStorage
from tests.private_pictures import chunk, segment, with_chunks, with_segments
from tests.workers import Bench

WEBP, PNG = make_image("WEBP"), make_image("PNG")
FOUND = Analysis(Attribute("Nike", 0.9), Attribute("Air Max 90", 0.8), Attribute("Red", 0.5))


class Plugins(MemoryStorage):
    """The far end: an AI, a storage and a notifier that remember what they were asked."""

    def __init__(self) -> None:
        super().__init__()
        self.needs_image = False
        self.analysis: Analysis | Exception = FOUND
        self.requests: list[AnalyzeRequest] = []
        self.tried: list[str] = []
        self.only = ""
        self.events: list[tuple[Mapping[str, Any], str]] = []
        self.before_answer: Callable[[], Any] | None = None

    async def analyze(
        self,
        request: AnalyzeRequest,
        read_image: Callable[[], Awaitable[bytes]],
        tries: str = "",
        listener: AnalysisListener | None = None,
        permit: Permit | None = None,
        only: str = "",
    ) -> Analysis:
        self.only = only
        self.tried.append(tries)
        if self.needs_image:
            request = replace(request, image=await read_image())
        self.requests.append(request)
        if self.before_answer is not None:
            await self.before_answer()
        if isinstance(self.analysis, Exception):
            raise self.analysis
        return self.analysis

    is_durable = False

    async def announce(self, event: Mapping[str, Any], user_id: str, about: EventContext) -> None:
        check_event(dict(event))
        self.events.append((event, user_id))


@pytest.fixture
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def orphaned_images(store: SqliteAssetStore, plugins: Plugins) -> OrphanedImages:
    return OrphanedImages(store, plugins)


def make_processing(
    store: SqliteAssetStore,
    plugins: Plugins,
    metrics: Metrics | None = None,
    orphaned_images: OrphanedImages | None = None,
    maker: PreviewMaker | None = None,
    new_assets: NewAssets | None = None,
) -> Processing:
    """Return the use case; without a maker it makes no previews."""
    metrics = metrics or Metrics()
    kept = JobRecords(store, JobQueue("redis://none"), keep_failed_seconds=60, max_age_seconds=60)
    urls, previews = ImageUrls(plugins), Previews(plugins, maker, metrics)
    return Processing(
        store,
        PhotoAnalysis(store, plugins, urls=urls, previews=previews, cleaning=Cleaning()),
        *(plugins, kept, metrics),
        orphaned_images=orphaned_images or OrphanedImages(store, plugins),
        urls=urls,
        new_assets=new_assets or NewAssets(),
    )


@pytest.fixture
def processing(
    store: SqliteAssetStore, plugins: Plugins, metrics: Metrics, orphaned_images: OrphanedImages
) -> Processing:
    return make_processing(store, plugins, metrics, orphaned_images)


async def submit(store: SqliteAssetStore) -> tuple[Asset, Job]:
    asset = make_asset()
    assert await store.create(asset)
    return asset, make_job(asset)


def make_job(asset: Asset, **changes: Any) -> Job:
    fields = {"id": asset.processing_job_id, "data": job_data(asset), "attempt": 1, "stalls": 0, "lease": "x|y:1"}
    return Job(**fields | {"enqueued_at_ms": 0, "claimed_at_ms": 0, "request_id": "r-1"} | changes)


async def run(processing: Processing, job: Job) -> None:
    """Do with the job what a worker does."""
    result = await processing.process(job)
    if result is not None:
        await processing.commit(job, result)


def stale_results(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("pipeline_stale_results_total") or 0


@pytest.mark.gen_test
async def test_job_asks_the_provider_with_all_it_needs(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """URL, category, ids, attempt and time budget; the bytes only when it wants them."""
    asset, job = await submit(store)
    await run(processing, job)
    url = f"https://images.example/{asset.original.public_id}"
    assert plugins.requests == [
        AnalyzeRequest(
            url, "sneaker", asset.id, job.id, "r-1", attempt=1, timeout_seconds=90, content_type="image/jpeg"
        )
    ]


@pytest.mark.gen_test
async def test_job_that_tries_a_held_provider_says_so(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """Redis has picked it for that; any other job names none."""
    for tries in ("acme", ""):
        asset, _ = await submit(store)
        await run(processing, make_job(asset, tries=tries))
    assert plugins.tried == ["acme", ""]


@pytest.mark.gen_test
async def test_provider_that_wants_the_image_gets_it(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The bytes come from the storage, without metadata that an earlier version left there; an image that is gone ends
    the job for good.
    """
    plugins.needs_image = True
    asset, job = await submit(store)
    with pytest.raises(PermanentJobError, match="no longer there"):
        await run(processing, job)
    photo = make_image()
    plugins.images[asset.original.public_id] = with_segments(photo, segment(0xFE, b"whose it is"))
    await run(processing, job)
    assert [request.image for request in plugins.requests] == [photo]
    asset, job = await submit(store)
    plugins.images[asset.original.public_id] = b"no photo"
    with pytest.raises(PermanentJobError, match="cannot be read"):
        await run(processing, job)


@pytest.mark.gen_test
async def test_asset_without_its_original_fails_at_once(
    store: SqliteAssetStore, processing: Processing, plugins: Plugins
) -> None:
    """A process of version 0.1 lets an asset run again whose original is gone: it does not wait for a storage."""
    asset, job = await submit(store)
    await store._write(
        "UPDATE assets SET original = json_set(original, '$.backend', '', '$.publicId', NULL, '$.url', ''), "
        "originalGone = 1 WHERE id = :id RETURNING id",
        {"id": asset.id},
    )
    with pytest.raises(PermanentJobError, match="no longer there"):
        await processing.process(job)
    assert plugins.requests == []


@pytest.mark.fault("U17")
@pytest.mark.gen_test
async def test_original_that_moves_after_the_job_has_begun_is_read_where_it_is(
    processing: Processing, plugins: Plugins, store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`move --storage` names it elsewhere and removes it from where it was while the job waits for its provider."""
    plugins.needs_image = True
    asset, job = await submit(store)
    old = asset.image_names[0]
    new = replace(asset.original, backend="elsewhere")
    read: list[str] = []

    async def read_there(name: ImageName) -> bytes:
        if name == old:
            await store.replace_image(asset.id, old, new)
            raise FileNotFoundError(name.public_id)
        read.append(name.backend)
        return make_image()

    monkeypatch.setattr(plugins, "read", read_there)
    await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.ACTIVE and read == ["elsewhere"]


@pytest.mark.gen_test
async def test_processed_image_is_kept_under_the_runs_own_name(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """Bytes that the provider made are saved, named by the fence, and linked in asset and event."""
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)
    await run(processing, job)
    name = f"{asset.id}/processed-1"
    assert plugins.images == {name: WEBP}
    assert plugins.events[0][0]["processedImageUrl"] == f"https://images.example/{name}"


@pytest.mark.fault("U19")
@pytest.mark.gen_test
async def test_processed_image_that_the_storage_refuses_is_left_out(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The result stands without it, and the provider is asked once."""
    plugins.analysis = replace(FOUND, processed_image=ProcessedImage(WEBP, "image/webp"))
    plugins.refuses_images = True
    asset, job = await submit(store)
    await run(processing, job)
    finished = await store.get(asset.id)
    assert finished is not None and (finished.status, finished.processed) == (AssetStatus.ACTIVE, None)
    assert len(plugins.requests) == 1 and "processedImageUrl" not in plugins.events[0][0]


@pytest.mark.gen_test
async def test_cleaning_may_be_switched_off() -> None:
    """With KEEP_METADATA all is stored as it is; a provider gets clean what can be cleaned."""
    private, cleaning = with_chunks(PNG, [chunk(b"tEXt", b"Author\0me")]), Cleaning(keeps_metadata=True)
    assert await cleaning.for_storing(private, "image/png") is private
    assert await cleaning.for_provider(private, "image/png") == PNG
    assert await cleaning.for_provider(private, "image/gif") is private


@pytest.mark.fault("U1")
@pytest.mark.gen_test
async def test_processed_image_is_stored_without_metadata(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, logs: list[Any]
) -> None:
    """What a provider wrote beside its picture goes; without a structure to follow there is no processed image."""
    for content, stored in ((with_chunks(PNG, [chunk(b"tEXt", b"prompt\0words")]), [PNG]), (PNG[:40], [])):
        plugins.images.clear()
        plugins.analysis = replace(FOUND, processed_image=ProcessedImage(content, "image/png"))
        asset, job = await submit(store)
        await run(processing, job)
        done = await store.get(asset.id)
        assert done is not None and done.status is AssetStatus.ACTIVE and bool(done.processed) == bool(stored)
        assert list(plugins.images.values()) == stored
    assert [line["event"] for line in logs].count("processed_image_refused") == 1


@pytest.mark.gen_test
async def test_job_that_runs_again_after_its_commit_only_notifies_again(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """A crash between commit and acknowledgement: same event again, no second question, same asset, no dead letter."""
    asset, job = await submit(store)
    await run(processing, job)
    done = await store.get(asset.id)
    await run(processing, job)
    with pytest.raises(AlreadyOver):
        await processing.give_up(job, "too late")
    assert len(plugins.requests) == 1
    assert plugins.events == [plugins.events[0]] * 3
    assert await store.get(asset.id) == done


@pytest.mark.gen_test
async def test_overtaken_run_is_dropped_with_what_it_made(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """A newer run has begun meanwhile: the older result matches nothing, is counted, and its image goes."""
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)

    async def newer_run() -> None:
        plugins.before_answer = None
        await store.begin(asset.id, asset.user_id, job.id)

    plugins.before_answer = newer_run
    await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and (current.status, current.fence) == (AssetStatus.PROCESSING, 2)
    assert (plugins.images, plugins.events, stale_results(metrics)) == ({}, [], 1)


@pytest.mark.gen_test
@pytest.mark.parametrize("end", ["refused", "cancelled", "deleted"])
async def test_image_of_a_run_that_was_not_committed_goes(
    processing: Processing,
    store: SqliteAssetStore,
    plugins: Plugins,
    orphaned_images: OrphanedImages,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    """The store refuses the result for good, the lease is lost in the middle, or the asset is deleted meanwhile."""
    monkeypatch.setattr("pipeline.usecases.orphaned_images.RETRY_SECONDS", (0.01, 0.01))
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)

    async def ends(*arguments: Any, **values: Any) -> Asset | None:
        assert list(plugins.images) == [f"{asset.id}/processed-1"]
        if end == "deleted":
            return None
        raise ValueError("refused") if end == "refused" else asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(store, "finish", ends)
        if end == "deleted":
            await store.delete(asset.id, asset.user_id)
            result = Result(replace(asset, fence=1), plugins.analysis, Attempt(job), None)
            await processing.commit(job, result)
        else:
            with pytest.raises((ValueError, asyncio.CancelledError)):
                await run(processing, job)
            # The next run of the job takes the fence, so the image is of no use any more.
            await store.begin(asset.id, asset.user_id, job.id)
    while orphaned_images.tasks:
        await asyncio.gather(*orphaned_images.tasks)
    assert plugins.images == {}


@pytest.mark.gen_test
async def test_image_of_a_result_that_stands_after_all_stays(
    processing: Processing,
    store: SqliteAssetStore,
    plugins: Plugins,
    orphaned_images: OrphanedImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run is cancelled while its result is being committed: the store has the result, which names the image."""
    monkeypatch.setattr("pipeline.usecases.orphaned_images.RETRY_SECONDS", (0.01, 0.01))
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)
    finish = store.finish

    async def finish_and_end(*arguments: Any, **values: Any) -> Asset | None:
        await finish(*arguments, **values)
        raise asyncio.CancelledError

    monkeypatch.setattr(store, "finish", finish_and_end)
    with pytest.raises(asyncio.CancelledError):
        await run(processing, job)
    while orphaned_images.tasks:
        await asyncio.gather(*orphaned_images.tasks)
    assert list(plugins.images) == [f"{asset.id}/processed-1"]


@pytest.mark.gen_test
async def test_overtaken_run_cannot_fail_the_asset(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """Giving up, too, needs the newest fence."""
    asset, job = await submit(store)
    begin = store.begin

    async def begin_and_lose(*arguments: Any) -> Asset | None:
        begun = await begin(*arguments)
        await begin(*arguments)
        return begun

    store.begin = begin_and_lose  # type: ignore[method-assign]
    await processing.give_up(job, "no")
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.PROCESSING
    assert (plugins.events, stale_results(metrics)) == ([], 1)


@pytest.mark.gen_test
@pytest.mark.parametrize("change", ["deleted", "another user's", "retried"])
async def test_job_without_its_asset_does_nothing(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, change: str
) -> None:
    """The asset is gone, belongs to somebody else, or has a newer job: the old job completes quietly."""
    asset, job = await submit(store)
    if change == "deleted":
        await store.delete(asset.id, asset.user_id)
    elif change == "retried":
        await processing.give_up(job, "no")
        await store.requeue(asset.id, asset.user_id, "ai-processing:new")
        plugins.events.clear()
    else:
        job = make_job(asset, data=job_data(asset) | {"userId": "user-2"})
    before = await store.get(asset.id)
    await run(processing, job)
    # What is deleted leaves no dead letter.
    with pytest.raises(AlreadyOver) if change == "deleted" else nullcontext():
        await processing.give_up(job, "no")
    assert len(await store.records_of(job.data["userId"])) == (0 if change == "deleted" else 1)
    assert (plugins.requests, plugins.events) == ([], [])
    assert await store.get(asset.id) == before


@pytest.mark.gen_test
@pytest.mark.parametrize("data", [{}, {"assetId": 7, "userId": "u"}, {"assetId": "x"}])
async def test_foreign_payload_is_refused_for_good(processing: Processing, plugins: Plugins, data: Any) -> None:
    """A payload that is not a photo's fails permanently and can be given up."""
    job = make_job(make_asset(), data=data)
    with pytest.raises(PermanentJobError):
        await run(processing, job)
    await processing.give_up(job, "no")
    assert plugins.events == []


@pytest.mark.gen_test
async def test_provider_error_leaves_the_asset_processing(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """Whether to try again is not decided here; nobody is told anything yet."""
    plugins.analysis = RetryableJobError("AI service unavailable")
    asset, job = await submit(store)
    with pytest.raises(RetryableJobError):
        await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.PROCESSING
    assert plugins.events == []


@pytest.mark.gen_test
async def test_commit_waits_for_the_store_and_asks_the_provider_once(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """A store that is away at the commit is asked again with the result at hand."""
    asset, job = await submit(store)
    finish, faults = store.finish, [DependencyUnavailable("away")] * 2

    async def finish_later(*arguments: Any, **values: Any) -> Asset | None:
        if faults:
            raise faults.pop()
        return await finish(*arguments, **values)

    store.finish = finish_later  # type: ignore[method-assign]
    await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.ACTIVE
    assert len(plugins.requests) == 1


@pytest.mark.gen_test
async def test_commit_whose_answer_was_lost_is_still_ours(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """The write went through and the connection broke: one event, the image stays, nothing counts as stale."""
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)
    finish, answers_to_lose = store.finish, [1]

    async def finish_silently(*arguments: Any, **values: Any) -> Asset | None:
        done = await finish(*arguments, **values)
        if answers_to_lose:
            answers_to_lose.pop()
            raise DependencyUnavailable("no answer")
        return done

    store.finish = finish_silently  # type: ignore[method-assign]
    await run(processing, job)
    assert (len(plugins.events), len(plugins.images), stale_results(metrics)) == (1, 1, 0)


@pytest.mark.fault("E32")
@pytest.mark.gen_test
async def test_result_that_cannot_be_stored_fails_its_job_alone(
    processing: Processing,
    store: SqliteAssetStore,
    plugins: Plugins,
    orphaned_images: OrphanedImages,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through a worker: one attempt, a small text for the owner, no image left; the next job is done."""
    monkeypatch.setattr("pipeline.usecases.orphaned_images.RETRY_SECONDS", (0.01, 0.01))
    plugins.analysis = Analysis(
        Attribute("x" * 17_000_000, 1), Attribute("y", 1), processed_image=ProcessedImage(PNG, "image/png")
    )
    bad, good = make_asset(), make_asset()
    for asset in (bad, good):
        assert await store.create(asset)
        await bench.queue.enqueue(asset.processing_job_id, job_data(asset))

    async def heal() -> None:
        if len(plugins.requests) == 2:
            plugins.analysis = FOUND

    plugins.before_answer = heal
    bench.start(processing, concurrency=1)
    await bench.until(lambda stats: stats.completed == 1 and stats.failed == 1)
    failed = await store.get(bad.id)
    assert failed is not None and failed.status is AssetStatus.FAILED
    assert failed.ai_metadata.error == "The asset store cannot hold this document: it is too large"
    assert [event["status"] for event, _user in plugins.events] == ["failed", "active"]
    while orphaned_images.tasks:
        await asyncio.gather(*orphaned_images.tasks)
    assert (len(plugins.requests), plugins.images) == (2, {})


async def cancel(store: SqliteAssetStore, asset: Asset) -> None:
    assert await store.cancel(asset.id, asset.processing_job_id, finished_at=utc_now())


def errors(plugins: Plugins) -> list[str | None]:
    return [event.get("error") for event, _ in plugins.events]


@pytest.mark.gen_test
async def test_job_of_a_cancelled_asset_is_told_of_and_over(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The process that cancelled it may have died before it told anybody; the provider is not asked."""
    asset, job = await submit(store)
    await cancel(store, asset)
    assert await processing.process(job) is None
    assert (errors(plugins), plugins.requests) == (["Cancelled"], [])


@pytest.mark.gen_test
async def test_result_that_comes_after_a_cancel_is_dropped(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """What stands is told; the result's image is removed."""
    asset, job = await submit(store)
    plugins.analysis = replace(FOUND, processed_image=ProcessedImage(PNG, "image/png"))
    plugins.before_answer = lambda: cancel(store, asset)
    await run(processing, job)
    assert (errors(plugins), stale_results(metrics), plugins.images) == (["Cancelled"], 1, {})


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.gen_test
async def test_cancelled_job_is_no_dead_letter(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """Giving it up finds that it is over, also when the cancel came in between."""
    asset, job = await submit(store)
    if is_late:
        fail = store.fail

        async def fail_late(*args: Any, **fields: Any) -> Asset | None:
            await cancel(store, asset)
            return await fail(*args, **fields)

        monkeypatch.setattr(store, "fail", fail_late)
    else:
        await cancel(store, asset)
    with pytest.raises(AlreadyOver):
        await processing.give_up(job, "too bad")
    assert errors(plugins) == ["Cancelled"]
    assert await store.records("job of ai-processing", limit=9) == [] or is_late
