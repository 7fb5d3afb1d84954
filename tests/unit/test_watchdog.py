"""The watchdog: who keeps the event loop is named while it lasts, and nobody else is blamed."""

from __future__ import annotations

import asyncio
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.hooks.calls import BoundPlugin
from pipeline.metrics import Metrics
from pipeline.watchdog import BEAT_SECONDS, Watchdog

BLOCK_SECONDS = 0.05
# Long enough to be seen for sure: the beat that is missed, the limit, and the watchdog's own interval.
BLOCKED_SECONDS = 3 * BLOCK_SECONDS + BEAT_SECONDS


class Blocker:
    """A plugin whose methods each keep a thread busy, in their own way."""

    async def sleep(self, seconds: float = BLOCKED_SECONDS) -> None:
        time.sleep(seconds)

    async def compute(self) -> None:
        end = time.monotonic() + BLOCKED_SECONDS
        while time.monotonic() < end:
            pass

    async def run_program(self) -> None:
        # Waits in a method called `select` of the same class as the idle loop does.
        program = f"import time; time.sleep({BLOCKED_SECONDS})"
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    async def nested(self) -> None:
        async def inner() -> None:
            await asyncio.sleep(0)
            time.sleep(BLOCKED_SECONDS)

        await inner()

    def in_thread(self) -> None:
        time.sleep(BLOCKED_SECONDS)

    async def wait(self) -> None:
        await asyncio.sleep(BLOCKED_SECONDS)


METHODS = ("sleep", "compute", "run_program", "nested", "in_thread", "wait")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def plugin(io_loop: IOLoop, metrics: Metrics) -> Iterator[BoundPlugin]:
    blocker = Blocker()
    methods = {name: getattr(blocker, name) for name in METHODS}
    plugin = BoundPlugin("notifier", "blocker", blocker, methods, threads=2, metrics=metrics)
    yield plugin
    io_loop.run_sync(plugin.close)


@pytest.fixture
def watchdog(metrics: Metrics) -> Iterator[Watchdog]:
    """To be started in the test: a loop that does not run yet gives no sign of life."""
    watchdog = Watchdog(metrics, block_seconds=BLOCK_SECONDS)
    yield watchdog
    watchdog.stop()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as logs:
        yield logs


def blocked(metrics: Metrics) -> float:
    labels = {"kind": "notifier", "plugin": "blocker"}
    return metrics.registry.get_sample_value("pipeline_plugin_blocked_loop_total", labels) or 0


def lag(metrics: Metrics, part: str) -> float:
    return metrics.registry.get_sample_value(f"pipeline_loop_lag_seconds_{part}") or 0


def found(logs: list[Any]) -> list[tuple[str | None, str | None]]:
    """Return who was named: (kind, plugin) of each line."""
    return [(line.get("kind"), line.get("plugin")) for line in logs if line["event"] == "loop_blocked"]


@pytest.mark.parametrize("method", ["sleep", "compute", "run_program", "nested"])
@pytest.mark.gen_test
async def test_plugin_that_blocks_the_loop_is_named_and_counted(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any], method: str
) -> None:
    """Sleeping, computing, waiting for a program, deep in its own coroutines: once, with the place and how long."""
    watchdog.start()
    await plugin.call(method, 10)
    assert found(logs) == [("notifier", "blocker")] and blocked(metrics) == 1
    (line,) = logs
    assert line["forMs"] >= BLOCK_SECONDS * 1000
    if method == "sleep":
        path, _, number = line["where"].rpartition(":")
        with open(path) as source:
            assert "time.sleep(seconds)" in source.read().splitlines()[int(number) - 1]


@pytest.mark.gen_test
async def test_plugin_is_named_while_it_still_blocks(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any]
) -> None:
    """Who never comes back is known all the same: the line does not wait for the end."""
    watchdog.start()
    seen_at: list[float] = []

    def look() -> None:
        while not found(logs):
            time.sleep(0.005)
        seen_at.append(time.monotonic())

    looking = threading.Thread(target=look)
    looking.start()
    await plugin.call("sleep", 10, 3 * BLOCKED_SECONDS)
    ended_at = time.monotonic()
    looking.join(5)
    assert seen_at and seen_at[0] < ended_at - BLOCKED_SECONDS


@pytest.mark.gen_test
async def test_each_block_is_counted(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any]
) -> None:
    """Twice blocked is two lines, one for each; a long one is no more than one."""
    watchdog.start()
    for number in (1, 2):
        await plugin.call("sleep", 10, 2 * BLOCKED_SECONDS if number == 1 else BLOCKED_SECONDS)
        await beats(metrics, 2)
        assert blocked(metrics) == len(found(logs)) == number


async def beats(metrics: Metrics, count: int) -> None:
    """Return after so many beats."""
    first = lag(metrics, "count")
    async with asyncio.timeout(5):
        while lag(metrics, "count") < first + count:
            await asyncio.sleep(BEAT_SECONDS / 2)


@pytest.mark.gen_test
async def test_block_that_is_no_plugins_is_not_counted_to_one(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any]
) -> None:
    """The service's own fault is logged with its place, and no plugin is blamed, though one is being called."""
    watchdog.start()
    waiting = asyncio.create_task(plugin.call("wait", 10))
    await asyncio.sleep(0.01)  # the call is under way
    time.sleep(BLOCKED_SECONDS)
    assert found(logs) == [(None, None)] and blocked(metrics) == 0
    assert "test_watchdog.py" in logs[0]["where"]
    await waiting


@pytest.mark.parametrize("method", ["in_thread", "wait"])
@pytest.mark.gen_test
async def test_plugin_that_takes_long_without_the_loop_is_not_named(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any], method: str
) -> None:
    """Blocking a thread of its own or awaiting is what a plugin may do."""
    watchdog.start()
    await plugin.call(method, 10)
    assert ("notifier", "blocker") not in found(logs) and blocked(metrics) == 0


@pytest.mark.gen_test
async def test_idle_loop_is_not_named(watchdog: Watchdog, metrics: Metrics, logs: list[Any]) -> None:
    """A loop with nothing to do beats on."""
    watchdog.start()
    await beats(metrics, 4)
    assert found(logs) == []


def test_loop_that_stands_still_in_its_wait_is_not_named(metrics: Metrics, logs: list[Any]) -> None:
    """The process was stopped, or the machine: no code of ours is to blame. Lines of no use are spared."""
    is_held = threading.Event()

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            if is_held.is_set():
                is_held.clear()
                time.sleep(BLOCKED_SECONDS)
            return super().select(timeout)

    loop = asyncio.SelectorEventLoop(Selector())
    watchdog = Watchdog(metrics, block_seconds=BLOCK_SECONDS)

    async def run() -> None:
        watchdog.start()
        await asyncio.sleep(0.01)
        is_held.set()
        await beats(metrics, 2)

    loop.run_until_complete(run())
    watchdog.stop()
    loop.close()
    assert found(logs) == []


@pytest.mark.gen_test
async def test_short_work_is_not_named(
    plugin: BoundPlugin, metrics: Metrics, logs: list[Any]
) -> None:
    """BLOCK_SECONDS is the limit: a plugin that works for less than that is not named."""
    patient = Watchdog(metrics, block_seconds=2)
    patient.start()
    await plugin.call("sleep", 10)
    await beats(metrics, 1)
    patient.stop()
    assert found(logs) == [] and blocked(metrics) == 0


@pytest.mark.gen_test
async def test_lag_of_the_loop_is_observed(watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics) -> None:
    """A loop at rest is hardly late; one that was blocked is late by as much."""
    watchdog.start()
    await beats(metrics, 3)
    before = lag(metrics, "sum")
    await plugin.call("sleep", 10, 0.3)
    await beats(metrics, 1)
    assert 0.2 < lag(metrics, "sum") - before < 2


@pytest.mark.gen_test
async def test_stop_ends_it(watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any]) -> None:
    """After stop nothing is observed, nobody named, and its thread is gone."""
    # That of an earlier test may take a moment to end.
    before = threading.enumerate()
    watchdog.start()
    (thread,) = [each for each in threading.enumerate() if each.name == "watchdog" and each not in before]
    await beats(metrics, 1)
    watchdog.stop()
    logs.clear()  # a busy machine may have been named before
    counted = lag(metrics, "count")
    await plugin.call("sleep", 10)
    await asyncio.sleep(2 * BEAT_SECONDS)  # time in which a beat would come
    assert lag(metrics, "count") == counted
    assert found(logs) == [] and blocked(metrics) == 0
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


@pytest.mark.gen_test
async def test_two_watchdogs_count_for_their_own_app(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any]
) -> None:
    """Two apps on one loop each observe their own lag."""
    watchdog.start()
    other_metrics = Metrics()
    other = Watchdog(other_metrics, block_seconds=BLOCK_SECONDS)
    other.start()
    await beats(other_metrics, 2)
    other.stop()
    counted = lag(other_metrics, "count")
    await beats(metrics, 2)
    assert lag(other_metrics, "count") == counted
