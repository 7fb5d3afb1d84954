"""Use case: what AI providers may cost in a day, in all and for each user. Jobs beyond that wait for the next (UTC).

Each process writes what its own calls have cost to the asset store, as records of its own; Redis has the sums of all
processes, made anew from the records when Redis has lost them. A call that is under way costs what nobody knows yet, so
a budget can be exceeded by the calls that run when it is reached. What a command spends beside the service it leaves
apart in the store (CommandSpending), and one process adds it. Runs on the event loop.
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
KEPT_SECONDS = 8 * DAY_SECONDS
PAGE = 100
# Asked again so often, in case the budget was raised.
ASK_AGAIN_SECONDS = 60.0
IN_ALL = "all"
# How far a sum may be from what people would get on paper.
LEAST = 1e-9
REACHED, REACHED_BY_USER = "Daily AI budget reached", "Your daily AI budget is reached"
UNKNOWN_PRICE = "Daily AI budget: the price of a call is not known"


class Sums(Protocol):
    """The sums of all processes; JobQueue has them."""

    async def sums(self, name: str, fields: Sequence[str]) -> list[float | None]:
        """See JobQueue."""

    async def add_to_sums(self, name: str, amounts: Mapping[str, float], keep_seconds: int) -> None:
        """See JobQueue."""

    async def begin_sums(self, name: str, amounts: Mapping[str, float], keep_seconds: int) -> None:
        """See JobQueue."""


class Budgets:
    """What was spent today and what is left."""

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
        """per_day, per_user_per_day: in units of the currency, 0: no limit. now: only tests have another one."""
        self._store = store
        self._sums = sums
        self._per_day = per_day or math.inf
        self._per_user = per_user_per_day or math.inf
        self._currency = currency
        self._now = now
        self._id = secrets.token_hex(8)
        # What this process has spent, by the day and field, and what of it Redis has not heard.
        self._spent: dict[tuple[str, str], float] = defaultdict(float)
        self._untold: dict[tuple[str, str], float] = defaultdict(float)
        self._users: dict[str, str] = {}
        self._telling = asyncio.Lock()

    @property
    def is_set(self) -> bool:
        """True when anything is limited."""
        return min(self._per_day, self._per_user) < math.inf

    async def refusal(self, provider: str, user_id: str) -> BudgetReached | None:
        """Return why the provider must not be asked for a photo of that user now, None when it may.

        Where that is so for all users, the error names the provider.
        """
        day, left_seconds = self._today()
        in_all, of_user, unpriced = await self._read(day, IN_ALL, _of_user(user_id), _unpriced(provider))
        seconds = min(left_seconds, ASK_AGAIN_SECONDS)
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
        """Return the budget and what is spent of it today; DependencyUnavailable when nobody can tell."""
        (spent,) = await self._read(self._today()[0], IN_ALL)
        per_day, per_user = (None if each == math.inf else each for each in (self._per_day, self._per_user))
        return {"perDay": per_day, "perUserPerDay": per_user, "spent": spent, "currency": self._currency}

    async def record(self, provider: str, user_id: str, usage: Usage | None) -> None:
        """Count what a call has cost. While Redis or the store is away that is kept for the next time."""
        day, _ = self._today()
        cost = cost_of(usage, self._currency)
        if cost is None:
            log.warning("price_unknown", plugin=provider, currency=usage.currency if usage else None)
            amounts = {_unpriced(provider): 1.0}
        else:
            amounts = {IN_ALL: cost, _of_user(user_id): cost} if cost else {}
        async with self._telling:
            for field, amount in amounts.items():
                self._spent[day, field] += amount
                self._untold[day, field] += amount
                self._users[field] = user_id if field == _of_user(user_id) else ""
            try:
                # What was not kept the last time included.
                for key in self._untold:
                    await self._keep(*key)
                await self._tell(day)
            except DependencyUnavailable as error:
                log.warning("spending_not_kept", cause=cause_of(error))

    async def _keep(self, day: str, field: str) -> None:
        data = {"field": field, "amount": self._spent[day, field]}
        kept_id = f"{day} {field} {self._id}"
        await self._store.put_record(Record(KIND, kept_id, _start_of(day), data, user_id=self._users[field]))

    async def _tell(self, day: str) -> None:
        for each in {each for each, _ in self._untold}:
            amounts = {field: amount for (of_day, field), amount in self._untold.items() if of_day == each}
            if (await self._sums.sums(each, [IN_ALL]))[0] is None:
                await self._begin(each)
            else:
                await self._sums.add_to_sums(each, amounts, 2 * DAY_SECONDS)
            for field in amounts:
                del self._untold[each, field]
        self._spent = defaultdict(float, {key: amount for key, amount in self._spent.items() if key[0] == day})
        self._users = {field: self._users[field] for _, field in self._spent}

    async def _read(self, day: str, *fields: str) -> list[float]:
        found = await self._sums.sums(day, [IN_ALL, *fields])
        if found[0] is None:
            await self._begin(day)
            found = await self._sums.sums(day, [IN_ALL, *fields])
        # What this process could not tell Redis yet counts here at least.
        told = zip(fields, found[1:], strict=True)
        return [(each or 0.0) + self._untold.get((day, field), 0.0) for field, each in told]

    async def _begin(self, day: str) -> None:
        """Give Redis the sums of that day as the store has them."""
        await self._sums.begin_sums(day, await _spent(self._store, KIND, day), 2 * DAY_SECONDS)

    async def purge(self) -> None:
        """Count what commands have spent, and remove what is over."""
        await self._count_apart()
        for kind in (KIND, APART):
            await self._store.purge_records(kind, instant_of(int(self._now() - KEPT_SECONDS) * 1000))

    async def _count_apart(self) -> None:
        while page := await self._store.records(APART, limit=PAGE):
            for record in page:
                day, field = f"{record.at:%Y-%m-%d}", str(record.data.get("field"))
                await self._store.put_record(replace(record, kind=KIND))
                # Sums that are not there will be made from all that is kept.
                if (await self._sums.sums(day, [IN_ALL]))[0] is not None:
                    amount = {field: float(record.data.get("amount", 0))}
                    await self._sums.add_to_sums(day, amount, 2 * DAY_SECONDS)
                await self._store.delete_records(APART, record.id)

    def _today(self) -> tuple[str, float]:
        now = self._now()
        return day_of(now), DAY_SECONDS - now % DAY_SECONDS


class CommandSpending:
    """What a command spends that has no part in the sums of the service, and what all have spent today."""

    def __init__(
        self, store: AssetStore, *, per_day: float, currency: str, now: Callable[[], float] = CLOCK.now
    ) -> None:
        self._store = store
        self._per_day = per_day
        self._currency = currency
        self._now = now

    async def is_reached(self) -> bool:
        """Return whether the budget of the day is spent."""
        day = day_of(self._now())
        spent = [(await _spent(self._store, kind, day))[IN_ALL] for kind in (KIND, APART)]
        return sum(spent) + LEAST >= self._per_day

    async def record(self, provider: str, usage: Usage | None) -> bool:
        """Count what a call has cost; False when that is not known, and cannot be counted."""
        cost = cost_of(usage, self._currency)
        if cost:
            day = day_of(self._now())
            kept_id = f"{day} {provider} {secrets.token_hex(8)}"
            await self._store.put_record(Record(APART, kept_id, _start_of(day), {"field": IN_ALL, "amount": cost}))
        return cost is not None


def cost_of(usage: Usage | None, currency: str) -> float | None:
    """Return what a call has cost in that currency, None when that is not known."""
    if usage is None or usage.cost is None or (usage.currency != currency and usage.cost):
        return None
    return float(usage.cost)


async def _spent(store: AssetStore, kind: str, day: str) -> dict[str, float]:
    """Return the amounts that were kept of a day, by field; that of IN_ALL is among them."""
    amounts: dict[str, float] = defaultdict(float, {IN_ALL: 0.0})
    start = _start_of(day)
    before = (start - timedelta(milliseconds=1), "")
    async for page in dated_pages(partial(store.records, kind), before):
        for record in page:
            if record.at == start:
                amounts[str(record.data.get("field"))] += float(record.data.get("amount", 0))
    return amounts


def day_of(now: float) -> str:
    """Return the day in UTC, as sums and records are named by it."""
    return f"{instant_of(int(now) * 1000):%Y-%m-%d}"


def _start_of(day: str) -> datetime:
    return instant_of(milliseconds_of(datetime.fromisoformat(f"{day}T00:00:00+00:00")))


def _of_user(user_id: str) -> str:
    """No names in Redis: an erased user must be gone."""
    return f"user {hashlib.sha256(user_id.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


def _unpriced(provider: str) -> str:
    return f"unpriced {provider}"
