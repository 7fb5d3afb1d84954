"""Short runs of the chaos suite, and the proof that its checker finds each missing guarantee. See docs/faults.md."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.chaos.__main__ import run
from tests.faults.chaos.checker import ENDLESS, POISONED
from tests.faults.chaos.plan import make_plan
from tests.faults.chaos.report import Report
from tests.faults.chaos.world import World


def chaos(
    *,
    seed: int,
    faults: int,
    processes: int,
    store: str,
    uploads: int,
    kinds: set[str] | None = None,
    mutant: str = "",
    ai_delay_ms: float = 20,
    pause_seconds: float = 0.3,
    drain_seconds: float = 90,
    is_embedded: bool = False,
    is_shared: bool = False,
) -> Report:
    plan = make_plan(seed, faults, processes, store, gap_seconds=1, kinds=kinds, is_embedded=is_embedded)
    with World(
        processes=processes,
        store=store,
        mutant=mutant,
        ai_delay_ms=ai_delay_ms,
        is_embedded=is_embedded,
        is_shared=is_shared,
    ) as world:
        pauses = {"pause_seconds": pause_seconds, "drain_seconds": drain_seconds}
        return asyncio.run(run(world, plan, uploads, seed, **pauses))


@pytest.mark.parametrize(("seed", "processes", "store"), [(103, 3, "mongo"), (104, 1, "sqlite")])
def test_chaos_loses_and_doubles_nothing(seed: int, processes: int, store: str) -> None:
    """Ten faults while eight users upload break no promise.

    Once with three processes that share a Redis with another installation, once with one process and its embedded
    Redis. To repeat a run: python -m tests.faults.chaos with these values and --gap 1.
    """
    is_embedded = processes == 1
    report = chaos(
        seed=seed,
        faults=10,
        processes=processes,
        store=store,
        uploads=100,
        is_embedded=is_embedded,
        is_shared=not is_embedded,
    )
    assert report.broken == [], (seed, report.figures)
    assert sum(report.figures["faults"].values()) == 10 and report.figures["accepted"] >= 100


def test_checker_finds_no_broken_promise_without_faults() -> None:
    """One provider call per good photo, three per poisoned one, and every event comes live."""
    report = chaos(seed=1, faults=0, processes=2, store="sqlite", uploads=150, pause_seconds=0.05)
    assert report.broken == []
    assert report.figures["provider calls max"] == 3
    assert report.figures["poisoned"].keys() == {POISONED}
    assert report.figures["limited"].keys() == report.figures["decoded"].keys() == {"active"}
    assert report.figures["endless"].keys() == {f"{ENDLESS} after 2 attempts"}


def test_checker_finds_a_missing_reconciler() -> None:
    """After a wipe of Redis the waiting jobs never come back."""
    report = chaos(
        seed=1,
        faults=1,
        processes=2,
        store="sqlite",
        uploads=60,
        kinds={"wipe redis"},
        mutant="reconciler",
        ai_delay_ms=500,
        pause_seconds=0.02,
        drain_seconds=20,
    )
    assert any(promise.startswith("every accepted upload") for promise in report.broken), report.broken


def test_checker_finds_missing_leases() -> None:
    """Without renewal, jobs that take longer than their lease are run by several processes at once."""
    report = chaos(
        seed=1, faults=0, processes=2, store="sqlite", uploads=10, mutant="lease", ai_delay_ms=7000, drain_seconds=60
    )
    assert any(promise.startswith("without faults the provider") for promise in report.broken), report.broken


def test_checker_finds_answered_failures_that_give_their_attempt_back() -> None:
    """The jobs of photos that are always answered with 500 never end."""
    report = chaos(seed=1, faults=0, processes=2, store="sqlite", uploads=60, mutant="attempt", drain_seconds=15)
    assert any(promise.startswith("every accepted upload") for promise in report.broken), report.broken


def test_checker_finds_events_that_only_redis_knows() -> None:
    """A receiver answers 503 while Redis is wiped, and the events that wait for their next attempt are lost."""
    kinds = {"receiver fails", "wipe redis"}
    report = chaos(
        seed=5, faults=2, processes=1, store="sqlite", uploads=60, kinds=kinds, mutant="undelivered", drain_seconds=20
    )
    assert any(promise.startswith("every finished asset's event") for promise in report.broken), report.broken


def test_checker_finds_a_pause_that_only_redis_knows() -> None:
    """Redis is wiped, and the paused queue starts jobs."""
    kinds = {"wipe redis while paused"}
    report = chaos(seed=1, faults=1, processes=1, store="sqlite", uploads=20, kinds=kinds, mutant="pause")
    assert any(promise.startswith("no job starts while") for promise in report.broken), report.broken


def test_checker_finds_rooms_that_installations_share() -> None:
    """Users of the same id get the events of each other's photos."""
    report = chaos(seed=1, faults=0, processes=1, store="sqlite", uploads=60, mutant="prefix", is_shared=True)
    assert any(promise.startswith("no event reaches another user") for promise in report.broken), report.broken


# On a network link a commit is not always on its way when the link is stopped, so there are three attempts.
@pytest.mark.parametrize(("store", "faults"), [("sqlite", 1), ("mongo", 3)])
def test_checker_finds_a_missing_fence(store: str, faults: int) -> None:
    """A commit that reaches the store after another process has done the job overwrites the newer result."""
    report = chaos(
        seed=1,
        faults=faults,
        processes=2,
        store=store,
        uploads=20,
        kinds={"late commit"},
        mutant="fence",
        ai_delay_ms=500,
    )
    assert any(promise.startswith("one result per asset") for promise in report.broken), report.broken


def test_checker_finds_starts_that_take_no_fence() -> None:
    """The document of a photo that the provider was asked about three times counts one start."""
    report = chaos(seed=1, faults=0, processes=1, store="sqlite", uploads=60, mutant="first", drain_seconds=30)
    assert any(promise.startswith("the provider is asked at most once") for promise in report.broken), report.broken


@pytest.mark.parametrize("store", ["sqlite", "mongo"])
def test_late_commits_overwrite_nothing(store: str) -> None:
    """With the fence, a late commit changes nothing."""
    report = chaos(
        seed=1, faults=1, processes=2, store=store, uploads=20, kinds={"late commit"}, ai_delay_ms=500
    )
    assert report.broken == [], report.figures
