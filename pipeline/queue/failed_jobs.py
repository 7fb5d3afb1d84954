"""The dead letters of a queue: jobs that failed for good. A part of JobQueue, see queue.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from pipeline.instants import milliseconds_of
from pipeline.queue import codec
from pipeline.queue.calls import QueueCalls
from pipeline.queue.job import FailedJob, FailedPage


class FailedJobs(QueueCalls):
    """Reads, removes and restores dead letters."""

    owner: str

    async def failed_jobs(self, limit: int, after: tuple[datetime, str] | None = None) -> FailedPage:
        """Return dead letters, newest first; those of one millisecond by id, descending.

        after: (failed_at, id) of the last one read, which may be gone by now.
        """
        failed_at_ms, job_id = (milliseconds_of(after[0]), after[1]) if after else ("", "")
        return await self._list_failed(limit, failed_at_ms, job_id)

    async def failed_job(self, job_id: str) -> FailedJob | None:
        """Return the dead letter of that id, None when there is none."""
        return next(iter((await self._list_failed(1, "", job_id)).jobs), None)

    async def remove_failed(self, *job_ids: str) -> int:
        """Remove dead letters; return how many of the ids were dead letters. Other jobs stay as they are."""
        return cast(int, await self._run("forget", self._place_keys("failed"), job_ids, timed=False))

    async def restore_failed(self, dead: Sequence[FailedJob]) -> int:
        """Put back those dead letters that Redis does not know; return how many."""
        return await self._restore("bury", [self._bury_call(each) for each in dead])

    async def _list_failed(self, limit: int, failed_at_ms: int | str, job_id: str) -> FailedPage:
        keys = self._place_keys("failed")
        older, *entries = await self._run("list", keys, [limit, failed_at_ms, job_id], timed=False)
        return FailedPage([codec.as_failed_job(*fields) for fields in entries], older)

    def _bury_call(self, dead: FailedJob) -> tuple[list[str], list[Any]]:
        enqueued_at_ms = milliseconds_of(dead.enqueued_at) if dead.enqueued_at else 0
        record = {"enqueuedAt": enqueued_at_ms, "requestId": dead.request_id, "data": dead.data}
        state = {"state": "failed", "attempt": dead.attempts, "stalls": dead.stalls, "error": dead.error}
        args = [dead.id, codec.to_json(record), codec.to_json(state), milliseconds_of(dead.failed_at)]
        return self._place_keys("completed", "failed", "owner"), [self.owner, *args]
