"""A notifier: its methods and the notification it delivers. Pure. How methods are written: provider_protocol.py."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class RoomPublisher(Protocol):
    """Publishes to rooms; a notifier can do nothing else with them."""

    async def publish(self, room: str, event: Mapping[str, Any]) -> None:
        """Send the event to every socket in the room, on this process and on the others."""


@dataclass(frozen=True, slots=True)
class Notification:
    """An event for its owner.

    event: the payload of contracts/asset-processed-event.schema.json; do not change it.
    delivery_id: the same for every repetition to one notifier.
    trace_context: the value for the `traceparent` header, or "".
    category: of the photo, "" when it is not known any more.
    job_id: of the job that made the result, "" when another job has run since.
    claims: the claims of USER_CLAIMS that the token of the upload had, by name.
    """

    event: Mapping[str, Any]
    user_id: str
    rooms: RoomPublisher
    delivery_id: str = ""
    trace_context: str = ""
    category: str = ""
    job_id: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Notifier(Protocol):
    """Notifies the owner, or another system on the owner's behalf, that an asset is finished.

    Optional attribute: `durable = True` makes each event a job of a queue of its own, with retries over hours and dead
    letters; use it for receivers in a network. Without it an event gets one try. Optional methods: `close()`,
    `check()`, and `notify_many` (see BatchNotifier).
    """

    def notify(self, notification: Notification) -> str | None | Awaitable[str | None]:
        """Deliver the event; the same event may come again. An exception is logged and counted and does not affect
        other notifiers.

        A durable notifier raises PermanentJobError when no further try can help. It may return the receiver's answer,
        such as "HTTP 200", for the operators' list of deliveries.
        """


class BatchNotifier(Protocol):
    """An optional method of a Notifier, for receivers that take many events in one request. With it the service does
    not call `notify`.

    Optional attributes: `batch_size`, the most events in one call (default 50); `batch_seconds`, how long the first of
    them waits for others (default 0.2). A durable notifier gets full batches, however few slots there are.
    """

    def notify_many(
        self, notifications: Sequence[Notification]
    ) -> Sequence[None | str | Exception] | None | Awaitable[Sequence[None | str | Exception] | None]:
        """Deliver the events, within the time of one `notify`. Return for each, in order, what `notify` would return or
        the exception that it would raise: a RetryableJobError there delays this delivery alone. None: all are
        delivered. An exception that is raised concerns all of them.
        """
