"""The no-op job of every candidate: it counts its runs and prints figures for suite.py. Python 3.11, no packages.

Each candidate is a program with three arguments: a role, the URL of a Redis and a count. The roles:
- enqueue: enqueues that many jobs one by one, each acknowledged by Redis; prints {"seconds": ...};
- bulk: enqueues that many jobs with the library's call for many jobs; prints {"seconds": ...};
- work: runs jobs, five at a time, until it is killed; after that many jobs it prints {"seconds": ..., "cpu": ...}, from
  the first job to the last, and after TRICKLE more {"waits": [...]}, the seconds from each enqueue call to its job;
- trickle: enqueues TRICKLE jobs, one every GAP_SECONDS, each with the time of its call.
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
# About 300 bytes, as in the service.
PAYLOAD: dict[str, Any] = {
    "assetId": "0" * 24,
    "userId": "user-1",
    "imageUrl": "https://images.example/" + "x" * 140,
    "category": "lego",
}


class JobCounter:
    """Counts the jobs of one process; thread-safe."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seen = 0
        self._waits: list[float] = []
        self._lock = threading.Lock()

    def count(self, payload: dict[str, Any]) -> None:
        """Count a job that starts now."""
        now = time.time()
        with self._lock:
            if "sentAt" in payload:
                self._waits.append(now - payload["sentAt"])
                if len(self._waits) == TRICKLE:
                    print_figures(waits=self._waits)
                return
            self._seen += 1
            if self._seen == 1:
                self._started_at, self._cpu = now, time.process_time()
            if self._seen == self._count:
                print_figures(seconds=now - self._started_at, cpu=time.process_time() - self._cpu)


def print_figures(**figures: object) -> None:
    """Print the figures as one line of JSON."""
    print(json.dumps(figures), flush=True)


def timed(work: Callable[[], object]) -> None:
    """Do the work and print its seconds."""
    started_at = time.perf_counter()
    work()
    print_figures(seconds=time.perf_counter() - started_at)


def stamped_payload() -> dict[str, Any]:
    """Return the payload of a job that is enqueued now, with the time in it."""
    return PAYLOAD | {"sentAt": time.time()}
