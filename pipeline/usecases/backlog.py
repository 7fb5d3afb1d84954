"""How much may wait: uploads that would only stand in a long line are refused, while the client can still come back.

What waits in all is counted in Redis. What a user has waiting, delayed, held and running is counted in the asset store,
which no FLUSHALL empties. While neither can be asked uploads are accepted. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.assets.store import AssetStore
from pipeline.errors import DependencyUnavailable, RateLimited
from pipeline.queue.queue import JobQueue
from pipeline.usecases.bounds import Bound

RETRY_AFTER_SECONDS = 30
ADDED_IN_SECOND = 1000
ALL = ""


class Backlog:
    """Bounds on the unfinished jobs of all users and of one."""

    def __init__(
        self,
        store: AssetStore,
        queue: JobQueue,
        *,
        most: int,
        most_of_user: int,
        on_refused: Callable[[str], None] = lambda user_id: None,
    ) -> None:
        """on_refused: called with a user who has too many."""
        self._on_refused = on_refused
        self._all = Bound(most, ADDED_IN_SECOND, lambda name: queue.backlog())
        self._of_user = Bound(most_of_user, ADDED_IN_SECOND, store.count_unfinished)

    async def check(self, user_id: str) -> None:
        """Return when one more job of the user may wait. Raises DependencyUnavailable or RateLimited, both with
        Retry-After.
        """
        if await self._all.reached(ALL) is not None:
            text = "Too many photos are waiting to be processed"
            raise DependencyUnavailable(text, retry_after_seconds=RETRY_AFTER_SECONDS)
        if await self._of_user.reached(user_id) is not None:
            self._on_refused(user_id)
            text = "Too many of your photos are waiting to be processed"
            raise RateLimited(text, retry_after_seconds=RETRY_AFTER_SECONDS)

    def add(self, user_id: str) -> None:
        """Count a job that is new."""
        self._all.add(ALL)
        self._of_user.add(user_id)
