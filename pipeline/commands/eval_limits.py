"""The limits of `eval`: the day's budget and the rates of the providers, which the service may use at the same time.

`eval` reads the day's costs from the asset store and writes its own costs there; a process of the service adds them to
its sums within half a minute. With REDIS_URL a call is reserved among all processes. Without it the command keeps to
the rate alone, because only the service reaches the embedded Redis.
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
from pipeline.usecases.budgets import CommandSpending

# A call is reserved at most this long ahead; otherwise it is tried once more later.
WAIT_SECONDS = 5.0
BUDGET_REACHED = "the day's AI budget is reached (AI_BUDGET_PER_DAY)"
UNKNOWN_PRICE = "AI_BUDGET_PER_DAY is set, and the cost of its calls is not known in AI_BUDGET_CURRENCY"


class EvalLimits:
    """The limits of one run of the command."""

    def __init__(self, spending: CommandSpending | None, queue: JobQueue | None) -> None:
        """
        spending: None without a budget.
        queue: reserves calls; None without REDIS_URL.
        """
        self._spending = spending
        self._queue = queue
        self._next_at: dict[str, float] = {}
        self._lease = f"eval:{secrets.token_hex(8)}"

    async def wait_for_call(self, provider: str, pace: Pace | None) -> None:
        """Return when the provider may be called. All settings of one provider share its rate."""
        if pace is None or not pace.interval_seconds:
            return
        try:
            while self._queue is not None:
                is_given, seconds = await self._queue.reserve_call(provider, self._lease, WAIT_SECONDS)
                await asyncio.sleep(max(seconds, 0.0))
                if is_given:
                    return
        except DependencyUnavailable:
            self._queue = None  # while Redis is down the service calls no provider
        begins_at = max(self._next_at.get(provider, 0.0), monotonic())
        self._next_at[provider] = begins_at + pace.apart_seconds
        await asyncio.sleep(max(begins_at - monotonic(), 0.0))

    async def refusal(self, *, is_free: bool) -> str:
        """Return why the provider may not be called, "" when it may. is_free: its calls cost nothing."""
        return BUDGET_REACHED if self._spending and not is_free and await self._spending.is_reached() else ""

    async def record(self, provider: str, usage: Usage | None, *, is_free: bool) -> str:
        """Record the cost of a call; return why the provider may not be called again, "" when it may."""
        if self._spending is None or is_free:
            return ""
        return "" if await self._spending.record(provider, usage) else UNKNOWN_PRICE


@asynccontextmanager
async def limits(settings: Settings, paces: Mapping[str, Pace]) -> AsyncIterator[EvalLimits]:
    """Open the asset store for a budget, and Redis for the rates.

    paces: provider -> its rate.
    """
    url = settings.redis_url.get_secret_value()
    queue = JobQueue(url, name=QUEUE_NAME, prefix=settings.queue_prefix, paces=paces) if url and paces else None
    store = build_store(settings).as_asset_store() if settings.ai_budget_per_day else None
    spending = None
    try:
        if store is not None:
            check_user(settings)
            await store.open()
            spending = CommandSpending(store, per_day=settings.ai_budget_per_day, currency=settings.ai_budget_currency)
        yield EvalLimits(spending, queue)
    finally:
        if store is not None:
            await store.close()
        if queue is not None:
            await queue.close()
