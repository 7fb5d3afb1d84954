"""The text of an event stream: frames as server-sent events, with the client's cursor as `id:`. Pure.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# A cursor as the service writes it.
CURSOR = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
EVENT_NAME = re.compile(r"[^\r\n\0]+")


class EventStreamText:
    """Formats frames for one client, and knows the client's cursor.

    cursor: the instant up to which the client has all events, "" for none. It never goes back.
    """

    def __init__(self) -> None:
        self.cursor = ""

    def event(self, payload: bytes) -> str:
        """Return a frame, which is JSON, as a server-sent event."""
        event = json.loads(payload)
        name = event.get("event")
        lines = [*self._id_lines(event), f"data: {payload.decode()}"]
        if isinstance(name, str) and EVENT_NAME.fullmatch(name):
            lines.insert(0, f"event: {name}")
        if name == "goodbye" and isinstance(event.get("retryInMs"), int):  # a plugin's event may have the same name
            lines.insert(0, f"retry: {event['retryInMs']}")
        return "\n".join([*lines, "", ""])

    def heartbeat(self, now: str | None) -> str:
        """Return a comment, with `now` as the new cursor.

        now: None while an event may still be on its way to the client.
        """
        if now is None:
            return ":\n\n"
        self.cursor = max(self.cursor, now)
        return f":\nid: {self.cursor}\n\n"

    def _id_lines(self, event: dict[str, Any]) -> Iterator[str]:
        """Yield the line with the new cursor, if the event moves it.

        `connected` moves it only for a client without a cursor: other clients still get their missed events.
        """
        if event.get("event") == "connected":
            instant = "" if self.cursor else event["serverTime"]
        else:
            instant = event.get("timestamp") if event.get("event") == "asset_processed" else ""
        if isinstance(instant, str) and CURSOR.fullmatch(instant) and instant > self.cursor:
            self.cursor = instant
            yield f"id: {instant}"
