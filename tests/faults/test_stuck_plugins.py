"""Plugins that ignore cancellation or block their thread: their job loses its time budget, but no slot is lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from tornado.ioloop import IOLoop

from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.running_calls import PluginOverrun
from pipeline.metrics import Metrics
from pipeline.queue.attempt import RetryPolicy
from pipeline.queue.job import Job
from tests.packages import install
from tests.slowdown import slowdown
from tests.service import Service
from tests.workers import Bench, Handler

BUDGET_SECONDS = 0.2
GRACE_SECONDS = 0.1


class Stubborn:
    """A provider whose calls last until it is released, by ignoring cancellation or by blocking a thread."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.cancellations = 0

    async def ignore_cancellation(self) -> str:
        while not self.released.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.cancellations += 1
        return "late"

    def block_thread(self) -> str:
        self.released.wait(30)
        return "late"

    async def fail(self) -> None:
        raise RuntimeError("it failed")

    async def name_request(self) -> Any:
        return structlog.contextvars.get_contextvars().get("requestId")


@pytest.fixture
def plugin(io_loop: IOLoop) -> Iterator[Stubborn]:
    # Created after the loop, so that its tasks end before the loop, which waits for every task.
    plugin = Stubborn()
    yield plugin
    plugin.released.set()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def bound(plugin: Stubborn, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> BoundPlugin:
    monkeypatch.setattr("pipeline.hooks.running_calls.GRACE_SECONDS", GRACE_SECONDS)
    names = ("ignore_cancellation", "block_thread", "fail", "name_request")
    methods = {name: getattr(plugin, name) for name in names}
    return BoundPlugin("provider", "stubborn", plugin, methods, threads=8, metrics=metrics)


def stuck(metrics: Metrics) -> float | None:
    labels = {"kind": "provider", "plugin": "stubborn"}
    return metrics.registry.get_sample_value("pipeline_plugin_stuck", labels)


METHODS = pytest.mark.parametrize("method", ["ignore_cancellation", "block_thread"])


@METHODS
@pytest.mark.gen_test
async def test_call_ends_with_its_budget_whatever_the_plugin_does(
    plugin: Stubborn, bound: BoundPlugin, metrics: Metrics, method: str
) -> None:
    """The caller continues; the call is counted until it ends."""
    started_at = time.monotonic()
    with pytest.raises(PluginOverrun, match=f"{method} took longer than 0.2 s"):
        await bound.call(method, BUDGET_SECONDS)
    assert time.monotonic() - started_at < 2 * slowdown()
    assert stuck(metrics) == 1
    plugin.released.set()
    while stuck(metrics):
        await asyncio.sleep(0.01)  # it ends on its own time; no signal announces it
    assert plugin.cancellations == (1 if method == "ignore_cancellation" else 0)


@METHODS
@pytest.mark.gen_test
async def test_cancelled_caller_ends_at_once(bound: BoundPlugin, metrics: Metrics, method: str) -> None:
    """A cancellation, as by a lost lease or a shutdown, ends the wait for a plugin and stays a cancellation."""
    call = asyncio.create_task(bound.call(method, 60))
    await asyncio.sleep(0.05)  # the call is under way
    call.cancel()
    await asyncio.wait([call], timeout=2)
    assert call.cancelled() and stuck(metrics) == 1


@pytest.mark.gen_test
async def test_failure_during_the_cancellation_is_not_reported(bound: BoundPlugin) -> None:
    """A call that fails at the moment its caller is cancelled leaves no unhandled error in the event loop."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    call = asyncio.create_task(bound.call("fail", 60))
    await asyncio.sleep(0)  # the call begins
    await asyncio.sleep(0)  # the plugin fails
    call.cancel()
    await asyncio.wait([call], timeout=2)
    assert call.cancelled()
    del call
    gc.collect()
    assert complaints == []


@pytest.mark.gen_test
async def test_log_context_reaches_the_plugin(bound: BoundPlugin) -> None:
    """Log lines of a plugin have the request id of its job."""
    with structlog.contextvars.bound_contextvars(requestId="r-7"):
        assert await bound.call("name_request", 1) == "r-7"


@METHODS
@pytest.mark.gen_test(timeout=30)
async def test_slots_work_on_after_stuck_calls(
    bench: Bench, plugin: Stubborn, bound: BoundPlugin, metrics: Metrics, method: str
) -> None:
    """Five jobs hang in all five slots: once their time budget is over, the next jobs run."""

    async def work(job: Job) -> None:
        if int(job.data["n"][-2:]) < 5:
            await bound.call(method, BUDGET_SECONDS)

    handler = Handler(work)
    bench.start(handler, RetryPolicy(attempts=1))
    started_at = time.monotonic()
    ids = await bench.enqueue(10)
    stats = await bench.until(lambda stats: stats.completed == 5)
    assert time.monotonic() - started_at < 5 * slowdown()
    assert stats.failed == 5 and stuck(metrics) == 5
    assert {(await bench.queue.fields(job_id))["state"] for job_id in ids[5:]} == {"completed"}


PACKAGE = """
import asyncio
from pipeline.hooks import hookimpl

class Stubborn:
    async def analyze(self, request):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

@hookimpl
def register_ai_providers(settings):
    yield "stubborn", Stubborn
"""


def test_service_ends_although_a_plugin_does_not(tmp_path: Path) -> None:
    """SIGTERM while an installed provider ignores its cancellation: the process ends in time, with exit code 0."""
    packages = install(tmp_path / "packages", stubborn=PACKAGE)
    settings = {"AI_PROVIDER": "stubborn", "PROVIDER_TIMEOUT_SECONDS": "0.2", "JOB_ATTEMPTS": "1"}
    with Service(tmp_path / "data", **packages, SHUTDOWN_SECONDS="0.2", **settings) as service:
        asset_id = service.upload().json()["data"]["assetId"]
        service.wait_log("job_failed", assetId=asset_id)
        assert service.find("plugin_stuck", plugin="stubborn")
        assert service.asset(asset_id)["aiMetadata"]["error"] == "AI service timed out after 1 attempt"
        started_at = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started_at < 10 * slowdown()
