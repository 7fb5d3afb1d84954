"""Use case: what one job needs before a provider is asked: a turn, where the provider has a pace, and a budget that is
not spent, where there is one. It also knows what was answered before, where that is given again.

A job that was claimed for a provider with a pace has its turn already (queue/lua/turns.lua); for one that it asks
instead of that, or after it, it gets one here. Runs on the event loop.
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

# So long a job may hold its slot while it waits for a turn.
WAIT_SECONDS = 5.0
# A turn that is used later than this part of its interval, or than so many seconds, would be too near to the next one.
LATE_SHARE, LATE_SECONDS = 0.02, 0.02
NO_TURN = "Waiting for a turn at the AI service"


class Reservations(Protocol):
    """Who gives turns; JobQueue has it."""

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
        """paces: the limits of those providers that have any. budgets: None when nothing is limited.
        free: providers that cost nothing. cache: None where answers are not given again. versions: the AI model and
        prompt of each provider. partial: keeps answers of jobs that wait for the next stage of a cascade, None where no
        job does.
        """
        self.reservations = reservations
        self.paces = paces
        self.budgets = budgets
        self.free = free
        self.cache = cache
        self.versions = versions
        self.partial = partial

    def of(self, job: Job, asset: Asset) -> Permit:
        """Return the job's permit, NO_LIMITS when it may ask as it likes and nothing is known of before."""
        return JobPermit(self, job, asset) if self.paces or self.budgets or self.cache else NO_LIMITS


class JobPermit:
    """The Permit of one job (hooks/job_protocols.py)."""

    def __init__(self, permits: Permits, job: Job, asset: Asset) -> None:
        self._permits = permits
        self._asset = asset
        self._lease = job.lease
        self._turn = job.reservation
        self._user_id = asset.user_id
        self._job_id = job.id

    async def earlier_answer(self, provider: str) -> Analysis | None:
        """See Permit."""
        cache, key = self._permits.cache, self._key(provider)
        found = await cache.find(key) if cache and key else None
        if found is not None:
            await self._give_back()
        elif self._permits.partial is not None and (key := self._key(provider, self._job_id)):
            found = await self._permits.partial.find(key)
        return found

    async def store_partial(self, provider: str, analysis: Analysis) -> None:
        """See Permit."""
        if self._permits.partial is not None and (key := self._key(provider, self._job_id)):
            await self._permits.partial.keep(key, analysis, is_partial=True)

    async def _give_back(self) -> None:
        """Let another job have the turn that this one was claimed with and does not need.

        Those between it and the last one that was given stay unused: no job could be ready for them in time.
        """
        turn, self._turn = self._turn, None
        if turn is not None:
            await self._end_turn(turn.provider, monotonic() - turn.begins_at)

    def _key(self, provider: str, job_id: str = "") -> str:
        versions, digest = self._permits.versions.get(provider, ("", "")), self._asset.original.sha256
        return key_of(digest, self._asset.category, provider, *versions, job_id) if digest else ""

    async def allow(self, provider: str) -> BudgetReached | None:
        """See Permit."""
        budgets = self._permits.budgets
        if budgets is None or provider in self._permits.free:
            return None
        refusal = await budgets.refusal(provider, self._user_id)
        if refusal is not None and self._turn is not None and self._turn.provider == provider:
            # A user whose photos wait for the next day takes no turns from the others meanwhile.
            await self._give_back()
        return refusal

    async def begin(self, provider: str, *, waits: bool) -> RetryableJobError | None:
        """See Permit."""
        pace = self._permits.paces.get(provider)
        if pace is None:
            return None
        late_seconds = None
        if self._turn is not None and self._turn.provider == provider:
            left_seconds, self._turn = self._turn.begins_at - monotonic(), None
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
        error = RetryableJobError(NO_TURN, spends_attempt=False)
        error.provider = provider
        return error

    async def end(self, provider: str, analysis: Analysis | None, failed_usage: CallUsage | None = None) -> None:
        """See Permit."""
        paid = CallUsage(analysis.usage) if analysis is not None else failed_usage
        if paid is not None and self._permits.budgets is not None and provider not in self._permits.free:
            await self._permits.budgets.record(provider, self._user_id, paid.usage)
        if analysis is not None and self._permits.cache is not None and (key := self._key(provider)):
            await self._permits.cache.keep(key, analysis)
        pace = self._permits.paces.get(provider)
        if pace is not None and pace.at_once is not None:
            await self._end_turn(provider)

    async def _end_turn(self, provider: str, unused_seconds: float | None = None) -> None:
        try:
            await self._permits.reservations.release_call(provider, self._lease, unused_seconds)
        except DependencyUnavailable as error:
            # The end of the job ends it as well.
            log.warning("turn_not_ended", plugin=provider, cause=cause_of(error))


async def _sleep(seconds: float) -> None:
    # Not even a turn of the loop for what is due.
    if seconds > 0:
        await asyncio.sleep(seconds)
