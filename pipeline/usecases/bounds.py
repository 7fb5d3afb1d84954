"""Bounds on the unfinished jobs and the stored bytes: uploads beyond them are refused.

Counting takes a while, so a count is cached: the nearer it is to its bound, the shorter. This process adds its own
uploads to the cached count. A cached count that reaches the bound this way is read again before an upload is refused.
Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from pipeline.assets.store import AssetStore
from pipeline.errors import DependencyUnavailable, Forbidden, PipelineError, RateLimited
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

LEAST_CACHED_SECONDS, LONGEST_CACHED_SECONDS = 0.1, 30.0
# A count that takes long is read so seldom that reading takes a tenth of the time.
REST_FACTOR = 9
# An upload is answered within two seconds even while Redis hangs: a slower count is ready for the next upload.
READ_SECONDS = 0.4
NAMES_AT_MOST = 10_000
RETRY_AFTER_SECONDS = 30
JOBS_ADDED_IN_SECOND = 1000
# One user's share of a fast network.
BYTES_ADDED_IN_SECOND = 50_000_000
ALL_USERS = ""
UNITS = (("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000))


@dataclass(slots=True)
class _Number:
    """value: None before the first read
    fresh_until: time of the event loop
    is_read: nothing was added since the last read
    """

    value: int | None = None
    fresh_until: float = float("-inf")
    is_read: bool = False
    reading: asyncio.Task[None] | None = None


class Bound:
    """One bound on many counts, each with a name."""

    def __init__(self, most: int, added_in_second: int, read: Callable[[str], Awaitable[int]]) -> None:
        """most: the count that reaches the bound, 0: no bound
        added_in_second: how much all processes together may add in a second
        read: returns the count of a name
        """
        self._most = most
        self._added_in_second = added_in_second
        self._read = read
        # Ordered: the oldest is removed first, which a plain dict does slowly.
        self._numbers: OrderedDict[str, _Number] = OrderedDict()

    async def reached(self, name: str) -> int | None:
        """Return the count when it has reached the bound; None otherwise, also when it cannot be read."""
        if not self._most:
            return None
        number = self._numbers.get(name) or self._new(name)
        is_reached_here = number.value is not None and number.value >= self._most and not number.is_read
        if _now() >= number.fresh_until or is_reached_here:
            if number.reading is None:
                number.reading = asyncio.create_task(self._refresh(name, number), name="count")
            await asyncio.wait([number.reading], timeout=READ_SECONDS)
        return number.value if number.value is not None and number.value >= self._most else None

    def known(self, name: str) -> int | None:
        """Return the cached count, None when there is none."""
        number = self._numbers.get(name)
        return number.value if number is not None else None

    def add(self, name: str, amount: int = 1) -> None:
        """Add what this process has added."""
        number = self._numbers.get(name)
        if number is not None and number.value is not None:
            number.value += amount
            number.is_read = False

    async def _refresh(self, name: str, number: _Number) -> None:
        began_at = _now()
        # A count that cannot be read is read again soon; until then nothing is refused.
        room_seconds = 0.0
        try:
            number.value = await self._read(name)
            number.is_read = True
            room_seconds = max(0, self._most - number.value) / self._added_in_second
        except PipelineError as error:
            number.value = None
            log.debug("count_unknown", cause=cause_of(error))
        finally:
            number.reading = None
        seconds = _now() - began_at
        longest = min(LONGEST_CACHED_SECONDS, LEAST_CACHED_SECONDS + room_seconds)
        number.fresh_until = _now() + longest + REST_FACTOR * seconds

    def _new(self, name: str) -> _Number:
        if len(self._numbers) >= NAMES_AT_MOST:
            self._numbers.popitem(last=False)
        number = self._numbers[name] = _Number()
        return number


class Backlog:
    """Bounds on the unfinished jobs of all users, counted in Redis, and of one user, counted in the asset store.

    Uploads are accepted while a count cannot be read.
    """

    def __init__(
        self,
        store: AssetStore,
        queue: JobQueue,
        *,
        most: int,
        most_of_user: int,
        on_refused: Callable[[str], None] = lambda user_id: None,
    ) -> None:
        """on_refused: called with a user who has too many"""
        self._on_refused = on_refused
        self._all = Bound(most, JOBS_ADDED_IN_SECOND, lambda name: queue.backlog())
        self._of_user = Bound(most_of_user, JOBS_ADDED_IN_SECOND, store.count_unfinished)

    async def check(self, user_id: str) -> None:
        """Return when the user may have one more job.

        DependencyUnavailable: all users have too many. RateLimited: this user has. Both have a Retry-After.
        """
        if await self._all.reached(ALL_USERS) is not None:
            text = "Too many photos are waiting to be processed"
            raise DependencyUnavailable(text, retry_after_seconds=RETRY_AFTER_SECONDS)
        if await self._of_user.reached(user_id) is not None:
            self._on_refused(user_id)
            text = "Too many of your photos are waiting to be processed"
            raise RateLimited(text, retry_after_seconds=RETRY_AFTER_SECONDS)

    def add(self, user_id: str) -> None:
        """Count a new job."""
        self._all.add(ALL_USERS)
        self._of_user.add(user_id)


class Quota:
    """A bound on the stored bytes of one user's images: originals, processed images and previews.

    The asset store counts them, so that deletes, crashes, restores and moves cannot make the count wrong. A user may
    exceed the bound by the photos that are under way, and by the images that are made of them.
    """

    def __init__(
        self, store: AssetStore, *, most_bytes: int, on_refused: Callable[[str], None] = lambda user_id: None
    ) -> None:
        """most_bytes: 0: no bound
        on_refused: called with a user who has too much
        """
        self._on_refused = on_refused
        self.most_bytes = most_bytes
        self._stored = Bound(most_bytes, BYTES_ADDED_IN_SECOND, store.stored_bytes)

    async def check(self, user_id: str) -> None:
        """Return when the user may store another photo; Forbidden otherwise: waiting does not help."""
        used = await self._stored.reached(user_id)
        if used is not None:
            self._on_refused(user_id)
            raise Forbidden(f"Your photos use {in_words(used)} of {in_words(self.most_bytes)}; delete some")

    def known_bytes(self, user_id: str) -> int | None:
        """Return the cached bytes of the user, None when they are not known or there is no bound."""
        return self._stored.known(user_id) if self.most_bytes else None

    def add(self, user_id: str, stored_bytes: int) -> None:
        """Add a stored image."""
        self._stored.add(user_id, stored_bytes)


def in_words(number: int) -> str:
    """Return a number of bytes for people, such as 1.2 GB."""
    unit, size = next((each for each in UNITS if number >= each[1]), ("bytes", 1))
    return f"{number} {unit}" if size == 1 else f"{number / size:.1f} {unit}"


def _now() -> float:
    return asyncio.get_running_loop().time()
