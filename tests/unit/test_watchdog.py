"""The watchdog: it names the plugin that blocks the event loop while it blocks, and no other plugin."""

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

from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.metrics import Metrics
from pipeline.watchdog import BEAT_SECONDS, Watchdog

BLOCK_SECONDS = 0.05
# Long enough to be noticed, on a busy machine too: the missed beat, the limit, and the interval of the watchdog.
BLOCKED_SECONDS = 10 * BLOCK_SECONDS + BEAT_SECONDS


class Blocker:
    """A plugin whose methods each block a thread in another way."""

    async def sleep(self, seconds: float = BLOCKED_SECONDS) -> None:
        time.sleep(seconds)

    async def compute(self) -> None:
        end = time.monotonic() + BLOCKED_SECONDS
        while time.monotonic() < end:
            pass

    async def run_program(self) -> None:
        # This waits in a method `select` of the same class as the idle loop.
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
    """A watchdog that the test starts, because a loop that does not run yet has no beat."""
    watchdog = Watchdog(metrics, block_seconds=BLOCK_SECONDS)
    yield watchdog
    watchdog.stop()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as logs:
        yield logs


def blocked(metrics: Metrics) -> float:
    """Return the number of counted blocks of the plugin."""
    labels = {"kind": "notifier", "plugin": "blocker"}
    return metrics.registry.get_sample_value("pipeline_plugin_blocked_loop_total", labels) or 0


def lag(metrics: Metrics, part: str) -> float:
    """Return the sum or the count of the histogram of the lag."""
    return metrics.registry.get_sample_value(f"pipeline_loop_lag_seconds_{part}") or 0


def named_plugins(logs: list[Any]) -> list[tuple[str | None, str | None]]:
    """Return the kind and the name of the plugin in each line."""
    return [(line.get("kind"), line.get("plugin")) for line in logs if line["event"] == "loop_blocked"]


@pytest.mark.parametrize("method", ["sleep", "compute", "run_program", "nested"])
@pytest.mark.gen_test
async def test_plugin_that_blocks_the_loop_is_named_and_counted(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any], method: str
) -> None:
    """Each kind of blocking is logged once, with its duration and its line of code."""
    watchdog.start()
    await plugin.call(method, 10)
    assert named_plugins(logs) == [("notifier", "blocker")] and blocked(metrics) == 1
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
    """The line is logged during the block, so that a plugin that never returns is named too."""
    watchdog.start()
    seen_at: list[float] = []

    def watch() -> None:
        while not named_plugins(logs):
            time.sleep(0.005)
        seen_at.append(time.monotonic())

    watching = threading.Thread(target=watch)
    watching.start()
    await plugin.call("sleep", 10, 3 * BLOCKED_SECONDS)
    ended_at = time.monotonic()
    watching.join(5)
    assert seen_at and seen_at[0] < ended_at - BLOCKED_SECONDS


@pytest.mark.gen_test
async def test_each_block_is_counted(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any]
) -> None:
    """Two blocks are two lines; a long block is one line."""
    watchdog.start()
    for number in (1, 2):
        await plugin.call("sleep", 10, 2 * BLOCKED_SECONDS if number == 1 else BLOCKED_SECONDS)
        await beats(metrics, 2)
        assert blocked(metrics) == len(named_plugins(logs)) == number


async def beats(metrics: Metrics, count: int) -> None:
    """Return after this number of beats."""
    first = lag(metrics, "count")
    async with asyncio.timeout(5):
        while lag(metrics, "count") < first + count:
            await asyncio.sleep(BEAT_SECONDS / 2)


@pytest.mark.gen_test
async def test_block_of_the_service_is_not_counted_for_a_plugin(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any]
) -> None:
    """A block by our own code is logged with its line of code and without a plugin, even during a call of a plugin."""
    watchdog.start()
    waiting = asyncio.create_task(plugin.call("wait", 10))
    await asyncio.sleep(0.01)  # the call has begun
    time.sleep(BLOCKED_SECONDS)
    assert named_plugins(logs) == [(None, None)] and blocked(metrics) == 0
    assert "test_watchdog.py" in logs[0]["where"]
    await waiting


@pytest.mark.parametrize("method", ["in_thread", "wait"])
@pytest.mark.gen_test
async def test_slow_plugin_that_does_not_block_the_loop_is_not_named(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any], method: str
) -> None:
    """A plugin may block its own thread or await for a long time."""
    watchdog.start()
    await plugin.call(method, 10)
    assert ("notifier", "blocker") not in named_plugins(logs) and blocked(metrics) == 0


@pytest.mark.gen_test
async def test_idle_loop_is_not_named(watchdog: Watchdog, metrics: Metrics, logs: list[Any]) -> None:
    """An idle loop still has its beats."""
    watchdog.start()
    await beats(metrics, 4)
    assert named_plugins(logs) == []


def test_loop_that_stops_in_its_wait_is_not_named(metrics: Metrics, logs: list[Any]) -> None:
    """The process or the machine was stopped, and no code of ours has blocked, so no line is logged."""
    must_block = threading.Event()

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            if must_block.is_set():
                must_block.clear()
                time.sleep(BLOCKED_SECONDS)
            return super().select(timeout)

    loop = asyncio.SelectorEventLoop(Selector())
    watchdog = Watchdog(metrics, block_seconds=BLOCK_SECONDS)

    async def run() -> None:
        watchdog.start()
        await asyncio.sleep(0.01)
        must_block.set()
        await beats(metrics, 2)

    loop.run_until_complete(run())
    watchdog.stop()
    loop.close()
    assert named_plugins(logs) == []


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
    assert named_plugins(logs) == [] and blocked(metrics) == 0


@pytest.mark.gen_test
async def test_lag_of_the_loop_is_observed(watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics) -> None:
    """An idle loop has almost no lag; a blocked loop has a lag of the length of the block."""
    watchdog.start()
    await beats(metrics, 3)
    before = lag(metrics, "sum")
    await plugin.call("sleep", 10, 0.3)
    await beats(metrics, 1)
    assert 0.2 < lag(metrics, "sum") - before < 2


@pytest.mark.gen_test
async def test_stop_ends_watching(watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any]) -> None:
    """After stop no lag is observed, no plugin is named, and the thread has ended."""
    # The thread of an earlier test may need a moment to end.
    before = threading.enumerate()
    watchdog.start()
    (thread,) = [each for each in threading.enumerate() if each.name == "watchdog" and each not in before]
    await beats(metrics, 1)
    watchdog.stop()
    logs.clear()  # a block of a busy machine may have been logged before
    counted = lag(metrics, "count")
    await plugin.call("sleep", 10)
    await asyncio.sleep(2 * BEAT_SECONDS)  # long enough for a beat
    assert lag(metrics, "count") == counted
    assert named_plugins(logs) == [] and blocked(metrics) == 0
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


@pytest.mark.gen_test
async def test_two_watchdogs_observe_separate_lags(
    watchdog: Watchdog, plugin: BoundPlugin, metrics: Metrics, logs: list[Any]
) -> None:
    """Each of two apps on one loop observes its own lag."""
    watchdog.start()
    other_metrics = Metrics()
    other = Watchdog(other_metrics, block_seconds=BLOCK_SECONDS)
    other.start()
    await beats(other_metrics, 2)
    other.stop()
    counted = lag(other_metrics, "count")
    await beats(metrics, 2)
    assert lag(other_metrics, "count") == counted
