"""Bodies take turns: a few in one step of the event loop, in the order in which they came."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.handlers.upload import ALL_PIECES_BYTES, LEAST_PIECE_BYTES, PIECE_BYTES, TURNS_AT_ONCE, Turns


class Body:
    """Stands for a handler that reads one."""


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


def test_pieces_get_smaller_the_more_bodies_there_are() -> None:
    """All together are bounded, but none is so small that reading is slow; a body that is gone does not count."""
    turns = Turns()
    assert turns.piece_bytes == PIECE_BYTES
    bodies = [Body() for _ in range(ALL_PIECES_BYTES // LEAST_PIECE_BYTES // 2)]
    turns.bodies.update(bodies)
    assert turns.piece_bytes == 2 * LEAST_PIECE_BYTES
    more = [Body() for _ in range(1000)]
    turns.bodies.update(more)
    assert turns.piece_bytes == LEAST_PIECE_BYTES
    del bodies[1:], more
    assert turns.piece_bytes == PIECE_BYTES
