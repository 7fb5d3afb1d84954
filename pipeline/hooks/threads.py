"""Thread pools for blocking code, one for each plugin: threads start when they are needed, and the end of the process
does not wait for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any

OUR_THREADS = 32


class DaemonThreads(Executor):
    """A pool of at most `limit` daemon threads, each started when it is first needed.

    Not a ThreadPoolExecutor: the interpreter joins its threads at exit, so one stuck call would keep the process alive.
    """

    def __init__(self, limit: int, name: str, on_start: Callable[[float], None] = lambda _: None) -> None:
        """on_start: called with the seconds that a call has waited for its thread."""
        self.limit = limit
        self._name = name
        self._on_start = on_start
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._started = 0
        self._is_closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of fn(*args, **kwargs); RuntimeError after shutdown."""
        future: Future[Any] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"the threads of {self._name} are shut down")
            self._work.put((future, partial(self._start, perf_counter(), partial(fn, *args, **kwargs))))
            if not self._idle.acquire(blocking=False) and self._started < self.limit:
                self._started += 1
                threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Cancel the calls that have not begun; each thread ends after its current call. Never waits."""
        with self._lock:
            self._is_closed = True
            try:
                while item := self._work.get_nowait():
                    item[0].cancel()
            except Empty:
                pass
            self._work.put(None)

    def _start(self, submitted_at: float, call: Callable[[], Any]) -> Any:
        self._on_start(perf_counter() - submitted_at)
        return call()

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            _fulfil(*item)
            del item
            self._idle.release()
        self._work.put(None)


# The threads of the plugin whose coroutine is running.
of_plugin: ContextVar[DaemonThreads | None] = ContextVar("of_plugin", default=None)


class LoopThreads(ThreadPoolExecutor):
    """The event loop's default executor. A plugin's calls of `asyncio.to_thread` and its address lookups run in the
    plugin's threads: if they hang, the service can still resolve the address of Redis.

    Subclasses ThreadPoolExecutor only because the loop accepts nothing else.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self._ours = DaemonThreads(OUR_THREADS, "loop")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of fn(*args, **kwargs), called in the threads of the plugin that submits it, or in ours."""
        return (of_plugin.get() or self._ours).submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Each thread ends after its current call. Never waits."""
        self._ours.shutdown()


def _fulfil(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
