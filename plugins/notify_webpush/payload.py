"""What the service worker of a page gets of an event."""

from __future__ import annotations

import json

from pipeline.hooks import Notification

# Of what every push service takes, 4096 bytes, encryption and an old browser's padding need some.
MAX_PAYLOAD_BYTES = 3000
MAX_ERROR_LENGTH = 300


def encode(notification: Notification) -> bytes:
    """Return what the page's service worker gets: the event and the category, without what is too large."""
    said = {**notification.event, "category": notification.category}
    for left_out in ("", "processedImageUrl", "aiMetadata"):
        said.pop(left_out, None)
        if isinstance(said.get("error"), str):
            said["error"] = said["error"][:MAX_ERROR_LENGTH]
        text = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= MAX_PAYLOAD_BYTES:
            break
    return text
