"""The read scheduler: one body is read in each step of the event loop, in the order of the requests."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.handlers.read_scheduler import ReadScheduler


@pytest.mark.gen_test
async def test_one_reader_continues_in_each_step_of_the_loop() -> None:
    """The reader that waits longest continues first, and a cancelled reader does not delay the others."""
    read_scheduler = ReadScheduler()
    waiting = [read_scheduler.next() for _ in range(4)]
    waiting[-1].cancel()
    for step in range(1, 4):
        await asyncio.sleep(0)
        assert [reader.done() for reader in waiting[:-1]] == [number < step for number in range(3)]
    await asyncio.sleep(0)
    await asyncio.wait_for(read_scheduler.next(), 5)
