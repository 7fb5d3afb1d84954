"""Use case: copies of jobs in the asset store, because Redis may lose them.

These are the dead letters of both queues, and events that a durable notifier has not delivered yet. A waiting photo
needs no record: the status of its asset says that it waits. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import structlog

from pipeline.assets.asset import job_data
from pipeline.assets.asset_ids import created_at_ms
from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.instants import milliseconds_of
from pipeline.queue.job import FailedJob, Job, NewJob
from pipeline.queue.queue import JobQueue
from pipeline.queue.codec import as_instant
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.paging import dated_pages

log = structlog.get_logger(__name__)

T = TypeVar("T")
# Fields of a record: the promise of a reanalysis (reanalysis.py), and the failure of a dead letter.
PROMISE, FAILED = "reanalysis", "failed"
Cursor = tuple[datetime, str]


class JobRecords:
    """The records of the jobs of one queue."""

    def __init__(self, store: AssetStore, queue: JobQueue, *, keep_failed_seconds: float, max_age_seconds: float):
        """keep_failed_seconds: how long dead letters are kept
        max_age_seconds: no job waits for longer
        """
        self._store = store
        self._queue = queue
        self.kind = kind_of(queue)
        self._keep_failed = timedelta(seconds=keep_failed_seconds)
        self._longest = timedelta(seconds=keep_failed_seconds + max_age_seconds)

    async def put(self, job: NewJob) -> None:
        """Record a job that is about to be enqueued."""
        await self._store.put_record(self._record(job.id, job.data, _fields(job)))

    async def insert(self, job: NewJob, more: Mapping[str, Any]) -> None:
        """Record a job that is about to be enqueued, with further fields, unless it has a record."""
        fields = {**_fields(job), "group": job.group, **more}
        await self._store.insert_record(self._record(job.id, job.data, fields))

    async def find(self, job_id: str) -> Mapping[str, Any]:
        """Return the fields of the job's record, {} when there is none."""
        record = await self._store.find_record(self.kind, job_id)
        return record.data if record is not None else {}

    async def put_failed(self, job: Job, error: str, more: Mapping[str, Any] = {}) -> None:
        """Record a job that is about to become a dead letter, with further fields; replaces its record."""
        failed = {"error": error, "attempts": job.attempt, "stalls": job.stalls, "enqueuedAtMs": job.enqueued_at_ms}
        fields = {"data": job.data, "requestId": job.request_id, "failed": failed, **more}
        await self._store.put_record(self._record(job.id, job.data, fields))

    def ids_in(self, records: Sequence[Record]) -> list[str]:
        """Return the ids of the records that are jobs of this queue."""
        return [each.id for each in records if each.kind == self.kind]

    async def unnamed_of(self, user_id: str) -> Sequence[Record]:
        """Return the user's records that have no user_id: version 0.1 writes such records to MongoDB."""
        records: list[Record] = []
        async for page in dated_pages(partial(self._store.records, self.kind)):
            pairs = ((record, record.data.get("data")) for record in page if not record.user_id)
            records += (record for record, data in pairs if isinstance(data, dict) and data.get("userId") == user_id)
        return records

    async def forget(self, *job_ids: str) -> None:
        """Remove the records of these jobs."""
        await self._store.delete_records(self.kind, *job_ids)

    async def forget_if_deleted(self, job_id: str, asset_id: str) -> bool:
        """Remove the record of a dead letter if its asset was deleted meanwhile; return whether it was."""
        if await self._store.existing_ids([asset_id]):
            return False
        await self.forget(job_id)
        return True

    async def repair(self, before: datetime, after: Cursor | None, limit: int) -> tuple[int, Cursor | None]:
        """Restore the jobs of one page that Redis has lost.

        before: younger records are skipped
        after: the cursor of the page before
        Returns how many were restored, and the cursor of the next page, None at the end.
        """
        page = await self._store.records(self.kind, limit=limit, after=after)
        ready = [record for record in page if record.at < before]
        oldest = utc_now() - self._keep_failed
        waiting = _readable(_waiting, [record for record in ready if "failed" not in record.data])
        restored = await self._queue.restore(waiting)
        # An event that was sent again after its delivery was recorded again.
        if done := await self._queue.completed([job.id for job in waiting]):
            await self.forget(*done)
        dead = _readable(_failed, [record for record in ready if "failed" in record.data and record.at > oldest])
        if put_back := await self._queue.restore_failed(dead):
            # An operator may have removed a dead letter after it was read here: its record is removed first.
            remaining = {record.id for record in await self._store.records(self.kind, limit=limit, after=after)}
            await self._queue.remove_failed(*(each.id for each in dead if each.id not in remaining))
            restored += put_back
        is_last = len(page) < limit or len(ready) < len(page)
        return restored, None if is_last else (page[-1].at, page[-1].id)

    def _record(self, job_id: str, data: Mapping[str, Any], fields: Mapping[str, Any]) -> Record:
        user_id, asset_id = (str(data.get(name) or "") for name in ("userId", "assetId"))
        return Record(self.kind, job_id, utc_now(), fields, user_id, asset_id)

    async def purge(self) -> None:
        """Remove records that are older than any job can be."""
        await self._store.purge_records(self.kind, utc_now() - self._longest)


def kind_of(queue: JobQueue) -> str:
    """Return the kind of the records of a queue's jobs."""
    return f"job of {queue.name}"


def _fields(job: NewJob) -> dict[str, Any]:
    return {"data": job.data, "requestId": job.request_id, "lane": job.lane}


def _waiting(record: Record) -> NewJob:
    return NewJob(
        record.id,
        record.data["data"],
        request_id=record.data["requestId"],
        lane=record.data["lane"],
        group=record.data.get("group", ""),
        submitted_at_ms=milliseconds_of(record.at),
    )


def _readable(read: Callable[[Record], T], records: Sequence[Record]) -> list[T]:
    """Return the jobs without the damaged ones: these must not keep the others from being restored."""
    jobs = []
    for each in records:
        try:
            jobs.append(read(each))
        except (LookupError, TypeError):
            log.error("kept_job_damaged", jobId=each.id)
    return jobs


def _failed(record: Record) -> FailedJob:
    failed = record.data["failed"]
    return FailedJob(
        id=record.id,
        failed_at=record.at,
        data=record.data["data"],
        error=failed["error"],
        attempts=failed["attempts"],
        stalls=failed["stalls"],
        enqueued_at=as_instant(failed["enqueuedAtMs"]),
        request_id=record.data["requestId"],
    )


class UnfinishedAssets:
    """The jobs that unfinished assets need."""

    def __init__(
        self, store: AssetStore, queue: JobQueue, urls: ImageUrls, *, age_seconds: float, is_fair: bool
    ) -> None:
        """age_seconds: a job that ended so long ago while its asset did not end starts again
        is_fair: the queue serves users in turn
        """
        self._store = store
        self._queue = queue
        self._urls = urls
        self._age = timedelta(seconds=age_seconds)
        self._is_fair = is_fair

    async def repair(self, before: datetime, after: Cursor | None, limit: int) -> tuple[int, Cursor | None]:
        """As JobRecords.repair, in order of submission."""
        page = await self._store.unfinished_before(before, limit=limit, after=after)
        # A younger job that ended while its asset did not may be being acknowledged now.
        ended_before = utc_now() - self._age
        urls = await self._urls.of_images(asset.original for asset in page)
        restored = await self._queue.restore(
            [
                NewJob(
                    asset.processing_job_id,
                    job_data(asset, asset.original.url_among(urls)),
                    group=asset.user_id if self._is_fair else "",
                    lane=asset.category,
                    revive=asset.updated_at < ended_before,
                    submitted_at_ms=created_at_ms(asset.processing_job_id),
                )
                for asset in page
            ]
        )
        return restored, (page[-1].created_at, page[-1].id) if len(page) == limit else None
