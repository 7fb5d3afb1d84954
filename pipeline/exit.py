"""The end of the process is certain: whatever hangs or was left behind by a plugin, it ends in time.

SIGTERM and SIGINT ask for an orderly end with exit code 0, a second one ends at once. A failure that the process must
not survive asks for an end with exit code 1. A thread that does not depend on the event loop keeps the deadline. It is
woken through a pipe: by the signal itself, also while a plugin keeps the main thread in code that is not Python's, and
by the signal's handler, should a plugin have taken the pipe's place.
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
# What comes through the pipe beside the numbers of signals.
HANDLED, CHANGED = 0, 255
# The process is gone two seconds after SHUTDOWN_SECONDS: the last half second is for ending it by force.
CLOSE_SECONDS = 1.5
FAIL_SECONDS = 4.5
REPORT_SECONDS = 0.2
FORCE_SECONDS = 0.6
LAST_SECONDS = 0.1
# The alarm is for when the thread cannot run.
ALARM_SECONDS = 0.1


class Exit:
    """Decides when the process ends and with which exit code. Made on the main thread, before what takes long."""

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
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget_signals)
        threading.Thread(target=self._keep_deadline, name="exit", daemon=True).start()

    def fail(self, reason: str) -> None:
        """End the process with exit code 1, in order if that is possible within FAIL_SECONDS. From any thread."""
        self._ask(1, FAIL_SECONDS)  # before the line, for the log may hang
        log.error("service_failing", reason=reason)

    def give_up(self, code: int) -> None:
        """Let the process end by itself with that exit code, as when it could not start; see that it does."""
        self._ask(code, CLOSE_SECONDS)

    def finish(self) -> NoReturn:
        """End the process now that everything is closed. Name what a plugin has left behind, and end its children.

        Not by returning: the interpreter would wait for threads, pools of processes and handlers of `atexit`.
        """
        if left := left_behind(self._loop, wait_seconds=LAST_SECONDS):
            log.warning("left_behind", **left)
        end_children()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.code)

    def _ask(self, code: int, seconds: float) -> None:
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
        # For code that runs handlers but lets no other thread run, such as a regular expression that never ends.
        signal.signal(signal.SIGALRM, lambda _, frame: self._overrun(frame))
        signal.setitimer(signal.ITIMER_REAL, self._seconds + ALARM_SECONDS)

    def _wake(self, what: int) -> None:
        with suppress(BlockingIOError):
            os.write(self._write_end, bytes([what]))

    def _keep_deadline(self) -> None:
        received = handled = 0
        while self._deadline is None or monotonic() < self._deadline:
            left = None if self._deadline is None else max(0.0, self._deadline - monotonic())
            if not select.select([self._read_end], [], [], left)[0]:
                continue
            for what in os.read(self._read_end, 64):
                received += what in SIGNALS
                handled += what == HANDLED
                if max(received, handled) > 1:
                    os._exit(130)  # asked twice: leases and the reconciler make up for what is cut off
                if what in SIGNALS or what == HANDLED:
                    self._ask(0, self._seconds)
        self._overrun()

    def _overrun(self, frame: FrameType | None = None) -> None:
        """End the process by force. frame: what the main thread was at, when it is the one that calls."""
        if self._is_overrun:
            # Not back to what lets no other thread run: the one that ends the process has to.
            sleep(FORCE_SECONDS)
            os._exit(self.code)
        self._is_overrun = True
        # In a thread of its own: the log may be what hangs.
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


_held = threading.local()


def _hold() -> None:
    if is_ending.is_set():
        threading.Event().wait()  # for ever: the process is about to end
    _held.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.before)


def _forget_signals() -> None:
    """In a process that a plugin forks, as multiprocessing does: a signal for it must end it, and must not come out of
    our pipe. Signals are held until here.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _release()
