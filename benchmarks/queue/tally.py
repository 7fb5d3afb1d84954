"""What every candidate's no-op job does: it counts, and tells the harness when all are done. Python 3.11, no packages.

Each program of a candidate is called with a role, the URL of a Redis and a count:
- enqueue: that many jobs, one after the other, each acknowledged by Redis; prints {"seconds": ...};
- bulk: the same with whatever the library has for many jobs at once;
- work: five at a time until killed; prints {"seconds": ..., "cpu": ...}, from the first to the last, when that many
  have run, and {"waits": [...]} when TRICKLE more have run, in seconds from before their enqueue call;
- trickle: TRICKLE jobs, one every GAP_SECONDS, each with the time before its call.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

SLOTS = 5
TRICKLE = 200
GAP_SECONDS = 0.02
# About 300 bytes, as the service's own.
PAYLOAD: dict[str, Any] = {
    "assetId": "0" * 24,
    "userId": "user-1",
    "imageUrl": "https://images.example/" + "x" * 140,
    "category": "lego",
}


class Tally:
    """Counts jobs, in any thread of one process."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seen = 0
        self._waits: list[float] = []
        self._lock = threading.Lock()

    def seen(self, payload: dict[str, Any]) -> None:
        """Count a job that begins now."""
        now = time.time()
        with self._lock:
            if "sentAt" in payload:
                self._waits.append(now - payload["sentAt"])
                if len(self._waits) == TRICKLE:
                    say(waits=self._waits)
                return
            self._seen += 1
            if self._seen == 1:
                self._started_at, self._cpu = now, time.process_time()
            if self._seen == self._count:
                say(seconds=now - self._started_at, cpu=time.process_time() - self._cpu)


def say(**figures: object) -> None:
    """Tell the harness."""
    print(json.dumps(figures), flush=True)


def timed(work: Callable[[], object]) -> None:
    """Do the work and tell how long it took."""
    started_at = time.perf_counter()
    work()
    say(seconds=time.perf_counter() - started_at)


def trickled() -> dict[str, Any]:
    """Return the payload of a job that is to be enqueued now."""
    return PAYLOAD | {"sentAt": time.time()}
