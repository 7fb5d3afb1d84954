"""Child processes that end, that do not start, and that are started a second time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.errors import RetryableJobError, SandboxLimit
from pipeline.sandbox.pool import Pool
from tests import sandboxed
from tests.integration.sandbox_pools import IN_TIME, LINUX, Open, wait_gone
from tests.integration.sandbox_pools import open_pool, pool  # noqa: F811
from tests.service import ROOT

__all__ = ["open_pool", "pool"]


@LINUX
@pytest.mark.gen_test
async def test_child_that_died_while_idle_fails_no_call(pool: Pool) -> None:
    """The kernel may kill an idle child when memory is short: it is logged, and the next call gets a new child."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    os.kill(first, signal.SIGKILL)
    wait_gone(first)
    with capture_logs() as logs:
        assert await pool.run(sandboxed.pid, **IN_TIME) != first
    assert ("sandbox_child_ended", first) in [(line["event"], line.get("pid")) for line in logs]


PARENT = """
import asyncio, sys
from pipeline.sandbox.pool import Pool
from tests import sandboxed

async def main():
    pool = Pool("tested")
    print(await pool.run(sandboxed.pid, seconds=30), flush=True)
    if sys.argv[1] == "busy":
        await pool.run(sandboxed.spin, seconds=600)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@LINUX
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_kill_of_the_service_ends_its_children(state: str) -> None:
    """`kill -9` of the service ends its children, also a child that is in C code."""
    with subprocess.Popen([sys.executable, "-c", PARENT, state], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if state == "busy":
            wait_busy(child)
        parent.kill()
    wait_gone(child)


def wait_busy(pid: int) -> None:
    """Return once the process has used five more ticks of processor time."""
    ticks = -1
    while ticks < 0 or int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11]) < ticks + 5:
        if ticks < 0:
            ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11])


@pytest.mark.gen_test
async def test_setup_is_called_once_in_each_child(open_pool: Open) -> None:
    """The setup runs before the first call, also in a child that replaces another child."""
    pool = open_pool(setup=sandboxed.start)
    assert await pool.run(sandboxed.is_started, **IN_TIME)
    with pytest.raises(SandboxLimit):
        await pool.run(sandboxed.crash, **IN_TIME)
    assert await pool.run(sandboxed.is_started, **IN_TIME)


@pytest.mark.parametrize(
    ("setup", "cause"),
    [(sandboxed.needs_a_package, "a_package_that_is_missing"), (sandboxed.exit_process, "ChildGone")],
)
@pytest.mark.gen_test
async def test_children_that_do_not_start_spend_no_attempt(open_pool: Open, setup: Any, cause: str) -> None:
    """The calls fail with the reason and spend no attempt, and only one process is started for all of them."""
    pool = open_pool(setup=setup)
    with capture_logs() as logs:
        for _ in range(20):
            with pytest.raises(RetryableJobError) as caught:
                await pool.run(sandboxed.echo, **IN_TIME)
            assert caught.value.spends_attempt is False
    assert cause in repr(caught.value.__cause__) + str(getattr(caught.value.__cause__, "__cause__", ""))
    assert [line["event"] for line in logs] == ["sandbox_child_failed"]


@pytest.mark.gen_test
async def test_start_of_a_child_is_repeated_with_longer_waits(
    open_pool: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each failed start the wait doubles, up to 60 s; later a start can succeed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    clock = [1000.0]
    monkeypatch.setattr("pipeline.sandbox.pool.monotonic", lambda: clock[0])
    monkeypatch.setattr("pipeline.delays.random.uniform", lambda least, most: most)
    pool = open_pool(setup=sandboxed.start_when_ready)
    waits = []
    with capture_logs() as logs:
        for _ in range(8):
            with pytest.raises(RetryableJobError):
                await pool.run(sandboxed.echo, **IN_TIME)
            waits.append(logs[-1]["againInS"])
            clock[0] += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    (tmp_path / "ready").touch()
    assert await pool.run(sandboxed.echo, 1, **IN_TIME) == [1]


@pytest.mark.gen_test
async def test_start_that_the_system_refuses_spends_no_attempt(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without free memory or processes is not the fault of the photo."""

    def fail(*_: Any, **__: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(RetryableJobError) as caught:
        await pool.run(sandboxed.echo, **IN_TIME)
    assert caught.value.spends_attempt is False
