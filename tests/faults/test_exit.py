"""SIGTERM ends the process, with exit code 0 and in time, whatever is away, hangs or was left behind by a plugin."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.embedded import find_server
from tests.faults.chaos.world import children_of
from tests.faults.processes import children, is_alive, wait_until
from tests.faults.uploads import accept, statuses
from tests.packages import install
from tests.slowdown import slowdown
from tests.redis_server import RedisServer
from tests.service import ROOT, AiService, Service

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
# What the end may take when nothing has to be waited for, and with Redis away.
PROMPT_SECONDS, REDIS_SECONDS = 1.5, 2.0
SHUTDOWN_SECONDS = 1.0
LONGEST_SECONDS = SHUTDOWN_SECONDS + 2

PACKAGE = """
import asyncio, atexit, concurrent.futures, ctypes, multiprocessing, re, threading, time
from pathlib import Path
from pipeline.hooks import Analysis, Attribute, hookimpl

def spin(number):
    while True:
        pass

def read(fifo):
    return len(Path(fifo).read_bytes())

class Rude:
    def __init__(self, name, folder, sandbox):
        self.analyze_as, self.fifo = getattr(self, name), str(folder / "fifo")
        self.pool = sandbox.pool("rude", processes=5)

    async def analyze(self, request):
        await self.analyze_as()
        return Analysis(Attribute("Leica", 0.9), Attribute("M6", 0.9))

    async def thread(self):
        threading.Thread(target=time.sleep, args=(1000,), name="left-thread").start()

    async def executor(self):
        self.executor = concurrent.futures.ProcessPoolExecutor(2)
        self.futures = [self.executor.submit(spin, number) for number in range(4)]

    async def processes(self):
        self.processes = multiprocessing.Pool(2)
        self.results = self.processes.map_async(spin, range(4))

    async def at_exit(self):
        atexit.register(time.sleep, 1000)

    async def terminated(self):
        for _ in range(5):
            process = multiprocessing.Process(target=time.sleep, args=(1000,))
            process.start()
            process.terminate()
            process.join()

    async def hangs(self):
        await asyncio.sleep(1000)

    async def ignores_cancellation(self):
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass

    async def blocks(self):
        time.sleep(1000)

    async def matches(self):
        re.match("(a+)+$", "a" * 100 + "b")

    async def runs_c(self):
        libc = ctypes.CDLL(None)
        while True:
            libc.sleep(1000)

    async def reads(self):
        await self.pool.run(read, self.fifo, seconds=60)

@hookimpl
def register_ai_providers(settings, sandbox):
    yield settings.ai_provider[0], lambda: Rude(settings.ai_provider[0], settings.data_dir, sandbox)
"""


def rude(tmp_path: Path, provider: str, **more: str) -> Service:
    """Return a service with a plugin that does what its name says when it gets a photo."""
    packages = install(tmp_path / "packages", rude=PACKAGE)
    settings = {"AI_PROVIDER": provider, "SHUTDOWN_SECONDS": f"{SHUTDOWN_SECONDS}"} | more
    return Service(tmp_path / "data", **packages, **settings)


def stop(service: Service) -> float:
    """Send SIGTERM, see that the exit code is 0, and return how many seconds that took."""
    started_at = time.monotonic()
    assert service.stop() == 0
    return time.monotonic() - started_at


@pytest.mark.fault("E17")
@pytest.mark.parametrize(
    ("provider", "kind", "words"),
    [
        ("thread", "threads", "left-thread"),
        ("executor", "children", "run.py"),
        ("processes", "children", "run.py"),
        ("at_exit", "", ""),
    ],
)
@LINUX
def test_what_a_plugin_leaves_behind_keeps_nothing(tmp_path: Path, provider: str, kind: str, words: str) -> None:
    """A thread, a pool of processes that compute, a handler at exit: named, ended, and the process has ended too."""
    with rude(tmp_path, provider, SHUTDOWN_SECONDS="25") as service:
        accept(service, 1)
        service.wait_log("job_completed")
        if kind == "children":
            wait_until(lambda: len(children(service.pid)) == 3)  # the embedded Redis and two of the plugin's
        pids = children(service.pid)
        assert stop(service) < PROMPT_SECONDS * slowdown()
        assert service.find("service_stopped") and not service.find("shutdown_overrun")
        named = service.find("left_behind")
        assert len(named) == bool(kind)
        assert not kind or words in str(named[0][kind])
        wait_until(lambda: not any(map(is_alive, pids)))
        # Nor one that the pool has made in place of those that were ended.
        wait_until(lambda: not started_for(tmp_path))


def started_for(folder: Path) -> list[str]:
    """Return the processes whose environment names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


@pytest.mark.fault("E17")
def test_process_of_a_plugin_that_is_ended_does_not_end_the_service(tmp_path: Path) -> None:
    """multiprocessing forks and then sends SIGTERM: to the new process, which has our handlers and our pipe."""
    with rude(tmp_path, "terminated") as service:
        accept(service, 1)
        service.wait_log("job_completed")
        assert service.get("/livez").status_code == 200 and not service.find("service_stopping")


@pytest.mark.fault("E16")
@pytest.mark.parametrize("provider", ["hangs", "ignores_cancellation"])
def test_provider_that_hangs_is_given_its_time_and_no_more(tmp_path: Path, provider: str) -> None:
    """Its job is handed back after SHUTDOWN_SECONDS."""
    with rude(tmp_path, provider) as service:
        accept(service, 1)
        service.wait_log("job_claimed")
        assert SHUTDOWN_SECONDS <= stop(service) < LONGEST_SECONDS * slowdown()
        assert service.find("job_released") and service.find("service_stopped")


@pytest.mark.fault("E17")
@pytest.mark.parametrize(
    ("provider", "where"), [("blocks", "rude.py"), ("matches", "re/"), ("runs_c", "rude.py")], ids=lambda each: each
)
def test_plugin_that_keeps_the_loop_does_not_keep_the_process(tmp_path: Path, provider: str, where: str) -> None:
    """The deadline does not depend on the event loop, nor on a thread that a regular expression lets run."""
    with rude(tmp_path, provider) as service:
        accept(service, 1)
        (redis_pid,) = children(service.pid)
        time.sleep(0.3)  # the plugin blocks the loop; nothing can tell
        assert stop(service) < LONGEST_SECONDS * slowdown()
        (overrun,) = service.find("shutdown_overrun")
        assert where in overrun["where"] and f"provider {provider}: analyze" in overrun["tasks"]
        wait_until(lambda: not is_alive(redis_pid))
        service.environment["AI_PROVIDER"] = "at_exit"
        service.start()
        service.wait_log("job_completed")


@pytest.mark.fault("E17")
def test_log_that_nobody_reads_does_not_keep_the_process(tmp_path: Path) -> None:
    """Standard error is a full pipe: the main thread waits in the middle of a log line for ever."""
    service = rude(tmp_path, "hangs")
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write_end, b"x" * 4096)
    os.set_blocking(write_end, True)
    with subprocess.Popen([sys.executable, "run.py"], cwd=ROOT, env=service.environment, stderr=write_end) as process:
        wait_until(lambda: children(process.pid))
        pids = children(process.pid)
        time.sleep(1)  # it is at its first line
        process.terminate()
        started_at = time.monotonic()
        assert process.wait(60) == 0 and time.monotonic() - started_at < LONGEST_SECONDS * slowdown()
        wait_until(lambda: not any(map(is_alive, pids)))
    os.close(read_end)
    os.close(write_end)


@pytest.mark.fault("E16")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["away", "silent"])
def test_redis_that_is_away_is_not_waited_for(tmp_path: Path, ai_service: AiService, number: signal.Signals) -> None:
    """Idle, with Redis killed or stopped."""
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url) as service:
        accept(service, 1)
        service.wait_log("job_completed")
        os.kill(redis.pid, number)
        if number == signal.SIGKILL:
            service.wait_log("queue_unreachable")
        assert stop(service) < REDIS_SECONDS * slowdown()
        os.kill(redis.pid, signal.SIGCONT)


@pytest.mark.fault("E16")
def test_running_jobs_are_committed_though_redis_is_away(tmp_path: Path, ai_service: AiService) -> None:
    """Five jobs run, Redis dies, SIGTERM: their results are in the store, and the end comes soon after the last."""
    ai_service.order(held=True)
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url) as service:
        ids = accept(service, 5)
        service.wait_log("job_claimed", count=5)
        redis.kill()
        service.signal(signal.SIGTERM)
        service.wait_log("service_stopping")
        ai_service.order(held=False)
        released_at = time.monotonic()
        assert service.wait() == 0
        assert time.monotonic() - released_at < (REDIS_SECONDS + 1) * slowdown()
        redis.start()
        service.start()
        assert statuses(service, ids) == {"active"}
    assert ai_service.state()["calls"] == 5


@pytest.mark.fault("E16")
def test_store_that_is_away_is_not_waited_for_when_idle(tmp_path: Path, ai_service: AiService) -> None:
    """A MongoDB that nobody runs; a SQLite file that another process has locked."""
    with Service(tmp_path / "mongo", ai_service.url, MONGODB_URI="mongodb://127.0.0.1:1/assets") as service:
        assert stop(service) < PROMPT_SECONDS * slowdown()
    with Service(tmp_path / "sqlite", ai_service.url) as service, locked(tmp_path / "sqlite"):
        assert stop(service) < PROMPT_SECONDS * slowdown()


@pytest.mark.fault("E16")
@pytest.mark.parametrize("comes_back", [True, False], ids=["comes back", "stays away"])
def test_job_that_waits_for_the_store_is_given_its_time(
    tmp_path: Path, ai_service: AiService, comes_back: bool
) -> None:
    """A result that cannot be committed: until SHUTDOWN_SECONDS, then the job is handed back."""
    ai_service.order(held=True)
    with Service(tmp_path, ai_service.url, SHUTDOWN_SECONDS="3") as service:
        (asset_id,) = accept(service, 1)
        service.wait_log("job_claimed")
        with locked(tmp_path) as other:
            ai_service.order(held=False)
            started_at = time.monotonic()
            service.signal(signal.SIGTERM)
            service.wait_log("service_stopping")
            if comes_back:
                other.execute("ROLLBACK")
            assert service.wait() == 0
            assert time.monotonic() - started_at < (PROMPT_SECONDS if comes_back else 5) * slowdown()
        assert len(service.find("job_completed" if comes_back else "job_released")) == 1
        service.start()
        wait_until(lambda: statuses(service, [asset_id]) == {"active"})


def locked(folder: Path) -> Any:
    """Return a connection that keeps everybody else from writing until it is closed."""
    connection = sqlite3.connect(folder / "assets.sqlite", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return closing(connection)


@pytest.mark.fault("E16")
@LINUX
def test_signal_for_all_processes_lets_photos_be_read(tmp_path: Path) -> None:
    """SIGTERM to the service, its Redis and five children that read photos, as systemd sends it: all five finish."""
    (tmp_path / "data").mkdir()
    fifo = tmp_path / "data" / "fifo"
    os.mkfifo(fifo)
    with rude(tmp_path, "reads", SHUTDOWN_SECONDS="25") as service:
        accept(service, 5)
        wait_until(lambda: len(children_of(service.pid)) >= 5)
        pids = children(service.pid)
        for pid in (*pids, service.pid):
            os.kill(pid, signal.SIGTERM)
        service.wait_log("service_stopping")
        while service.is_running:  # each child opens the other end when it comes to it
            release(fifo)
            time.sleep(0.02)
        assert service.wait() == 0
        assert len(service.find("job_completed")) == 5 and not service.find("sandbox_child_ended")
        wait_until(lambda: not any(map(is_alive, pids)))


def release(fifo: Path) -> None:
    """Open and close the writing end of a FIFO, when there is a reader."""
    with suppress(OSError):
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


# while starting


def slow_server(tmp_path: Path) -> dict[str, str]:
    """Settings with which a service has a Redis that loads for a minute what a folder of data holds."""
    data = tmp_path / "redis"
    data.mkdir()
    keys = "".join(f"*3\r\n$3\r\nSET\r\n$6\r\nkey{number:03}\r\n$1\r\n1\r\n" for number in range(600))
    (data / "appendonlydir").mkdir()
    (data / "appendonlydir" / "appendonly.aof.1.incr.aof").write_text(keys)
    (data / "appendonlydir" / "appendonly.aof.manifest").write_text("file appendonly.aof.1.incr.aof seq 1 type i\n")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    server = binaries / "redis-server"
    config = "$config\nkey-load-delay 100000\nloading-process-events-interval-bytes 1024"
    server.write_text(f"#!/bin/sh\nconfig=$(cat)\nexec {find_server()} - <<EOF\n{config}\nEOF\n")
    server.chmod(0o700)
    return {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.fault("E16")
def test_start_is_ended_while_redis_loads(tmp_path: Path, ai_service: AiService) -> None:
    """The process and its Redis end at once; nothing has begun that had to be waited for."""
    service = Service(tmp_path, ai_service.url, **slow_server(tmp_path))
    service.launch()
    log_path = tmp_path / "redis" / "server.log"
    wait_until(lambda: log_path.exists() and "initialized" in log_path.read_text())
    (redis_pid,) = children(service.pid)
    assert stop(service) < (PROMPT_SECONDS + 1) * slowdown()  # Redis itself may take a second
    wait_until(lambda: not is_alive(redis_pid))
    assert not service.find("service_started") and service.errors() == []


@pytest.mark.fault("E16")
def test_start_is_ended_while_the_store_is_opened(tmp_path: Path, ai_service: AiService) -> None:
    """The driver of a MongoDB that nobody runs is in the middle of its search."""
    service = Service(tmp_path, ai_service.url, MONGODB_URI="mongodb://127.0.0.1:1/assets")
    service.launch()
    wait_until(lambda: children(service.pid))
    (redis_pid,) = children(service.pid)
    time.sleep(1.5)  # it is ready, and the search has begun: nothing tells
    assert not service.find("service_started")
    assert stop(service) < PROMPT_SECONDS * slowdown()
    wait_until(lambda: not is_alive(redis_pid))


def test_second_signal_ends_at_once(tmp_path: Path, ai_service: AiService) -> None:
    """Asked twice it does not wait for running jobs, and the exit code tells."""
    ai_service.order(held=True)
    with Service(tmp_path, ai_service.url) as service:
        accept(service, 1)
        service.wait_log("job_claimed")
        service.signal(signal.SIGTERM)
        service.wait_log("service_stopping")
        service.signal(signal.SIGINT)
        assert service.wait() == 130


FAILING = """
import asyncio, sys, time
from pipeline.exit import Exit

async def main(exit_):
    exit_.fail("a task has ended")
    exit_.fail("and another one")
    if sys.argv[1] == "blocked":
        time.sleep(1000)
    await exit_.requested

loop = asyncio.new_event_loop()
exit_ = Exit(loop, 25)
loop.run_until_complete(main(exit_))
exit_.finish()
"""


@pytest.mark.parametrize(("loop", "seconds"), [("free", 3.0), ("blocked", 6.0)])
def test_failure_ends_the_process_with_exit_code_1(loop: str, seconds: float) -> None:
    """Within five seconds, though the loop be blocked, and the reason is in the log."""
    started_at = time.monotonic()
    command = [sys.executable, "-c", FAILING, loop]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and time.monotonic() - started_at < seconds * slowdown()
    assert "a task has ended" in done.stdout
