"""The cost of plugins and metrics for one job: each call through the dispatcher beside the same call made directly.

    python -m benchmarks.plugin_overhead [--jobs 5000] [--rounds 7]

Prints microseconds per job: the median of the rounds, the lowest and the highest. The plugins do nothing, so the time
is that of the dispatcher: a task, a time limit, a timer, the breaker, the check of the result, a copy of the event.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import types
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic, perf_counter
from typing import Any

from pipeline.hold import Reservation
from pipeline.hooks import (
    API_VERSION,
    Analysis,
    AnalyzeRequest,
    Attribute,
    JobEvent,
    Notification,
    Progress,
    Rate,
    Usage,
    hookimpl,
)
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.manager import PluginManager, assemble
from pipeline.metrics import Metrics
from pipeline.queue.job import Job
from pipeline.settings import Settings
from pipeline.testing import SUCCESS_EVENT, RecordingRooms
from pipeline.usecases.analysis import Attempt
from pipeline.usecases.permits import Permits
from tests.factories import make_asset

ANALYSIS = Analysis(brand=Attribute("Nike", 0.9), model=Attribute("Air Max 90", 0.8))
ANALYSIS_WITH_USAGE = replace(ANALYSIS, usage=Usage(1200, 90, 0.002), ai_model="model-1")
JOB = Job("ai-processing:65f0", {}, 1, 0, "lease", 0, 0)
REQUEST = AnalyzeRequest("https://images.example/x", "sneaker", "65f0", "ai-processing:65f0", "request-1", 1, 90)
QUEUE = "ai-processing"


class Nothing:
    """A provider, a storage and a notifier that do nothing."""

    async def analyze(self, request: AnalyzeRequest) -> Analysis:
        return ANALYSIS

    async def notify(self, notification: Notification) -> None:
        return None

    async def nothing(self, *_: Any) -> None:
        return None

    save = open = delete = check = nothing


class Full(Nothing):
    """The same provider, which also has a rate, reports progress once and returns its usage."""

    rate = Rate(1e6)

    async def analyze(self, request: AnalyzeRequest, progress: Progress) -> Analysis:  # type: ignore[override]
        progress(0.5)
        return ANALYSIS_WITH_USAGE


class InstantReservations:
    """Reserves each call at once: the time that Redis takes for a reservation is part of the claim."""

    async def reserve_call(
        self, provider: str, lease: str, wait_seconds: float, late_seconds: float | None = None
    ) -> tuple[bool, float]:
        return True, 0

    async def release_call(self, provider: str, lease: str, unused_seconds: float | None = None) -> None:
        return None


class Threaded(Nothing):
    """The same provider as a plain `def`, so that it is run in a thread."""

    def analyze(self, request: AnalyzeRequest) -> Analysis:  # type: ignore[override]
        return ANALYSIS


def make_module(*, hooks: bool) -> types.ModuleType:
    """Return a plugin module with providers, a storage and a notifier.

    hooks: whether it also has the hooks that are called for each job.
    """
    module = types.ModuleType("pipeline.plugins.bench_nothing")
    module.API_VERSION = API_VERSION  # type: ignore[attr-defined]

    @hookimpl
    def register_ai_providers() -> Any:
        return [("nothing", Nothing), ("threaded", Threaded), ("full", Full)]

    @hookimpl
    def register_storage_backends() -> Any:
        return [("nothing", Nothing)]

    @hookimpl
    def register_notifiers() -> Any:
        return [("nothing", Nothing)]

    @hookimpl
    async def job_started(event: JobEvent) -> None:
        return None

    @hookimpl
    async def job_finished(event: JobEvent) -> None:
        return None

    @hookimpl
    async def transform_analysis(analysis: Analysis) -> None:
        return None

    always = (register_ai_providers, register_storage_backends, register_notifiers)
    for implementation in (*always, *((job_started, job_finished, transform_analysis) if hooks else ())):
        setattr(module, implementation.__name__, implementation)
    return module


def build(provider: str, *, hooks: bool = False) -> PluginManager:
    """Return a manager of the module's plugins with that provider."""
    settings = Settings(ai_provider=provider, storage_backend="nothing", notifiers=("nothing",), plugins_safe_mode=True)
    module, metrics = make_module(hooks=hooks), Metrics()
    sys.modules[module.__name__] = module
    catalogue = Catalogue(settings, [module.__name__])
    return assemble(catalogue, settings, metrics, RecordingRooms())


async def no_image() -> bytes:
    """Return the photo, which no provider here reads."""
    return b""


def count_one_job(metrics: Metrics) -> None:
    """Make the metrics calls of a successful job, as worker.py, processing.py and fanout.py make them."""
    queue = metrics.of_queue(QUEUE)
    queue.jobs_enqueued.inc()
    queue.jobs_claimed.inc(1)
    queue.leases_lost.inc(0)
    queue.slots_busy.inc()
    queue.job_wait_seconds.observe(0.2)
    queue.started(1)
    queue.jobs_finished["completed"].inc()
    queue.job_seconds["completed"].observe(3)
    queue.slots_busy.dec()
    metrics.assets_finished.labels("active").inc()
    metrics.asset_seconds.observe(4)
    metrics.events_published.inc()
    metrics.event_seconds.observe(0.002)


async def measure(jobs: int, work: Callable[[], Awaitable[Any]]) -> float:
    """Return the microseconds of one call."""
    started = perf_counter()
    for _ in range(jobs):
        await work()
    return (perf_counter() - started) / jobs * 1e6


async def run(jobs: int, rounds: int) -> None:
    """Measure all cases in each round, and print the table."""
    plain, threaded, hooked, full = build("nothing"), build("threaded"), build("nothing", hooks=True), build("full")
    cases = make_cases(plain, threaded, hooked, full)
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, work in cases.items():
            figures[name].append(await measure(jobs, work))
    print(f"{'us per job':>40}  median    min    max")
    for name, values in figures.items():
        print(f"{name:>40}  {statistics.median(values):6.1f} {min(values):6.1f} {max(values):6.1f}")
    total = sum(statistics.median(figures[name]) for name in ("analyze, async plugin", "notify, one notifier"))
    total += statistics.median(figures["metrics of one job"])
    print(f"{'metrics and dispatch of a plain job':>40}  {total:6.1f}")
    for manager in (plain, threaded, hooked, full):
        await manager.close()


def make_cases(
    plain: PluginManager, threaded: PluginManager, hooked: PluginManager, full: PluginManager
) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return the calls to measure, by their names in the table."""
    direct, metrics, attempt, asset = Nothing(), Metrics(), Attempt(JOB), make_asset()
    permits = Permits(InstantReservations(), full.provider_paces)
    event = JobEvent("ai-processing:65f0", "65f0", "user-1", "sneaker", "request-1", datetime.now(UTC))
    notification = Notification(SUCCESS_EVENT, "user-1", RecordingRooms())

    async def observed() -> None:
        hooked.observe("job_started", event)
        hooked.observe("job_finished", event)
        await asyncio.sleep(0)

    async def counted() -> None:
        count_one_job(metrics)

    async def analyze_full() -> None:
        job = JOB._replace(reservation=Reservation("full", monotonic()))
        await full.analyze(REQUEST, no_image, "", attempt, permits.of(job, asset))

    return {
        "analyze, called directly": lambda: direct.analyze(REQUEST),
        "analyze, async plugin": lambda: plain.analyze(REQUEST, no_image),
        "the same with pace, usage, progress": analyze_full,
        "analyze, plain def in a thread": lambda: threaded.analyze(REQUEST, no_image),
        "analyze, async plugin and one filter": lambda: hooked.analyze(REQUEST, no_image),
        "notify, called directly": lambda: direct.notify(notification),
        "notify, one notifier": lambda: plain.notifiers.notify(SUCCESS_EVENT, "user-1"),
        "two events to one observer": observed,
        "metrics of one job": counted,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.jobs, arguments.rounds))
