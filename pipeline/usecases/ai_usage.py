"""Use case: the use of AI providers today (UTC), over all processes: calls, tokens, cost.

Each process adds its counts to sums in Redis every few seconds. A call within seconds of midnight may count for the
next day. The sums are only shown to people; budgets have their own sums, which survive a loss of Redis (budgets.py).
Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from pipeline.clock import CLOCK
from pipeline.errors import DependencyUnavailable
from pipeline.hooks.usage import UsageCounters
from pipeline.texts import cause_of
from pipeline.usecases.budgets import DAY_SECONDS, Budgets, Sums, day_of

log = structlog.get_logger(__name__)

WRITE_SECONDS = 5.0
COUNTED = ("calls", "input", "output")


@dataclass(frozen=True, slots=True)
class AiDay:
    """The use of today, as operators see it.

    providers: the use of each provider, by name; None while Redis is away
    budget: the budget and how much of it is used; None when there is no budget or Redis is away
    """

    providers: Mapping[str, Mapping[str, Any]] | None
    budget: Mapping[str, Any] | None


class AiUsage:
    """The counts of one process, and the sums of all."""

    def __init__(
        self,
        sums: Sums,
        counts: UsageCounters,
        budgets: Budgets,
        *,
        currency: str,
        free: Collection[str] = (),
        now: Callable[[], float] = CLOCK.now,
    ) -> None:
        """counts: counts the providers' answers in this process
        currency: of the shown costs
        free: providers that cost nothing, whatever their answers say
        now: only tests pass another clock
        """
        self._sums = sums
        self._counts = counts
        self._budgets = budgets
        self._currency = currency
        self._free = free
        self._now = now
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Write the counts every few seconds, for ever."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await self._write_if_possible()

    async def close(self) -> None:
        """Write the last counts, unless Redis is away. Called when `run` has ended."""
        await self._write_if_possible()

    async def _write_if_possible(self) -> None:
        try:
            await self.write()
        except DependencyUnavailable as error:
            log.info("ai_usage_postponed", cause=cause_of(error))

    async def write(self) -> None:
        """Add the new counts to the sums. DependencyUnavailable while Redis is away: the next call adds them."""
        async with self._writing:
            amounts = self._counts.drain()
            fields = {f"{what} {provider}": amount for (provider, what), amount in amounts.items()}
            try:
                if fields:
                    await self._sums.add_to_sums(self._name(), fields, 2 * DAY_SECONDS)
            except DependencyUnavailable:
                self._counts.restore(amounts)
                raise

    async def today(self, providers: Collection[str]) -> AiDay:
        """Return the use of these providers today, and the budget."""
        try:
            await self.write()
            return AiDay(await self._use_of(providers), await self._budgets.shown() if self._budgets.is_set else None)
        except DependencyUnavailable:
            return AiDay(None, None)

    async def _use_of(self, providers: Collection[str]) -> Mapping[str, Mapping[str, Any]]:
        what = (*COUNTED, f"cost {self._currency}", f"priced {self._currency}")
        fields = [f"{each} {provider}" for provider in providers for each in what]
        sums = iter(await self._sums.sums(self._name(), fields))
        return {name: self._shown(name, [next(sums) or 0 for _ in what]) for name in providers}

    def _shown(self, provider: str, amounts: Sequence[float]) -> Mapping[str, Any]:
        calls, read, written, cost, priced = amounts
        return {
            "calls": round(calls),
            "inputTokens": round(read),
            "outputTokens": round(written),
            "cost": cost,
            "currency": self._currency,
            # Calls whose cost in that currency is not known.
            "unpricedCalls": 0 if provider in self._free else round(max(calls - priced, 0)),
        }

    def _name(self) -> str:
        return f"ai {day_of(self._now())}"
