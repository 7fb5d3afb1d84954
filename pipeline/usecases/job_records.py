"""Use case: jobs that the asset store knows as well, because Redis may lose them.

These are dead letters of both queues, and events that a durable notifier has yet to deliver. A photo that waits needs
no record: its asset says so. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import structlog

from pipeline.assets.asset import job_data, made_at_ms
from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.instants import milliseconds_of
from pipeline.queue.job import FailedJob, Job, NewJob
from pipeline.queue.queue import JobQueue
from pipeline.queue.records import as_instant
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.paging import dated_pages

log = structlog.get_logger(__name__)

T = TypeVar("T")
# Under this name the job of a reanalysis says what it is about (reanalysis.py), and under the other a dead letter why.
PROMISE, FAILED = "reanalysis", "failed"
Cursor = tuple[datetime, str]


class JobRecords:
    """The kept jobs of one queue."""

    def __init__(self, store: AssetStore, queue: JobQueue, *, keep_failed_seconds: float, max_age_seconds: float):
        """keep_failed_seconds: how long dead letters are listed. max_age_seconds: no job waits for longer."""
        self._store = store
        self._queue = queue
        self.kind = kind_of(queue)
        self._keep_failed = timedelta(seconds=keep_failed_seconds)
        self._longest = timedelta(seconds=keep_failed_seconds + max_age_seconds)

    async def put(self, job: NewJob) -> None:
        """Keep a job that is about to be enqueued."""
        await self._store.put_record(self._about(job.id, job.data, _fields(job)))

    async def insert(self, job: NewJob, more: Mapping[str, Any]) -> None:
        """Keep a job that is about to be enqueued, and more about it, unless it is kept already."""
        fields = {**_fields(job), "group": job.group, **more}
        await self._store.insert_record(self._about(job.id, job.data, fields))

    async def find(self, job_id: str) -> Mapping[str, Any]:
        """Return what is kept of the job, {} when nothing. `failed`: of a dead letter."""
        record = await self._store.find_record(self.kind, job_id)
        return record.data if record is not None else {}

    async def put_failed(self, job: Job, error: str, more: Mapping[str, Any] = {}) -> None:
        """Keep a job that is about to become a dead letter, and more about it, instead of what was kept before."""
        failed = {"error": error, "attempts": job.attempt, "stalls": job.stalls, "enqueuedAtMs": job.enqueued_at_ms}
        fields = {"data": job.data, "requestId": job.request_id, "failed": failed, **more}
        await self._store.put_record(self._about(job.id, job.data, fields))

    def ids_in(self, record: Sequence[Record]) -> list[str]:
        """Return the ids of those that are jobs of this queue."""
        return [each.id for each in record if each.kind == self.kind]

    async def unnamed_of(self, user_id: str) -> Sequence[Record]:
        """Return those that only their data say are about the user: version 0.1 writes such ones to MongoDB."""
        found: list[Record] = []
        async for page in dated_pages(partial(self._store.records, self.kind)):
            about = ((record, record.data.get("data")) for record in page if not record.user_id)
            found += (record for record, data in about if isinstance(data, dict) and data.get("userId") == user_id)
        return found

    async def forget(self, *job_ids: str) -> None:
        """Keep these jobs no longer: they are done, or nobody wants them."""
        await self._store.delete_records(self.kind, *job_ids)

    async def forget_if_deleted(self, job_id: str, asset_id: str) -> bool:
        """Forget a dead letter if its asset was deleted meanwhile, and return that: nobody else would look for it."""
        if await self._store.known([asset_id]):
            return False
        await self.forget(job_id)
        return True

    async def repair(self, before: datetime, after: Cursor | None, limit: int) -> tuple[int, Cursor | None]:
        """Put back those of one page that Redis has lost.

        before: younger ones are left alone. after: where the last page ended.
        Returns how many, and where to go on, None at the end.
        """
        page = await self._store.records(self.kind, limit=limit, after=after)
        ready = [record for record in page if record.at < before]
        oldest = utc_now() - self._keep_failed
        waiting = _readable(_waiting, [record for record in ready if "failed" not in record.data])
        restored = await self._queue.restore(waiting)
        # One that was announced again after its delivery was kept again.
        if done := await self._queue.completed([job.id for job in waiting]):
            await self.forget(*done)
        dead = _readable(_failed, [record for record in ready if "failed" in record.data and record.at > oldest])
        if put_back := await self._queue.restore_failed(dead):
            # One that an operator removed after we had read of it is gone from the store first.
            still = {record.id for record in await self._store.records(self.kind, limit=limit, after=after)}
            await self._queue.remove_failed(*(each.id for each in dead if each.id not in still))
            restored += put_back
        is_last = len(page) < limit or len(ready) < len(page)
        return restored, None if is_last else (page[-1].at, page[-1].id)

    def _about(self, job_id: str, data: Mapping[str, Any], fields: Mapping[str, Any]) -> Record:
        user_id, asset_id = (str(data.get(name) or "") for name in ("userId", "assetId"))
        return Record(self.kind, job_id, utc_now(), fields, user_id, asset_id)

    async def purge(self) -> None:
        """Remove what is older than any job that is still of use."""
        await self._store.purge_records(self.kind, utc_now() - self._longest)


def kind_of(queue: JobQueue) -> str:
    """Return the kind under which the jobs of a queue are kept."""
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


def _readable(read: Callable[[Record], T], record: Sequence[Record]) -> list[T]:
    """Return the jobs, without those that lack something: one of them must not keep the others from coming back."""
    jobs = []
    for each in record:
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
    """The jobs that assets in `processing` need."""

    def __init__(
        self, store: AssetStore, queue: JobQueue, urls: ImageUrls, *, age_seconds: float, is_fair: bool
    ) -> None:
        """age_seconds: a job that ended before its asset did so long ago starts over. is_fair: users take turns."""
        self._store = store
        self._queue = queue
        self._urls = urls
        self._age = timedelta(seconds=age_seconds)
        self._is_fair = is_fair

    async def repair(self, before: datetime, after: Cursor | None, limit: int) -> tuple[int, Cursor | None]:
        """As JobRecords.repair, in order of submission."""
        page = await self._store.unfinished_before(before, limit=limit, after=after)
        # A job that ended while its asset did not is either being acknowledged just now or was not about this owner.
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
                    submitted_at_ms=made_at_ms(asset.processing_job_id),
                )
                for asset in page
            ]
        )
        return restored, (page[-1].created_at, page[-1].id) if len(page) == limit else None
