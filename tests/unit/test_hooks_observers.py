"""Observers: which events they receive, that none delays or fails anything but itself, and the observer `journal`."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.hooks import JobEvent
from pipeline.hooks.kinds import OBSERVERS
from pipeline.plugins import filter_photos, observe_journal
from pipeline.settings import Settings
from tests.fake_plugins import ManagerFactory, make_job_event, make_module
from tests.unit.hook_modules import ERRORS, SKIPPED, RecordingObserver, fail, never, open_managers


@pytest.fixture
def managers(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """A factory of managers; the test closes what it built."""
    yield from open_managers(io_loop)


@pytest.fixture
def closes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a manager does not wait for its observers: for tests that leave an observer hanging."""
    monkeypatch.setattr("pipeline.hooks.hook_calls.CLOSE_SECONDS", 0.05)


@pytest.mark.gen_test
async def test_observer_receives_all_events_in_order(managers: ManagerFactory) -> None:
    """An observer receives each event of a job in order, in the hook of its kind."""
    observer = RecordingObserver()
    manager = managers.open(observer.module("watch"))
    events = [(hook, make_job_event(number, attempt=1)) for number in range(3) for hook in OBSERVERS]
    for hook, event in events:
        manager.observe(hook, event)
    await observer.wait(len(events))
    assert observer.received == events


@pytest.mark.gen_test
async def test_observer_receives_only_events_of_its_hooks(managers: ManagerFactory) -> None:
    """An observer that implements job_finished only receives no event of a start."""
    observer = RecordingObserver()
    manager = managers.open(observer.module("watch", "job_finished"))
    manager.observe("job_started", make_job_event(1))
    manager.observe("job_finished", make_job_event(2))
    assert await observer.wait(1) == [2]


@pytest.mark.gen_test
async def test_implementation_gets_the_arguments_it_names(managers: ManagerFactory) -> None:
    """An implementation names any arguments of its hook; `def` runs in a thread, `async def` on the loop."""
    seen: dict[str, Any] = {}
    is_done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def job_enqueued(settings: Settings, event: JobEvent) -> None:
        seen["job_enqueued"] = (settings.port, event.asset_id[-1], threading.current_thread() is not main)

    async def job_started(settings: Settings) -> None:
        seen["job_started"] = (settings.port, threading.current_thread() is main)

    def job_finished() -> None:
        seen["job_finished"] = True
        loop.call_soon_threadsafe(is_done.set)

    main = threading.current_thread()
    module = make_module("picky", job_enqueued=job_enqueued, job_started=job_started, job_finished=job_finished)
    manager = managers.open(module, port=81)
    for hook in OBSERVERS:
        manager.observe(hook, make_job_event(5))
    await asyncio.wait_for(is_done.wait(), 5)
    assert seen == {"job_enqueued": (81, "5", True), "job_started": (81, True), "job_finished": True}


@pytest.mark.gen_test
async def test_hanging_observer_delays_neither_the_job_nor_the_others(
    closes_soon: None, managers: ManagerFactory
) -> None:
    """Observing returns at once; another observer receives all events while one hangs at its first event."""
    slow, observer = RecordingObserver(never), RecordingObserver()
    manager = managers.open(slow.module("slow"), observer.module("watch"), hook_timeout_seconds=60)
    for number in range(20):
        manager.observe("job_started", make_job_event(number))
    assert await observer.wait(20) == list(range(20))
    assert len(slow.received) == 1


@pytest.mark.gen_test
async def test_hanging_call_ends_at_its_timeout_and_the_next_event_follows(
    closes_soon: None, managers: ManagerFactory
) -> None:
    """HOOK_TIMEOUT_SECONDS ends each call; the failure counts, and the observer receives the next event."""
    slow = RecordingObserver(never)
    manager = managers.open(slow.module("slow"), hook_timeout_seconds=0.05)
    manager.observe("job_started", make_job_event(1))
    manager.observe("job_started", make_job_event(2))
    assert await slow.wait(2) == [1, 2]
    assert managers.count("pipeline_plugin_overruns_total", "hook", "slow") == 1
    assert managers.count(ERRORS, "hook", "slow") == 1


@pytest.mark.gen_test
async def test_observer_that_fails_in_a_row_is_held(managers: ManagerFactory) -> None:
    """After BREAKER_FAILURES failures an observer receives no events, and each missed one counts.

    Other observers receive all events.
    """
    bad, observer = RecordingObserver(fail), RecordingObserver()
    manager = managers.open(bad.module("bad"), observer.module("watch"), breaker_failures=3)
    with capture_logs() as logs:
        for number in range(10):
            manager.observe("job_finished", make_job_event(number))
        await observer.wait(10)
        while managers.count(SKIPPED, "hook", "bad") < 7:
            await asyncio.sleep(0)  # each observer has its own queue
    assert len(bad.received) == 3
    failed = [(line["plugin"], line["hook"]) for line in logs if line["event"] == "hook_failed"]
    assert failed == [("bad", "job_finished")] * 3
    (held,) = (line for line in logs if line["event"] == "plugin_held")
    assert (held["kind"], held["plugin"], held["method"]) == ("hook", "bad", "job_finished")
    assert (held["reason"], held["cause"]) == ("The hook failed", "OSError: statistics are down")


@pytest.mark.gen_test
async def test_success_resets_the_failures_of_an_observer(managers: ManagerFactory) -> None:
    """Only failures in a row hold an observer."""
    bad = RecordingObserver(lambda event: fail(event) if int(event.asset_id, 16) % 3 else None)
    manager = managers.open(bad.module("bad"), breaker_failures=3)
    for number in range(12):
        manager.observe("job_finished", make_job_event(number))
    assert await bad.wait(12) == list(range(12))


@pytest.mark.gen_test
async def test_slow_observer_misses_events_which_are_counted(
    managers: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of events that wait for an observer is limited; the newest events over the limit are dropped."""
    monkeypatch.setattr("pipeline.hooks.hook_calls.EVENTS_AT_MOST", 3)
    go_on = asyncio.Event()
    slow = RecordingObserver(lambda event: go_on.wait())
    manager = managers.open(slow.module("slow"), hook_timeout_seconds=60)
    manager.observe("job_started", make_job_event(0))
    await slow.wait(1)
    for number in range(1, 8):
        manager.observe("job_started", make_job_event(number))
    assert managers.count(SKIPPED, "hook", "slow") == 4
    go_on.set()
    assert await slow.wait(4) == [0, 1, 2, 3]


@pytest.mark.gen_test
async def test_log_lines_of_an_observer_name_its_own_job(managers: ManagerFactory) -> None:
    """Each failure is logged with the ids of its own job, not with those of the first event."""
    bad = RecordingObserver(fail)
    manager = managers.open(bad.module("bad"))
    processors = structlog.get_config()["processors"]
    with capture_logs() as logs:
        # capture_logs leaves out the bound names that every line of the service has.
        structlog.get_config()["processors"].insert(0, structlog.contextvars.merge_contextvars)
        for number in range(2):
            event = make_job_event(number)
            with structlog.contextvars.bound_contextvars(jobId=event.job_id, requestId=event.request_id, attempt=7):
                manager.observe("job_started", event)
        await bad.wait(2)
        await manager.close()
        del structlog.get_config()["processors"][0]
    assert structlog.get_config()["processors"] == processors
    failed = [line for line in logs if line["event"] == "hook_failed"]
    names = [(line["jobId"], line["requestId"]) for line in failed]
    assert names == [(event.job_id, event.request_id) for _, event in bad.received]
    assert not [line for line in failed if "attempt" in line], "a bound name of the first event"


@pytest.mark.gen_test
async def test_closing_lets_observers_finish(managers: ManagerFactory) -> None:
    """Closing waits until the observers have received all earlier events."""
    observer = RecordingObserver(lambda event: asyncio.sleep(0.001))
    manager = managers.open(observer.module("watch"))
    for number in range(50):
        manager.observe("job_finished", make_job_event(number))
    await manager.close()
    assert len(observer.received) == 50


@pytest.mark.gen_test
async def test_closing_does_not_wait_for_an_observer_that_hangs(closes_soon: None, managers: ManagerFactory) -> None:
    """Closing has a time limit, so a hanging observer does not delay a shutdown."""
    slow = RecordingObserver(never)
    manager = managers.open(slow.module("slow"), hook_timeout_seconds=60)
    manager.observe("job_finished", make_job_event(1))
    await slow.wait(1)
    async with asyncio.timeout(3):
        await manager.close()


@pytest.mark.gen_test
async def test_journal_has_one_line_for_each_event(managers: ManagerFactory, tmp_path: Path) -> None:
    """The journal has lines of JSON in the order of events; if its file is moved away, a new file begins."""
    path = tmp_path / "journal.jsonl"
    manager = managers.open(observe_journal, variables={"PLUGIN_JOURNAL_PATH": str(path)})
    at = datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)
    event = JobEvent("ai-processing:1", "1", "user-1", "lego", "r-1", at, 2, "failed", "it ended\nbadly", 0, 1.5)
    for hook in OBSERVERS:
        manager.observe(hook, event)
    await manager.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["job"] for line in lines] == ["enqueued", "started", "retrying", "finished"]
    assert lines[-1] == {
        "job": "finished", "job_id": "ai-processing:1", "asset_id": "1", "user_id": "user-1", "category": "lego",
        "request_id": "r-1", "at": "2026-01-31T12:00:00.123+00:00", "attempt": 2, "outcome": "failed",
        "error": "it ended\nbadly", "delay_ms": 0, "seconds": 1.5,
    }  # fmt: skip
    path.rename(tmp_path / "journal.1")
    second = managers.open(observe_journal, variables={"PLUGIN_JOURNAL_PATH": str(path)})
    second.observe("job_started", event)
    await second.close()
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.gen_test
async def test_journal_that_cannot_be_written_is_logged(managers: ManagerFactory, tmp_path: Path) -> None:
    """A journal in a missing folder causes one line in the log and no error of the job."""
    manager = managers.open(observe_journal, variables={"PLUGIN_JOURNAL_PATH": str(tmp_path / "no" / "journal")})
    with capture_logs() as logs:
        manager.observe("job_started", make_job_event())
        await manager.close()
    assert [(line["event"], line["plugin"]) for line in logs] == [("hook_failed", "journal")]


@pytest.mark.gen_test
async def test_journal_and_photos_are_off_unless_configured(managers: ManagerFactory) -> None:
    """A hook plugin of the service without settings is never called."""
    manager = managers.open(observe_journal, filter_photos)
    assert [plugin.name for plugin in manager.all if plugin.kind == "hook"] == []
    assert not manager.has_upload_filters
