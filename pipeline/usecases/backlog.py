"""How much may wait: uploads that would only stand in a long line are refused, while the client can still come back.

Counts are read from Redis at most every KEPT_SECONDS and in between moved on by what this process adds, so that a
flood of uploads asks Redis little. Before anything is refused they are read anew. Runs on the event loop.
"""

from __future__ import annotations

import asyncio

from pipeline.errors import DependencyUnavailable, RateLimited
from pipeline.queue.queue import JobQueue

KEPT_SECONDS = 0.1
# An upload is answered within two seconds also while Redis hangs.
READ_SECONDS = 0.4
RETRY_AFTER_SECONDS = 30


class Backlog:
    """Bounds on the jobs of all users and, where users take turns, of one."""

    def __init__(self, queue: JobQueue, *, most: int, most_of_group: int) -> None:
        """most_of_group: of one group of the queue; jobs without a group know only the bound of all."""
        self._queue = queue
        self._most = most
        self._most_of_group = most_of_group
        self._total = 0
        self._of_group: dict[str, int] = {}
        self._read_at = 0.0

    async def check(self, group: str) -> None:
        """Return when one more job may wait. Raises DependencyUnavailable or RateLimited, both with Retry-After."""
        if asyncio.get_running_loop().time() - self._read_at > KEPT_SECONDS:
            self._of_group.clear()
        if group in self._of_group and self._refusal(group) is None:
            return
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._total, self._of_group[group] = await self._queue.backlog(group)
        except (DependencyUnavailable, TimeoutError):
            return  # while Redis cannot be asked, uploads are accepted
        if len(self._of_group) == 1:
            self._read_at = asyncio.get_running_loop().time()
        if (refusal := self._refusal(group)) is not None:
            raise refusal

    def add(self, group: str) -> None:
        """Count a job that was enqueued."""
        self._total += 1
        if group in self._of_group:
            self._of_group[group] += 1

    def _refusal(self, group: str) -> DependencyUnavailable | RateLimited | None:
        if self._total >= self._most:
            text = "Too many photos are waiting to be processed"
            return DependencyUnavailable(text, retry_after_seconds=RETRY_AFTER_SECONDS)
        if group and self._of_group[group] >= self._most_of_group:
            text = "Too many of your photos are waiting to be processed"
            return RateLimited(text, retry_after_seconds=RETRY_AFTER_SECONDS)
        return None
