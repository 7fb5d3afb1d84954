"""Use case: operators see the data of one user. Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from pipeline.assets.asset import Asset, AssetStatus, to_timestamp
from pipeline.assets.job_search import JobFilter
from pipeline.assets.store import AssetStore, Record
from pipeline.errors import DependencyUnavailable
from pipeline.queue.job import JobState
from pipeline.queue.queue import JobQueue
from pipeline.usecases.erasing import Erasing

PAGE = 250
# The oldest asset of a user with more assets is not searched.
READ_AT_MOST = 500


class Users:
    """Describes users."""

    def __init__(
        self,
        store: AssetStore,
        queue: JobQueue,
        erasing: Erasing,
        *,
        kinds: Collection[str],
        max_bytes: int,
    ) -> None:
        """kinds: of the records of jobs, see JobRecords
        max_bytes: of one user, 0: no bound
        """
        self._max_bytes = max_bytes
        self._kinds = kinds
        self._store = store
        self._queue = queue
        self._erasing = erasing

    async def describe(self, user_id: str) -> dict[str, Any]:
        """Return the user's data: schema User in contracts/analyze-queue.openapi.json."""
        filters = {status: JobFilter(user_id=user_id, statuses=(status,)) for status in AssetStatus}
        counts = dict(zip(filters, await asyncio.gather(*map(self._store.count_jobs, filters.values())), strict=True))
        read: list[Asset] = []
        page = await self._store.page(user_id, limit=PAGE)
        while page and len(read) < READ_AT_MOST:
            read += page
            page = await self._store.page(user_id, limit=PAGE, after=(page[-1].created_at, page[-1].id))
        unfinished = await self._store.jobs(filters[AssetStatus.PROCESSING], limit=READ_AT_MOST)
        records = await self._store.records_of(user_id, kinds=self._kinds)
        erasure = await self._erasing.find(user_id)
        return {
            "userId": user_id,
            "assets": {
                "total": sum(count.count for count in counts.values()),
                **{status.value: count.count for status, count in counts.items()},
            },
            "isComplete": not page and all(count.is_exact for count in counts.values()),
            "bytes": await self._store.stored_bytes(user_id),
            "maxBytes": self._max_bytes or None,
            "oldest": to_timestamp(read[-1].created_at) if read and not page else None,
            "newest": to_timestamp(read[0].created_at) if read else None,
            "waitingJobs": await self._count_waiting([asset.processing_job_id for asset in unfinished.assets]),
            "deadLetters": sum("failed" in each.data for each in records),
            "undelivered": sum(map(_is_undelivered, records)),
            "erase": erasure.to_json() if erasure else None,
        }

    async def _count_waiting(self, job_ids: Sequence[str]) -> int | None:
        """Return how many of the jobs wait for their first or next start; None while Redis is away."""
        try:
            infos = await self._queue.job_infos(job_ids)
        except DependencyUnavailable:
            return None
        return sum(info.state in (JobState.WAITING, JobState.DELAYED) for info in infos.values())


def _is_undelivered(record: Record) -> bool:
    return "notifier" in record.data.get("data", {}) and "failed" not in record.data
