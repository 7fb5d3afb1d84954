"""Use case: a finished asset is analyzed again, by the provider that an operator names or by its category's.

The promise of a reanalysis is a job record (job_records.py), so Redis may lose the job; it is deleted with its asset or
user. In Redis the job is in the background: it is claimed only when no other job is ready, and never for the last slot
of a process, so that an upload finds a free slot (queue/lua/place.lua, step.lua). The asset stays finished, with its
result, until the new result is committed under a fence that this run takes from the document. The asset still names the
job that finished it. So other changes win: a retry gives the asset another job, a delete removes it, and then the
commit of the reanalysis changes nothing.

`finishedAt` changes only with the result, and only then is an event sent: so a repeated run knows whether an earlier
run has committed. A failed reanalysis leaves the asset as it is and becomes a dead letter. A less complete result is
dropped, unless the operator wants it. Corrections by a person stay in any case. Runs on the event loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef, job_data, to_timestamp
from pipeline.assets.events import asset_processed
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, PermanentJobError, ValidationError
from pipeline.hold import BACKGROUND, lane_behind
from pipeline.hooks import Analysis
from pipeline.metrics import Metrics
from pipeline.queue.job_handler import AlreadyOver
from pipeline.queue.job import Job, NewJob
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.usecases.analysis import Result, metadata_of
from pipeline.usecases.commits import LateCommits, until_stored
from pipeline.usecases.corrections import settle_status
from pipeline.usecases.job_records import PROMISE, FAILED, JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages, names_of
from pipeline.usecases.processing import Processing

log = structlog.get_logger(__name__)

# A job record has under PROMISE: {provider, of: the job that finished the asset, finishedAt, replace}.
LESS = "The new result has less than the earlier one, which stays"


class Reanalysis:
    """Requests reanalyses and withdraws them."""

    def __init__(
        self,
        store: AssetStore,
        queue: JobQueue,
        job_records: JobRecords,
        *,
        providers: Collection[str],
        settle: Callable[[str], Awaitable[object]],
        end_running: Callable[[str], None] = lambda job_id: None,
        on_deferred: Callable[[], None] = lambda: None,
    ) -> None:
        """providers: the providers in use
        settle: removes a dead letter
        end_running: ends the job if it runs on this process
        on_deferred: called when the job could not be enqueued, so that the reconciler has to enqueue it
        """
        self._store = store
        self._queue = queue
        self._job_records = job_records
        self._providers = providers
        self._settle = settle
        self._end_running = end_running
        self._on_deferred = on_deferred

    def check(self, provider: str) -> None:
        """ValidationError when the provider is not in use; "" stands for that of each category."""
        if provider and provider not in self._providers:
            raise ValidationError.of("provider", f"Must be one of: {', '.join(sorted(self._providers))}")

    async def request(self, asset: Asset, provider: str, request_id: str, *, replaces: bool = False) -> bool:
        """Have the asset analyzed again; False when that is not possible, or already requested.

        replaces: the new result counts even if it is less complete than the old one
        """
        if not asset.is_finished or asset.is_cancelled or not asset.has_original:
            return False
        before = await self._of(asset)
        if any(FAILED not in each for each in before.values()):
            return False
        job = NewJob(
            self._queue.job_id(_unique(asset)),
            job_data(asset),
            request_id,
            group=BACKGROUND,
            lane=lane_behind(asset.category, provider),
            # A withdrawn reanalysis may have the same id.
            revive=True,
        )
        promise = {
            "provider": provider,
            "of": asset.processing_job_id,
            "finishedAt": to_timestamp(asset.finished_at),
            "replace": replaces,
        }
        await self._job_records.insert(job, {PROMISE: promise})
        try:
            await self._queue.enqueue(
                job.id, job.data, request_id=request_id, group=job.group, lane=job.lane, revive=True
            )
        except DependencyUnavailable as error:
            log.warning("enqueue_deferred", jobId=job.id, cause=cause_of(error))
            self._on_deferred()
        for job_id in before:
            with suppress(DependencyUnavailable):
                await self._settle(job_id)
        return True

    async def withdraw(self, asset: Asset) -> bool:
        """End the reanalysis of the asset, if there is one; False when there is none."""
        waiting = [job_id for job_id, each in (await self._of(asset)).items() if FAILED not in each]
        for job_id in waiting:
            # The store first: a job that is still in the store would be restored. Without the record no run commits.
            await self._job_records.forget(job_id)
            await self._queue.cancel(job_id)
            self._end_running(job_id)
        return bool(waiting)

    async def _of(self, asset: Asset) -> dict[str, Mapping[str, Any]]:
        records = await self._store.records_of(asset.user_id, asset.id, kinds=[self._job_records.kind])
        return {each.id: each.data for each in records if PROMISE in each.data}


class Reanalyzing:
    """The JobHandler of the `ai-processing` queue: runs reanalyses itself, and passes other jobs to Processing."""

    def __init__(
        self,
        store: AssetStore,
        processing: Processing,
        job_records: JobRecords,
        metrics: Metrics,
        *,
        orphaned_images: OrphanedImages,
        settle: Callable[[str], Awaitable[object]],
    ) -> None:
        """settle: removes the dead letter of an asset that is not failed any more"""
        self._store = store
        self._processing = processing
        self._job_records = job_records
        self._metrics = metrics
        self._orphaned_images = orphaned_images
        self._settle = settle
        self._late_commits = LateCommits()

    def describe(self, job: Job) -> Mapping[str, str]:
        """See Processing."""
        return self._processing.describe(job)

    async def process(self, job: Job) -> Result | None:
        """Take the fence and analyze the photo again; None when there is nothing left to do."""
        if job.group != BACKGROUND:
            return await self._processing.process(job)
        record = await self._job_records.find(job.id)
        if FAILED in record:
            # The process died between the dead letter's record and the acknowledgement.
            raise PermanentJobError(str(record[FAILED].get("error", "")))
        asset = await self._begin(job, record.get(PROMISE))
        return await self._processing.analysis.analyze(job, asset, record[PROMISE]["provider"]) if asset else None

    async def commit(self, job: Job, result: Result) -> None:
        """Commit the new result under its run's fence, and send an event if it differs from the old one."""
        if job.group != BACKGROUND:
            await self._processing.commit(job, result)
            return
        promise = (await self._job_records.find(job.id)).get(PROMISE, {})
        if promise.get("replace") is not True and _is_less_complete(result.analysis, result.asset):
            await self._late_commits.run(self._drop(job, result))
            return
        processed = await self._processing.analysis.store_processed(result)
        await self._late_commits.run(self._commit(job, result, processed, promise.get("replace") is True))

    async def give_up(self, job: Job, message: str) -> None:
        """Record the dead letter; the asset stays as it is."""
        if job.group != BACKGROUND:
            await self._processing.give_up(job, message)
            return
        record = await self._job_records.find(job.id)
        # The new fence ends a lost run that may still be running.
        if FAILED not in record and await self._begin(job, record.get(PROMISE)) is None:
            raise AlreadyOver
        await self._job_records.put_failed(job, message, {PROMISE: record[PROMISE]})
        self._count("failed", job, error=message)
        if await self._job_records.forget_if_deleted(job.id, str(job.data.get("assetId"))):
            raise AlreadyOver

    async def refund_attempt(self, job: Job) -> None:
        """Do not count the job's last start against its asset; starts of a reanalysis are never counted."""
        if job.group != BACKGROUND:
            await self._processing.refund_attempt(job)

    async def _begin(self, job: Job, promise: Mapping[str, Any] | None) -> Asset | None:
        """Take the fence; None when the reanalysis is over or withdrawn."""
        if promise is None:
            log.info("reanalysis_not_wanted")
            return None
        asset = await self._store.begin(job.data["assetId"], job.data["userId"], promise["of"], is_reanalysis=True)
        if asset is None:
            self._count("dropped", job)
        elif to_timestamp(asset.finished_at) != promise["finishedAt"]:
            # The process died between commit and acknowledgement; the event may not have been sent.
            await self._processing.send_event(asset)
        else:
            return asset
        await self._job_records.forget(job.id)
        return None

    async def _drop(self, job: Job, result: Result) -> None:
        """Drop the new result, and record the attempt."""
        asset = result.asset
        attempt = result.attempt.ended("completed", LESS)
        await until_stored(lambda: self._store.add_attempt(asset.id, asset.processing_job_id, asset.fence, attempt))
        self._orphaned_images.discard_later(names_of(*(result.previews or {}).values()))
        self._count("kept", job)
        await self._job_records.forget(job.id)

    async def _commit(self, job: Job, result: Result, processed: ImageRef | None, replaces: bool) -> None:
        before = result.asset
        # A provider that makes no images does not remove the old one.
        image = processed if processed is not None or replaces else before.processed
        new = replace(before, ai_metadata=metadata_of(result.analysis), processed=image)
        new = replace(new, status=new.status_by_metadata())
        is_changed = _shown(new) != _shown(before)
        commit = self._write(job, result, new, is_changed)
        after = await self._orphaned_images.remove_unless(commit, processed, result.previews)
        if after is None:
            self._metrics.stale_results.inc()
            self._count("dropped", job)
        else:
            if is_changed:
                await self._processing.send_event(after)
            self._count("changed" if is_changed else "unchanged", job)
            if image is not before.processed:
                self._orphaned_images.discard_later(names_of(before.processed))
            if before.status is AssetStatus.FAILED and after.status is not AssetStatus.FAILED:
                with suppress(DependencyUnavailable):
                    await self._settle(before.processing_job_id)
        await self._job_records.forget(job.id)

    async def _write(self, job: Job, result: Result, new: Asset, is_changed: bool) -> Asset | None:
        attempt, provenance = result.attempt.ended("completed"), result.attempt.provenance()

        async def write() -> Asset | None:
            if PROMISE not in await self._job_records.find(job.id):
                return None  # withdrawn
            now = utc_now()
            return await self._store.finish(
                new.id,
                new.processing_job_id,
                new.fence,
                status=new.status,
                ai_metadata=replace(new.ai_metadata, processed_at=now),
                processed=new.processed,
                finished_at=now if is_changed or new.finished_at is None else new.finished_at,
                previews=result.previews,
                attempt=attempt,
                provenance=provenance,
                is_reanalysis=True,
            )

        finished = await until_stored(write)
        return await until_stored(lambda: settle_status(self._store, finished)) if finished else None

    def _count(self, outcome: str, job: Job, **fields: str) -> None:
        self._metrics.reanalyses.labels(outcome).inc()
        log.info("asset_reanalyzed", outcome=outcome, jobId=job.id, **fields)


def _unique(asset: Asset) -> str:
    """Return the end of the job's id: the same until a run has begun, so that two requests make one job."""
    return hashlib.sha256(f"{asset.id} {asset.processing_job_id} {asset.fence}".encode()).hexdigest()[:24]


def _is_less_complete(new: Analysis, before: Asset) -> bool:
    """Return whether the new result is less complete: brand and model count more than the colorway."""

    def completeness(metadata: AiMetadata) -> tuple[int, int]:
        known = [bool(metadata.brand), bool(metadata.model), bool(metadata.colorway)]
        return sum(known[:2]), sum(known)

    return completeness(metadata_of(new)) < completeness(before.ai_metadata)


def _shown(asset: Asset) -> tuple[Mapping[str, Any], str]:
    """Return the asset as its owner sees it, without the time; an image is compared by its bytes."""
    image = asset.processed
    return asset_processed(replace(asset, finished_at=None)), (image.sha256 or image.url) if image else ""
