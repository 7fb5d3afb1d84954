"""Sample events and photos for the suites, and the rooms that plugins may publish to. Pure."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any

# The smallest complete GIF: one transparent pixel.
GIF = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
ASSET_ID = "65f0c0ffee65f0c0ffee65f0"
JOB_ID = f"ai-processing:{ASSET_ID}"
UNKNOWN_CATEGORY = "unknown-to-all"
TIMESTAMP = "2026-01-31T12:00:00.123Z"
SUCCESS_EVENT = {
    "event": "asset_processed",
    "assetId": ASSET_ID,
    "status": "active",
    "aiMetadata": {
        "brand": {"value": "Nike", "confidence": 0.93},
        "model": {"value": "Air Max 90", "confidence": 0.88},
    },
    "processedImageUrl": "https://images.example/processed.webp",
    "timestamp": TIMESTAMP,
}
FAILURE_EVENT = {
    "event": "asset_processed",
    "assetId": "65f0c0ffee65f0c0ffee65f1",
    "status": "failed",
    "error": "AI service unavailable after 3 attempts",
    "timestamp": TIMESTAMP,
}


class RecordingRooms:
    """A RoomPublisher that records the published events.

    published: (room, event) of each.
    asked: how often `publish` was called, awaited or not.
    """

    def __init__(self) -> None:
        self.published: list[tuple[str, Mapping[str, Any]]] = []
        self.asked = 0

    def publish(self, room: str, event: Mapping[str, Any]) -> Coroutine[Any, Any, None]:
        """Record the event when the result is awaited."""
        self.asked += 1
        return self._publish(room, event)

    async def _publish(self, room: str, event: Mapping[str, Any]) -> None:
        self.published.append((room, event))
