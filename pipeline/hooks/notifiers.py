"""Tells the notifiers in use of events: the durable ones by jobs of their own, the others at once and once.

One that fails in a row is held for a while, and no other one with it. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from pipeline.errors import PermanentJobError
from pipeline.hooks import faults
from pipeline.hooks.breaker import SharedBreakers
from pipeline.hooks.calls import BoundPlugin
from pipeline.hooks.context import trace_of_call
from pipeline.hooks.protocols import Notification, RoomPublisher
from pipeline.texts import cause_of, clean
from pipeline.tracing import Tracing

log = structlog.get_logger(__name__)

RECEIVER = "Receiver"
# What is kept of what a receiver said.
LONGEST_RESPONSE = 200


class Notifiers:
    """All notifiers. holds: the durable ones that are not called for now, to be shared."""

    def __init__(
        self, notifiers: Iterable[BoundPlugin], rooms: RoomPublisher, seconds: float, tracing: Tracing
    ) -> None:
        """seconds: how long one call may take."""
        self._by_name = {notifier.name: notifier for notifier in notifiers}
        self._rooms = rooms
        self._seconds = seconds
        self._tracing = tracing
        # Those whose events are to be jobs, for `deliver`.
        self.durable = tuple(name for name, each in self._by_name.items() if getattr(each.plugin, "durable", False))
        breakers = {name: self._by_name[name].breaker("notify") for name in self.durable}
        self.holds = SharedBreakers(breakers, {name: (name,) for name in breakers})

    @property
    def all(self) -> tuple[BoundPlugin, ...]:
        """The plugins themselves."""
        return tuple(self._by_name.values())

    async def notify(self, event: Mapping[str, Any], user_id: str) -> None:
        """Hand the event to every notifier that is not durable, all at once; return when each has delivered, failed or
        used up its time.

        A failure is logged and counted, never raised; a notifier that fails in a row is held for a while.
        """
        told = [each for name, each in self._by_name.items() if name not in self.durable]
        await asyncio.gather(*(self._notify(notifier, event, user_id) for notifier in told))

    async def deliver(
        self,
        name: str,
        event: Mapping[str, Any],
        user_id: str,
        delivery_id: str,
        trace_context: str = "",
        tries: str = "",
    ) -> str | None:
        """Hand the event to that durable notifier and return what it said, if anything; RetryableJobError or
        PermanentJobError when it is not delivered.

        tries: the held notifier that is to be called all the same.
        """
        notifier = self._by_name.get(name)
        if notifier is None:
            raise PermanentJobError(f"The notifier {name!r} is not in use any more")
        breaker = notifier.breaker("notify")
        if name == tries:
            breaker.tries()
        elif not notifier.lets_through("notify"):
            raise faults.held(name, breaker)
        try:
            answer = await self._call(notifier, event, user_id, delivery_id, trace_context)
        except Exception as raised:
            error = faults.job_error(raised, name, RECEIVER)
            log.warning("notifier_failed", plugin=name, error=error.message, cause=cause_of(raised), exc_info=True)
            faults.note(breaker, error, raised, counts=True)
            if error is raised:
                raise
            raise error from raised
        breaker.answered()
        return clean(answer)[:LONGEST_RESPONSE] if isinstance(answer, str) and answer else None

    async def _notify(self, notifier: BoundPlugin, event: Mapping[str, Any], user_id: str) -> None:
        breaker = notifier.breaker("notify")
        if not notifier.lets_through("notify"):
            return
        try:
            # A copy each: what one does to its event must not reach another.
            await self._call(notifier, copy.deepcopy(event), user_id)
        except Exception as raised:
            names = {"plugin": notifier.name, "assetId": event.get("assetId")}
            log.error("notifier_failed", cause=cause_of(raised), exc_info=True, **names)
            faults.note(breaker, faults.job_error(raised, notifier.name, RECEIVER), raised, counts=True)
        else:
            breaker.answered()

    async def _call(
        self,
        notifier: BoundPlugin,
        event: Mapping[str, Any],
        user_id: str,
        delivery_id: str = "",
        trace_context: str = "",
    ) -> object:
        with self._tracing.call(notifier.kind, notifier.name, "notify") as span:
            context = span.trace_context or trace_context
            trace_of_call.set(context)
            notification = Notification(event, user_id, self._rooms, delivery_id, context)
            return await notifier.call("notify", self._seconds, notification)
