"""The payload of a push: the event as the service worker of a page gets it."""

from __future__ import annotations

import json

from pipeline.hooks import Notification

# Every push service accepts 4096 bytes; encryption and an old browser's padding need some of them.
MAX_PAYLOAD_BYTES = 3000
MAX_ERROR_LENGTH = 300


def encode(notification: Notification) -> bytes:
    """Return the event and the category as JSON, without fields that make it too large."""
    payload = {**notification.event, "category": notification.category}
    for left_out in ("", "processedImageUrl", "aiMetadata"):
        payload.pop(left_out, None)
        if isinstance(payload.get("error"), str):
            payload["error"] = payload["error"][:MAX_ERROR_LENGTH]
        text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= MAX_PAYLOAD_BYTES:
            break
    return text
