"""Use case: an owner or an admin cancels the job of an asset, which ends as failed.

The store decides between a cancel and the commit of a running job: the first one counts, and the other one changes
nothing. Then the event is sent, and only then is the job removed from the queue. A job that cannot be removed now
(Redis is away, or the event is not published everywhere) is claimed by a worker later. The worker finds the asset
cancelled, sends the event again, and acknowledges the job. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from pipeline.assets.asset import Asset, AssetStatus, job_data
from pipeline.assets.events import asset_processed
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, NotFound
from pipeline.metrics import Metrics
from pipeline.queue.job import JobState, NewJob
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.notifying import event_context
from pipeline.usecases.processing import Announcer
from pipeline.usecases.submission import Submission

log = structlog.get_logger(__name__)

# A cancel is answered within two seconds even while Redis hangs.
QUEUE_SECONDS = 1.0
# How often a cancel is tried while other requests change the asset at the same moment.
TRIES = 5


class Cancelling:
    """Cancels the jobs of assets."""

    def __init__(
        self,
        store: AssetStore,
        queue: JobQueue,
        announcer: Announcer,
        job_records: JobRecords,
        metrics: Metrics,
        *,
        submission: Submission,
        is_published: Callable[[str], bool],
        end_running: Callable[[str], None] = lambda job_id: None,
        on_ended: Callable[[Asset, str], None] = lambda asset, request_id: None,
    ) -> None:
        """is_published: returns whether Redis has all events of the asset with that id
        end_running: ends the job of that id if it runs on this process
        on_ended: called with the asset and the request id when a job that did not run was removed
        """
        self._store = store
        self._queue = queue
        self._announcer = announcer
        self._job_records = job_records
        self._metrics = metrics
        self._submission = submission
        self._is_published = is_published
        self._end_running = end_running
        self._on_ended = on_ended

    async def cancel(self, asset_id: str, user_id: str | None, request_id: str) -> Asset:
        """Return the asset, failed with the error "Cancelled".

        user_id: of its owner; None: any owner
        NotFound: the user has no such asset. Conflict: it is not processing.
        DependencyUnavailable: it may have been cancelled or not.
        """
        with self._submission.in_flight():
            asset = await self._commit(asset_id, user_id, request_id)
            log.info("asset_cancelled", assetId=asset.id, jobId=asset.processing_job_id)
            self._metrics.assets_finished.labels(asset.status.value).inc()
            try:
                await self._announcer.announce(asset_processed(asset), asset.user_id, event_context(asset))
            except DependencyUnavailable as error:
                # Nothing is acknowledged, so a worker finds the asset cancelled and sends the event again.
                log.warning("cancel_not_published", assetId=asset.id, cause=cause_of(error))
                return asset
            self._end_running(asset.processing_job_id)
            if self._is_published(asset.id):
                await self._end_job(asset, request_id)
            return asset

    async def _commit(self, asset_id: str, user_id: str | None, request_id: str) -> Asset:
        for _ in range(TRIES):
            asset = await self._store.get(asset_id)
            if asset is None or user_id not in (None, asset.user_id):
                raise NotFound("Asset not found")
            if asset.status is not AssetStatus.PROCESSING:
                raise Conflict(f"Only assets that are processing can be cancelled, this one is {asset.status.value}")
            if self._announcer.is_durable:
                # As before each commit: the reconciler does not restore the job of a finished asset.
                lane = asset.category
                await self._job_records.put(NewJob(asset.processing_job_id, job_data(asset), request_id, lane=lane))
            cancelled = await self._store.cancel(asset.id, asset.processing_job_id, finished_at=utc_now())
            if cancelled is not None:
                return cancelled
        raise DependencyUnavailable("The asset is being changed all the time", retry_after_seconds=1)

    async def _end_job(self, asset: Asset, request_id: str) -> None:
        was: JobState | None = None
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                was = await self._queue.cancel(asset.processing_job_id)
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("cancel_deferred", jobId=asset.processing_job_id, cause=cause_of(error))
            return
        if was in (JobState.WAITING, JobState.DELAYED):
            self._on_ended(asset, request_id)
        if self._announcer.is_durable:
            with suppress(DependencyUnavailable):
                await self._job_records.forget(asset.processing_job_id)
