"""Use case: how many requests one user and one address may send in a minute, over all processes.

Each limit of each user is a bucket: a request fills it a little, it empties evenly, and a full bucket refuses requests.
A process decides by its own copy of the bucket, so that a request never waits for Redis. Accepted requests are added to
the buckets in Redis a moment later, and the reply includes the requests that other processes have accepted. While Redis
is away each process counts by itself. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network
from typing import Protocol

import structlog

from pipeline.errors import DependencyUnavailable, RateLimited
from pipeline.logs import ThrottledLog
from pipeline.metrics import Metrics
from pipeline.proxies import parse_address
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

MINUTE_SECONDS = 60.0
# A burst may have as many requests as so many minutes.
BURST_MINUTES = 2
# Accepted requests are collected for so long before Redis is called: a few calls a second, whatever the load.
COLLECT_SECONDS = 0.2
# So many buckets in one call of the script, which takes a fraction of a millisecond.
BUCKETS_AT_ONCE = 200
# Beyond that this process forgets the oldest bucket, which stays in Redis: about 20 MB.
BUCKETS_AT_MOST = 50_000
# Empty buckets are forgotten so often.
SWEEP_SECONDS = 10.0
# The IPv6 network of one household or machine.
NETWORK_BITS = 64


class Limit(StrEnum):
    """The limits, as metrics and log lines name them."""

    UPLOADS = "uploads"
    REQUESTS = "requests"
    WRONG_TOKENS = "wrong_tokens"
    # These two are not per minute: see bounds.py.
    BACKLOG = "backlog"
    STORED_BYTES = "stored_bytes"


MESSAGES = {
    Limit.UPLOADS: "Too many uploads in a short time",
    Limit.REQUESTS: "Too many requests in a short time",
    Limit.WRONG_TOKENS: "Too many wrong tokens from this address",
}


class Buckets(Protocol):
    """The buckets of all processes; JobQueue has them."""

    async def fill_buckets(self, added: Sequence[tuple[str, int, int]]) -> Sequence[float]:
        """See JobQueue."""


class NoBuckets:
    """Buckets of a process that has no Redis."""

    async def fill_buckets(self, added: Sequence[tuple[str, int, int]]) -> Sequence[float]:
        """Return that other processes have accepted nothing."""
        return [0.0] * len(added)


@dataclass(slots=True)
class _Bucket:
    """empty_at: when it will be empty, monotonic seconds
    unsent: how much Redis does not have yet, seconds
    """

    empty_at: float = 0.0
    unsent: float = 0.0


class Limits:
    """Checks requests. Each check counts the request, or raises RateLimited and does not count it."""

    def __init__(
        self,
        per_minute: Mapping[Limit, int],
        buckets: Buckets,
        metrics: Metrics,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """per_minute: requests by limit; a limit that is missing or 0 is off
        now: only tests pass another clock
        """
        self._every = {limit: MINUTE_SECONDS / count for limit, count in per_minute.items() if count}
        self._buckets = buckets
        self._metrics = metrics
        self._now = now
        self._throttled_log = ThrottledLog(now)
        # Ordered: the oldest is removed first, which a plain dict does slowly.
        self._known: OrderedDict[tuple[Limit, str], _Bucket] = OrderedDict()
        self._swept_at = now()
        self._unsent: set[tuple[Limit, str]] = set()
        self._has_unsent = asyncio.Event()

    def upload(self, user_id: str) -> None:
        """Count a photo to be analysed."""
        self._count(Limit.UPLOADS, user_id)

    def request(self, user_id: str) -> None:
        """Count any other request of a user."""
        self._count(Limit.REQUESTS, user_id)

    def wrong_token(self, address: str | None) -> None:
        """Count a wrong token.

        address: of the client; all addresses of an IPv6 network count as one
        """
        self._count(Limit.WRONG_TOKENS, network_of(address or ""))

    def count_refusal(self, limit: Limit, who: str) -> None:
        """Count a refused request, and log its user or address once a minute."""
        self._metrics.rate_limited.labels(limit).inc()
        names = {"limit": limit.value, "address" if limit is Limit.WRONG_TOKENS else "userId": who}
        self._throttled_log.write(log.warning, "rate_limited", f"{limit} {who}", **names)

    async def run(self) -> None:
        """Add accepted requests to the buckets in Redis, for ever."""
        while True:
            await self._has_unsent.wait()
            await asyncio.sleep(COLLECT_SECONDS)
            self._has_unsent.clear()
            await self.synchronize()

    async def synchronize(self) -> None:
        """Add accepted requests to the buckets in Redis, and read how full they are."""
        names, self._unsent = [*self._unsent], set()
        try:
            for first in range(0, len(names), BUCKETS_AT_ONCE):
                await self._send(names[first : first + BUCKETS_AT_ONCE])
        except DependencyUnavailable:
            # These requests are not sent later: in a minute they do not matter any more.
            for name in names:
                if bucket := self._known.get(name):
                    bucket.unsent = 0.0
        self._forget_empty()

    async def _send(self, names: Sequence[tuple[Limit, str]]) -> None:
        changed = [(name, bucket) for name in names if (bucket := self._known.get(name))]
        added = [
            (_key(name), round(bucket.unsent * 1000), round(self._size(name[0]) * 1000)) for name, bucket in changed
        ]
        for _, bucket in changed:
            bucket.unsent = 0.0
        full = await self._buckets.fill_buckets(added)
        now = self._now()
        for (_, bucket), full_ms in zip(changed, full, strict=True):
            # A Redis that was wiped has less than this process.
            bucket.empty_at = max(bucket.empty_at, now + full_ms / 1000 + bucket.unsent)

    def _count(self, limit: Limit, who: str) -> None:
        every = self._every.get(limit)
        if every is None:
            return
        name = limit, who
        bucket = self._known.get(name) or self._new(name)
        now = self._now()
        empty_at = max(bucket.empty_at, now) + every
        # With a little tolerance: sums of fractions are not exact.
        too_full = empty_at - now - self._size(limit) - every / 1000
        if too_full > 0:
            self.count_refusal(limit, who)
            raise RateLimited(MESSAGES[limit], retry_after_seconds=max(1, math.ceil(too_full)))
        bucket.empty_at = empty_at
        bucket.unsent += every
        self._unsent.add(name)
        self._has_unsent.set()

    def _size(self, limit: Limit) -> float:
        """Return the size of a bucket in seconds; one request always fits."""
        return max(BURST_MINUTES * MINUTE_SECONDS, self._every[limit])

    def _new(self, name: tuple[Limit, str]) -> _Bucket:
        if len(self._known) >= BUCKETS_AT_MOST:
            self._known.popitem(last=False)
        bucket = self._known[name] = _Bucket()
        return bucket

    def _forget_empty(self) -> None:
        now = self._now()
        if now - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = now
        for name, bucket in list(self._known.items()):
            if bucket.empty_at <= now:
                del self._known[name]


def limits_of(settings: Settings, buckets: Buckets, metrics: Metrics) -> Limits:
    """Return the limits that the settings name."""
    per_minute = {
        Limit.UPLOADS: settings.uploads_per_minute_per_user,
        Limit.REQUESTS: settings.requests_per_minute_per_user,
        Limit.WRONG_TOKENS: settings.wrong_tokens_per_minute_per_address,
    }
    return Limits(per_minute, buckets, metrics)


def network_of(address: str) -> str:
    """Return the network of an IPv6 address; any other text as it is."""
    parsed = parse_address(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, NETWORK_BITS), strict=False))
    return address if parsed is None else str(parsed)


def _key(name: tuple[Limit, str]) -> str:
    """Return the key of a bucket: a hash, because Redis must not keep the name of an erased user."""
    limit, who = name
    return f"{limit}:{hashlib.sha256(who.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"
