"""The notifier `websocket`: publishes the event to its owner's room, and so to every open socket of the owner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pipeline.hooks import Notification, Notifier, hookimpl

if TYPE_CHECKING:
    from pipeline.settings import Settings


@hookimpl
def register_notifiers(settings: Settings) -> Iterator[tuple[str, Callable[[], Notifier]]]:
    """Offer `websocket`."""
    yield "websocket", WebSocketNotifier


class WebSocketNotifier:
    """Publishes to the room `user:<user id>`, on this process and on the others."""

    async def notify(self, notification: Notification) -> None:
        await notification.rooms.publish(f"user:{notification.user_id}", notification.event)
