"""Whether photos that are waited for get on. Pure.

A sign of progress is one that cannot repeat itself for ever: while a provider is away its jobs are started and given
back again and again, with the same attempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_IN_LINE = float("inf")


class Marks:
    """How far each photo has come."""

    def __init__(self) -> None:
        self._positions: dict[str, float] = {}
        self._attempts: dict[str, int] = {}
        self._shares: dict[str, tuple[int, float]] = {}

    def has_moved(self, asset_id: str, now: Mapping[str, Any]) -> bool:
        """Return whether the photo is further than ever before, by a progress frame or by the asset's `progress`."""
        has_moved = False
        position, attempt, share = now.get("position"), now.get("attempt"), now.get("share")
        if position is not None and position < self._positions.get(asset_id, NOT_IN_LINE):
            self._positions[asset_id] = position
            has_moved = True
        if attempt is not None and attempt > self._attempts.get(asset_id, 0):
            self._attempts[asset_id] = attempt
            has_moved = True
        reached = (self._attempts.get(asset_id, 0), share or 0.0)
        if share is not None and reached > self._shares.get(asset_id, (0, -1.0)):
            self._shares[asset_id] = reached
            has_moved = True
        return has_moved
