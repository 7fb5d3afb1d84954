"""Tells the notifiers in use of events: the durable ones by jobs of their own, the others at once and once.

One that fails in a row is held for a while, and no other one with it. One with `notify_many` is told of many events in
one call (batches.py). Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from pipeline.errors import JobError, PermanentJobError, RetryableJobError
from pipeline.hooks import faults
from pipeline.hooks.batches import Batches, batch_limits, checked_answers
from pipeline.hooks.breaker import Breaker, SharedBreakers
from pipeline.hooks.calls import BoundPlugin
from pipeline.hooks.context import trace_of_call
from pipeline.hooks.protocols import Notification, RoomPublisher
from pipeline.texts import clean
from pipeline.tracing import Tracing

log = structlog.get_logger(__name__)

# Slots of this process for durable notifiers: as many as jobs have by default, and never taken from those.
SLOTS = 5
RECEIVER = "Receiver"
# What is kept of what a receiver said.
LONGEST_RESPONSE = 200
NOTIFY, NOTIFY_MANY = "notify", "notify_many"


@dataclass(frozen=True, slots=True)
class EventContext:
    """What a notification tells beside its event; see Notification."""

    category: str = ""
    job_id: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Notifiers:
    """All notifiers. holds: the durable ones that are not called for now, to be shared."""

    def __init__(
        self,
        notifiers: Iterable[BoundPlugin],
        rooms: RoomPublisher,
        seconds: float,
        tracing: Tracing,
        slots: int = SLOTS,
    ) -> None:
        """seconds: how long one call may take. slots: how many durable deliveries are made at once, batches apart."""
        self._by_name = {notifier.name: notifier for notifier in notifiers}
        self._rooms = rooms
        self._seconds = seconds
        self._tracing = tracing
        # Those whose events are to be jobs, for `deliver`.
        self.durable = tuple(name for name, each in self._by_name.items() if getattr(each.plugin, "durable", False))
        self._batches = {
            name: Batches(name, batch_limits(each.plugin), partial(self._send, each))
            for name, each in self._by_name.items()
            if NOTIFY_MANY in each.methods
        }
        breakers = {name: self._breaker(self._by_name[name]) for name in self.durable}
        self.holds = SharedBreakers(breakers, {name: (name,) for name in breakers})
        self._slots = slots
        # What waits in a batch has a slot of the queue too, which the others must not take.
        self._turns = asyncio.Semaphore(slots) if self._gathered else None

    @property
    def all(self) -> tuple[BoundPlugin, ...]:
        """The plugins themselves."""
        return tuple(self._by_name.values())

    @property
    def _gathered(self) -> list[Batches]:
        return [batches for name, batches in self._batches.items() if name in self.durable]

    @property
    def slots(self) -> int:
        """How many deliveries the queue hands over at once: each in a batch has one, and waits in it at no cost."""
        return self._slots + sum(batches.limits.size for batches in self._gathered)

    @property
    def longest_seconds(self) -> float:
        """How long one delivery may take, with what it waits for its turn or its batch."""
        waits = [each.limits.seconds for each in self._gathered]
        return self._seconds + (max(self._seconds, *waits) if waits else 0)

    async def notify(self, event: Mapping[str, Any], user_id: str, about: EventContext = EventContext()) -> None:
        """Hand the event to every notifier that is not durable, all at once; return when each has delivered, failed or
        used up its time.

        A failure is logged and counted, never raised; a notifier that fails in a row is held for a while.
        """
        told = [each for name, each in self._by_name.items() if name not in self.durable]
        if len(told) == 1:
            await self._notify(told[0], event, user_id, about)
        else:
            await asyncio.gather(*(self._notify(notifier, event, user_id, about) for notifier in told))

    async def deliver(
        self,
        name: str,
        event: Mapping[str, Any],
        user_id: str,
        delivery_id: str,
        trace_context: str = "",
        tries: str = "",
        about: EventContext = EventContext(),
    ) -> str | None:
        """Hand the event to that durable notifier and return what it said, if anything; RetryableJobError or
        PermanentJobError when it is not delivered.

        tries: the held notifier that is to be called all the same.
        """
        notifier = self._by_name.get(name)
        if notifier is None:
            raise PermanentJobError(f"The notifier {name!r} is not in use any more")
        async with self._turn(name):
            breaker = self._breaker(notifier)
            if name == tries:
                breaker.tries()
            elif not notifier.lets_through(self._method(notifier)):
                raise faults.held(name, breaker)
            notification = self._notification(event, user_id, about, delivery_id, trace_context)
            answer = await self._hand(notifier, notification)
        return clean(answer)[:LONGEST_RESPONSE] if isinstance(answer, str) and answer else None

    async def _notify(self, notifier: BoundPlugin, event: Mapping[str, Any], user_id: str, about: EventContext) -> None:
        if notifier.lets_through(self._method(notifier)):
            with suppress(JobError):
                # A copy each: what one does to its event must not reach another.
                await self._hand(notifier, self._notification(copy.deepcopy(event), user_id, about))

    async def _hand(self, notifier: BoundPlugin, notification: Notification) -> object:
        """Return what the notifier said; JobError when it was not told, which is logged then."""
        if (batches := self._batches.get(notifier.name)) is not None:
            return await batches.hand(notification)
        breaker = self._breaker(notifier)
        try:
            with self._tracing.call(notifier.kind, notifier.name, NOTIFY) as span:
                context = span.trace_context or notification.trace_context
                trace_of_call.set(context)
                traced = replace(notification, trace_context=context)
                answer = await notifier.call(NOTIFY, self._seconds, traced)
        except Exception as raised:
            error = faults.job_error(raised, notifier.name, RECEIVER)
            self._log(notifier, error, raised, assetId=notification.event.get("assetId"))
            faults.note(breaker, error, raised, counts=True)
            if error is raised:
                raise
            raise error from raised
        breaker.answered()
        return answer

    async def _send(self, notifier: BoundPlugin, batch: Sequence[Notification]) -> Sequence[object]:
        """Return what the notifier said of each notification, or the JobError that its delivery ends with."""
        breaker = self._breaker(notifier)
        try:
            called = await notifier.call(NOTIFY_MANY, self._seconds, tuple(batch))
            answers = self._checked(notifier, called, len(batch))
        except Exception as failure:
            answers = [failure] * len(batch)
        errors = [
            (faults.job_error(answer, notifier.name, RECEIVER), answer)
            for answer in answers
            if isinstance(answer, Exception)
        ]
        if errors:
            # One word for the whole batch: those that are in it must not count as so many failures in a row.
            error, raised = min(errors, key=lambda each: each[0].spends_attempt)
            self._log(notifier, error, raised, failed=len(errors), batch=len(batch))
        if len(errors) < len(batch):
            breaker.answered()
        elif errors:
            faults.note(breaker, error, raised, counts=True)
        ended = iter(errors)
        return [
            _ended(*next(ended), is_held=breaker.is_held) if isinstance(answer, Exception) else answer
            for answer in answers
        ]

    def _checked(self, notifier: BoundPlugin, answers: object, count: int) -> Sequence[object]:
        try:
            return checked_answers(answers, count)
        except TypeError:
            notifier.count_error(NOTIFY_MANY)
            raise

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """Wait until one that gets its events one by one may be told of another."""
        if self._turns is None or name in self._batches:
            yield
            return
        try:
            async with asyncio.timeout(self._seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise RetryableJobError(f"{RECEIVER} is busy", spends_attempt=False) from None
        try:
            yield
        finally:
            self._turns.release()

    def _notification(
        self,
        event: Mapping[str, Any],
        user_id: str,
        about: EventContext,
        delivery_id: str = "",
        trace_context: str = "",
    ) -> Notification:
        return Notification(
            event, user_id, self._rooms, delivery_id, trace_context, about.category, about.job_id, about.claims
        )

    def _method(self, notifier: BoundPlugin) -> str:
        return NOTIFY_MANY if notifier.name in self._batches else NOTIFY

    def _breaker(self, notifier: BoundPlugin) -> Breaker:
        return notifier.breaker(self._method(notifier))

    def _log(self, notifier: BoundPlugin, error: JobError, raised: Exception, **fields: Any) -> None:
        # A durable one is tried again, and what it comes to in the end is logged then.
        write = log.warning if notifier.name in self.durable else log.error
        names = {"plugin": notifier.name, "error": error.message, "cause": faults.cause_beside(error, raised)}
        write("notifier_failed", exc_info=raised, **names, **fields)


def _ended(error: JobError, raised: Exception, *, is_held: bool) -> JobError:
    """Return the error of one delivery of a batch. is_held: the notifier is held now."""
    if isinstance(error, RetryableJobError) and not is_held:
        # Its job waits by itself: nothing holds the others.
        error.provider = ""
    if error is not raised and error.__cause__ is None:
        error.__cause__ = raised
    return error
