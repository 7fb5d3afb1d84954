"""What keeps `eval` within the day's budget and within the rates of providers, which the service may ask meanwhile.

What was spent is read from the asset store, and what `eval` spends is left there: a process of the service adds it to
its sums within half a minute. Turns are those of all processes where REDIS_URL is set; the embedded Redis is nobody's
but the service's, so that without REDIS_URL the command keeps to the rate by itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import monotonic

from pipeline.commands.moving import check_user
from pipeline.errors import DependencyUnavailable
from pipeline.hold import Pace
from pipeline.hooks import Usage
from pipeline.parts.queues import QUEUE_NAME
from pipeline.stores import build_store
from pipeline.queue.queue import JobQueue
from pipeline.settings import Settings
from pipeline.usecases.budgets import Apart

# So long a turn may be ahead; for one that is further off it is asked again.
WAIT_SECONDS = 5.0
BUDGET_REACHED = "the day's AI budget is reached (AI_BUDGET_PER_DAY)"
UNKNOWN_PRICE = "AI_BUDGET_PER_DAY is set, and what its calls cost is not known in AI_BUDGET_CURRENCY"


class EvalLimits:
    """The limits of one run of the command."""

    def __init__(self, spending: Apart | None, queue: JobQueue | None) -> None:
        """spending: None without a budget. queue: who gives turns, None without REDIS_URL."""
        self._spending = spending
        self._queue = queue
        self._next_at: dict[str, float] = {}
        self._lease = f"eval:{secrets.token_hex(8)}"

    async def wait_for_turn(self, provider: str, pace: Pace | None) -> None:
        """Return when the provider may be called, whatever settings it is asked with."""
        if pace is None or not pace.interval_seconds:
            return
        try:
            while self._queue is not None:
                is_given, seconds = await self._queue.reserve_call(provider, self._lease, WAIT_SECONDS)
                await asyncio.sleep(max(seconds, 0.0))
                if is_given:
                    return
        except DependencyUnavailable:
            self._queue = None  # while Redis is away the service asks nobody
        begins_at = max(self._next_at.get(provider, 0.0), monotonic())
        self._next_at[provider] = begins_at + pace.apart_seconds
        await asyncio.sleep(max(begins_at - monotonic(), 0.0))

    async def refusal(self, *, is_free: bool) -> str:
        """Return why nobody may be asked who costs money, "" when somebody may."""
        return BUDGET_REACHED if self._spending and not is_free and await self._spending.is_reached() else ""

    async def record(self, provider: str, usage: Usage | None, *, is_free: bool) -> str:
        """Count what a call has cost; return why the provider is not to be asked again, "" when it may be."""
        if self._spending is None or is_free:
            return ""
        return "" if await self._spending.record(provider, usage) else UNKNOWN_PRICE


@asynccontextmanager
async def limits(settings: Settings, paces: Mapping[str, Pace]) -> AsyncIterator[EvalLimits]:
    """Open what the limits need: the asset store for a budget, Redis for turns. paces: of the providers to be asked."""
    url = settings.redis_url.get_secret_value()
    queue = JobQueue(url, name=QUEUE_NAME, prefix=settings.queue_prefix, paces=paces) if url and paces else None
    store = build_store(settings).as_asset_store() if settings.ai_budget_per_day else None
    spending = None
    try:
        if store is not None:
            check_user(settings)
            await store.open()
            spending = Apart(store, per_day=settings.ai_budget_per_day, currency=settings.ai_budget_currency)
        yield EvalLimits(spending, queue)
    finally:
        if store is not None:
            await store.close()
        if queue is not None:
            await queue.close()
