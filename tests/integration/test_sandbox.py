"""Real child processes: what limits them, what ends them, what they see, and that only the call in hand suffers."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import PermanentJobError, RetryableJobError, SandboxLimit
from pipeline.sandbox.pool import Pool, SandboxError
from tests import sandboxed
from tests.service import ROOT

MEMORY_MB = 200
IN_TIME = {"seconds": 30.0}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and waits for processes of others")
Open = Callable[..., Pool]


@pytest.fixture
def open_pool(io_loop: IOLoop) -> Iterator[Open]:
    """A function that makes a pool; all are closed after the test."""
    pools = []

    def open_pool(name: str = "tested", **options: Any) -> Pool:
        pools.append(Pool(name, **{"memory_mb": MEMORY_MB} | options))
        return pools[-1]

    yield open_pool
    for pool in pools:
        io_loop.run_sync(pool.close)


@pytest.fixture
def pool(open_pool: Open) -> Pool:
    """A pool of one child."""
    return open_pool()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A pipe that holds who reads it until `disable_keep_alive` opens its other end."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


async def is_held(fifo: Path) -> int:
    """Return a descriptor once a child is held by the pipe; to close it is to let the child go."""
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet, of which nothing tells
            await asyncio.sleep(0.005)


def wait_gone(pid: int, seconds: float = 20) -> None:
    """Return once the process has ended; it is perhaps not ours to wait for."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], seconds)[0], "the child lives on"
    finally:
        os.close(descriptor)


# calls


@pytest.mark.gen_test
async def test_values_go_and_come_back(pool: Pool) -> None:
    """JSON values and bytes, also large and nested ones, arrive as they were sent; tuples as lists."""
    values = [None, True, 7, 0.1, "ä\ud800", b"\0\xff", [], {"a": [b"x", {"b": b""}]}, bytes(9_000_000)]
    assert await pool.run(sandboxed.echo, *values, (1, b"2"), **IN_TIME) == [*values, [1, b"2"]]


@pytest.mark.gen_test
async def test_what_cannot_be_sent_costs_no_child(pool: Pool) -> None:
    """A value that is neither JSON nor bytes is an error of the call, on either side."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    with pytest.raises(TypeError, match="set cannot be sent"):
        await pool.run(sandboxed.echo, {1}, **IN_TIME)
    with pytest.raises(RetryableJobError) as caught:
        await pool.run(sandboxed.unsendable, **IN_TIME)
    assert "set cannot be sent" in str(caught.value.__cause__)
    assert await pool.run(sandboxed.pid, **IN_TIME) == first


@pytest.mark.gen_test
async def test_only_functions_that_a_child_can_import_are_taken(pool: Pool) -> None:
    """A lambda or a method would be found by nobody there."""
    for function in (lambda: 1, pool.close):
        with pytest.raises(ValueError, match="could not import it"):
            await pool.run(function, **IN_TIME)


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (sandboxed.fail_permanently, PermanentJobError, "The photo is a drawing"),
        (sandboxed.fail_for_now, RetryableJobError, "The photo is not there yet"),
        (sandboxed.fail_unexpectedly, RetryableJobError, "Reading the photo failed"),
    ],
)
@pytest.mark.gen_test
async def test_exceptions_come_back(pool: Pool, function: Any, kind: type[Exception], message: str) -> None:
    """Job errors as they are, others with type and text as the cause; the child goes on."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    with pytest.raises(kind, match=message) as caught:
        await pool.run(function, **IN_TIME)
    if function is sandboxed.fail_unexpectedly:
        assert isinstance(caught.value.__cause__, SandboxError)
        assert str(caught.value.__cause__) == "KeyError: 'no such thing'"
    assert await pool.run(sandboxed.pid, **IN_TIME) == first


# limits

LIMITS: list[tuple[Any, tuple[Any, ...], dict[str, float], str, str]] = [
    (sandboxed.spin, (), {"cpu_seconds": 0.5}, "cpu", "cpu"),
    (sandboxed.spin, (), {"seconds": 0.3}, "time", "time"),
    (sandboxed.spin_within, (0.5,), {"cpu_seconds": 1000}, "cpu", "cpu"),
    (sandboxed.spin_within, (1000,), {"cpu_seconds": 0.5}, "cpu", "cpu"),
    (sandboxed.allocate, (2 * MEMORY_MB,), {}, "memory", "memory"),
    (sandboxed.crash, (), {}, "crash", "Aborted"),
    (sandboxed.exit_process, (), {}, "crash", "exit code 3"),
]


@pytest.mark.parametrize(("function", "args", "limits", "limit", "why"), LIMITS, ids=lambda value: str(value)[:20])
@pytest.mark.gen_test(timeout=30)
async def test_limit_ends_the_call_and_only_that(
    pool: Pool, function: Any, args: Any, limits: dict[str, float], limit: str, why: str
) -> None:
    """A call that takes too much is answered with a SandboxLimit, is logged, and the next one has a new child."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    with capture_logs() as logs, pytest.raises(SandboxLimit) as caught:
        await pool.run(function, *args, **IN_TIME | limits)
    assert (caught.value.limit, caught.value.spends_attempt) == (limit, True)
    (line,) = (each for each in logs if each["event"] == "sandbox_child_ended")
    assert (line["why"], line["function"], line["pid"]) == (why, f"tests.sandboxed:{function.__name__}", first)
    assert 0 <= line["seconds"] < 25
    assert await pool.run(sandboxed.pid, **IN_TIME) != first
    wait_gone(first)


@pytest.mark.gen_test
async def test_memory_below_the_limit_is_given_each_time(pool: Pool) -> None:
    """What one call has taken and given back does not count against the next."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    for _ in range(20):
        assert await pool.run(sandboxed.allocate, MEMORY_MB - 20, **IN_TIME) > 0
    assert await pool.run(sandboxed.pid, **IN_TIME) == first


@pytest.mark.gen_test
async def test_child_writes_no_files(pool: Pool, tmp_path: Path) -> None:
    """Nothing a photo does fills the disk."""
    with pytest.raises(RetryableJobError) as caught:
        await pool.run(sandboxed.write_file, str(tmp_path / "file"), **IN_TIME)
    assert "File too large" in str(caught.value.__cause__)


# waiting


@pytest.mark.fault("E5")
@pytest.mark.gen_test
async def test_waiting_for_a_child_costs_nothing(pool: Pool, fifo: Path) -> None:
    """A call's time begins when a child takes it: one that waited longer than its own time is answered all the same."""
    first = asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), **IN_TIME))
    held = await is_held(fifo)
    second = asyncio.create_task(pool.run(sandboxed.echo, 2, seconds=0.5))
    await asyncio.wait([second], timeout=0.7)
    assert not second.done()
    os.close(held)
    assert (await first, await second) == (0, [2])


@pytest.mark.fault("E5")
@pytest.mark.gen_test
async def test_no_child_in_time_spends_no_attempt(pool: Pool, fifo: Path) -> None:
    """A call that is given no child within wait_seconds could not be asked; the one in hand goes on."""
    first = asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), **IN_TIME))
    held = await is_held(fifo)
    with pytest.raises(RetryableJobError) as caught:
        await pool.run(sandboxed.echo, 2, seconds=5, wait_seconds=0.1)
    assert caught.value.spends_attempt is False
    os.close(held)
    assert await first == 0
    assert await pool.run(sandboxed.echo, 3, **IN_TIME) == [3]


@pytest.mark.gen_test
async def test_calls_are_served_in_order(pool: Pool, fifo: Path) -> None:
    """First come, first served, but for those that have gone."""
    order: list[int] = []

    async def call(number: int) -> None:
        order.extend(await pool.run(sandboxed.echo, number, **IN_TIME))

    first = asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), **IN_TIME))
    held = await is_held(fifo)
    calls = [asyncio.create_task(call(number)) for number in range(12)]
    await asyncio.sleep(0)  # they stand in line
    for number in (0, 5, 11):
        calls[number].cancel()
    os.close(held)
    await asyncio.gather(first, *calls, return_exceptions=True)
    assert order == [number for number in range(12) if number not in (0, 5, 11)]


@pytest.mark.gen_test
async def test_cancelled_call_ends_its_child(pool: Pool, fifo: Path) -> None:
    """Who is not waited for any more holds nobody up: the child is ended, the next in line gets a new one."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    running = asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), **IN_TIME))
    os.close(await is_held_still(fifo))
    waiting = asyncio.create_task(pool.run(sandboxed.pid, **IN_TIME))
    await asyncio.sleep(0)
    running.cancel()
    assert await waiting != first
    assert running.cancelled()
    wait_gone(first)


async def is_held_still(fifo: Path) -> int:
    """Return a second reading end, so that closing the result lets nobody go."""
    held = await is_held(fifo)
    keep = os.open(fifo, os.O_WRONLY)
    os.close(held)
    return os.dup(keep)


@pytest.mark.gen_test
async def test_children_work_side_by_side(open_pool: Open, tmp_path: Path) -> None:
    """With two processes two calls are under way at once, and a third waits."""
    pool = open_pool(processes=2)
    fifos = [tmp_path / str(number) for number in range(2)]
    for fifo in fifos:
        os.mkfifo(fifo)
    calls = [
        asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(each), n, **IN_TIME)) for n, each in enumerate(fifos)
    ]
    held = [await is_held(fifo) for fifo in fifos]
    third = asyncio.create_task(pool.run(sandboxed.echo, 3, **IN_TIME))
    os.close(held[1])
    assert (await calls[1], await third, calls[0].done()) == (1, [3], False)
    os.close(held[0])
    assert await calls[0] == 0


def test_pool_goes_on_on_another_loop() -> None:
    """A plugin's tests have a loop each; the children between them are the same."""
    pool = Pool("tested")
    first, second = (asyncio.run(pool.run(sandboxed.pid, **IN_TIME)) for _ in range(2))
    asyncio.run(pool.close())
    assert first == second


# what a child is and sees


@LINUX
@pytest.mark.gen_test
async def test_child_sees_nothing_of_ours(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable but those that programs need, no file but its socket, and no way to more rights."""
    for name in ("JWT_SECRET", "REDIS_URL", "PLUGIN_OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "a secret")
    seen = await pool.run(sandboxed.environment, **IN_TIME)
    needed = {"PATH", "HOME", "LANG", "PYTHONPATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH"}
    assert {n for n in seen["variables"] if not n.startswith(("LC_", "MALLOC_", "OPENBLAS_", "OMP_"))} <= needed
    assert "a secret" not in str(seen)
    assert [name for name in seen["files"] if name != "/dev/null" and not name.startswith("/proc/")] == [
        name for name in seen["files"] if name.startswith("socket:")
    ]
    assert sum(name.startswith("socket:") for name in seen["files"]) == 1
    assert seen["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    "kind",
    ["pickle", "pickled header", "huge header", "huge reply", "nested", "no object", "bytes that are not there"],
)
@pytest.mark.gen_test
async def test_what_a_child_says_is_only_data(pool: Pool, kind: str) -> None:
    """A child that a photo has taken over can end its own call, and nothing else."""
    with pytest.raises(SandboxLimit) as caught:
        await pool.run(sandboxed.write_hostile_reply, kind, **IN_TIME)
    assert caught.value.limit == "crash"
    assert await pool.run(sandboxed.echo, 1, **IN_TIME) == [1]


@pytest.mark.gen_test
async def test_child_that_says_too_much_is_not_asked_again(pool: Pool) -> None:
    """What follows a reply would be taken for the next one's."""
    assert await pool.run(sandboxed.write_hostile_reply, "reply and more", **IN_TIME) == 1
    assert await pool.run(sandboxed.echo, 2, **IN_TIME) == [2]


@pytest.mark.gen_test
async def test_signals_for_the_service_leave_the_photo_in_hand_alone(pool: Pool, fifo: Path) -> None:
    """Ctrl-C, or a supervisor that signals the whole group, is the service's business."""
    child = await pool.run(sandboxed.pid, **IN_TIME)
    assert os.getsid(child) != os.getsid(0)
    running = asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), 5, **IN_TIME))
    held = await is_held(fifo)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child, number)
    os.close(held)
    assert await running == 5
    assert await pool.run(sandboxed.pid, **IN_TIME) == child


# dying and starting


@LINUX
@pytest.mark.gen_test
async def test_child_that_died_while_idle_fails_no_call(pool: Pool) -> None:
    """The kernel's out-of-memory killer likes idle ones: it is logged, and the next call gets another."""
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
def test_no_child_outlives_the_service(state: str) -> None:
    """kill -9 of the service ends its children, also one that is deep in C code."""
    with subprocess.Popen([sys.executable, "-c", PARENT, state], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if state == "busy":
            wait_busy(child)
        parent.kill()
    wait_gone(child)


def wait_busy(pid: int) -> None:
    """Return once the process has used the processor for a while."""
    ticks = -1
    while ticks < 0 or int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11]) < ticks + 5:
        if ticks < 0:
            ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11])


@pytest.mark.gen_test
async def test_setup_is_called_once_in_each_child(open_pool: Open) -> None:
    """Models are loaded before the first call, and again in a child that replaces another."""
    pool = open_pool(setup=sandboxed.start)
    assert await pool.run(sandboxed.is_started, **IN_TIME)
    with pytest.raises(SandboxLimit):
        await pool.run(sandboxed.crash, **IN_TIME)
    assert await pool.run(sandboxed.is_started, **IN_TIME)


@pytest.mark.parametrize(
    ("setup", "cause"),
    [(sandboxed.needs_a_package, "a_package_that_nobody_has"), (sandboxed.exit_process, "ChildGone")],
)
@pytest.mark.gen_test
async def test_children_that_do_not_start_cost_nothing(open_pool: Open, setup: Any, cause: str) -> None:
    """Calls could not be asked, say why, and do not start processes in a hot loop."""
    pool = open_pool(setup=setup)
    with capture_logs() as logs:
        for _ in range(20):
            with pytest.raises(RetryableJobError) as caught:
                await pool.run(sandboxed.echo, **IN_TIME)
            assert caught.value.spends_attempt is False
    assert cause in repr(caught.value.__cause__) + str(getattr(caught.value.__cause__, "__cause__", ""))
    assert [line["event"] for line in logs] == ["sandbox_child_failed"]


@pytest.mark.gen_test
async def test_children_are_started_again_later(
    open_pool: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What kept them from starting may go away; each time it does not, the wait doubles."""
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
async def test_no_process_to_be_had_costs_nothing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without memory or processes left is nobody's photo's fault."""

    def fail(*_: Any, **__: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(RetryableJobError) as caught:
        await pool.run(sandboxed.echo, **IN_TIME)
    assert caught.value.spends_attempt is False


@LINUX
@pytest.mark.gen_test
async def test_close_ends_all_at_once(open_pool: Open, fifo: Path) -> None:
    """A call in hand and those in line could not be asked; nothing lives on, and nothing is waited for."""
    pool = open_pool()
    child = await pool.run(sandboxed.pid, **IN_TIME)
    calls = [asyncio.create_task(pool.run(sandboxed.wait_for_fifo, str(fifo), **IN_TIME)) for _ in range(3)]
    held = await is_held(fifo)
    async with asyncio.timeout(5):
        await pool.close()
    os.close(held)
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [getattr(error, "spends_attempt", None) for error in errors] == [False] * 3
    wait_gone(child)
    with pytest.raises(RetryableJobError):
        await pool.run(sandboxed.echo, **IN_TIME)
