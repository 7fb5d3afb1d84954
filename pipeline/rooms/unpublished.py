"""Which assets have events that Redis does not have yet: the job that made such an event is not over.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from functools import partial


class Unpublished:
    """The newest such event of each asset. Redis gets the events of one asset in order, so the newest tells of all."""

    def __init__(self) -> None:
        self._events: dict[object, asyncio.Future[None]] = {}

    def add(self, asset_id: object, published: asyncio.Future[None]) -> None:
        """An event was published about the asset. asset_id: None for events about none."""
        if asset_id is not None and not published.done():
            self._events[asset_id] = published
            published.add_done_callback(partial(self._remove, asset_id))

    def of(self, asset_id: str) -> asyncio.Future[None] | None:
        """Return what is done when Redis has the asset's newest event; None when it has all."""
        return self._events.get(asset_id)

    def _remove(self, asset_id: object, published: asyncio.Future[None]) -> None:
        if self._events.get(asset_id) is published:
            del self._events[asset_id]
