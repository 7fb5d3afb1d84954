"""Use case: a person corrects what the AI found, and the correction outlives later runs.

The AI's values stay in the document beside the corrections. So a correction can be taken back, and no later run needs
to know about corrections. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from pipeline.assets.asset import HISTORY_AT_MOST, Asset, AssetStatus, to_timestamp
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, NotFound

log = structlog.get_logger(__name__)

# A correction is tried so often while a run, or another correction, changes the asset at the same moment.
TRIES = 10
UNCHANGEABLE = (AssetStatus.DRAFT, AssetStatus.ARCHIVED)


class Corrections:
    """Corrects assets."""

    def __init__(self, store: AssetStore, on_corrected: Callable[[Asset], None] = lambda asset: None) -> None:
        """on_corrected: called with each corrected asset"""
        self._store = store
        self._on_corrected = on_corrected

    async def correct(self, asset_id: str, user_id: str, values: Mapping[str, str | None]) -> Asset:
        """Return the corrected asset.

        values: the value of each field, None to take a correction back
        NotFound: the user has no such asset. Conflict: it is a draft or archived.
        """
        for _ in range(TRIES):
            asset = await self._store.get(asset_id)
            if asset is None or asset.user_id != user_id:
                raise NotFound("Asset not found")
            if asset.status in UNCHANGEABLE:
                raise Conflict(f"An asset that is {asset.status.value} cannot be corrected")
            corrected = _corrected(asset, user_id, values)
            if corrected.corrections == asset.corrections and corrected.status is asset.status:
                return asset
            if (stored := await self._store.correct(asset, corrected)) is not None:
                log.info("asset_corrected", assetId=asset_id, fields=sorted(values))
                self._on_corrected(stored)
                return stored
        raise DependencyUnavailable("The asset is being changed all the time", retry_after_seconds=1)


async def settle_status(store: AssetStore, asset: Asset) -> Asset:
    """Return the finished asset with the status that its corrections require; some may have come during its run."""
    for _ in range(TRIES):
        due = asset.status_by_metadata()
        if not asset.is_finished or due is asset.status:
            return asset
        if (settled := await store.correct(asset, replace(asset, status=due))) is not None:
            return settled
        if (current := await store.get(asset.id)) is None:
            return asset
        asset = current
    return asset


def _corrected(asset: Asset, by: str, values: Mapping[str, str | None]) -> Asset:
    at = to_timestamp(utc_now())
    corrections, history = dict(asset.corrections), list(asset.history)
    for name, value in values.items():
        before = corrections.get(name, {}).get("value")
        if value == before:
            continue
        history.append({"field": name, "value": value, "before": before, "by": by, "at": at})
        if value is None:
            del corrections[name]
        else:
            corrections[name] = {"value": value, "by": by, "at": at}
    changed = replace(asset, corrections=corrections, history=tuple(history[-HISTORY_AT_MOST:]))
    return replace(changed, status=changed.status_by_metadata()) if asset.is_finished else changed
