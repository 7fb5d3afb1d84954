"""Use case: an operator runs dead letters, the jobs that failed for good, again. Runs on the event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog

from pipeline.assets.asset import AssetStatus
from pipeline.assets.asset_ids import ASSET_ID, new_asset_id
from pipeline.assets.store import AssetStore
from pipeline.errors import Conflict, NotFound
from pipeline.queue.job import FailedJob
from pipeline.queue.queue import JobQueue
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.submission import ORIGINAL_GONE, Receipt, Submission

log = structlog.get_logger(__name__)

# As many as take a few seconds, so that no request runs for minutes.
RETRY_AT_MOST = 1000


@dataclass(frozen=True, slots=True)
class RetriedPage:
    """The outcome of one page of dead letters.

    remaining: how many older ones are left
    next_after: the cursor of the next page
    """

    retried: int
    skipped: int
    remaining: int
    next_after: tuple[datetime, str] | None


async def rerun_page(
    queue: JobQueue, run_again: Callable[[FailedJob], Awaitable[object]], after: tuple[datetime, str] | None
) -> RetriedPage:
    """Run up to RETRY_AT_MOST dead letters again, the oldest of them first.

    run_again: NotFound or Conflict for a dead letter that cannot run again
    """
    page = await queue.failed_jobs(RETRY_AT_MOST, after)
    retried = 0
    for dead in reversed(page.jobs):
        try:
            await run_again(dead)
            retried += 1
        except (NotFound, Conflict) as error:
            log.info("dead_letter_skipped", jobId=dead.id, reason=error.message)
    return RetriedPage(retried, len(page.jobs) - retried, page.older, page.next_after)


class DeadLetters:
    """The dead letters of the queue of photos."""

    def __init__(self, store: AssetStore, queue: JobQueue, job_records: JobRecords, submission: Submission) -> None:
        self._store = store
        self._queue = queue
        self._job_records = job_records
        self._submission = submission

    async def remove_failed(self, *job_ids: str) -> int:
        """Remove dead letters; return how many there were. Their assets stay."""
        # The store first: a job that is still in the store would be restored.
        await self._job_records.forget(*job_ids)
        return await self._queue.remove_failed(*job_ids)

    async def retry_failed(self, job_id: str, request_id: str) -> Receipt:
        """Run a dead letter again: its asset gets a new job, and the dead letter is removed.

        NotFound: there is no such dead letter, or its asset is deleted. Conflict: its asset is not failed any more. In
        both cases the dead letter, if any, stays until it is removed.
        """
        with self._submission.in_flight():
            dead = await self._queue.failed_job(job_id)
            if dead is None:
                raise NotFound("There is no dead letter of that id")
            return await self._run_again(dead, request_id)

    async def retry_all_failed(self, request_id: str, after: tuple[datetime, str] | None = None) -> RetriedPage:
        """Run up to RETRY_AT_MOST dead letters again, the oldest of them first; those that cannot are skipped.

        after: next_after of the call before; jobs that fail again meanwhile are newer, so no call returns them
        """
        with self._submission.in_flight():
            return await rerun_page(self._queue, partial(self._run_again, request_id=request_id), after)

    async def _run_again(self, dead: FailedJob, request_id: str) -> Receipt:
        # A damaged payload names no asset, but the id of an asset's first job contains the asset's id.
        asset_id = str(dead.data.get("assetId") or dead.id.rpartition(":")[2])
        asset = await self._store.get(asset_id) if ASSET_ID.fullmatch(asset_id) else None
        if asset is None:
            raise NotFound("Its asset is gone, this dead letter can only be removed")
        if asset.status is AssetStatus.PROCESSING and asset.processing_job_id == dead.id:
            # Only the job in Redis was damaged. After a crash in between, the reconciler does the rest.
            await self.remove_failed(dead.id)
            await self._submission.enqueue(asset, request_id)
            log.info("dead_letter_retried", assetId=asset.id, jobId=dead.id, newJobId=dead.id)
            return Receipt(asset.id, dead.id)
        requeued = None
        if asset.status is AssetStatus.FAILED and not asset.has_original:
            raise Conflict(f"{ORIGINAL_GONE}, this dead letter can only be removed")
        if asset.status is AssetStatus.FAILED:
            requeued = await self._store.requeue(asset.id, asset.user_id, self._queue.job_id(new_asset_id()))
        if requeued is None:
            raise Conflict(
                f"Its asset is {asset.status.value} by {asset.processing_job_id}, this dead letter can only be removed"
            )
        await self._submission.enqueue(requeued, request_id)
        # The asset may have failed again since, with another job: that dead letter is removed too.
        await self.remove_failed(dead.id, asset.processing_job_id)
        log.info("dead_letter_retried", assetId=asset.id, jobId=dead.id, newJobId=requeued.processing_job_id)
        return Receipt(asset.id, requeued.processing_job_id)
