"""Use case: an operator pauses a queue. The asset store holds that, so that it outlives Redis."""

from __future__ import annotations

from pipeline.assets.store import AssetStore, Kept
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.queue.queue import JobQueue

KIND = "pause"


class Pause:
    """Whether one queue is paused."""

    def __init__(self, store: AssetStore, queue: JobQueue) -> None:
        self._store = store
        self._queue = queue

    async def is_set(self) -> bool:
        """Return what the store says."""
        return any(kept.id == self._queue.name for kept in await self._store.kept(KIND, limit=100))

    async def set(self) -> None:
        """Stop claiming on every process; running jobs finish."""
        await self._store.keep(Kept(KIND, self._queue.name, utc_now(), {}))
        try:
            await self._queue.pause()
        except DependencyUnavailable as error:
            raise DependencyUnavailable("Redis cannot be reached; the queue will be paused when it can") from error

    async def lift(self) -> None:
        """Claim again."""
        await self._store.discard(KIND, self._queue.name)
        try:
            await self._queue.resume()
        except DependencyUnavailable as error:
            raise DependencyUnavailable("Redis cannot be reached; the queue will go on when it can") from error

    async def enforce(self) -> None:
        """Make Redis say what the store says."""
        await (self._queue.pause() if await self.is_set() else self._queue.resume())
