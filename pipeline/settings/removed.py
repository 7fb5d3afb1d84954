"""The settings of before that are constants now: each has no effect, and stops no start.

Their values stand here for the warning only; the constant itself is in the module that uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

REMOVED_IN = "0.2.0"
# The variable, and its value in words.
REMOVED = {
    "AI_CACHE_DAYS": "30",
    "MAX_IMAGE_PIXELS": "200000000; DECODE_MEMORY_MB refuses large photos earlier",
    "UPLOAD_TIMEOUT_SECONDS": "300, and longer in proportion where MAX_UPLOAD_BYTES is over 10 MiB",
    "IDEMPOTENCY_SECONDS": "86400",
    "BREAKER_FAILURES": "5",
    "BREAKER_PROBE_SECONDS": "15",
    "NOTIFIER_SLOTS": "5",
    "NOTIFIER_ATTEMPTS": "12",
    "NOTIFIER_BACKOFF_MS": "5000",
    "RENEW_SECONDS": "a third of LEASE_SECONDS",
    "MAX_STALLS": "3",
    "RECONCILE_SECONDS": "30",
    "RECONCILE_AGE_SECONDS": "60",
    "POOL_THREADS": "16, or twice CONCURRENCY where that is more",
    "SOCKET_AUTH_SECONDS": "5",
    "SOCKET_PING_SECONDS": "25",
    "SOCKET_PONG_SECONDS": "10",
    "SOCKET_FRAME_BYTES": "16384",
    "SOCKET_FRAMES_PER_SECOND": "10",
    "MAX_SOCKETS_WITHOUT_TOKEN": "1000",
    "MAX_REPLAY_EVENTS": "500",
    "OUTBOX_FRAMES": "256, or one for each 4096 bytes of OUTBOX_BYTES where that is more",
    "LOOP_BLOCK_MS": "250",
}


@dataclass(frozen=True, slots=True)
class Removed:
    """A variable that is set and has no effect any more. fixed: the value that is in force, in words."""

    variable: str
    fixed: str

    def __str__(self) -> str:
        return f"{self.variable} has no effect since {REMOVED_IN}: the value is fixed, {self.fixed}"


def find_removed(*given: Mapping[str, str]) -> Iterator[Removed]:
    """Yield the removed settings among these variables, each once."""
    for name in dict.fromkeys(name for variables in given for name in variables):
        if fixed := REMOVED.get(name.upper()):
            yield Removed(name, fixed)
