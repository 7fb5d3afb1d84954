"""Use case: one job becomes one finished asset and one event.

The result is committed in the store, then the event is sent, and only then does the worker acknowledge the job
(queue/unacknowledged.py): after a crash a step may be repeated, but none is lost. Each start takes a new fence from the
asset's document, and each commit requires it: a run that was overtaken changes nothing, however late its commit comes.
The very first start may use the fence of the insert: new_assets.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

import structlog

from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.assets.events import asset_processed
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import PermanentJobError
from pipeline.hooks.notifiers import EventContext
from pipeline.metrics import Metrics
from pipeline.queue.job_handler import AlreadyOver
from pipeline.queue.job import Job, NewJob
from pipeline.texts import HALVES
from pipeline.tracing import OFF, Tracing
from pipeline.usecases.analysis import PhotoAnalysis, Result, metadata_of
from pipeline.usecases.commits import LateCommits, until_stored
from pipeline.usecases.corrections import settle_status
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.new_assets import NewAssets
from pipeline.usecases.notifying import event_context
from pipeline.usecases.orphaned_images import OrphanedImages, names_of

log = structlog.get_logger(__name__)


class Announcer(Protocol):
    """Sends an event to the notifiers; notifying.py has it."""

    @property
    def is_durable(self) -> bool:
        """True when some notifier has to get every event, whatever happens."""

    async def announce(self, event: Mapping[str, Any], user_id: str, about: EventContext) -> None:
        """Send the event to every notifier; DependencyUnavailable when it has to be sent again."""


class Processing:
    """The JobHandler of the `ai-processing` queue."""

    def __init__(
        self,
        store: AssetStore,
        analysis: PhotoAnalysis,
        announcer: Announcer,
        job_records: JobRecords,
        metrics: Metrics,
        *,
        orphaned_images: OrphanedImages,
        urls: ImageUrls,
        new_assets: NewAssets,
        max_starts: int = 6,
        on_end: Callable[[AssetStatus], None] = lambda status: None,
        tracing: Tracing = OFF,
    ) -> None:
        """job_records: the asset store's copies of jobs and dead letters, in case Redis loses them
        max_starts: an asset started so often without an end has lost its process each time, whatever Redis knows
        on_end: called with the status of each asset that is finished
        """
        self._store = store
        self.analysis = analysis
        self._announcer = announcer
        self._job_records = job_records
        self._metrics = metrics
        self._orphaned_images = orphaned_images
        self._urls = urls
        self._new_assets = new_assets
        self._max_starts = max_starts
        self._on_end = on_end
        self._tracing = tracing
        self._late_commits = LateCommits()

    def describe(self, job: Job) -> Mapping[str, str]:
        """Return the log fields that name the asset and its owner."""
        return {name: str(job.data.get(name, "")) for name in ("assetId", "userId")}

    async def process(self, job: Job) -> Result | None:
        """Take the fence and analyze the job's photo; None when there is nothing left to do."""
        if not _is_of_photo(job):
            raise PermanentJobError("The job's payload is not that of a photo")
        asset = self._new_assets.take(job) or await self._begin(job)
        if asset is None:
            return None
        if asset.starts > self._max_starts:
            raise PermanentJobError(f"Processing stalled, it was started {self._max_starts} times in vain")
        return await self.analysis.analyze(job, asset)

    async def commit(self, job: Job, result: Result) -> None:
        """Store the processed image, commit the result under its run's fence, and send the event.

        NotStorable when the store will never accept the result.
        """
        if result.analysis.processed_image is not None and not result.asset.fence:
            # The image's name contains the fence, which must be this run's alone.
            asset = await until_stored(lambda: self._begin(job))
            if asset is None:
                self._orphaned_images.discard_later(names_of(*(result.previews or {}).values()))
                return
            result = replace(result, asset=asset)
        processed = await self.analysis.store_processed(result)
        await self._late_commits.run(self._commit_and_announce(job, result, processed))

    async def _commit_and_announce(self, job: Job, result: Result, processed: ImageRef | None) -> None:
        commit = self._commit_result(job, result, processed)
        finished = await self._orphaned_images.remove_unless(commit, processed, result.previews)
        if finished is None:
            await self._drop(result.asset)
            return
        await self._announce(finished)
        if self._announcer.is_durable:
            await self._job_records.forget(job.id)

    async def _commit_result(self, job: Job, result: Result, processed: ImageRef | None) -> Asset | None:
        asset, metadata = result.asset, metadata_of(result.analysis)
        attempt, provenance = result.attempt.ended("completed"), result.attempt.provenance()
        with self._tracing.step("commit"):
            finished = await self._commit(
                job,
                asset,
                lambda now: self._store.finish(
                    asset.id,
                    job.id,
                    asset.fence,
                    status=replace(asset, ai_metadata=metadata).status_by_metadata(),
                    ai_metadata=replace(metadata, processed_at=now),
                    processed=processed,
                    finished_at=now,
                    previews=result.previews,
                    attempt=attempt,
                    provenance=provenance,
                    seen=asset,
                ),
                records_job=self._announcer.is_durable,
            )
            return await until_stored(lambda: settle_status(self._store, finished)) if finished else None

    async def give_up(self, job: Job, message: str) -> None:
        """Mark the asset as failed with that message, record the dead letter, and send the failure event."""
        asset = await self._begin(job, gives_up=True) if _is_of_photo(job) else None
        if asset is None:
            await self._job_records.put_failed(job, message)
        else:
            previews = await self.analysis.make_previews(asset)
            await self._late_commits.run(self._fail(job, asset, message, previews))

    async def _fail(self, job: Job, asset: Asset, message: str, previews: Mapping[str, ImageRef] | None) -> None:
        with self._tracing.step("commit"):
            failed = await self._commit(
                job,
                asset,
                lambda now: self._store.fail(
                    asset.id, job.id, asset.fence, error=message, finished_at=now, previews=previews
                ),
                records_job=True,
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
        if _is_of_photo(job):
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
                # A deleted asset leaves no dead letter.
                await self._job_records.forget(job.id)
                raise AlreadyOver
        elif current.processing_job_id == job.id and current.is_finished:
            is_dead = current.status is AssetStatus.FAILED and not current.is_cancelled
            if is_dead and not gives_up:
                # So that the job becomes a dead letter, as it would have before the crash.
                raise PermanentJobError(current.ai_metadata.error or "Processing failed")
            # The process died between commit and acknowledgement; the event may not have been sent.
            await self.send_event(current)
            if gives_up and not is_dead:
                raise AlreadyOver
        else:
            log.warning("job_superseded", currentJobId=current.processing_job_id)
        return None

    async def _commit(
        self, job: Job, asset: Asset, write: Callable[[datetime], Awaitable[Asset | None]], *, records_job: bool
    ) -> Asset | None:
        """Return the committed asset, None when this run was overtaken.

        write: gets the instant at which the asset is finished: a new one for each try, so that a client that asks for
            the assets finished since an instant does not miss one that was stored long after
        records_job: record the job first. The reconciler restores no job of a finished asset: if Redis lost the job
            now, its event and its dead letter would be lost too

        The write is repeated while the store is away, so that the provider need not be asked again.
        """
        if records_job:
            lane = str(job.data.get("category", ""))
            await until_stored(lambda: self._job_records.put(NewJob(job.id, job.data, job.request_id, lane=lane)))

        async def commit() -> Asset | None:
            if (committed := await write(utc_now())) is not None:
                return committed
            # An earlier try may have been applied, and only its answer lost: then the asset has this run's fence.
            current = await self._store.get(asset.id)
            is_own = (
                current is not None
                and current.is_finished
                and (current.processing_job_id, current.fence) == (asset.processing_job_id, asset.fence)
            )
            return current if is_own else None

        return await until_stored(commit)

    async def _drop(self, asset: Asset) -> bool:
        """Drop the result of a run that was overtaken; return whether a cancel overtook it.

        The process of a cancel may have died before it sent the event, so this run sends it.
        """
        self._metrics.stale_results.inc()
        log.warning("result_dropped", fence=asset.fence)
        current = await self._store.get(asset.id)
        if current is None or not current.is_cancelled or current.processing_job_id != asset.processing_job_id:
            return False
        await self.send_event(current)
        return True

    async def send_event(self, asset: Asset) -> None:
        """Send the event of the finished asset."""
        url = await self._urls.of_image(asset.processed)
        await self._announcer.announce(asset_processed(asset, url), asset.user_id, event_context(asset))

    async def _announce(self, asset: Asset) -> None:
        self._metrics.assets_finished.labels(asset.status.value).inc()
        self._on_end(asset.status)
        await self.send_event(asset)
        self._metrics.asset_seconds.observe((utc_now() - asset.created_at).total_seconds())
        log.info("asset_finished", status=asset.status.value, fence=asset.fence, error=asset.ai_metadata.error)


def _is_of_photo(job: Job) -> bool:
    texts = [job.data.get(name) for name in ("assetId", "userId")]
    # No store holds half a surrogate pair, so no asset has it.
    return all(isinstance(text, str) and not HALVES.search(text) for text in texts)
