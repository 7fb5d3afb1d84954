"""Ends the process in time, even if a plugin hangs or leaves threads behind.

SIGTERM and SIGINT ask for an orderly end with exit code 0; a second signal ends the process at once. A fatal failure
asks for an end with exit code 1. A thread that does not depend on the event loop watches the deadline. A pipe wakes it:
Python's wakeup fd writes to the pipe, also while a plugin blocks the main thread in native code, and the signal handler
writes to it too, in case a plugin has replaced the wakeup fd.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
from contextlib import suppress
from time import monotonic, sleep
from types import FrameType
from typing import NoReturn

import structlog

from pipeline.left_behind import end_children, is_ending, left_behind

log = structlog.get_logger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Bytes of the pipe beside the numbers of signals: the handler ran, the deadline has changed.
HANDLED, CHANGED = 0, 255
# The process ends at most two seconds after SHUTDOWN_SECONDS; the last half second is for ending it by force.
CLOSE_SECONDS = 1.5
FAIL_SECONDS = 4.5
REPORT_SECONDS = 0.2
FORCE_SECONDS = 0.6
LAST_SECONDS = 0.1
# The alarm fires this much after the deadline, in case the thread cannot run.
ALARM_SECONDS = 0.1


class Exit:
    """Decides when the process ends and with which exit code. Create it on the main thread, before anything slow.

    requested: a future that is done when the process is asked to end.
    code: the exit code.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, shutdown_seconds: float) -> None:
        self.requested = loop.create_future()
        self.code = 0
        self._loop = loop
        self._seconds = shutdown_seconds + CLOSE_SECONDS
        self._deadline: float | None = None
        self._is_overrun = False
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        os.register_at_fork(before=_block_signals, after_in_parent=_unblock_signals, after_in_child=_reset_signals)
        threading.Thread(target=self._keep_deadline, name="exit", daemon=True).start()

    def fail(self, reason: str) -> None:
        """End the process with exit code 1, orderly if FAIL_SECONDS are enough. Safe from any thread."""
        self._request(1, FAIL_SECONDS)  # before the log line, because writing the log may hang
        log.error("service_failing", reason=reason)

    def give_up(self, code: int) -> None:
        """Expect the process to end by itself with that exit code, for example after a failed start; else force it."""
        self._request(code, CLOSE_SECONDS)

    def finish(self) -> NoReturn:
        """End the process after everything is closed: log what plugins have left behind, and end child processes.

        It does not return: the interpreter would wait for threads, process pools and `atexit` handlers.
        """
        if leftovers := left_behind(self._loop, wait_seconds=LAST_SECONDS):
            log.warning("left_behind", **leftovers)
        end_children()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.code)

    def _request(self, code: int, seconds: float) -> None:
        if self._deadline is None:
            self.code = code
        self._deadline = min(monotonic() + seconds, self._deadline or float("inf"))
        self._wake(CHANGED)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        if not self.requested.done():
            self.requested.set_result(None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._wake(HANDLED)
        # For code that runs signal handlers but no other thread, such as a regular expression that never ends.
        signal.signal(signal.SIGALRM, lambda _, frame: self._overrun(frame))
        signal.setitimer(signal.ITIMER_REAL, self._seconds + ALARM_SECONDS)

    def _wake(self, number: int) -> None:
        with suppress(BlockingIOError):
            os.write(self._write_end, bytes([number]))

    def _keep_deadline(self) -> None:
        received = handled = 0
        while self._deadline is None or monotonic() < self._deadline:
            seconds = None if self._deadline is None else max(0.0, self._deadline - monotonic())
            if not select.select([self._read_end], [], [], seconds)[0]:
                continue
            for number in os.read(self._read_end, 64):
                received += number in SIGNALS
                handled += number == HANDLED
                if max(received, handled) > 1:
                    os._exit(130)  # the second signal: leases and the reconciler repair what is cut off
                if number in SIGNALS or number == HANDLED:
                    self._request(0, self._seconds)
        self._overrun()

    def _overrun(self, frame: FrameType | None = None) -> None:
        """End the process by force.

        frame: the frame of the main thread when the alarm calls this, else None.
        """
        if self._is_overrun:
            # Do not return to code that lets no other thread run: another thread is ending the process.
            sleep(FORCE_SECONDS)
            os._exit(self.code)
        self._is_overrun = True
        # In a thread of its own, because writing the log may hang.
        report = threading.Thread(target=self._report, args=(frame,), name="exit-report", daemon=True)
        report.start()
        report.join(REPORT_SECONDS)
        end_children()
        os._exit(self.code)

    def _report(self, frame: FrameType | None) -> None:
        frame = frame or sys._current_frames().get(threading.main_thread().ident or 0)
        while frame and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
        log.warning("shutdown_overrun", where=where, **left_behind(self._loop))


_blocked = threading.local()


def _block_signals() -> None:
    if is_ending.is_set():
        threading.Event().wait()  # for ever: the process is about to end
    _blocked.previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _blocked.previous)


def _reset_signals() -> None:
    """In a child process that a plugin forks: let signals end the child, and not reach this process's pipe."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _unblock_signals()
