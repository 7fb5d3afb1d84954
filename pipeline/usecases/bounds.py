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

from pipeline.errors import PipelineError
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

LEAST_KEPT_SECONDS, LONGEST_KEPT_SECONDS = 0.1, 30.0
# What takes long to read is read so seldom that this is a tenth of the time.
REST_FACTOR = 9
# An upload is answered within two seconds also while Redis hangs: what takes longer is there for the next one.
READ_SECONDS = 0.4
NAMES_AT_MOST = 10_000


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


def _now() -> float:
    return asyncio.get_running_loop().time()
