"""Use case: results whose events have yet to reach the durable notifiers' queue.

A result is committed, then told. When the process dies in between, whoever gets the job next tells it; when Redis loses
the job as well, this record is all that says so. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

import structlog

from pipeline.assets.asset import AssetStatus
from pipeline.assets.events import asset_processed
from pipeline.assets.store import AssetStore
from pipeline.usecases.kept_jobs import Place

log = structlog.get_logger(__name__)

# Records of this kind are named by job id; notifying.py keeps and discards them.
KIND = "untold"
Announce = Callable[[Mapping[str, Any], str], Awaitable[None]]


class UntoldResults:
    """Finds them for the reconciler."""

    def __init__(self, store: AssetStore, announce: Announce) -> None:
        """announce: tells every notifier of an event of that user."""
        self._store = store
        self._announce = announce

    async def mend(self, before: datetime, after: Place | None, limit: int) -> tuple[int, Place | None]:
        """Tell what of one page is committed and was not told; see Source in reconciler.py."""
        page = await self._store.kept(KIND, limit=limit, after=after)
        ready = [kept for kept in page if kept.at < before]
        assets = {asset.id: asset for asset in await self._store.get_many({kept.data["assetId"] for kept in ready})}
        told = 0
        for kept in ready:
            asset = assets.get(kept.data["assetId"])
            if asset is not None and asset.processing_job_id == kept.id:
                if asset.status is AssetStatus.PROCESSING:
                    continue  # the run that comes next commits and tells
                if asset.is_finished:
                    await self._announce(asset_processed(asset), asset.user_id)
                    log.info("result_told_late", assetId=asset.id, jobId=kept.id)
                    told += 1
            await self._store.discard(KIND, kept.id)
        is_last = len(page) < limit or len(ready) < len(page)
        return told, None if is_last else (page[-1].at, page[-1].id)
