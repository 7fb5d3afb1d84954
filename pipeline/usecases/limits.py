"""Use case: how much one user and one address may ask for in a minute, over all processes.

Each limit of each user is a bucket: a request fills it a little, it empties evenly, and a full one takes no more. A
request is judged by what this process knows, so that it never waits for Redis; what was let through is added to the
buckets in Redis a moment later, and the answer tells what other processes have let through. While Redis is away each
process counts by itself. Runs on the event loop.
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
# What may come at once: as much as in so many minutes.
BURST_MINUTES = 2
# How long what was let through is collected before Redis is told: a few calls in a second, whatever comes.
COLLECT_SECONDS = 0.2
# Of one call of the script: a fraction of a millisecond of Redis.
BUCKETS_AT_ONCE = 200
# Beyond that the oldest is forgotten here, not in Redis: about 20 MB.
BUCKETS_AT_MOST = 50_000
# Buckets that are empty are forgotten so often.
SWEEP_SECONDS = 10.0
# What one household or one machine has of IPv6.
NETWORK_BITS = 64


class Limit(StrEnum):
    """What is limited, as metrics and log lines name it."""

    UPLOADS = "uploads"
    REQUESTS = "requests"
    WRONG_TOKENS = "wrong_tokens"
    # These two are no matter of minutes: see backlog.py and quota.py.
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
        """Return that other processes have let nothing through."""
        return [0.0] * len(added)


@dataclass(slots=True)
class _Bucket:
    """empty_at: when it will be empty (monotonic seconds). unsent: what Redis has not been told (seconds)."""

    empty_at: float = 0.0
    unsent: float = 0.0


class Limits:
    """Says whether one more is too many. Each check counts the request, or raises RateLimited and counts nothing."""

    def __init__(
        self,
        per_minute: Mapping[Limit, int],
        buckets: Buckets,
        metrics: Metrics,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """per_minute: a limit that is missing or 0 does not hold. now: only tests have another one."""
        self._every = {limit: MINUTE_SECONDS / count for limit, count in per_minute.items() if count}
        self._buckets = buckets
        self._metrics = metrics
        self._now = now
        self._throttled_log = ThrottledLog(now)
        # The oldest goes first; of a plain dict that would mean to pass by all that have gone before.
        self._known: OrderedDict[tuple[Limit, str], _Bucket] = OrderedDict()
        self._swept_at = now()
        self._untold: set[tuple[Limit, str]] = set()
        self._has_untold = asyncio.Event()

    def upload(self, user_id: str) -> None:
        """Count a photo to be analysed."""
        self._take(Limit.UPLOADS, user_id)

    def request(self, user_id: str) -> None:
        """Count any other request of a user."""
        self._take(Limit.REQUESTS, user_id)

    def wrong_token(self, address: str | None) -> None:
        """Count a token that is not one of ours. address: of the client; all of an IPv6 network count as one."""
        self._take(Limit.WRONG_TOKENS, network_of(address or ""))

    def refused(self, limit: Limit, who: str) -> None:
        """Count a request that was refused, and log a user or address once a minute."""
        self._metrics.rate_limited.labels(limit).inc()
        names = {"limit": limit.value, "address" if limit is Limit.WRONG_TOKENS else "userId": who}
        self._throttled_log.write(log.warning, "rate_limited", f"{limit} {who}", **names)

    async def run(self) -> None:
        """Tell Redis for ever."""
        while True:
            await self._has_untold.wait()
            await asyncio.sleep(COLLECT_SECONDS)
            self._has_untold.clear()
            await self.tell()

    async def tell(self) -> None:
        """Add what was let through to the buckets in Redis, and learn how full they are."""
        names, self._untold = [*self._untold], set()
        try:
            for first in range(0, len(names), BUCKETS_AT_ONCE):
                await self._tell(names[first : first + BUCKETS_AT_ONCE])
        except DependencyUnavailable:
            # What Redis was not told is not made up for: in a minute it will not matter any more.
            for name in names:
                if bucket := self._known.get(name):
                    bucket.unsent = 0.0
        self._forget_empty()

    async def _tell(self, names: Sequence[tuple[Limit, str]]) -> None:
        told = [(name, bucket) for name in names if (bucket := self._known.get(name))]
        added = [(_key(name), round(bucket.unsent * 1000), round(self._holds(name[0]) * 1000)) for name, bucket in told]
        for _, bucket in told:
            bucket.unsent = 0.0
        full = await self._buckets.fill_buckets(added)
        now = self._now()
        for (_, bucket), full_ms in zip(told, full, strict=True):
            # A Redis that was emptied knows less than this process.
            bucket.empty_at = max(bucket.empty_at, now + full_ms / 1000 + bucket.unsent)

    def _take(self, limit: Limit, who: str) -> None:
        every = self._every.get(limit)
        if every is None:
            return
        name = limit, who
        bucket = self._known.get(name) or self._new(name)
        now = self._now()
        empty_at = max(bucket.empty_at, now) + every
        # A little more than it holds: sums of fractions are not exact.
        too_full = empty_at - now - self._holds(limit) - every / 1000
        if too_full > 0:
            self.refused(limit, who)
            raise RateLimited(MESSAGES[limit], retry_after_seconds=max(1, math.ceil(too_full)))
        bucket.empty_at = empty_at
        bucket.unsent += every
        self._untold.add(name)
        self._has_untold.set()

    def _holds(self, limit: Limit) -> float:
        """Return how much a bucket holds, in seconds; one of the least limits still holds a request."""
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
    """Return the address as limits know it: the network of an IPv6 address, what is no address as it is."""
    found = parse_address(address)
    if isinstance(found, IPv6Address):
        return str(IPv6Network((found, NETWORK_BITS), strict=False))
    return address if found is None else str(found)


def _key(name: tuple[Limit, str]) -> str:
    """No names in Redis: an erased user must be gone."""
    limit, who = name
    return f"{limit}:{hashlib.sha256(who.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"
