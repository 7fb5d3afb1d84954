"""Calls that wait for a child process, are cancelled, or run at the same time as others."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from pipeline.errors import RetryableJobError
from pipeline.sandbox.pool import Pool
from tests import sandboxed
from tests.integration.sandbox_pools import IN_TIME, LINUX, Open, open_when_read, wait_gone
from tests.integration.sandbox_pools import open_pool, pool  # noqa: F811

__all__ = ["open_pool", "pool"]


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A pipe: a child that reads it waits until the test has opened and closed the writing end."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.mark.fault("E5")
@pytest.mark.gen_test
async def test_wait_for_a_child_does_not_count_as_time_of_the_call(pool: Pool, fifo: Path) -> None:
    """The time of a call begins when a child starts it, so a call may wait longer than its own time."""
    first = asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), **IN_TIME))
    writing_end = await open_when_read(fifo)
    second = asyncio.create_task(pool.run(sandboxed.echo, 2, seconds=0.5))
    await asyncio.wait([second], timeout=0.7)
    assert not second.done()
    os.close(writing_end)
    assert (await first, await second) == (0, [2])


@pytest.mark.fault("E5")
@pytest.mark.gen_test
async def test_no_child_in_time_spends_no_attempt(pool: Pool, fifo: Path) -> None:
    """A call without a child after wait_seconds fails and spends no attempt; the running call goes on."""
    first = asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), **IN_TIME))
    writing_end = await open_when_read(fifo)
    with pytest.raises(RetryableJobError) as caught:
        await pool.run(sandboxed.echo, 2, seconds=5, wait_seconds=0.1)
    assert caught.value.spends_attempt is False
    os.close(writing_end)
    assert await first == 0
    assert await pool.run(sandboxed.echo, 3, **IN_TIME) == [3]


@pytest.mark.gen_test
async def test_calls_run_in_order(pool: Pool, fifo: Path) -> None:
    """Calls run in the order in which they were made, without those that were cancelled."""
    order: list[int] = []

    async def call(number: int) -> None:
        order.extend(await pool.run(sandboxed.echo, number, **IN_TIME))

    first = asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), **IN_TIME))
    writing_end = await open_when_read(fifo)
    calls = [asyncio.create_task(call(number)) for number in range(12)]
    await asyncio.sleep(0)  # all calls are waiting now
    for number in (0, 5, 11):
        calls[number].cancel()
    os.close(writing_end)
    await asyncio.gather(first, *calls, return_exceptions=True)
    assert order == [number for number in range(12) if number not in (0, 5, 11)]


@pytest.mark.gen_test
async def test_cancelled_call_ends_its_child(pool: Pool, fifo: Path) -> None:
    """The child of a cancelled call is ended, and the next call gets a new child."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    running = asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), **IN_TIME))
    os.close(await open_twice_when_read(fifo))
    waiting = asyncio.create_task(pool.run(sandboxed.pid, **IN_TIME))
    await asyncio.sleep(0)
    running.cancel()
    assert await waiting != first
    assert running.cancelled()
    wait_gone(first)


async def open_twice_when_read(fifo: Path) -> int:
    """Return a second writing end, so that the child still waits when this one is closed."""
    first = await open_when_read(fifo)
    stays_open = os.open(fifo, os.O_WRONLY)
    os.close(first)
    return os.dup(stays_open)


@pytest.mark.gen_test
async def test_children_work_at_the_same_time(open_pool: Open, tmp_path: Path) -> None:
    """With two processes two calls run at the same time, and a third call waits."""
    pool = open_pool(processes=2)
    fifos = [tmp_path / str(number) for number in range(2)]
    for fifo in fifos:
        os.mkfifo(fifo)
    calls = [
        asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(each), n, **IN_TIME)) for n, each in enumerate(fifos)
    ]
    writing_ends = [await open_when_read(fifo) for fifo in fifos]
    third = asyncio.create_task(pool.run(sandboxed.echo, 3, **IN_TIME))
    os.close(writing_ends[1])
    assert (await calls[1], await third, calls[0].done()) == (1, [3], False)
    os.close(writing_ends[0])
    assert await calls[0] == 0


def test_pool_works_on_another_loop() -> None:
    """The tests of a plugin have a loop each; a pool keeps its children from one loop to the next."""
    pool = Pool("tested")
    first, second = (asyncio.run(pool.run(sandboxed.pid, **IN_TIME)) for _ in range(2))
    asyncio.run(pool.close())
    assert first == second


@pytest.mark.gen_test
async def test_signals_for_the_service_do_not_end_the_running_call(pool: Pool, fifo: Path) -> None:
    """Children ignore Ctrl-C, and the signals that a supervisor sends to the process group."""
    child = await pool.run(sandboxed.pid, **IN_TIME)
    assert os.getsid(child) != os.getsid(0)
    running = asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), 5, **IN_TIME))
    writing_end = await open_when_read(fifo)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child, number)
    os.close(writing_end)
    assert await running == 5
    assert await pool.run(sandboxed.pid, **IN_TIME) == child


@LINUX
@pytest.mark.gen_test
async def test_close_ends_all_calls_at_once(open_pool: Open, fifo: Path) -> None:
    """The running call and the waiting calls fail and spend no attempt; the child ends, and close does not wait."""
    pool = open_pool()
    child = await pool.run(sandboxed.pid, **IN_TIME)
    calls = [asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), **IN_TIME)) for _ in range(3)]
    writing_end = await open_when_read(fifo)
    async with asyncio.timeout(5):
        await pool.close()
    os.close(writing_end)
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [getattr(error, "spends_attempt", None) for error in errors] == [False] * 3
    wait_gone(child)
    with pytest.raises(RetryableJobError):
        await pool.run(sandboxed.echo, **IN_TIME)
