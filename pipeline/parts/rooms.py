"""The rooms of this process, and the connection to those of the other processes."""

from __future__ import annotations

from pipeline.parts.base import BaseParts
from pipeline.rooms.fanout import RoomFanout
from pipeline.rooms.rooms import Rooms
from pipeline.rooms.tickets import Tickets


class RoomParts:
    """Rooms, their fanout over all processes, and the tickets of event streams."""

    def __init__(self, base: BaseParts) -> None:
        settings = base.settings
        self.rooms = Rooms(max_bytes=settings.outbox_bytes, metrics=base.metrics)
        self.fanout = RoomFanout(
            self.rooms,
            base.redis_url,
            metrics=base.metrics,
            prefix=settings.queue_prefix,
            supervisor=base.supervisor,
        )
        self.tickets = Tickets(base.redis_url, prefix=settings.queue_prefix)
