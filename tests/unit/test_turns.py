"""Bodies take turns: a few in one step of the event loop, in the order in which they came."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.handlers.upload import TURNS_AT_ONCE, Turns


@pytest.mark.gen_test
async def test_few_go_on_in_one_step_of_the_loop() -> None:
    """Whoever waits longest goes first, and one that has gone away holds up nobody."""
    turns = Turns()
    waiting = [turns.next() for _ in range(2 * TURNS_AT_ONCE + 1)]
    waiting[-1].cancel()
    for step in range(1, 3):
        await asyncio.sleep(0)
        gone_on = step * TURNS_AT_ONCE
        assert [turn.done() for turn in waiting[:-1]] == [number < gone_on for number in range(2 * TURNS_AT_ONCE)]
    await asyncio.sleep(0)
    await asyncio.wait_for(turns.next(), 5)
