"""The events that every server of the comparison emits, and their pace. No packages: the peers import it too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

SLICE = 100
PACE_SECONDS = 0.005
# The load client searches for this. Then follow 8 digits of the number, a space and 19 digits of nanoseconds.
MARK = b"Nike "


def make_value(number: int) -> str:
    """Return a text with the event's number and the current nanoseconds of CLOCK_MONOTONIC."""
    return f"Nike {number:08d} {time.monotonic_ns():019d}"


def make_event(number: int) -> dict[str, Any]:
    """Return an asset_processed event, 330 bytes as JSON; the brand's value is `make_value`."""
    return {
        "event": "asset_processed",
        "assetId": f"{number:024x}",
        "status": "active",
        "aiMetadata": {
            "brand": {"value": make_value(number), "confidence": 0.95},
            "model": {"value": "Air Max 90", "confidence": 0.88},
            "colorway": {"value": "Infrared", "confidence": 0.72},
        },
        "processedImageUrl": "https://images.example.com/65b9f0a4c2d1e3f4/processed-1.png",
        "timestamp": "2026-01-31T12:00:07.456Z",
    }


def room_of(number: int, users: int) -> str:
    """Return the room event `number` is for."""
    return f"user:user-{number % users}"


async def emit(send: Callable[[range], Awaitable[None]], count: int, rate: int, slice_size: int = SLICE) -> None:
    """Emit the events 0 to count - 1 in slices; `send` emits one slice.

    rate: events a second, in slices of 5 ms; 0 for slices of slice_size as fast as possible.
    """
    if not rate:
        for first in range(0, count, slice_size):
            await send(range(first, min(first + slice_size, count)))
            await asyncio.sleep(0)
        return
    started_at = time.monotonic()
    done = 0
    while done < count:
        due = min(count, int((time.monotonic() - started_at + PACE_SECONDS) * rate))
        await send(range(done, due))
        done = due
        await asyncio.sleep(started_at + done / rate - time.monotonic())
