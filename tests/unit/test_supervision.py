"""The supervisor: a task that ends unforeseen is started again, and whoever asks hears of it meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pipeline import supervision
from pipeline.errors import DependencyUnavailable
from pipeline.supervision import Supervisor


class Task:
    """A task that can be made to fail; it counts its starts."""

    def __init__(self) -> None:
        self.starts = 0
        self.started = asyncio.Event()
        self.fails = asyncio.Event()

    async def run(self) -> None:
        self.starts += 1
        self.started.set()
        await self.fails.wait()
        self.fails.clear()
        raise RuntimeError("nobody foresaw this")

    async def restarted(self) -> None:
        self.started.clear()
        await self.started.wait()


@pytest.mark.gen_test
async def test_task_that_fails_is_started_again_and_named_meanwhile(logs: list[Any]) -> None:
    """With its trace in the log, counted, and down until it has run for as long as it had to wait."""
    restarts: list[str] = []
    supervisor, task = Supervisor(on_restart=restarts.append), Task()
    supervisor.start("queue slot 1", task.run, kind="slot")
    await task.started.wait()
    await supervisor.check()
    task.fails.set()
    await task.restarted()
    assert task.starts == 2 and restarts == ["slot"]
    with pytest.raises(DependencyUnavailable, match="Not running: queue slot 1"):
        await supervisor.check()
    while supervisor.down:
        await asyncio.sleep(0.01)
    (line,) = [entry for entry in logs if entry["event"] == "task_ended"]
    assert (line["log_level"], line["task"]) == ("error", "queue slot 1")
    assert str(line["exc_info"]) == "nobody foresaw this"
    await supervisor.stop()


@pytest.mark.gen_test
async def test_cancellation_that_nobody_asked_for_is_a_failure(logs: list[Any]) -> None:
    """One that escapes from a library ends a task without an exception; only the supervisor's own is foreseen."""
    supervisor, task = Supervisor(), Task()
    watched = supervisor.start("listening", task.run)
    await task.started.wait()
    assert watched.task is not None
    watched.task.cancel()
    await task.restarted()
    assert task.starts == 2
    await supervisor.stop()
    await asyncio.sleep(0.3)
    assert task.starts == 2 and supervisor.down == []
    assert [entry["task"] for entry in logs] == ["listening"]


@pytest.mark.gen_test
async def test_delay_doubles_up_to_the_longest(logs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that fails at once each time is tried less and less often."""
    monkeypatch.setattr(supervision, "RESTART_SECONDS", (0.01, 0.04))
    supervisor, task = Supervisor(), Task()
    supervisor.start("listening", task.run)
    for _ in range(5):
        await task.started.wait()
        task.started.clear()
        task.fails.set()
    await task.started.wait()
    waits = [entry["againInMs"] for entry in logs]
    assert all(full / 2 <= wait <= full for wait, full in zip(waits, [10, 20, 40, 40, 40], strict=True)), waits
    await supervisor.stop()


@pytest.mark.gen_test
async def test_task_that_cannot_be_started_again_ends_the_process(logs: list[Any]) -> None:
    """Its reason is handed on; it stays down."""
    reasons: list[str] = []
    supervisor, task = Supervisor(on_fatal=reasons.append), Task()
    supervisor.start("embedded redis", task.run, restarts=False)
    await task.started.wait()
    task.fails.set()
    while not reasons:
        await asyncio.sleep(0.01)
    assert reasons == ["embedded redis ended: RuntimeError('nobody foresaw this')"]
    with pytest.raises(DependencyUnavailable, match="embedded redis"):
        await supervisor.check()
    assert task.starts == 1
    await supervisor.stop()


@pytest.mark.gen_test
async def test_task_whose_work_is_done_is_no_failure(logs: list[Any]) -> None:
    """Opening the store at last is such a task."""
    supervisor = Supervisor()
    watched = supervisor.start("opening", lambda: asyncio.sleep(0))
    assert watched.task is not None
    await watched.task
    await asyncio.sleep(0)
    await supervisor.check()
    assert logs == []


@pytest.mark.gen_test
async def test_stop_ends_a_task_that_is_about_to_be_started_again(logs: list[Any]) -> None:
    """Nothing is started once the end has begun."""
    supervisor, task = Supervisor(), Task()
    supervisor.start("listening", task.run)
    await task.started.wait()
    task.fails.set()
    while not supervisor.down:
        await asyncio.sleep(0.01)
    await supervisor.stop()
    await asyncio.sleep(0.3)
    assert task.starts == 1
