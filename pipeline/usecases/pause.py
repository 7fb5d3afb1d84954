"""Use case: an operator pauses a queue. The pause is stored in the asset store, so that it survives a loss of Redis."""

from __future__ import annotations

from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.queue.queue import JobQueue

KIND = "pause"


class Pause:
    """The pause of one queue."""

    def __init__(self, store: AssetStore, queue: JobQueue) -> None:
        self._store = store
        self._queue = queue

    async def is_set(self) -> bool:
        """Return whether the queue is paused, by the asset store."""
        return any(record.id == self._queue.name for record in await self._store.records(KIND, limit=100))

    async def set(self) -> None:
        """Pause the queue: no process claims jobs; running jobs finish."""
        await self._store.put_record(Record(KIND, self._queue.name, utc_now(), {}))
        try:
            await self._queue.pause()
        except DependencyUnavailable as error:
            raise DependencyUnavailable("Redis cannot be reached; the queue will be paused when it can") from error

    async def lift(self) -> None:
        """End the pause."""
        await self._store.delete_records(KIND, self._queue.name)
        try:
            await self._queue.resume()
        except DependencyUnavailable as error:
            raise DependencyUnavailable("Redis cannot be reached; the queue will go on when it can") from error

    async def enforce(self) -> None:
        """Set the pause in Redis as it is in the store."""
        await (self._queue.pause() if await self.is_set() else self._queue.resume())
