"""Whether waiting photos make progress. Pure.

Only a step that cannot repeat for ever is progress. While a provider is down, its jobs start and are postponed again
and again with the same attempt: that is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_QUEUED = float("inf")


class Marks:
    """The furthest step of each photo."""

    def __init__(self) -> None:
        self._positions: dict[str, float] = {}
        self._attempts: dict[str, int] = {}
        self._shares: dict[str, tuple[int, float]] = {}

    def has_moved(self, asset_id: str, now: Mapping[str, Any]) -> bool:
        """Return whether the photo is further than ever before.

        now: a progress frame, or the asset's `progress`.
        """
        has_moved = False
        position, attempt, share = now.get("position"), now.get("attempt"), now.get("share")
        if position is not None and position < self._positions.get(asset_id, NOT_QUEUED):
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
