"""Closing of plugins, and the threads in which the manager calls them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.hooks.threads import DaemonThreads
from pipeline.settings import Settings
from tests.fake_plugins import Provider
from tests.unit.plugin_managers import FOUND, ManagerFactory, Notifier, Storage, build, make_module, manager_factory


@pytest.fixture
def factory(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """A factory of managers, closed after the test."""
    with manager_factory(io_loop) as factory:
        yield factory


@pytest.mark.gen_test
async def test_close_closes_every_plugin_even_when_one_fails(factory: ManagerFactory) -> None:
    """The manager closes all plugins and logs a failed close; `close` may be async or plain, and is optional."""
    closed: list[str] = []

    class Closing(Storage):
        async def close(self) -> None:
            closed.append("storage")

    class Failing(Notifier):
        def close(self) -> None:
            closed.append("notifier")
            raise OSError("already gone")

    module = make_module(
        "tested",
        providers=[("tested", lambda: Provider(lambda request: FOUND))],
        storages=[("tested", Closing)],
        notifiers=[("tested", lambda: Failing(print))],
    )
    settings = Settings(ai_provider="tested", storage_backend="tested", notifiers=("tested",))
    manager = build(settings, module, factory)
    with capture_logs() as logs:
        await manager.close()
    assert sorted(closed) == ["notifier", "storage"]
    assert [entry["event"] for entry in logs] == ["plugin_close_failed"]


def test_stuck_thread_does_not_stop_the_process_from_ending() -> None:
    """After close the interpreter exits even if a call of a plugin never returns."""
    script = """
        import asyncio, threading
        from pipeline.hooks.bound_plugin import BoundPlugin
        from pipeline.metrics import Metrics

        class Stuck:
            def check(self):
                threading.Event().wait()

        async def main():
            stuck = Stuck()
            plugin = BoundPlugin("storage", "stuck", stuck, {"check": stuck.check}, threads=4, metrics=Metrics())
            try:
                await plugin.call("check", 0.1)
            except Exception as error:
                print(error)
            await plugin.close()

        asyncio.run(main())
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=20)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("storage stuck: check took longer than 0.1 s\n") and "plugin_stuck" in result.stdout


def test_threads_end_after_shutdown_and_waiting_calls_are_cancelled() -> None:
    """A closed pool has no thread left and refuses new calls."""
    pool, proceed = DaemonThreads(2, "tested"), threading.Event()
    running = [pool.submit(proceed.wait, 10) for _ in range(2)]
    waiting = pool.submit(print)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("tested-")]
    pool.shutdown()
    proceed.set()
    for thread in threads:
        thread.join(10)
    assert len(threads) == 2 and not any(thread.is_alive() for thread in threads)
    assert [future.result(10) for future in running] == [True, True]
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(print)


def test_threads_are_reused_before_more_are_started() -> None:
    """Calls that follow each other use one thread."""
    pool = DaemonThreads(8, "frugal")
    for _ in range(20):
        pool.submit(int).result(10)
        while not pool._idle._value:  # type: ignore[attr-defined]
            pass  # the thread reports itself idle just after the result
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("frugal-")]) == 1
    pool.shutdown()
