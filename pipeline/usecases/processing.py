"""Use case: one job becomes one finished asset and one event.

Commit in the store, notify, and only then does the worker acknowledge (queue/unacknowledged.py): a crash may repeat
a step, never lose one. Each start takes a new fence from the asset's document and each commit requires it, so a run
that was overtaken matches nothing, however late it comes. The very first start may run under the fence of the insert:
new_assets.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Protocol

import structlog

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef, processed_public_id
from pipeline.assets.events import asset_processed
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, PermanentJobError, PipelineError, ValidationError
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute
from pipeline.hooks.job_protocols import NO_LIMITS, NO_LISTENER, Permit, AnalysisListener
from pipeline.hooks.notifiers import EventContext
from pipeline.images import ImageName
from pipeline.metrics import Metrics
from pipeline.queue.attempt import AlreadyOver
from pipeline.queue.job import Job, NewJob
from pipeline.texts import HALVES, cause_of
from pipeline.tracing import OFF, Tracing
from pipeline.usecases.attempts import Attempt
from pipeline.usecases.cleaning import Cleaning
from pipeline.usecases.committing import until_stored
from pipeline.usecases.corrections import settle_status
from pipeline.usecases.late_commits import LateCommits
from pipeline.usecases.new_assets import NewAssets
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.notifying import about
from pipeline.usecases.previews import Previews
from pipeline.usecases.storage import ImageStorage

log = structlog.get_logger(__name__)

NOTE_SECONDS = 1.0
NO_ORIGINAL = "The uploaded image is no longer there"


class Plugins(ImageStorage, Protocol):
    """What processing needs of the plugins; hooks/manager.py has it."""

    async def analyze(
        self,
        request: AnalyzeRequest,
        read_image: Callable[[], Awaitable[bytes]],
        tries: str = "",
        listener: AnalysisListener = NO_LISTENER,
        permit: Permit = NO_LIMITS,
        only: str = "",
    ) -> Analysis:
        """Ask the AI provider; read_image is for one that wants the image's bytes, tries the held one to ask. listener:
        is told how it goes. permit: says when each may be called. only: the provider to ask, instead of the category's.
        """


class Announcer(Protocol):
    """Who tells the owner; notifying.py has it."""

    @property
    def is_durable(self) -> bool:
        """True when there is somebody whom each event has to reach, whatever happens."""

    async def announce(self, event: Mapping[str, Any], user_id: str, about: EventContext) -> None:
        """Tell every notifier; DependencyUnavailable when one could not be told and has to be, so: once more."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an analysis has found, before it is committed."""

    asset: Asset
    analysis: Analysis
    attempt: Attempt
    previews: Mapping[str, ImageRef] | None


class Processing:
    """The JobHandler of the `ai-processing` queue."""

    def __init__(
        self,
        store: AssetStore,
        plugins: Plugins,
        announcer: Announcer,
        job_records: JobRecords,
        metrics: Metrics,
        *,
        orphaned_images: OrphanedImages,
        urls: ImageUrls,
        previews: Previews,
        cleaning: Cleaning,
        new_assets: NewAssets,
        provider_timeout_seconds: float = 90,
        max_starts: int = 6,
        listener: Callable[[Job], AbstractContextManager[AnalysisListener]] = lambda job: nullcontext(NO_LISTENER),
        permit: Callable[[Job, Asset], Permit] = lambda job, asset: NO_LIMITS,
        on_end: Callable[[AssetStatus], None] = lambda status: None,
        tracing: Tracing = OFF,
    ) -> None:
        """kept: where dead letters are, so that a Redis that loses them loses none.

        max_starts: an asset started so often without an end has lost its process each time, whatever Redis knows.
        listener: yields what is told how a job's analysis goes. permit: returns what lets a job ask providers.
        on_end: is told how an asset has ended.
        """
        self._store = store
        self._plugins = plugins
        self._announcer = announcer
        self._job_records = job_records
        self._metrics = metrics
        self._orphaned_images = orphaned_images
        self._urls = urls
        self._previews = previews
        self._cleaning = cleaning
        self._new_assets = new_assets
        self._provider_timeout_seconds = provider_timeout_seconds
        self._max_starts = max_starts
        self._listener = listener
        self._permit = permit
        self._on_end = on_end
        self._tracing = tracing
        self._late_commits = LateCommits()

    def describe(self, job: Job) -> Mapping[str, str]:
        """Return the log fields that name the asset and its owner."""
        return {name: str(job.data.get(name, "")) for name in ("assetId", "userId")}

    async def process(self, job: Job) -> Result | None:
        """Take the fence and analyze the job's photo; None when there is nothing left to do."""
        if not _is_ours(job):
            raise PermanentJobError("The job's payload is not that of a photo")
        asset = self._new_assets.take(job) or await self._begin(job)
        if asset is None:
            return None
        if asset.starts > self._max_starts:
            raise PermanentJobError(f"Processing stalled, it was started {self._max_starts} times in vain")
        return await self.analyze(job, asset)

    async def analyze(self, job: Job, asset: Asset, only: str = "") -> Result:
        """Return what the AI says of the asset, whose fence this run has. only: the provider to ask."""
        if not asset.has_original:
            # A process of version 0.1 lets such an asset run again.
            raise PermanentJobError(NO_ORIGINAL)
        image_url = await self._urls.of_image(asset.original, self._provider_timeout_seconds)
        if image_url is None:
            raise DependencyUnavailable("Image storage unavailable")
        request = AnalyzeRequest(
            image_url=image_url,
            category=asset.category,
            asset_id=asset.id,
            job_id=job.id,
            request_id=job.request_id,
            attempt=job.attempt,
            timeout_seconds=self._provider_timeout_seconds,
            trace_context=job.trace_context,
            content_type=asset.original.content_type,
        )
        attempt, read = Attempt(job), once(partial(self._read, asset))
        self._previews.begin(asset, read)
        try:
            with self._listener(job) as listener:
                analysis = await self._plugins.analyze(
                    request, read, job.tries, attempt.before(listener), self._permit(job, asset), only
                )
            attempt.found(analysis)
            return Result(asset, analysis, attempt, await self._previews.take(asset))
        except asyncio.CancelledError:
            await self._previews.drop(asset)
            raise
        except Exception as error:
            await self._note(asset, attempt, error)
            raise

    async def _note(self, asset: Asset, attempt: Attempt, error: Exception) -> None:
        """Keep an attempt that failed, if the store takes it soon: the error is worth more than its record."""
        reason = error.message if isinstance(error, PipelineError) else "Processing failed"
        try:
            async with asyncio.timeout(NOTE_SECONDS):
                kept = attempt.ended("failed", reason, cause_of(error))
                await self._store.add_attempt(asset.id, asset.processing_job_id, asset.fence, kept)
        except (PipelineError, TimeoutError) as fault:
            log.warning("attempt_not_kept", cause=cause_of(fault))

    async def commit(self, job: Job, result: Result) -> None:
        """Save the processed image, commit the result under its run's fence and send the event.

        NotStorable when the store will never take the result.
        """
        if result.analysis.processed_image is not None and not result.asset.fence:
            # It is stored under a name that has the fence in it, which no other run may have.
            asset = await until_stored(lambda: self._begin(job))
            if asset is None:
                self._orphaned_images.discard_later(names_of(*(result.previews or {}).values()))
                return
            result = replace(result, asset=asset)
        processed = await self.keep_processed(result)
        await self._late_commits.run(self._commit_and_tell(job, result, processed))

    async def _commit_and_tell(self, job: Job, result: Result, processed: ImageRef | None) -> None:
        finished = await self.with_images(result, processed, self._commit_result(job, result, processed))
        if finished is None:
            await self._drop(result.asset)
            return
        await self._announce(finished)
        if self._announcer.is_durable:
            await self._job_records.forget(job.id)

    async def with_images(
        self, result: Result, processed: ImageRef | None, commit: Awaitable[Asset | None]
    ) -> Asset | None:
        """Return the asset as `commit` returns it; where that is None, for a run that was overtaken, or raises, the
        images that were saved for the result are removed.
        """
        saved = names_of(processed, *(result.previews or {}).values())
        try:
            finished = await commit
        except BaseException:
            # Refused, or cancelled long after the lease was lost: the store knows whether the result stands.
            self._orphaned_images.discard_later(saved)
            raise
        if finished is None:
            await self._orphaned_images.discard(names_of(processed))
            # Previews are the same for every run: the newer one may have named them.
            self._orphaned_images.discard_later(saved)
        return finished

    async def _commit_result(self, job: Job, result: Result, processed: ImageRef | None) -> Asset | None:
        asset, found = result.asset, metadata_of(result.analysis)
        attempt, provenance = result.attempt.ended("completed"), result.attempt.provenance()
        with self._tracing.step("commit"):
            finished = await self._commit(
                job,
                asset,
                lambda now: self._store.finish(
                    asset.id,
                    job.id,
                    asset.fence,
                    status=replace(asset, ai_metadata=found).status_when_known(),
                    ai_metadata=replace(found, processed_at=now),
                    processed=processed,
                    finished_at=now,
                    previews=result.previews,
                    attempt=attempt,
                    provenance=provenance,
                    seen=asset,
                ),
                is_kept=self._announcer.is_durable,
            )
            return await until_stored(lambda: settle_status(self._store, finished)) if finished else None

    async def give_up(self, job: Job, message: str) -> None:
        """Mark the asset failed with that message, keep the dead letter and send the failure event."""
        asset = await self._begin(job, gives_up=True) if _is_ours(job) else None
        if asset is None:
            await self._job_records.put_failed(job, message)
        else:
            self._previews.begin(asset, partial(self._read, asset))
            await self._late_commits.run(self._fail(job, asset, message, await self._previews.take(asset)))

    async def _fail(self, job: Job, asset: Asset, message: str, previews: Mapping[str, ImageRef] | None) -> None:
        with self._tracing.step("commit"):
            failed = await self._commit(
                job,
                asset,
                lambda now: self._store.fail(
                    asset.id, job.id, asset.fence, error=message, finished_at=now, previews=previews
                ),
                is_kept=True,
            )
        if failed is None:
            self._orphaned_images.discard_later(names_of(*(previews or {}).values()))
            if await self._drop(asset):
                raise AlreadyOver
            return
        await self._announce(failed)
        await self._job_records.put_failed(job, message)
        if await self._job_records.forget_if_deleted(job.id, asset.id):
            raise AlreadyOver

    async def refund_attempt(self, job: Job) -> None:
        """Do not count the job's last start against its asset."""
        if _is_ours(job):
            await self._store.refund_start(job.data["assetId"], job.id)

    async def _begin(self, job: Job, *, gives_up: bool = False) -> Asset | None:
        """Load the asset and take the fence; None when there is nothing left to do for this job."""
        asset_id, user_id = job.data["assetId"], job.data["userId"]
        asset = await self._store.begin(asset_id, user_id, job.id)
        if asset is not None:
            return asset
        current = await self._store.get(asset_id)
        if current is None or current.user_id != user_id:
            log.warning("asset_missing")
            if gives_up and current is None:
                # What is deleted leaves no dead letter.
                await self._job_records.forget(job.id)
                raise AlreadyOver
        elif current.processing_job_id == job.id and current.is_finished:
            is_dead = current.status is AssetStatus.FAILED and not current.is_cancelled
            if is_dead and not gives_up:
                # So that it becomes the dead letter it would have been.
                raise PermanentJobError(current.ai_metadata.error or "Processing failed")
            # The process died between commit and acknowledgement; the event may not have been sent.
            await self.tell(current)
            if gives_up and not is_dead:
                raise AlreadyOver
        else:
            log.warning("job_superseded", currentJobId=current.processing_job_id)
        return None

    async def _read(self, asset: Asset) -> bytes:
        try:
            if asset.original.name is None:
                raise FileNotFoundError
            content = await self._plugins.read(asset.original.name)
        except FileNotFoundError:
            # It may have been moved to another storage since the job began.
            current = await self._store.get(asset.id)
            if current is None or current.original.name in (None, asset.original.name):
                raise PermanentJobError(NO_ORIGINAL) from None
            return await self._read(current)
        return await self._cleaning.for_provider(content, asset.original.content_type)

    async def keep_processed(self, result: Result) -> ImageRef | None:
        """Store the processed image, where there is one to store; return which it is."""
        asset, analysis = result.asset, result.analysis
        if analysis.processed_image_url:
            return ImageRef("", "", analysis.processed_image_url)
        if analysis.processed_image is None:
            return None
        public_id = processed_public_id(asset.id, asset.fence)
        image = analysis.processed_image
        content = await self._cleaning.for_storing(image.content, image.content_type)
        if content is None:
            return None
        try:
            saved = await self._plugins.save(public_id, io.BytesIO(content), image.content_type)
        except ValidationError as error:
            # The storage takes no such image: no further attempt would change that, and each costs an analysis.
            log.warning("processed_image_refused", cause=cause_of(error))
            return None
        return ImageRef(
            backend=saved.backend,
            public_id=public_id,
            url=saved.url,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            content_type=image.content_type,
        )

    async def _commit(
        self, job: Job, asset: Asset, write: Callable[[datetime], Awaitable[Asset | None]], *, is_kept: bool
    ) -> Asset | None:
        """Return the asset as committed, None when this run was overtaken.

        is_kept: the job is kept before, because nobody looks for the job of an asset that has ended: were it lost
        before all was told, the event and the dead letter would be lost with it.
        Repeats the write while the store is away, so that the provider need not be asked again. Each try is finished
        when it is made: who asks for what was finished since then must not miss one that was stored long after.
        """
        if is_kept:
            lane = str(job.data.get("category", ""))
            await until_stored(lambda: self._job_records.put(NewJob(job.id, job.data, job.request_id, lane=lane)))

        async def commit() -> Asset | None:
            if (committed := await write(utc_now())) is not None:
                return committed
            # An earlier try may have been applied and only its answer lost: what stands under our fence is ours.
            current = await self._store.get(asset.id)
            is_ours = (
                current is not None
                and current.is_finished
                and (current.processing_job_id, current.fence) == (asset.processing_job_id, asset.fence)
            )
            return current if is_ours else None

        return await until_stored(commit)

    async def _drop(self, asset: Asset) -> bool:
        """The run was overtaken; return whether by a cancel, whose process may have died before it sent the event."""
        self._metrics.stale_results.inc()
        log.warning("result_dropped", fence=asset.fence)
        current = await self._store.get(asset.id)
        if current is None or not current.is_cancelled or current.processing_job_id != asset.processing_job_id:
            return False
        await self.tell(current)
        return True

    async def tell(self, asset: Asset) -> None:
        """Send the event of the finished asset."""
        url = await self._urls.of_image(asset.processed)
        await self._announcer.announce(asset_processed(asset, url), asset.user_id, about(asset))

    async def _announce(self, asset: Asset) -> None:
        self._metrics.assets_finished.labels(asset.status.value).inc()
        self._on_end(asset.status)
        await self.tell(asset)
        self._metrics.asset_seconds.observe((utc_now() - asset.created_at).total_seconds())
        log.info("asset_finished", status=asset.status.value, fence=asset.fence, error=asset.ai_metadata.error)


def names_of(*images: ImageRef | None) -> list[ImageName]:
    """Return those of the images that our storages hold."""
    return [image.name for image in images if image is not None and image.name]


def once(read: Callable[[], Awaitable[bytes]]) -> Callable[[], Awaitable[bytes]]:
    """Return a function that reads when it is first called, for all its callers."""
    reading: list[asyncio.Future[bytes]] = []

    async def read_once() -> bytes:
        if not reading:
            reading.append(asyncio.ensure_future(read()))
        # Who goes away does not take it from the others.
        return await asyncio.shield(reading[0])

    return read_once


def _is_ours(job: Job) -> bool:
    texts = [job.data.get(name) for name in ("assetId", "userId")]
    # No store holds half a surrogate pair, so no asset has it.
    return all(isinstance(text, str) and not HALVES.search(text) for text in texts)


def metadata_of(analysis: Analysis, processed_at: datetime | None = None) -> AiMetadata:
    """Return the analysis as the asset keeps it."""

    def field(attribute: Attribute | None) -> Mapping[str, Any] | None:
        return asdict(attribute) if attribute is not None and attribute.value else None

    return AiMetadata(
        brand=field(analysis.brand),
        model=field(analysis.model),
        colorway=field(analysis.colorway),
        processed_at=processed_at,
        extra=analysis.extra,
    )
