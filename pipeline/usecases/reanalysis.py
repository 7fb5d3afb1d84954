"""Use case: a finished asset is analyzed again, by the provider that an operator names or by its category's.

The promise is a kept job (job_records.py) that says what it is about, so Redis may lose the job, and a deleted asset or
user takes it along. In Redis the job is in the background: claimed only when no other job is ready, and never for the
last slot of a process, so that an upload finds one free (queue/lua/place.lua, step.lua).
The asset stays finished, with its result, until the new one is committed under a fence that this run takes from the
document; the job that the asset names stays the one that finished it. So whatever happens meanwhile wins: a retry gives
the asset another job, a delete removes it, and then this run matches nothing.

`finishedAt` tells a run that was repeated whether the one before had committed: it changes when the result does, and
only then does an event go out. A reanalysis that fails leaves the asset as it is and becomes a dead letter; one that
tells less than the result that is there leaves it too, unless its operator said otherwise. What a person corrected is
beside the result and stands in any case.
Runs on the event loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from pipeline.assets.asset import Asset, AssetStatus, ImageRef, job_data, to_timestamp
from pipeline.assets.events import asset_processed
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, PermanentJobError, ValidationError
from pipeline.hold import BACKGROUND, lane_behind
from pipeline.hooks import Analysis
from pipeline.metrics import Metrics
from pipeline.queue.attempt import AlreadyOver
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

# What a kept job says under ABOUT: {provider, of: the job that finished the asset, finishedAt, replace}.
LESS = "It told less than the result before, which stays"


class Reanalysis:
    """Asks for reanalyses and takes that back."""

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
        """providers: those in use. settle: removes a dead letter. end_running: ends the job if it runs on this process.
        on_deferred: called when Redis has yet to be given a job that the store has.
        """
        self._store = store
        self._queue = queue
        self._job_records = job_records
        self._providers = providers
        self._settle = settle
        self._end_running = end_running
        self._on_deferred = on_deferred

    def check(self, provider: str) -> None:
        """ValidationError when that provider is not in use. provider: "" for that of each category."""
        if provider and provider not in self._providers:
            raise ValidationError.of("provider", f"Must be one of: {', '.join(sorted(self._providers))}")

    async def request(self, asset: Asset, provider: str, request_id: str, *, replaces: bool = False) -> bool:
        """Have the asset analyzed again; False when it cannot be, or is about to be.

        replaces: the new result counts also when it tells less than the one that is there.
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
            # One of the same fence that was taken back.
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
            # The store first: what it still knew it would put back. Without that a run commits nothing.
            await self._job_records.forget(job_id)
            await self._queue.cancel(job_id)
            self._end_running(job_id)
        return bool(waiting)

    async def _of(self, asset: Asset) -> dict[str, Mapping[str, Any]]:
        kept = await self._store.records_of(asset.user_id, asset.id, kinds=[self._job_records.kind])
        return {each.id: each.data for each in kept if PROMISE in each.data}


class Reanalyzing:
    """The JobHandler of the `ai-processing` queue: analyzes again what is asked for; other jobs are Processing's."""

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
        """settle: removes the dead letter of an asset that is failed no longer."""
        self._store = store
        self._processing = processing
        self._job_records = job_records
        self._metrics = metrics
        self._orphaned_images = orphaned_images
        self._settle = settle
        self._late_commits = LateCommits()

    def describe(self, job: Job) -> Mapping[str, str]:
        """Return the log fields that name the asset and its owner."""
        return self._processing.describe(job)

    async def process(self, job: Job) -> Result | None:
        """Take the fence and analyze the photo again; None when there is nothing left to do."""
        if job.group != BACKGROUND:
            return await self._processing.process(job)
        kept = await self._job_records.find(job.id)
        if FAILED in kept:
            # The process died between its end and the acknowledgement.
            raise PermanentJobError(str(kept[FAILED].get("error", "")))
        asset = await self._begin(job, kept.get(PROMISE))
        return None if asset is None else await self._processing.analysis.analyze(job, asset, kept[PROMISE]["provider"])

    async def commit(self, job: Job, result: Result) -> None:
        """Commit the new result under its run's fence, and send the event if it tells something new."""
        if job.group != BACKGROUND:
            await self._processing.commit(job, result)
            return
        kept = (await self._job_records.find(job.id)).get(PROMISE, {})
        if kept.get("replace") is not True and _tells_less(result.analysis, result.asset):
            await self._late_commits.run(self._leave(job, result))
            return
        processed = await self._processing.analysis.store_processed(result)
        await self._late_commits.run(self._commit(job, result, processed, kept.get("replace") is True))

    async def give_up(self, job: Job, message: str) -> None:
        """Keep the dead letter; the asset stays as it is."""
        if job.group != BACKGROUND:
            await self._processing.give_up(job, message)
            return
        kept = await self._job_records.find(job.id)
        # Taking the fence ends a run that is lost and goes on.
        if FAILED not in kept and await self._begin(job, kept.get(PROMISE)) is None:
            raise AlreadyOver
        await self._job_records.put_failed(job, message, {PROMISE: kept[PROMISE]})
        self._note("failed", job, error=message)
        if await self._job_records.forget_if_deleted(job.id, str(job.data.get("assetId"))):
            raise AlreadyOver

    async def refund_attempt(self, job: Job) -> None:
        """Do not count the job's last start against its asset; those of a reanalysis never are."""
        if job.group != BACKGROUND:
            await self._processing.refund_attempt(job)

    async def _begin(self, job: Job, promise: Mapping[str, Any] | None) -> Asset | None:
        """Take the fence; None when the reanalysis is over or nobody wants it any more."""
        if promise is None:
            log.info("reanalysis_not_wanted")
            return None
        asset = await self._store.begin(job.data["assetId"], job.data["userId"], promise["of"], again=True)
        if asset is None:
            self._note("dropped", job)
        elif to_timestamp(asset.finished_at) != promise["finishedAt"]:
            # The process died between commit and acknowledgement; the event may not have been sent.
            await self._processing.send_event(asset)
        else:
            return asset
        await self._job_records.forget(job.id)
        return None

    async def _leave(self, job: Job, result: Result) -> None:
        """Let the result stand that is there, and say in the asset's attempts and the counts that it was looked at."""
        asset = result.asset
        attempt = result.attempt.ended("completed", LESS)
        await until_stored(
            lambda: self._store.add_attempt(asset.id, asset.processing_job_id, asset.fence, attempt)
        )
        self._orphaned_images.discard_later(names_of(*(result.previews or {}).values()))
        self._note("kept", job)
        await self._job_records.forget(job.id)

    async def _commit(self, job: Job, result: Result, processed: ImageRef | None, replaces: bool) -> None:
        before = result.asset
        # A provider that makes no images takes none away.
        image = processed if processed is not None or replaces else before.processed
        new = replace(before, ai_metadata=metadata_of(result.analysis), processed=image)
        new = replace(new, status=new.status_when_known())
        is_changed = _told(new) != _told(before)
        commit = self._write(job, result, new, is_changed)
        after = await self._orphaned_images.remove_unless(commit, processed, result.previews)
        if after is None:
            self._metrics.stale_results.inc()
            self._note("dropped", job)
        else:
            if is_changed:
                await self._processing.send_event(after)
            self._note("changed" if is_changed else "unchanged", job)
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
                # Taken back.
                return None
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
                again=True,
            )

        finished = await until_stored(write)
        return await until_stored(lambda: settle_status(self._store, finished)) if finished else None

    def _note(self, outcome: str, job: Job, **fields: str) -> None:
        self._metrics.reanalyses.labels(outcome).inc()
        log.info("asset_reanalyzed", outcome=outcome, jobId=job.id, **fields)


def _unique(asset: Asset) -> str:
    """Return what the job's id ends with: the same until a run has begun, so that asking twice makes one job."""
    return hashlib.sha256(f"{asset.id} {asset.processing_job_id} {asset.fence}".encode()).hexdigest()[:24]


def _tells_less(new: Analysis, before: Asset) -> bool:
    """Return whether less is known by the new result: brand and model count before the rest."""
    metadata = (metadata_of(new), before.ai_metadata)
    known = [[bool(each.brand), bool(each.model), bool(each.colorway)] for each in metadata]
    is_known = [(sum(each[:2]), sum(each)) for each in known]
    return is_known[0] < is_known[1]


def _told(asset: Asset) -> tuple[Mapping[str, Any], str]:
    """Return what the owner is told of the asset, but for when; an image is what its bytes are."""
    image = asset.processed
    return asset_processed(replace(asset, finished_at=None)), (image.sha256 or image.url) if image else ""
