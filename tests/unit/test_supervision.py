"""The supervisor: it restarts a task that ends unexpectedly, and its check fails until the task runs."""

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
        raise RuntimeError("unexpected")

    async def restarted(self) -> None:
        """Wait for the next start."""
        self.started.clear()
        await self.started.wait()


@pytest.mark.gen_test
async def test_failed_task_is_restarted_and_named_by_the_check(logs: list[Any]) -> None:
    """The failure is logged with its trace and counted; the task is down until it has run for its restart delay."""
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
    assert str(line["exc_info"]) == "unexpected"
    await supervisor.stop()


@pytest.mark.gen_test
async def test_cancellation_by_other_code_is_a_failure(logs: list[Any]) -> None:
    """Only the supervisor may cancel a task; a cancellation from a library would end it without an exception."""
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
async def test_restart_delay_doubles_up_to_the_longest(logs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that always fails at once is restarted with longer and longer delays."""
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
async def test_task_that_cannot_be_restarted_ends_the_process(logs: list[Any]) -> None:
    """The supervisor passes on the reason, and the task stays down."""
    reasons: list[str] = []
    supervisor, task = Supervisor(on_fatal=reasons.append), Task()
    supervisor.start("embedded redis", task.run, restarts=False)
    await task.started.wait()
    task.fails.set()
    while not reasons:
        await asyncio.sleep(0.01)
    assert reasons == ["embedded redis ended: RuntimeError('unexpected')"]
    with pytest.raises(DependencyUnavailable, match="embedded redis"):
        await supervisor.check()
    assert task.starts == 1
    await supervisor.stop()


@pytest.mark.gen_test
async def test_end_of_a_finished_task_is_no_failure(logs: list[Any]) -> None:
    """A task that returns is not restarted and not down, like the one that opens the store."""
    supervisor = Supervisor()
    watched = supervisor.start("opening", lambda: asyncio.sleep(0))
    assert watched.task is not None
    await watched.task
    await asyncio.sleep(0)
    await supervisor.check()
    assert logs == []


@pytest.mark.gen_test
async def test_stop_ends_a_task_that_waits_for_its_restart(logs: list[Any]) -> None:
    """After stop no task is started."""
    supervisor, task = Supervisor(), Task()
    supervisor.start("listening", task.run)
    await task.started.wait()
    task.fails.set()
    while not supervisor.down:
        await asyncio.sleep(0.01)
    await supervisor.stop()
    await asyncio.sleep(0.3)
    assert task.starts == 1
