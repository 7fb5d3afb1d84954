"""Bodies take turns: one in each step of the event loop, in the order in which they came."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.handlers.read_scheduler import ReadScheduler


@pytest.mark.gen_test
async def test_one_goes_on_in_one_step_of_the_loop() -> None:
    """Whoever waits longest goes first, and one that has gone away holds up nobody."""
    read_scheduler = ReadScheduler()
    waiting = [read_scheduler.next() for _ in range(4)]
    waiting[-1].cancel()
    for step in range(1, 4):
        await asyncio.sleep(0)
        assert [turn.done() for turn in waiting[:-1]] == [number < step for number in range(3)]
    await asyncio.sleep(0)
    await asyncio.wait_for(read_scheduler.next(), 5)
