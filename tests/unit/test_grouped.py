"""Grouped writes: several writes share one call, none waits for others, and each caller gets its own result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from pipeline.grouped import WRITES_AT_ONCE, WriteGroups

CALLS_AT_ONCE = 2


class Database:
    """A database whose calls end when the test sets `may_end`. groups: the writes that use it."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.may_end = asyncio.Event()
        self.called = asyncio.Queue[None]()
        self.groups = WriteGroups(self.write, calls_at_once=CALLS_AT_ONCE)

    async def begin(self, *writes: int) -> list[asyncio.Task[int]]:
        """Begin these writes: the first ones use all calls that are allowed at the same time, the others wait."""
        tasks = []
        for number, each in enumerate(writes):
            tasks.append(asyncio.create_task(self.groups.add(each)))
            if number < CALLS_AT_ONCE:
                await self.called.get()
        await asyncio.sleep(0)
        return tasks

    async def write(self, writes: Sequence[int]) -> list[int | Exception]:
        self.calls.append([*writes])
        self.called.put_nowait(None)
        await self.may_end.wait()
        if 13 in writes:
            raise LookupError("all of them")
        return [ValueError(f"not {each}") if each % 7 == 0 else each * 10 for each in writes]


def test_writes_that_wait_share_the_next_call() -> None:
    """The first writes start at once, each in its own call; all others wait for one of these and share the next."""

    async def use() -> None:
        database = Database()
        writes = await database.begin(*range(1, 7))
        assert database.calls == [[1], [2]]
        database.may_end.set()
        assert await asyncio.gather(*writes) == [10, 20, 30, 40, 50, 60]
        assert database.calls == [[1], [2], [3, 4, 5, 6]]
        assert await database.groups.add(8) == 80

    asyncio.run(use())


def test_each_caller_gets_its_own_result() -> None:
    """A refused write does not fail the others of its call; a write whose caller was cancelled is not made."""

    async def use() -> None:
        database = Database()
        writes = await database.begin(1, 2, 3, 7, 4)
        writes[2].cancel()
        database.may_end.set()
        results = await asyncio.gather(*writes[:2], *writes[3:], return_exceptions=True)
        assert results[:2] == [10, 20] and results[3] == 40
        assert isinstance(results[2], ValueError)
        assert database.calls[CALLS_AT_ONCE] == [7, 4]

    asyncio.run(use())


def test_failed_call_fails_all_its_writes() -> None:
    """All writes of a failed call fail, and no earlier or later one."""

    async def use() -> None:
        database = Database()
        writes = await database.begin(1, 2, 13, 4)
        database.may_end.set()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert results[:2] == [10, 20]
        assert [type(result) for result in results[2:]] == [LookupError, LookupError]
        with pytest.raises(LookupError):
            await database.groups.add(13)
        assert await database.groups.add(5) == 50

    asyncio.run(use())


def test_number_of_writes_in_a_call_is_limited() -> None:
    """A call has WRITES_AT_ONCE writes at most, for any number that waits."""

    async def use() -> None:
        database = Database()
        numbers = (10 * number + 1 for number in range(CALLS_AT_ONCE + 3 * WRITES_AT_ONCE))
        writes = await database.begin(*(each for each in numbers if each % 7 and each != 13))
        database.may_end.set()
        await asyncio.gather(*writes)
        assert max(map(len, database.calls)) == WRITES_AT_ONCE

    asyncio.run(use())


@pytest.mark.parametrize("steps", range(4))
def test_write_that_starts_when_the_calls_end_is_made(steps: int) -> None:
    """A write is made for any number of steps of the event loop between the end of the last write and its start."""

    async def use() -> None:
        database = Database()
        database.may_end.set()

        async def add_some(number: int) -> None:
            for _ in range(5):
                assert await database.groups.add(number) == number * 10
                for _ in range(steps):
                    await asyncio.sleep(0)

        async with asyncio.timeout(30):
            await asyncio.gather(*map(add_some, range(1, CALLS_AT_ONCE + 1)))

    asyncio.run(use())
