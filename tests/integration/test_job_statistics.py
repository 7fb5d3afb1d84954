"""The counters of charts, and the audit list, on a real store and with a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.asset import AssetStatus, to_timestamp
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import AssetStore, Record
from pipeline.errors import DependencyUnavailable
from pipeline.queue.job import Finish, Job, Outcome
from pipeline.queue.job_lookup import QueueStats
from pipeline.queue.queue import JobQueue
from pipeline.usecases import audit as audit_module
from pipeline.usecases import job_statistics as statistics_module
from pipeline.usecases.audit import WAITING_AT_MOST, Act, Audit
from pipeline.usecases.job_statistics import JobStatistics
from tests.clock import Clock

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
ACT = Act("ops-1", "pause queue", "ai-processing", None, "done", "127.0.0.1", "r-1")


class FailingStore:
    """A store whose next `away` writes fail; it counts the records that are written."""

    def __init__(self, store: SqliteAssetStore) -> None:
        self._store = store
        self.away = 0
        self.written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put_record(self, record: Record) -> None:
        if self.away:
            self.away -= 1
            raise DependencyUnavailable("away")
        self.written += 1
        await self._store.put_record(record)


@pytest.fixture
def store(io_loop: IOLoop, tmp_path: Path) -> Iterator[FailingStore]:
    opened = SqliteAssetStore(tmp_path / "assets.sqlite")
    io_loop.run_sync(opened.open)
    yield FailingStore(opened)
    io_loop.run_sync(opened.close)


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now = NOON.timestamp() + 30
    return clock


def make_statistics(store: FailingStore, clock: Clock) -> JobStatistics:
    """Return the counters of a process; they do not ask its queue."""
    return JobStatistics(cast(AssetStore, store), cast(JobQueue, None), now=clock)


def make_job(**fields: Any) -> Job:
    return Job(**{"id": "j", "data": {}, "attempt": 1, "stalls": 0, "lease": "", "enqueued_at_ms": 0} | fields)


async def points(store: FailingStore, clock: Clock, window: str = "1h") -> list[dict[str, Any]]:
    """Return the steps of a chart, read by a process that has just started."""
    found: list[dict[str, Any]] = (await make_statistics(store, clock).chart(window))["points"]
    return found


async def enqueued_by_step(store: FailingStore, clock: Clock, window: str = "1h") -> dict[str, int]:
    """Return how many jobs were enqueued, for each step that has some."""
    return {point["at"]: point["enqueued"] for point in await points(store, clock, window) if point["enqueued"]}


def at(minutes: int) -> str:
    return str(to_timestamp(NOON + timedelta(minutes=minutes)))


@pytest.mark.gen_test
async def test_chart_adds_up_the_numbers_of_all_processes(store: FailingStore, clock: Clock) -> None:
    """Each step of each window has the sum of all processes, and each number is in the step in which it happened."""
    processes = [make_statistics(store, clock), make_statistics(store, clock)]
    for number, process in enumerate(processes):
        process.count_enqueued()
        await process.write()
        process.count_enqueued()
        process.count_start(make_job(claimed_at_ms=400 * (number + 1)))
        process.count_start(make_job(claimed_at_ms=9000, attempt=2))
    clock.now += 60
    for process in processes:
        process.count_end(AssetStatus.PARTIAL)
        process.count_attempt(Finish(make_job(claimed_at_ms=0), Outcome.RETRY), 2)
        process.count_attempt(Finish(make_job(claimed_at_ms=0), Outcome.RETRY, refunds_attempt=True), 60)
        process.count_attempt(Finish(make_job(claimed_at_ms=0), Outcome.CANCELLED), 60)
        process.count_attempt(Finish(make_job(claimed_at_ms=0), Outcome.COMPLETED), 2)
        await process.write()
    *idle, first, last = await points(store, clock)
    assert (len(idle), first["at"], last["at"]) == (58, at(0), at(1))
    assert (first["enqueued"], last["enqueued"], last["partial"], last["completed"], last["retried"]) == (4, 0, 2, 0, 2)
    assert 370 < first["waitP50Ms"] < 430 and 740 < first["waitP95Ms"] < 860
    assert 1850 < last["runP95Ms"] < 2150 and last["waitP50Ms"] is None
    assert idle[0] == {**idle[1], "at": at(-58)} and not any(value for name, value in idle[0].items() if name != "at")
    for window, count in (("24h", 144), ("7d", 168)):
        steps = await points(store, clock, window)
        assert (len(steps), steps[-1]["enqueued"], steps[-1]["partial"]) == (count, 4, 2)


@pytest.mark.gen_test
async def test_counts_survive_a_store_that_is_away(store: FailingStore, clock: Clock) -> None:
    """Counts that could not be written are written later, once; a clock that is set back overwrites no count."""
    process = make_statistics(store, clock)
    process.count_enqueued()
    store.away = 2
    with pytest.raises(DependencyUnavailable):
        await process.write()
    clock.now += 60
    process.count_enqueued()
    for _ in range(3):
        await process.write()
    assert await enqueued_by_step(store, clock) == {at(0): 1, at(1): 1}
    written = store.written
    clock.now += 3600
    await process.write()
    assert store.written == written, "nothing was counted"
    clock.now -= 3600
    process.count_enqueued()
    await process.write()
    assert await enqueued_by_step(store, clock) == {at(0): 1, at(1): 2}


@pytest.mark.gen_test
async def test_tallies_are_deleted_when_no_chart_shows_them(store: FailingStore, clock: Clock) -> None:
    """After nine days of jobs every chart is complete, and store and process have no more tallies than charts need."""
    process = make_statistics(store, clock)
    first = clock.now
    for hour in range(9 * 24):
        clock.now = first + hour * 3600
        process.count_enqueued()
        await process.write()
    await process.purge()
    sizes = [len(await store.records(f"tally {step}", limit=1000)) for step in (60, 600, 3600)]
    assert sizes == [2, 26, 192]
    for window, count in (("1h", 1), ("24h", 24), ("7d", 168)):
        assert len(await enqueued_by_step(store, clock, window)) == count
    # Tallies that could not be written stay in memory no longer than written ones stay in the store.
    store.away = 10**6
    for hour in range(9 * 24):
        clock.now += 3600
        process.count_enqueued()
        with pytest.raises(DependencyUnavailable):
            await process.write()
    store.away = 0
    await process.write()
    await process.purge()
    assert [len(await store.records(f"tally {step}", limit=1000)) for step in (60, 600, 3600)] == sizes


@pytest.mark.gen_test
async def test_process_writes_by_itself(store: FailingStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process writes every few seconds and at its end, with the highest number of waiting jobs that it saw."""
    monkeypatch.setattr(statistics_module, "WRITE_SECONDS", 0.001)
    lengths = [3, 9, 4]

    async def stats() -> QueueStats:
        if not lengths:
            raise DependencyUnavailable("away")
        return QueueStats(lengths.pop(0), 1, 2, 0, 0, is_paused=False, oldest_ready_seconds=None)

    process = JobStatistics(cast(AssetStore, store), cast(JobQueue, SimpleNamespace(stats=stats)), now=clock)
    running = asyncio.create_task(process.run())
    while (await points(store, clock))[-1]["waiting"] < 10:
        await asyncio.sleep(0.001)
    running.cancel()
    process.count_enqueued()
    await process.close(1)
    last = (await points(store, clock))[-1]
    assert (last["enqueued"], last["waiting"]) == (1, 10)


@pytest.mark.gen_test
async def test_damaged_tally_does_not_break_the_chart(store: FailingStore, clock: Clock, logs: list[Any]) -> None:
    """The other tallies of its step are shown."""
    process = make_statistics(store, clock)
    process.count_enqueued()
    await process.write()
    await store.put_record(Record("tally 60", "x", NOON, {"enqueued": "many"}))
    assert await enqueued_by_step(store, clock) == {at(0): 1}
    assert [line["tallyId"] for line in logs if line["event"] == "tally_damaged"] == ["x"]


@pytest.mark.gen_test
async def test_audit_waits_for_a_store_that_is_away(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    """Entries wait up to a bound and are written in order; lost entries, also those lost at the end, are logged."""
    monkeypatch.setattr(audit_module, "RETRY_SECONDS", (0.001, 0.001))
    audit = Audit(cast(AssetStore, store))
    running = asyncio.create_task(audit.run())
    store.away = 3
    for number in range(WAITING_AT_MOST + 2):
        audit.record(Act("ops-1", "pause queue", f"q-{number}", None, "done", "", "r"))
    while store.written < WAITING_AT_MOST or audit._waiting:
        await asyncio.sleep(0.01)
    running.cancel()
    items, _ = await audit.page(limit=1)
    assert items[0]["target"] == f"q-{WAITING_AT_MOST - 1}"
    lost = [line["target"] for line in logs if line["event"] == "audit_lost"]
    assert lost == [f"q-{WAITING_AT_MOST}", f"q-{WAITING_AT_MOST + 1}"]
    store.away = 1
    audit.record(ACT)
    await audit.close(1)
    assert [line["who"] for line in logs if line["event"] == "audit_lost"][2:] == ["ops-1"]
    logs.clear()


@pytest.mark.gen_test
async def test_audit_deletes_the_name_of_a_user_and_old_entries(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is deleted as a complete word, as user and in the target; after 90 days the entry is deleted."""
    audit = Audit(cast(AssetStore, store))
    for user, target in (("ann-1", "ai-processing"), ("ops-1", "user=ann-1 state=failed"), ("ann-12", "ann-12")):
        audit.record(Act(user, "act", target, None, "done", "10.0.0.1", "r"))
    await audit.close(1)
    audit.record(Act("ann-1", "act", None, None, "done", "10.0.0.1", "r"))
    assert await audit.forget("ann-1") is True
    await audit.close(1)
    assert await audit.forget("ann-1") is False
    items, place = await audit.page(limit=10)
    shown = sorted((each["who"] or "", each["target"] or "", each["address"] or "") for each in items)
    assert shown == [
        *(("", "", ""), ("", "ai-processing", "")),
        *(("ann-12", "ann-12", "10.0.0.1"), ("ops-1", "", "10.0.0.1")),
    ]
    assert place is None
    later = audit_module.utc_now() + timedelta(days=90, minutes=1)
    monkeypatch.setattr(audit_module, "utc_now", lambda: later)
    await audit.purge()
    assert await audit.page(limit=10) == ([], None)
