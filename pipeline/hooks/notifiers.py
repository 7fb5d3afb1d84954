"""Delivers events to the notifiers in use: to the durable ones by jobs of their own, to the others at once and once.

A notifier that fails several times in a row is held for a while; the others are not. A notifier with `notify_many` gets
many events in one call (batches.py). Runs on the event loop.
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
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.context import trace_of_call
from pipeline.hooks.notifier_protocol import Notification, RoomPublisher
from pipeline.texts import clean
from pipeline.tracing import Tracing

log = structlog.get_logger(__name__)

# Slots of this process for durable notifiers: as many as jobs have by default, and never taken from those.
SLOTS = 5
RECEIVER = "Receiver"
# Of the receiver's answer as it is stored.
LONGEST_RESPONSE = 200
NOTIFY, NOTIFY_MANY = "notify", "notify_many"


@dataclass(frozen=True, slots=True)
class EventContext:
    """The fields of a notification beside its event; see Notification."""

    category: str = ""
    job_id: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Notifiers:
    """All notifiers in use.

    durable: the names of those whose events are jobs, for `deliver`.
    holds: the breakers of the durable ones, for the exchange with other processes.
    """

    def __init__(
        self,
        notifiers: Iterable[BoundPlugin],
        rooms: RoomPublisher,
        seconds: float,
        tracing: Tracing,
        slots: int = SLOTS,
    ) -> None:
        """seconds: how long one call may take.
        slots: how many durable deliveries run at once, not counting those in batches.
        """
        self._by_name = {notifier.name: notifier for notifier in notifiers}
        self._rooms = rooms
        self._seconds = seconds
        self._tracing = tracing
        self.durable = tuple(name for name, each in self._by_name.items() if getattr(each.plugin, "durable", False))
        self._batches = {
            name: Batches(name, batch_limits(each.plugin), partial(self._send_batch, each))
            for name, each in self._by_name.items()
            if NOTIFY_MANY in each.methods
        }
        breakers = {name: self._breaker(self._by_name[name]) for name in self.durable}
        self.holds = SharedBreakers(breakers, {name: (name,) for name in breakers})
        self._slots = slots
        # Deliveries that wait in a batch occupy slots of the queue too. Without this semaphore single deliveries could
        # use all of these slots.
        self._single_slots = asyncio.Semaphore(slots) if self._durable_batches else None

    @property
    def all(self) -> tuple[BoundPlugin, ...]:
        """The plugins of all notifiers."""
        return tuple(self._by_name.values())

    @property
    def _durable_batches(self) -> list[Batches]:
        return [batches for name, batches in self._batches.items() if name in self.durable]

    @property
    def slots(self) -> int:
        """How many deliveries the queue starts at once: each delivery in a batch has a slot, and waits at no cost."""
        return self._slots + sum(batches.limits.size for batches in self._durable_batches)

    @property
    def longest_seconds(self) -> float:
        """How long one delivery may take, including the wait for a slot or a batch."""
        waits = [batches.limits.seconds for batches in self._durable_batches]
        return self._seconds + (max(self._seconds, *waits) if waits else 0)

    async def notify(self, event: Mapping[str, Any], user_id: str, context: EventContext = EventContext()) -> None:
        """Deliver the event to every notifier that is not durable, all at once; return when each has delivered, failed
        or used up its time.

        A failure is logged and counted, never raised; a notifier that fails in a row is held for a while.
        """
        notifiers = [notifier for name, notifier in self._by_name.items() if name not in self.durable]
        if len(notifiers) == 1:
            await self._notify(notifiers[0], event, user_id, context)
        else:
            await asyncio.gather(*(self._notify(notifier, event, user_id, context) for notifier in notifiers))

    async def deliver(
        self,
        name: str,
        event: Mapping[str, Any],
        user_id: str,
        delivery_id: str,
        trace_context: str = "",
        tries: str = "",
        context: EventContext = EventContext(),
    ) -> str | None:
        """Deliver the event to that durable notifier and return the receiver's answer, if there is one;
        RetryableJobError or PermanentJobError when it is not delivered.

        tries: the held notifier that this job tries.
        """
        notifier = self._by_name.get(name)
        if notifier is None:
            raise PermanentJobError(f"The notifier {name!r} is not in use any more")
        async with self._slot(name):
            breaker = self._breaker(notifier)
            if name == tries:
                breaker.tries()
            elif not notifier.lets_through(self._method(notifier)):
                raise faults.held_error(name, breaker)
            notification = self._notification(event, user_id, context, delivery_id, trace_context)
            answer = await self._send(notifier, notification)
        return clean(answer)[:LONGEST_RESPONSE] if isinstance(answer, str) and answer else None

    async def _notify(
        self, notifier: BoundPlugin, event: Mapping[str, Any], user_id: str, context: EventContext
    ) -> None:
        if notifier.lets_through(self._method(notifier)):
            with suppress(JobError):
                # A copy for each notifier: a change by one must not reach another.
                await self._send(notifier, self._notification(copy.deepcopy(event), user_id, context))

    async def _send(self, notifier: BoundPlugin, notification: Notification) -> object:
        """Return the notifier's answer; log and raise a JobError when the notification is not delivered."""
        if (batches := self._batches.get(notifier.name)) is not None:
            return await batches.deliver(notification)
        breaker = self._breaker(notifier)
        try:
            with self._tracing.call(notifier.kind, notifier.name, NOTIFY) as span:
                trace_context = span.trace_context or notification.trace_context
                trace_of_call.set(trace_context)
                traced = replace(notification, trace_context=trace_context)
                answer = await notifier.call(NOTIFY, self._seconds, traced)
        except Exception as raised:
            error = faults.job_error(raised, notifier.name, RECEIVER)
            self._log(notifier, error, raised, assetId=notification.event.get("assetId"))
            faults.record_failure(breaker, error, raised, counts=True)
            if error is raised:
                raise
            raise error from raised
        breaker.answered()
        return answer

    async def _send_batch(self, notifier: BoundPlugin, batch: Sequence[Notification]) -> Sequence[object]:
        """Return for each notification the notifier's answer, or the JobError of its delivery."""
        breaker = self._breaker(notifier)
        try:
            result = await notifier.call(NOTIFY_MANY, self._seconds, tuple(batch))
            answers = _checked(notifier, result, len(batch))
        except Exception as failure:
            answers = [failure] * len(batch)
        errors = [
            (faults.job_error(answer, notifier.name, RECEIVER), answer)
            for answer in answers
            if isinstance(answer, Exception)
        ]
        if errors:
            # One failure for the batch: its deliveries must not count as several failures in a row.
            error, raised = min(errors, key=lambda pair: pair[0].spends_attempt)
            self._log(notifier, error, raised, failed=len(errors), batch=len(batch))
        if len(errors) < len(batch):
            breaker.answered()
        elif errors:
            faults.record_failure(breaker, error, raised, counts=True)
        errors_left = iter(errors)
        return [
            _delivery_error(*next(errors_left), is_held=breaker.is_held) if isinstance(answer, Exception) else answer
            for answer in answers
        ]

    @asynccontextmanager
    async def _slot(self, name: str) -> AsyncIterator[None]:
        """Wait for a slot for a single delivery; deliveries in batches need none."""
        if self._single_slots is None or name in self._batches:
            yield
            return
        try:
            async with asyncio.timeout(self._seconds):
                await self._single_slots.acquire()
        except TimeoutError:
            raise RetryableJobError(f"{RECEIVER} is busy", spends_attempt=False) from None
        try:
            yield
        finally:
            self._single_slots.release()

    def _notification(
        self,
        event: Mapping[str, Any],
        user_id: str,
        context: EventContext,
        delivery_id: str = "",
        trace_context: str = "",
    ) -> Notification:
        return Notification(
            event, user_id, self._rooms, delivery_id, trace_context, context.category, context.job_id, context.claims
        )

    def _method(self, notifier: BoundPlugin) -> str:
        return NOTIFY_MANY if notifier.name in self._batches else NOTIFY

    def _breaker(self, notifier: BoundPlugin) -> Breaker:
        return notifier.breaker(self._method(notifier))

    def _log(self, notifier: BoundPlugin, error: JobError, raised: Exception, **fields: Any) -> None:
        # A durable notifier is tried again, and the final outcome is logged then.
        write = log.warning if notifier.name in self.durable else log.error
        names = {"plugin": notifier.name, "error": error.message, "cause": faults.cause_beside(error, raised)}
        write("notifier_failed", exc_info=raised, **names, **fields)


def _delivery_error(error: JobError, raised: Exception, *, is_held: bool) -> JobError:
    """Return the error of one delivery of a batch. is_held: the notifier is held now."""
    if isinstance(error, RetryableJobError) and not is_held:
        # Only this job waits: the deliveries of other users must not be held.
        error.provider = ""
    if error is not raised and error.__cause__ is None:
        error.__cause__ = raised
    return error


def _checked(notifier: BoundPlugin, answers: object, count: int) -> Sequence[object]:
    try:
        return checked_answers(answers, count)
    except TypeError:
        notifier.count_error(NOTIFY_MANY)
        raise
