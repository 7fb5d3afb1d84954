"""Use case: the daily budget of AI calls, in all and for each user. Jobs beyond it wait for the next day (UTC).

Each process writes the cost of its own calls to the asset store, as records of its own. Redis has the sums of all
processes, which are computed from the records when Redis has lost them. The cost of a call is known when it ends, so
the calls that run when a budget is reached can exceed it. A command writes its costs as records of another kind
(CommandSpending), and one process of the service adds them to the sums. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

import structlog

from pipeline.assets.store import AssetStore, Record
from pipeline.clock import CLOCK
from pipeline.errors import BudgetReached, DependencyUnavailable
from pipeline.hooks import Usage
from pipeline.instants import instant_of, milliseconds_of
from pipeline.texts import cause_of
from pipeline.usecases.paging import dated_pages

log = structlog.get_logger(__name__)

KIND, APART = "spending", "spending apart"
DAY_SECONDS = 86_400
RETENTION_SECONDS = 8 * DAY_SECONDS
PAGE = 100
# A job beyond the budget asks again so often, in case the budget was raised.
RETRY_SECONDS = 60.0
IN_ALL = "all"
# Sums of fractions are not exact.
LEAST = 1e-9
REACHED, REACHED_BY_USER = "Daily AI budget reached", "Your daily AI budget is reached"
UNKNOWN_PRICE = "Daily AI budget: the price of a call is not known"


class Sums(Protocol):
    """The sums of all processes in Redis; JobQueue has them."""

    async def sums(self, name: str, fields: Sequence[str]) -> list[float | None]:
        """See JobQueue."""

    async def add_to_sums(self, name: str, amounts: Mapping[str, float], keep_seconds: int) -> None:
        """See JobQueue."""

    async def begin_sums(self, name: str, amounts: Mapping[str, float], keep_seconds: int) -> None:
        """See JobQueue."""


class Budgets:
    """Counts the costs of today, and refuses calls beyond the budget."""

    def __init__(
        self,
        store: AssetStore,
        sums: Sums,
        *,
        per_day: float,
        per_user_per_day: float,
        currency: str,
        now: Callable[[], float] = CLOCK.now,
    ) -> None:
        """per_day, per_user_per_day: in units of the currency, 0: no limit
        now: only tests pass another clock
        """
        self._store = store
        self._sums = sums
        self._per_day = per_day or math.inf
        self._per_user = per_user_per_day or math.inf
        self._currency = currency
        self._now = now
        self._id = secrets.token_hex(8)
        # The costs of this process by day and field, and the part of them that Redis does not have yet.
        self._spent: dict[tuple[str, str], float] = defaultdict(float)
        self._unsent: dict[tuple[str, str], float] = defaultdict(float)
        self._users: dict[str, str] = {}
        self._writing = asyncio.Lock()

    @property
    def is_set(self) -> bool:
        """True when there is a budget."""
        return min(self._per_day, self._per_user) < math.inf

    async def refusal(self, provider: str, user_id: str) -> BudgetReached | None:
        """Return why the provider must not be asked for a photo of that user now, None when it may be asked.

        The error names the provider if the budget of all users is reached.
        """
        day, left_seconds = self._today()
        in_all, of_user, unpriced = await self._read(day, IN_ALL, _of_user(user_id), _unpriced(provider))
        seconds = min(left_seconds, RETRY_SECONDS)
        if unpriced:
            error = BudgetReached(UNKNOWN_PRICE, retry_after_seconds=seconds)
        elif in_all + LEAST >= self._per_day:
            error = BudgetReached(REACHED, retry_after_seconds=seconds)
        elif of_user + LEAST >= self._per_user:
            return BudgetReached(REACHED_BY_USER, retry_after_seconds=seconds)
        else:
            return None
        error.provider = provider
        return error

    async def shown(self) -> dict[str, Any]:
        """Return the budget and the costs of today; DependencyUnavailable when they cannot be read."""
        (spent,) = await self._read(self._today()[0], IN_ALL)
        per_day, per_user = (None if each == math.inf else each for each in (self._per_day, self._per_user))
        return {"perDay": per_day, "perUserPerDay": per_user, "spent": spent, "currency": self._currency}

    async def record(self, provider: str, user_id: str, usage: Usage | None) -> None:
        """Count the cost of a call. While Redis or the store is away, the next call of this method writes it."""
        day, _ = self._today()
        cost = cost_of(usage, self._currency)
        if cost is None:
            log.warning("price_unknown", plugin=provider, currency=usage.currency if usage else None)
            amounts = {_unpriced(provider): 1.0}
        else:
            amounts = {IN_ALL: cost, _of_user(user_id): cost} if cost else {}
        async with self._writing:
            for field, amount in amounts.items():
                self._spent[day, field] += amount
                self._unsent[day, field] += amount
                self._users[field] = user_id if field == _of_user(user_id) else ""
            try:
                # Including the costs that could not be written the last time.
                for key in self._unsent:
                    await self._write_record(*key)
                await self._send(day)
            except DependencyUnavailable as error:
                log.warning("spending_not_kept", cause=cause_of(error))

    async def _write_record(self, day: str, field: str) -> None:
        data = {"field": field, "amount": self._spent[day, field]}
        record_id = f"{day} {field} {self._id}"
        await self._store.put_record(Record(KIND, record_id, _start_of(day), data, user_id=self._users[field]))

    async def _send(self, day: str) -> None:
        for each in {each for each, _ in self._unsent}:
            amounts = {field: amount for (of_day, field), amount in self._unsent.items() if of_day == each}
            if (await self._sums.sums(each, [IN_ALL]))[0] is None:
                await self._begin(each)
            else:
                await self._sums.add_to_sums(each, amounts, 2 * DAY_SECONDS)
            for field in amounts:
                del self._unsent[each, field]
        self._spent = defaultdict(float, {key: amount for key, amount in self._spent.items() if key[0] == day})
        self._users = {field: self._users[field] for _, field in self._spent}

    async def _read(self, day: str, *fields: str) -> list[float]:
        sums = await self._sums.sums(day, [IN_ALL, *fields])
        if sums[0] is None:
            await self._begin(day)
            sums = await self._sums.sums(day, [IN_ALL, *fields])
        # Costs that Redis does not have yet count in this process.
        by_field = zip(fields, sums[1:], strict=True)
        return [(each or 0.0) + self._unsent.get((day, field), 0.0) for field, each in by_field]

    async def _begin(self, day: str) -> None:
        """Write the sums of that day to Redis, computed from the records."""
        await self._sums.begin_sums(day, await _spent(self._store, KIND, day), 2 * DAY_SECONDS)

    async def purge(self) -> None:
        """Add the costs of commands to the sums, and remove old records."""
        await self._count_commands()
        for kind in (KIND, APART):
            await self._store.purge_records(kind, instant_of(int(self._now() - RETENTION_SECONDS) * 1000))

    async def _count_commands(self) -> None:
        while page := await self._store.records(APART, limit=PAGE):
            for record in page:
                day, field = f"{record.at:%Y-%m-%d}", str(record.data.get("field"))
                await self._store.put_record(replace(record, kind=KIND))
                # Sums that Redis does not have will be computed from all records.
                if (await self._sums.sums(day, [IN_ALL]))[0] is not None:
                    amount = {field: float(record.data.get("amount", 0))}
                    await self._sums.add_to_sums(day, amount, 2 * DAY_SECONDS)
                await self._store.delete_records(APART, record.id)

    def _today(self) -> tuple[str, float]:
        now = self._now()
        return day_of(now), DAY_SECONDS - now % DAY_SECONDS


class CommandSpending:
    """The costs of a command that runs beside the service, and whether the budget of the day is reached."""

    def __init__(
        self, store: AssetStore, *, per_day: float, currency: str, now: Callable[[], float] = CLOCK.now
    ) -> None:
        self._store = store
        self._per_day = per_day
        self._currency = currency
        self._now = now

    async def is_reached(self) -> bool:
        """Return whether the budget of the day is reached."""
        day = day_of(self._now())
        spent = [(await _spent(self._store, kind, day))[IN_ALL] for kind in (KIND, APART)]
        return sum(spent) + LEAST >= self._per_day

    async def record(self, provider: str, usage: Usage | None) -> bool:
        """Count the cost of a call; False when it is not known."""
        cost = cost_of(usage, self._currency)
        if cost:
            day = day_of(self._now())
            record_id = f"{day} {provider} {secrets.token_hex(8)}"
            await self._store.put_record(Record(APART, record_id, _start_of(day), {"field": IN_ALL, "amount": cost}))
        return cost is not None


def cost_of(usage: Usage | None, currency: str) -> float | None:
    """Return the cost of a call in that currency, None when it is not known."""
    if usage is None or usage.cost is None or (usage.currency != currency and usage.cost):
        return None
    return float(usage.cost)


async def _spent(store: AssetStore, kind: str, day: str) -> dict[str, float]:
    """Return the sums of a day's records by field, IN_ALL included."""
    amounts: dict[str, float] = defaultdict(float, {IN_ALL: 0.0})
    start = _start_of(day)
    before = (start - timedelta(milliseconds=1), "")
    async for page in dated_pages(partial(store.records, kind), before):
        for record in page:
            if record.at == start:
                amounts[str(record.data.get("field"))] += float(record.data.get("amount", 0))
    return amounts


def day_of(now: float) -> str:
    """Return the day in UTC, such as 2026-05-01: sums and records have it in their names."""
    return f"{instant_of(int(now) * 1000):%Y-%m-%d}"


def _start_of(day: str) -> datetime:
    return instant_of(milliseconds_of(datetime.fromisoformat(f"{day}T00:00:00+00:00")))


def _of_user(user_id: str) -> str:
    """Return the field of a user: a hash, because Redis must not keep the name of an erased user."""
    return f"user {hashlib.sha256(user_id.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


def _unpriced(provider: str) -> str:
    return f"unpriced {provider}"
