"""How much there may be of something that takes a while to count: whether a bound is reached, asked often, read seldom.

A number is kept for a while, the shorter the nearer it is to its bound, and moved on by what this process adds. One
that this process has moved to its bound is read anew before anything is refused because of it. Runs on the event loop.
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

LEAST_KEPT_SECONDS, LONGEST_KEPT_SECONDS = 0.1, 30.0
# What takes long to read is read so seldom that this is a tenth of the time.
REST_FACTOR = 9
# An upload is answered within two seconds also while Redis hangs: what takes longer is there for the next one.
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
    """value: None before the first read. fresh_until: by the clock of the loop. is_read: nothing was added since."""

    value: int | None = None
    fresh_until: float = float("-inf")
    is_read: bool = False
    reading: asyncio.Task[None] | None = None


class Bound:
    """One bound on many numbers, each with a name."""

    def __init__(self, most: int, added_in_second: int, read: Callable[[str], Awaitable[int]]) -> None:
        """most: from which value on the bound is reached, 0: never. added_in_second: what all processes together are
        expected to add at most. read: returns the number of that name as it is.
        """
        self._most = most
        self._added_in_second = added_in_second
        self._read = read
        # The oldest goes first; of a plain dict that would mean to pass by all that have gone before.
        self._numbers: OrderedDict[str, _Number] = OrderedDict()

    async def reached(self, name: str) -> int | None:
        """Return the number when it has reached the bound, else None, also while nobody can tell."""
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
        """Return the number without reading it, None when it is not known."""
        number = self._numbers.get(name)
        return number.value if number is not None else None

    def add(self, name: str, amount: int = 1) -> None:
        """Count what this process has added."""
        number = self._numbers.get(name)
        if number is not None and number.value is not None:
            number.value += amount
            number.is_read = False

    async def _refresh(self, name: str, number: _Number) -> None:
        began_at = _now()
        # One that cannot be read is asked for again soon: until then nothing is refused.
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
        took = _now() - began_at
        number.fresh_until = _now() + min(LONGEST_KEPT_SECONDS, LEAST_KEPT_SECONDS + room_seconds) + REST_FACTOR * took

    def _new(self, name: str) -> _Number:
        if len(self._numbers) >= NAMES_AT_MOST:
            self._numbers.popitem(last=False)
        number = self._numbers[name] = _Number()
        return number


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
        self._all = Bound(most, JOBS_ADDED_IN_SECOND, lambda name: queue.backlog())
        self._of_user = Bound(most_of_user, JOBS_ADDED_IN_SECOND, store.count_unfinished)

    async def check(self, user_id: str) -> None:
        """Return when one more job of the user may wait. Raises DependencyUnavailable or RateLimited, both with
        Retry-After.
        """
        if await self._all.reached(ALL_USERS) is not None:
            text = "Too many photos are waiting to be processed"
            raise DependencyUnavailable(text, retry_after_seconds=RETRY_AFTER_SECONDS)
        if await self._of_user.reached(user_id) is not None:
            self._on_refused(user_id)
            text = "Too many of your photos are waiting to be processed"
            raise RateLimited(text, retry_after_seconds=RETRY_AFTER_SECONDS)

    def add(self, user_id: str) -> None:
        """Count a job that is new."""
        self._all.add(ALL_USERS)
        self._of_user.add(user_id)


class Quota:
    """A bound on what is kept of one user."""

    def __init__(
        self, store: AssetStore, *, most_bytes: int, on_refused: Callable[[str], None] = lambda user_id: None
    ) -> None:
        """most_bytes: 0: no bound. on_refused: called with a user who has too much."""
        self._on_refused = on_refused
        self.most_bytes = most_bytes
        self._stored = Bound(most_bytes, BYTES_ADDED_IN_SECOND, store.stored_bytes)

    async def check(self, user_id: str) -> None:
        """Return when the user may send another photo; Forbidden otherwise: waiting does not help."""
        used = await self._stored.reached(user_id)
        if used is not None:
            self._on_refused(user_id)
            raise Forbidden(f"Your photos use {in_words(used)} of {in_words(self.most_bytes)}; delete some")

    def known_bytes(self, user_id: str) -> int | None:
        """Return how many bytes of the user are kept as far as this process knows, None when there is no bound."""
        return self._stored.known(user_id) if self.most_bytes else None

    def add(self, user_id: str, stored_bytes: int) -> None:
        """Count an image that was stored."""
        self._stored.add(user_id, stored_bytes)


def in_words(number: int) -> str:
    """Return a number of bytes for people, as 1.2 GB."""
    unit, size = next((each for each in UNITS if number >= each[1]), ("bytes", 1))
    return f"{number} {unit}" if size == 1 else f"{number / size:.1f} {unit}"


def _now() -> float:
    return asyncio.get_running_loop().time()
