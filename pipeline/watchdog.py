"""Watches the event loop: measures how late it runs callbacks, and names the code that blocks it.

A coroutine that blocks instead of awaiting delays every socket, upload and job, and nothing on the loop can report it
meanwhile. So a thread watches: when the loop's heartbeat is late, the frames of the loop's thread show the running
call. A plugin's method is logged and counted; after repeated blocking it is held (hooks/breaker.py). A storage's method
is never held, because nothing works without it, but it is shown to operators.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from time import monotonic
from types import FrameType

import structlog

from pipeline.hooks.running_calls import find_plugin
from pipeline.metrics import Metrics

log = structlog.get_logger(__name__)

BEAT_SECONDS = 0.05
# Code that blocks the event loop for longer is named in the log: people notice a page that waits so long.
BLOCK_SECONDS = 0.25
CHECK_SECONDS = 1.0
LOOP_STEP = asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]


class Watchdog:
    """Watches the event loop on which it is started."""

    def __init__(self, metrics: Metrics, *, block_seconds: float = BLOCK_SECONDS) -> None:
        """block_seconds: code that blocks the loop for longer is named in the log."""
        self._metrics = metrics
        self._block_seconds = block_seconds
        self._beaten_at = 0.0
        self._beat: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._thread_id = 0

    async def run(self) -> None:
        """Watch for ever; raise when the watching thread or the heartbeat has ended."""
        self.start()
        try:
            while True:
                await asyncio.sleep(CHECK_SECONDS)
                if self._thread is None or not self._thread.is_alive():
                    raise RuntimeError("the watchdog's thread has ended")
                if self._is_beat_late():
                    # After the whole process was stopped, the next beat may be due but not run yet.
                    await asyncio.sleep(2 * BEAT_SECONDS)
                    if self._is_beat_late():
                        raise RuntimeError("the watchdog's beat has ended")
        finally:
            self.stop()

    def _is_beat_late(self) -> bool:
        return monotonic() - self._beaten_at > CHECK_SECONDS

    def start(self) -> None:
        """Begin to watch. Call it on the event loop."""
        self._thread_id = threading.get_ident()
        self._beaten_at = monotonic()
        self._stopped = threading.Event()
        self._schedule(asyncio.get_running_loop())
        self._thread = threading.Thread(target=self._watch, args=(self._stopped,), name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watching thread and the heartbeat."""
        self._stopped.set()
        if self._beat:
            self._beat.cancel()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat = loop.call_later(BEAT_SECONDS, self._tick, loop, loop.time() + BEAT_SECONDS)

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._beaten_at = monotonic()
        self._metrics.loop_lag_seconds.observe(max(0.0, loop.time() - due))
        self._schedule(loop)

    def _watch(self, stopped: threading.Event) -> None:
        named_at = 0.0  # the beat after which the blocking code was already named
        while not stopped.wait(self._block_seconds / 4):
            beaten_at = self._beaten_at
            silent_seconds = monotonic() - beaten_at - BEAT_SECONDS
            if silent_seconds >= self._block_seconds and beaten_at != named_at:
                named_at = beaten_at
                self._name(silent_seconds)

    def _name(self, silent_seconds: float) -> None:
        frame = sys._current_frames().get(self._thread_id)
        if frame is None or _is_idle(frame):
            return  # the whole process was stopped, or the machine
        fields = {"where": f"{frame.f_code.co_filename}:{frame.f_lineno}", "forMs": round(silent_seconds * 1000)}
        running = find_plugin(frame)
        if running is None:
            log.warning("loop_blocked", **fields)
        else:
            plugin, method, call = running
            plugin.note_blocking(call)
            log.warning("loop_blocked", kind=plugin.kind, plugin=plugin.name, method=method, **fields)


def _is_idle(frame: FrameType) -> bool:
    """True when the event loop itself waits in `select`. Other code, such as subprocess.run, calls `select` too."""
    return frame.f_code.co_name == "select" and frame.f_back is not None and frame.f_back.f_code is LOOP_STEP
