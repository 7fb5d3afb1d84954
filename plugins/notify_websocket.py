"""Notifier `websocket`: the event goes to the owner's room, and so to every open socket of that user on any process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pipeline.hooks import Notification, Notifier, hookimpl


class WebSocketNotifier:
    """Publishes to the room `user:<id>`; what happens to a slow socket there is the room's business."""

    async def notify(self, notification: Notification) -> None:
        await notification.rooms.publish(f"user:{notification.user_id}", notification.event)


@hookimpl
def register_notifiers(settings: Any) -> Iterable[tuple[str, Callable[[], Notifier]]]:
    """Offer the notifier as `websocket`."""
    yield "websocket", WebSocketNotifier
