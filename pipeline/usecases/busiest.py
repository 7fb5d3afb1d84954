"""Use case: operators see which users have the most jobs in the queue. Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from pipeline.assets.store import AssetStore
from pipeline.queue.job import JobState
from pipeline.queue.queue import JobQueue

# Only the oldest unfinished jobs are counted.
SAMPLED_AT_MOST = 10_000
SHOWN = 10
# The list is read at most so often.
FRESH_SECONDS = 2.0


class BusiestUsers:
    """The users with the most unfinished jobs."""

    def __init__(self, store: AssetStore, queue: JobQueue, *, is_fair: bool) -> None:
        """is_fair: the queue serves users in turn"""
        self._store = store
        self._queue = queue
        self._is_fair = is_fair
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")
        self._list: dict[str, Any] = {}

    async def list(self) -> dict[str, Any]:
        """Return the users with the most unfinished jobs: schema BusiestUsers in contracts/analyze-queue.openapi.json.

        DependencyUnavailable when the store or Redis is away.
        """
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - self._read_at > FRESH_SECONDS:
                self._list = await self._read()
                self._read_at = now
            return self._list

    async def _read(self) -> dict[str, Any]:
        jobs = await self._store.unfinished_jobs(limit=SAMPLED_AT_MOST)
        stats, snapshot = await self._queue.stats(), await self._queue.snapshot()
        running = {job_id for job_id, info in snapshot.others.items() if info.state is JobState.ACTIVE}
        unfinished = Counter(user_id for user_id, _ in jobs)
        active = Counter(user_id for user_id, job_id in jobs if job_id in running)
        # Users with the same number by name: the order must be the same at each read.
        top = sorted(unfinished.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
        return {
            "fairness": "user" if self._is_fair else "fifo",
            # Jobs that Redis has lost, and that are not restored yet, are only in the store.
            "total": max(len(jobs), stats.waiting + stats.delayed + stats.active),
            "sampled": len(jobs),
            "items": [
                {
                    "userId": user_id,
                    "waiting": count - active[user_id],
                    "active": active[user_id],
                    "share": round(count / len(jobs), 4),
                }
                for user_id, count in top
            ],
        }
