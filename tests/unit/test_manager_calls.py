"""Calls of a provider: on the loop or in threads, with a time limit, counted per plugin."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import RetryableJobError
from pipeline.hooks import Analysis, AnalyzeRequest
from tests.unit.plugin_managers import FOUND, REQUEST, ManagerFactory, Storage, manager_factory, no_image

user = contextvars.ContextVar("user", default="none")


@pytest.fixture
def factory(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """A factory of managers, closed after the test."""
    with manager_factory(io_loop) as factory:
        yield factory


@pytest.mark.gen_test
async def test_async_methods_run_on_the_loop_and_plain_ones_in_a_thread(factory: ManagerFactory) -> None:
    """A plain method never blocks the loop, a returned awaitable is awaited, and each method has the context."""
    seen: dict[str, tuple[bool, str]] = {}

    def record(name: str) -> Analysis:
        seen[name] = (threading.current_thread() is threading.main_thread(), user.get())
        return FOUND

    async def awaited(request: AnalyzeRequest) -> Analysis:
        return record("async")

    def plain(request: AnalyzeRequest) -> Analysis:
        return record("plain")

    def mixed(request: AnalyzeRequest) -> Any:
        record("mixed")
        return awaited(request)

    user.set("user-1")
    for analyze in (awaited, plain, mixed):
        assert await factory.open(analyze).analyze(REQUEST, no_image) == FOUND
    assert seen == {"async": (True, "user-1"), "plain": (False, "user-1"), "mixed": (False, "user-1")}


@pytest.mark.gen_test
async def test_max_concurrency_is_the_number_of_threads_of_the_provider(factory: ManagerFactory) -> None:
    """A provider with max_concurrency 2 runs in two threads at the same time, never in three."""
    barrier, running, lock = threading.Barrier(2, timeout=5), [0, 0], threading.Lock()

    def analyze(request: AnalyzeRequest) -> Analysis:
        with lock:
            running[0] += 1
            running[1] = max(running)
        barrier.wait()
        with lock:
            running[0] -= 1
        return FOUND

    manager = factory.open(analyze, max_concurrency=2)
    await asyncio.gather(*(manager.analyze(REQUEST, no_image) for _ in range(6)))
    assert running == [0, 2]


@pytest.mark.gen_test
async def test_calls_are_timed_and_errors_counted_per_plugin(factory: ManagerFactory) -> None:
    """The metrics show for each plugin its durations and its errors."""

    def fail(request: AnalyzeRequest) -> Analysis:
        raise RetryableJobError("AI service unavailable")

    manager = factory.open(fail)
    with pytest.raises(RetryableJobError):
        await manager.analyze(REQUEST, no_image)
    await manager.storages.check()
    assert factory.count("pipeline_plugin_errors_total", "provider") == 1
    assert factory.count("pipeline_plugin_seconds_count", "provider") == 1
    assert factory.count("pipeline_plugin_errors_total", "storage") == 0
    assert factory.count("pipeline_plugin_seconds_count", "storage") == 1


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
@pytest.mark.gen_test
async def test_provider_that_exceeds_its_time_is_retryable_and_counted(factory: ManagerFactory, is_async: bool) -> None:
    """The call ends at its time limit, also if the plugin does not return."""

    async def never(request: AnalyzeRequest) -> Analysis:
        await asyncio.Event().wait()
        return FOUND

    manager = factory.open(never if is_async else factory.hang, provider_timeout_seconds=0.1)
    with pytest.raises(RetryableJobError) as caught:
        await manager.analyze(REQUEST, no_image)
    assert caught.value.message == "AI service timed out"
    assert "analyze took longer than 0.1 s" in str(caught.value.__cause__)
    assert factory.count("pipeline_plugin_overruns_total", "provider") == 1
    assert factory.count("pipeline_plugin_errors_total", "provider") == 1


@pytest.mark.gen_test
async def test_stuck_threads_fail_calls_at_once_and_only_of_their_plugin(factory: ManagerFactory) -> None:
    """If all threads of a plugin hang, its calls fail at once; other plugins work, and freed threads are reused."""
    storage = Storage()
    manager = factory.open(factory.hang, storage=storage, max_concurrency=2, provider_timeout_seconds=0.1)
    for _ in range(2):
        with pytest.raises(RetryableJobError, match="timed out"):
            await manager.analyze(REQUEST, no_image)
    with pytest.raises(RetryableJobError, match="AI service is busy") as caught:
        await manager.analyze(REQUEST, no_image)
    assert not caught.value.spends_attempt
    assert "all 2 threads hang" in str(caught.value.__cause__)
    await manager.storages.check()
    factory.released.set()
    while factory.count("pipeline_plugin_stuck", "provider"):
        await asyncio.sleep(0.01)  # no signal reports the end of the threads
    with pytest.raises(RetryableJobError, match="invalid result"):
        await manager.analyze(REQUEST, no_image, "tested")


@pytest.mark.fault("E5")
@pytest.mark.gen_test
async def test_call_that_waits_for_a_thread_never_starts_after_its_time(factory: ManagerFactory) -> None:
    """A call whose caller has stopped waiting does not start and spends no attempt; a started call has all its time."""
    started: list[str] = []

    def analyze(request: AnalyzeRequest) -> Analysis:
        started.append(request.request_id)
        factory.hang()
        return FOUND

    settings = {"provider_timeout_seconds": 0.3, "job_timeout_seconds": 1}
    manager = factory.open(analyze, max_concurrency=1, **settings)
    calls = (manager.analyze(REQUEST, no_image) for _ in range(3))
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [(str(error), error.spends_attempt) for error in errors] == [  # type: ignore[union-attr]
        ("AI service timed out", True),
        ("AI service is busy", False),
        ("AI service is busy", False),
    ]
    assert factory.count("pipeline_plugin_overruns_total", "provider") == 1
    factory.released.set()
    while factory.count("pipeline_plugin_stuck", "provider"):
        await asyncio.sleep(0.01)  # no signal reports the end of the threads
    assert await manager.analyze(REQUEST, no_image, "tested") == FOUND
    assert len(started) == 2


@pytest.mark.fault("E5")
@pytest.mark.gen_test
async def test_waiting_for_a_thread_does_not_count_as_provider_time(factory: ManagerFactory) -> None:
    """One thread processes three photos, and each takes more than half of its time limit: all succeed."""
    manager = factory.open(lambda request: time.sleep(0.2) or FOUND, max_concurrency=1, provider_timeout_seconds=0.35)
    assert await asyncio.gather(*(manager.analyze(REQUEST, no_image) for _ in range(3))) == [FOUND] * 3


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
@pytest.mark.gen_test
async def test_cancellation_passes_through(factory: ManagerFactory, is_async: bool) -> None:
    """A cancelled job is cancelled, not failed, and does not count as an error of the plugin."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def never(request: AnalyzeRequest) -> Analysis:
        begun.set()
        await asyncio.Event().wait()
        return FOUND

    def hang(request: AnalyzeRequest) -> Analysis:
        loop.call_soon_threadsafe(begun.set)
        factory.hang()
        return FOUND

    task = asyncio.ensure_future(factory.open(never if is_async else hang).analyze(REQUEST, no_image))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert factory.count("pipeline_plugin_errors_total", "provider") == 0
