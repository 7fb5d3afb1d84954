"""Use case: what one user has, for operators. Runs on the event loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from pipeline.assets.asset import Asset, AssetStatus, to_timestamp
from pipeline.assets.store import AssetStore
from pipeline.queue.job import JobState
from pipeline.queue.queue import OTHERS_AT_MOST
from pipeline.usecases.erasing import Erasing
from pipeline.usecases.progress import Progress

PAGE = 500
# Of a user with more assets only the newest are counted.
COUNTED_AT_MOST = 20_000


class Users:
    """Tells what users have."""

    def __init__(
        self, store: AssetStore, progress: Progress, erasing: Erasing, *, kinds: Collection[str]
    ) -> None:
        """kinds: of the jobs that the store knows as well, see KeptJobs."""
        self._kinds = kinds
        self._store = store
        self._progress = progress
        self._erasing = erasing

    async def describe(self, user_id: str) -> dict[str, Any]:
        """Return what the user has: schema User in contracts/analyze-queue.openapi.json."""
        statuses: Counter[str] = Counter()
        stored_bytes = 0
        newest = oldest = None
        unfinished: list[str] = []
        after, page = None, await self._store.page(user_id, limit=PAGE)
        while page and statuses.total() < COUNTED_AT_MOST:
            newest, oldest = newest or page[0], page[-1]
            statuses.update(asset.status.value for asset in page)
            stored_bytes += sum(_stored_bytes(asset) for asset in page)
            unfinished += (asset.processing_job_id for asset in page if asset.status is AssetStatus.PROCESSING)
            after = page[-1].created_at, page[-1].id
            page = await self._store.page(user_id, limit=PAGE, after=after)
        kept = await self._store.kept_of(user_id, kinds=self._kinds)
        erasure = await self._erasing.find(user_id)
        return {
            "userId": user_id,
            "assets": {"total": statuses.total(), **{status.value: statuses[status.value] for status in AssetStatus}},
            "isComplete": not page,
            "bytes": stored_bytes,
            "oldest": to_timestamp(oldest.created_at) if oldest and not page else None,
            "newest": to_timestamp(newest.created_at) if newest else None,
            "waitingJobs": await self._count_waiting(unfinished),
            "deadLetters": sum("failed" in each.data for each in kept),
            "undelivered": sum("notifier" in each.data.get("data", {}) and "failed" not in each.data for each in kept),
            "erase": erasure.to_json() if erasure else None,
        }

    async def _count_waiting(self, job_ids: Sequence[str]) -> int | None:
        """Return how many of the jobs have yet to start, or to start again; None while Redis is away."""
        asked = job_ids[:OTHERS_AT_MOST]
        snapshot = await self._progress.snapshot(asked) if asked else None
        if snapshot is None:
            return None if asked else 0
        places = [snapshot.place(job_id) for job_id in job_ids]
        return sum(place is not None and place.state in (JobState.WAITING, JobState.DELAYED) for place in places)


def _stored_bytes(asset: Asset) -> int:
    """Return how many bytes of the asset our storages hold."""
    return sum(image.bytes for image in asset.images if image.name)
