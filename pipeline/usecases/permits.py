"""Use case: the permit of a job to ask a provider.

If the provider has a pace, the job needs a reservation of a call. If there is a budget, it must not be reached. A
permit also finds earlier answers for the same photo. A job that was claimed for a provider with a pace already has a
reservation (queue/lua/reservations.lua). For any other provider that it asks it gets one here. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from time import monotonic
from typing import Protocol

import structlog

from pipeline.assets.asset import Asset
from pipeline.errors import BudgetReached, DependencyUnavailable, RetryableJobError
from pipeline.hold import Pace
from pipeline.hooks import Analysis
from pipeline.hooks.job_protocols import NO_LIMITS, Permit, CallUsage
from pipeline.queue.job import Job
from pipeline.texts import cause_of
from pipeline.usecases.budgets import Budgets
from pipeline.usecases.result_cache import ResultCache, key_of

log = structlog.get_logger(__name__)

# A job may occupy its slot so long while it waits for its reserved call.
WAIT_SECONDS = 5.0
# A reservation that is used later than this share of its interval, or so many seconds, is too near to the next one.
LATE_SHARE, LATE_SECONDS = 0.02, 0.02
NO_RESERVATION = "Waiting for a turn at the AI service"


class Reservations(Protocol):
    """Reserves calls; JobQueue has it."""

    async def reserve_call(
        self, provider: str, lease: str, wait_seconds: float, late_seconds: float | None = None
    ) -> tuple[bool, float]:
        """See JobQueue."""

    async def release_call(self, provider: str, lease: str, unused_seconds: float | None = None) -> None:
        """See JobQueue."""


class Permits:
    """Makes the permit of each job."""

    def __init__(
        self,
        reservations: Reservations,
        paces: Mapping[str, Pace],
        budgets: Budgets | None = None,
        free: Collection[str] = (),
        cache: ResultCache | None = None,
        versions: Mapping[str, tuple[str, str]] = {},
        partial: ResultCache | None = None,
    ) -> None:
        """paces: the rate limits of the providers that have one
        budgets: None when there is no budget
        free: providers that cost nothing
        cache: None when answers are not used again
        versions: the AI model and prompt of each provider
        partial: stores answers of jobs that wait for the next stage of a cascade; None when there is no cascade
        """
        self.reservations = reservations
        self.paces = paces
        self.budgets = budgets
        self.free = free
        self.cache = cache
        self.versions = versions
        self.partial = partial

    def of(self, job: Job, asset: Asset) -> Permit:
        """Return the job's permit, NO_LIMITS when there are no limits and no cache."""
        return JobPermit(self, job, asset) if self.paces or self.budgets or self.cache else NO_LIMITS


class JobPermit:
    """The Permit of one job (hooks/job_protocols.py)."""

    def __init__(self, permits: Permits, job: Job, asset: Asset) -> None:
        self._permits = permits
        self._asset = asset
        self._lease = job.lease
        self._reservation = job.reservation
        self._user_id = asset.user_id
        self._job_id = job.id

    async def earlier_answer(self, provider: str) -> Analysis | None:
        """See Permit."""
        cache, key = self._permits.cache, self._key(provider)
        answer = await cache.find(key) if cache and key else None
        if answer is not None:
            await self._release()
        elif self._permits.partial is not None and (key := self._key(provider, self._job_id)):
            answer = await self._permits.partial.find(key)
        return answer

    async def store_partial(self, provider: str, analysis: Analysis) -> None:
        """See Permit."""
        if self._permits.partial is not None and (key := self._key(provider, self._job_id)):
            await self._permits.partial.put(key, analysis, is_partial=True)

    async def _release(self) -> None:
        """Release the reservation of this job, which does not need it, for another job.

        Reservations between it and the newest one stay unused: no job could be ready for them in time.
        """
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            await self._release_call(reservation.provider, monotonic() - reservation.begins_at)

    def _key(self, provider: str, job_id: str = "") -> str:
        versions, digest = self._permits.versions.get(provider, ("", "")), self._asset.original.sha256
        return key_of(digest, self._asset.category, provider, *versions, job_id) if digest else ""

    async def allow(self, provider: str) -> BudgetReached | None:
        """See Permit."""
        budgets = self._permits.budgets
        if budgets is None or provider in self._permits.free:
            return None
        refusal = await budgets.refusal(provider, self._user_id)
        if refusal is not None and self._reservation is not None and self._reservation.provider == provider:
            # A user whose photos wait for the next day must not reserve calls meanwhile.
            await self._release()
        return refusal

    async def begin(self, provider: str, *, waits: bool) -> RetryableJobError | None:
        """See Permit."""
        pace = self._permits.paces.get(provider)
        if pace is None:
            return None
        late_seconds = None
        if self._reservation is not None and self._reservation.provider == provider:
            left_seconds, self._reservation = self._reservation.begins_at - monotonic(), None
            if not pace.interval_seconds or -left_seconds <= max(LATE_SECONDS, LATE_SHARE * pace.interval_seconds):
                await _sleep(left_seconds)
                return None
            late_seconds = -left_seconds
        is_given, seconds = await self._permits.reservations.reserve_call(
            provider, self._lease, WAIT_SECONDS if waits else 0, late_seconds
        )
        if is_given:
            await _sleep(seconds)
            return None
        error = RetryableJobError(NO_RESERVATION, spends_attempt=False)
        error.provider = provider
        return error

    async def end(self, provider: str, analysis: Analysis | None, failed_usage: CallUsage | None = None) -> None:
        """See Permit."""
        paid = CallUsage(analysis.usage) if analysis is not None else failed_usage
        if paid is not None and self._permits.budgets is not None and provider not in self._permits.free:
            await self._permits.budgets.record(provider, self._user_id, paid.usage)
        if analysis is not None and self._permits.cache is not None and (key := self._key(provider)):
            await self._permits.cache.put(key, analysis)
        pace = self._permits.paces.get(provider)
        if pace is not None and pace.at_once is not None:
            await self._release_call(provider)

    async def _release_call(self, provider: str, unused_seconds: float | None = None) -> None:
        try:
            await self._permits.reservations.release_call(provider, self._lease, unused_seconds)
        except DependencyUnavailable as error:
            # The end of the job releases it as well.
            log.warning("turn_not_ended", plugin=provider, cause=cause_of(error))


async def _sleep(seconds: float) -> None:
    # A sleep of 0 would still yield to the event loop.
    if seconds > 0:
        await asyncio.sleep(seconds)
