"""Watches the event loop during one call of a plugin: which line blocks it, and for how long.

A thread checks the loop's thread every 50 ms. A machine that stops also stops this thread, so a block counts only when
several checks in a row have seen it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, thread_time
from types import FrameType

LOOK_SECONDS = 0.05
BEAT_SECONDS = 0.02
# From this time on other users notice the delay.
BLOCKED_SECONDS = 0.25
LOOP_STEP = asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]
OURS = ("/asyncio/", "/pipeline/testing/", "/selectors.py")


class Stuck(BaseException):
    """Raised inside a plugin that blocks the loop for ever; a BaseException, so that no plugin catches it."""


class LoopWatch:
    """Watches one loop.

    blocked: (seconds, line) of each call that blocked it too long.
    """

    def __init__(self, give_up_seconds: float) -> None:
        """give_up_seconds: after this time a call that blocks the loop is ended, if possible."""
        self.blocked: list[tuple[float, str]] = []
        self._give_up_seconds = give_up_seconds
        self._thread_id = threading.get_ident()
        self._beats = 0
        self._cpu = 0.0
        self._is_over = threading.Event()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Watch while the body runs the loop in this thread."""
        looker = threading.Thread(target=self._look, name="suite-watch", daemon=True)
        can_interrupt = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM")
        before = signal.signal(signal.SIGALRM, self._interrupt) if can_interrupt else None
        self._can_interrupt = can_interrupt
        looker.start()
        try:
            yield
        finally:
            self._is_over.set()
            looker.join()
            if can_interrupt:
                signal.signal(signal.SIGALRM, before)

    async def beat(self) -> None:
        """Count that the loop runs, in a task beside the call."""
        while True:
            self._beats += 1
            cpu = thread_time()
            await asyncio.sleep(BEAT_SECONDS)
            # Code that keeps the interpreter's lock also stops the watching thread; the processor time shows it.
            if thread_time() - cpu >= BLOCKED_SECONDS:
                self._note(thread_time() - cpu, "")

    def _look(self) -> None:
        seen, looks, where, began = -1, 0, "", monotonic()
        while not self._is_over.wait(LOOK_SECONDS):
            frame = sys._current_frames().get(self._thread_id)
            if self._beats != seen or frame is None or _is_idle(frame):
                if looks * LOOK_SECONDS >= BLOCKED_SECONDS:
                    self._note(monotonic() - began, where)
                seen, looks, began = self._beats, 0, monotonic()
                continue
            looks, where = looks + 1, _line_of(frame) or where
            if looks * LOOK_SECONDS >= self._give_up_seconds and self._can_interrupt:
                self._note(monotonic() - began, where)
                with suppress(ProcessLookupError):
                    signal.pthread_kill(self._thread_id, signal.SIGALRM)
                looks = 0
        if looks * LOOK_SECONDS >= BLOCKED_SECONDS:
            self._note(monotonic() - began, where)

    def _note(self, seconds: float, where: str) -> None:
        if where or not self.blocked:
            self.blocked.append((seconds, where))

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        raise Stuck(f"it blocks the event loop for more than {self._give_up_seconds:g} s")


def _is_idle(frame: FrameType) -> bool:
    return frame.f_code.co_name == "select" and frame.f_back is not None and frame.f_back.f_code is LOOP_STEP


def _line_of(frame: FrameType | None) -> str:
    """Return the plugin's current line: the innermost one outside of asyncio and of the suites."""
    while frame is not None:
        if not any(part in frame.f_code.co_filename for part in OURS):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
