"""Use case: everything about one user is erased.

An erase covers the user's data of its beginning, and data that arrives while it runs. Later uploads of the user are not
affected. A record in the asset store, which names the user, promises the erase: if the process ends, another process
continues it. The record is removed last. It is written only once, so that a process that lags behind cannot bring it
back; the progress is a second record without the user. A lock in Redis lets one process at a time work on an erase. The
images of an asset are removed before its document, so that none is forgotten while a storage is away. Log lines name
the erase, not the user. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog

from pipeline.assets.asset import to_timestamp
from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, PipelineError
from pipeline.queue.job import JobState
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.usecases.audit import Audit
from pipeline.usecases.deliveries import delivery_ids
from pipeline.usecases.removing import Removing

log = structlog.get_logger(__name__)

KIND = "erase"
PROGRESS = "erase progress"
# The process that ends an erase does its last step within that time, if it is alive.
PROGRESS_AGE = timedelta(minutes=2)
PAGE = 50
# How many assets are removed at the same time.
AT_ONCE = 8
RECORDS_AT_MOST = 1000
DEAD_LETTERS_AT_ONCE = 500
LOOK_SECONDS = (20.0, 40.0)
# Longer than a page takes. If the process dies, another one continues after that.
LOCK_SECONDS = 60.0
RELEASE_SECONDS = 0.001
# A job that was cancelled ends with the next renewal of its lease, or with its lease.
RUNNING_SECONDS = 30.0
POLL_SECONDS = 0.2


@dataclass(slots=True)
class Erasure:
    """One erase and its progress.

    running: ids of jobs that have not ended yet
    reason: why it waits, or None
    """

    user_id: str
    id: str
    began_at: datetime
    assets: int = 0
    images: int = 0
    jobs: int = 0
    running: set[str] = field(default_factory=set)
    reason: str | None = None
    is_done: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as an operator sees it: schema Erasure in contracts/analyze-queue.openapi.json."""
        return {
            "userId": self.user_id,
            "state": "done" if self.is_done else "running",
            "beganAt": to_timestamp(self.began_at),
            "assets": self.assets,
            "images": self.images,
            "jobs": self.jobs,
            "reason": self.reason,
        }

    @property
    def progress(self) -> Record:
        """The record of the progress."""
        data = {"assets": self.assets, "images": self.images, "jobs": self.jobs, "reason": self.reason}
        return Record(PROGRESS, self.id, utc_now(), data | {"running": sorted(self.running)})

    @classmethod
    def of(cls, record: Record, progress: Mapping[str, Any]) -> Erasure:
        """Return the erase of a record and its progress."""
        return cls(
            record.id,
            record.data["id"],
            record.at,
            progress.get("assets", 0),
            progress.get("images", 0),
            progress.get("jobs", 0),
            set(progress.get("running", ())),
            progress.get("reason"),
        )


class Erasing:
    """Erases users."""

    def __init__(
        self,
        store: AssetStore,
        removing: Removing,
        queues: Sequence[JobQueue],
        *,
        audit: Audit,
        forget_history: Callable[[], Awaitable[None]],
    ) -> None:
        """queues: the first one has the locks
        audit: its entries may name the user
        forget_history: makes Redis write its file again, if Redis is embedded
        """
        self._audit = audit
        self._store = store
        self._removing = removing
        self._queues = queues
        self._forget_history = forget_history
        self._id = secrets.token_hex(8)
        self._working: dict[str, asyncio.Task[Erasure]] = {}

    @property
    def tasks(self) -> Sequence[asyncio.Task[Erasure]]:
        """The erases that this process works on; to be cancelled when it ends."""
        return tuple(self._working.values())

    async def find(self, user_id: str) -> Erasure | None:
        """Return the erase of that user that is under way, None when there is none."""
        if (record := await self._store.find_record(KIND, user_id)) is None:
            return None
        progress = await self._store.find_record(PROGRESS, record.data["id"])
        return Erasure.of(record, progress.data if progress else {})

    async def erase(self, user_id: str, seconds: float) -> Erasure:
        """Begin to erase the user, or continue; return the erase when it is done, or after so many seconds.

        DependencyUnavailable: it may have begun or not.
        """
        erasure = await self.find(user_id)
        if erasure is None:
            erasure = Erasure(user_id, secrets.token_hex(8), utc_now())
            await self._store.put_record(Record(KIND, user_id, erasure.began_at, {"id": erasure.id}))
            log.info("erase_begun", eraseId=erasure.id)
        work = self._start(erasure)
        await asyncio.wait([work], timeout=seconds)
        if work.done() and not work.cancelled() and work.result().is_done:
            return work.result()
        if (current := await self.find(user_id)) is not None:
            return current
        erasure.is_done = True
        return erasure

    async def run(self) -> None:
        """Continue erases that another process has not finished, for ever."""
        while True:
            try:
                for erasure in await self._all():
                    self._start(erasure)
                await self._clean_up()
                await self._removing.retry()
            except DependencyUnavailable as error:
                log.warning("erase_postponed", cause=cause_of(error))
            await asyncio.sleep(random.uniform(*LOOK_SECONDS))

    async def _all(self) -> list[Erasure]:
        records = await self._store.records(KIND, limit=RECORDS_AT_MOST)
        if not records:
            return []
        progress = {record.id: record.data for record in await self._store.records(PROGRESS, limit=RECORDS_AT_MOST)}
        return [Erasure.of(record, progress.get(record.data["id"], {})) for record in records]

    def _start(self, erasure: Erasure) -> asyncio.Task[Erasure]:
        work = self._working.get(erasure.user_id)
        if work is None:
            work = asyncio.create_task(self._work(erasure), name=f"erase {erasure.id}")
            self._working[erasure.user_id] = work
            work.add_done_callback(lambda _: self._working.pop(erasure.user_id, None))
        return work

    async def _work(self, erasure: Erasure) -> Erasure:
        """Erase the user unless another process does; `run` continues it if something is away now."""
        try:
            if await self._has_lock(erasure) and await self._erase(erasure):
                erasure.is_done = True
                counts = {"assets": erasure.assets, "images": erasure.images, "jobs": erasure.jobs}
                log.info("user_erased", eraseId=erasure.id, **counts)
        except PipelineError as error:
            erasure.reason = error.message
            log.warning("erase_postponed", eraseId=erasure.id, cause=cause_of(error))
            with suppress(DependencyUnavailable):
                await self._store.put_record(erasure.progress)
        except Exception:  # the border of one erase: others continue, and `run` tries this one again
            log.exception("erase_failed", eraseId=erasure.id)
        if not erasure.is_done:
            # Release the lock, so that the next process need not wait for it.
            with suppress(DependencyUnavailable):
                await self._queues[0].acquire_lock(f"erase-{erasure.id}", self._id, RELEASE_SECONDS)
        return erasure

    async def _has_lock(self, erasure: Erasure) -> bool:
        """Lock the erase; return whether this process may continue: no other process works on it or has ended it."""
        record = await self._store.find_record(KIND, erasure.user_id)
        if record is None or record.data["id"] != erasure.id:
            return False
        return await self._queues[0].acquire_lock(f"erase-{erasure.id}", self._id, LOCK_SECONDS)

    async def _erase(self, erasure: Erasure) -> bool:
        """Return True when everything is erased, False when another process has taken over."""
        erasure.reason = None
        while await self._pass(erasure):
            await self._store.put_record(erasure.progress)
            if not await self._has_lock(erasure):
                return False
        # Another erase may have begun at the same moment and replaced the record.
        if not await self._has_lock(erasure):
            return False
        await self._store.put_record(erasure.progress)
        await self._store.delete_records(KIND, erasure.user_id)
        await self._forget_bytes(erasure.id)
        return True

    async def _forget_bytes(self, erase_id: str) -> None:
        """Remove deleted data from the files of the store and of Redis, then the record of the progress."""
        await self._store.scrub()
        await self._forget_history()
        await self._store.delete_records(PROGRESS, erase_id)

    async def _clean_up(self) -> None:
        """Do the last step of erases whose process died before it."""
        progress = await self._store.records(PROGRESS, limit=RECORDS_AT_MOST)
        under_way = {erasure.id for erasure in await self._all()} if progress else set()
        for record in progress:
            if record.id not in under_way and record.at < utc_now() - PROGRESS_AGE:
                await self._forget_bytes(record.id)

    async def _pass(self, erasure: Erasure) -> bool:
        """Remove one page of each kind; return False when nothing was left and no job runs."""
        page = await self._store.page(erasure.user_id, limit=PAGE)
        for first in range(0, len(page), AT_ONCE):
            part = page[first : first + AT_ONCE]
            for images, running in await asyncio.gather(*map(self._removing.erase, part)):
                erasure.assets += 1
                erasure.images += images
                erasure.running |= set(running)
        # Without readable assets, only damaged ones are left, or assets that have just arrived.
        damaged = [] if page else await self._store.damaged_of(erasure.user_id)
        for asset_id in damaged:
            erasure.images += await self._removing.erase_damaged(asset_id, erasure.user_id)
            erasure.assets += 1
        if page or damaged or await self._forget_jobs(erasure):
            return True
        was_running = bool(erasure.running)
        await self._wait_for_running(erasure)
        # A job that ran may have written something at its end.
        return was_running

    async def _forget_jobs(self, erasure: Erasure) -> bool:
        """Remove the user's remaining records, jobs and dead letters, and the name from the audit list.

        Returns whether there were any.
        """
        records = await self._removing.records_of(erasure.user_id)
        erasure.running |= set(await self._removing.forget_jobs(records))
        for kind in {each.kind for each in records}:
            await self._store.delete_records(kind, *(each.id for each in records if each.kind == kind))
        count = len(records) - len(delivery_ids(records))
        for queue in self._queues:
            after = None
            while True:
                page = await queue.failed_jobs(DEAD_LETTERS_AT_ONCE, after)
                ids = [job.id for job in page.jobs if job.data.get("userId") == erasure.user_id]
                count += await queue.remove_failed(*ids) if ids else 0
                if (after := page.next_after) is None:
                    break
        erasure.jobs += count
        return await self._audit.forget(erasure.user_id) or bool(count or records)

    async def _wait_for_running(self, erasure: Erasure) -> None:
        """Return when the cancelled jobs have ended: until then Redis has their payload."""
        deadline = asyncio.get_running_loop().time() + RUNNING_SECONDS
        while erasure.running:
            for job_id in sorted(erasure.running):
                queue = next(each for each in self._queues if job_id.startswith(f"{each.name}:"))
                if (await queue.fields(job_id)).get("state") != JobState.ACTIVE:
                    erasure.running.discard(job_id)
            if not erasure.running:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise DependencyUnavailable("Jobs of the user still run")
            await self._has_lock(erasure)
            await asyncio.sleep(POLL_SECONDS)
