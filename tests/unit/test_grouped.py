"""Writes share calls: none waits for company, and each caller gets its own end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from pipeline.grouped import WRITES_AT_ONCE, WriteGroups

CALLS_AT_ONCE = 2


class Database:
    """Keeps calls until it is let go. groups: write here."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.goes = asyncio.Event()
        self.called = asyncio.Queue[None]()
        self.groups = WriteGroups(self.write, calls_at_once=CALLS_AT_ONCE)

    async def begin(self, *writes: int) -> list[asyncio.Task[int]]:
        """Begin these writes: the first ones keep as many calls as there may be, the others wait."""
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
        await self.goes.wait()
        if 13 in writes:
            raise LookupError("all of them")
        return [ValueError(f"not {each}") if each % 7 == 0 else each * 10 for each in writes]


def test_what_comes_meanwhile_goes_together() -> None:
    """The first ones go at once, each alone; all others wait for one of these calls and share the next."""

    async def use() -> None:
        database = Database()
        writes = await database.begin(*range(1, 7))
        assert database.calls == [[1], [2]]
        database.goes.set()
        assert await asyncio.gather(*writes) == [10, 20, 30, 40, 50, 60]
        assert database.calls == [[1], [2], [3, 4, 5, 6]]
        assert await database.groups.add(8) == 80

    asyncio.run(use())


def test_each_caller_gets_its_own_end() -> None:
    """One write that is refused is nothing to the others of its call; one whose caller is gone is not made."""

    async def use() -> None:
        database = Database()
        writes = await database.begin(1, 2, 3, 7, 4)
        writes[2].cancel()
        database.goes.set()
        ends = await asyncio.gather(*writes[:2], *writes[3:], return_exceptions=True)
        assert ends[:2] == [10, 20] and ends[3] == 40
        assert isinstance(ends[2], ValueError)
        assert database.calls[CALLS_AT_ONCE] == [7, 4]

    asyncio.run(use())


def test_failed_call_is_the_end_of_all_in_it() -> None:
    """And of none before or after."""

    async def use() -> None:
        database = Database()
        writes = await database.begin(1, 2, 13, 4)
        database.goes.set()
        ends = await asyncio.gather(*writes, return_exceptions=True)
        assert ends[:2] == [10, 20]
        assert [type(end) for end in ends[2:]] == [LookupError, LookupError]
        with pytest.raises(LookupError):
            await database.groups.add(13)
        assert await database.groups.add(5) == 50

    asyncio.run(use())


def test_call_has_a_bound() -> None:
    """However many wait."""

    async def use() -> None:
        database = Database()
        numbers = (10 * number + 1 for number in range(CALLS_AT_ONCE + 3 * WRITES_AT_ONCE))
        writes = await database.begin(*(each for each in numbers if each % 7 and each != 13))
        database.goes.set()
        await asyncio.gather(*writes)
        assert max(map(len, database.calls)) == WRITES_AT_ONCE

    asyncio.run(use())


@pytest.mark.parametrize("steps", range(4))
def test_one_that_comes_as_the_calls_end_is_made(steps: int) -> None:
    """However few steps of the loop lie between the end of the last write and the next one."""

    async def use() -> None:
        database = Database()
        database.goes.set()

        async def add_some(number: int) -> None:
            for _ in range(5):
                assert await database.groups.add(number) == number * 10
                for _ in range(steps):
                    await asyncio.sleep(0)

        async with asyncio.timeout(5):
            await asyncio.gather(*map(add_some, range(1, CALLS_AT_ONCE + 1)))

    asyncio.run(use())
