"""SIGTERM ends the process with exit code 0 and in time, whatever a plugin does or leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.chaos.world import sandboxes_of
from tests.faults.exits import LINUX, LONGEST_SECONDS, PROMPT_SECONDS, SHUTDOWN_SECONDS, service_with, stop
from tests.faults.processes import children, is_alive, wait_until
from tests.faults.uploads import accept
from tests.slowdown import slowdown
from tests.service import ROOT, AiService, Service


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
def test_threads_and_children_of_a_plugin_do_not_delay_the_end(
    tmp_path: Path, provider: str, kind: str, words: str
) -> None:
    """Threads, pools of processes and exit handlers of a plugin are logged and ended with the process."""
    with service_with(tmp_path, provider, SHUTDOWN_SECONDS="25") as service:
        accept(service, 1)
        service.wait_log("job_completed")
        if kind == "children":
            wait_until(lambda: len(children(service.pid)) == 3)  # the embedded Redis and two children of the plugin
        pids = children(service.pid)
        assert stop(service) < PROMPT_SECONDS * slowdown()
        assert service.find("service_stopped") and not service.find("shutdown_overrun")
        named = service.find("left_behind")
        assert len(named) == bool(kind)
        assert not kind or words in str(named[0][kind])
        wait_until(lambda: not any(map(is_alive, pids)))
        # Nor is there a process that the pool has started in place of the ended ones.
        wait_until(lambda: not started_for(tmp_path))


def started_for(folder: Path) -> list[str]:
    """Return the ids of the processes whose environment names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


@pytest.mark.fault("E17")
def test_sigterm_to_a_child_of_a_plugin_does_not_end_the_service(tmp_path: Path) -> None:
    """multiprocessing sends SIGTERM to a forked process, which still has the signal handlers of the service."""
    with service_with(tmp_path, "terminated") as service:
        accept(service, 1)
        service.wait_log("job_completed")
        assert service.get("/livez").status_code == 200 and not service.find("service_stopping")


@pytest.mark.fault("E16")
@pytest.mark.parametrize("provider", ["hangs", "ignores_cancellation"])
def test_hanging_provider_is_ended_after_the_shutdown_time(tmp_path: Path, provider: str) -> None:
    """The job of the provider is handed back after SHUTDOWN_SECONDS."""
    with service_with(tmp_path, provider) as service:
        accept(service, 1)
        service.wait_log("job_claimed")
        assert SHUTDOWN_SECONDS <= stop(service) < LONGEST_SECONDS * slowdown()
        assert service.find("job_released") and service.find("service_stopped")


@pytest.mark.fault("E17")
@pytest.mark.parametrize(
    ("provider", "where"),
    [("blocks", "slow_exit.py"), ("matches", "re/"), ("runs_c", "slow_exit.py")],
    ids=lambda each: each,
)
def test_plugin_that_blocks_the_loop_does_not_delay_the_end(tmp_path: Path, provider: str, where: str) -> None:
    """The deadline works while the event loop is blocked, also by a regular expression that stops all threads."""
    with service_with(tmp_path, provider) as service:
        accept(service, 1)
        (redis_pid,) = children(service.pid)
        time.sleep(0.3)  # the plugin blocks the loop; no signal announces it
        assert stop(service) < LONGEST_SECONDS * slowdown()
        (overrun,) = service.find("shutdown_overrun")
        assert where in overrun["where"] and f"provider {provider}: analyze" in overrun["tasks"]
        wait_until(lambda: not is_alive(redis_pid))
        service.environment["AI_PROVIDER"] = "at_exit"
        service.start()
        service.wait_log("job_completed")


@pytest.mark.fault("E17")
def test_unread_log_does_not_delay_the_end(tmp_path: Path) -> None:
    """Standard error is a full pipe: the main thread waits for ever in the middle of a log line."""
    service = service_with(tmp_path, "hangs")
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
@LINUX
def test_signal_for_all_processes_lets_reading_photos_finish(tmp_path: Path) -> None:
    """After SIGTERM to the service, its Redis and five children that read photos, all five finish."""
    (tmp_path / "data").mkdir()
    fifo = tmp_path / "data" / "fifo"
    os.mkfifo(fifo)
    with service_with(tmp_path, "reads", SHUTDOWN_SECONDS="25") as service:
        accept(service, 5)
        # A job that is not claimed yet would wait for the next start.
        wait_until(lambda: len(service.find("job_claimed")) == 5 and len(sandboxes_of(service.pid)) >= 5)
        pids = children(service.pid)
        for pid in (*pids, service.pid):
            os.kill(pid, signal.SIGTERM)
        service.wait_log("service_stopping")
        while service.is_running:  # each child opens the reading end at its own time
            release(fifo)
            time.sleep(0.02)
        assert service.wait() == 0
        assert len(service.find("job_completed")) == 5 and not service.find("sandbox_child_ended")
        wait_until(lambda: not any(map(is_alive, pids)))


def release(fifo: Path) -> None:
    """Open and close the writing end of a FIFO, when there is a reader."""
    with suppress(OSError):
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


def test_second_signal_ends_at_once(tmp_path: Path, ai_service: AiService) -> None:
    """After a second signal the process does not wait for running jobs, and its exit code is 130."""
    ai_service.configure(paused=True)
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
    """The process ends within five seconds, also with a blocked loop, and the reason is in the log."""
    started_at = time.monotonic()
    command = [sys.executable, "-c", FAILING, loop]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and time.monotonic() - started_at < seconds * slowdown()
    assert "a task has ended" in done.stdout
