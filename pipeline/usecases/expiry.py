"""Use case: assets and originals are removed after their retention time.

KEEP_ASSETS_DAYS after its end an asset is removed, as if it were deleted. KEEP_ORIGINALS_DAYS after its end its
original is removed: the result and the previews stay, but the photo cannot be analyzed again. Archived assets stay. A
lock in Redis lets one process at a time do it. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from pipeline.assets.asset import Asset
from pipeline.assets.store import AssetStore, when_finished
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.removing import Removing

log = structlog.get_logger(__name__)

PAGE = 100
# A round reads so many pages at most; the rest is due in the next round.
PAGES_PER_ROUND = 20
LOOK_SECONDS = (25.0, 35.0)
REST_SECONDS = 0.05
# Longer than a page takes. If the process dies, another one continues after that.
LOCK_SECONDS = 120.0
LOCK = "expiry"
Cursor = tuple[datetime, str]


class Due(Protocol):
    """AssetStore.expired or originals_before."""

    async def __call__(self, before: datetime, *, limit: int, after: Cursor | None = None) -> Sequence[Asset]:
        """Return one page of due assets."""


class Expiry:
    """Removes assets and originals that are due."""

    def __init__(
        self,
        store: AssetStore,
        queue: JobQueue,
        removing: Removing,
        orphaned_images: OrphanedImages,
        metrics: Metrics,
        *,
        keep_assets_days: float,
        keep_originals_days: float,
    ) -> None:
        """keep_assets_days, keep_originals_days: 0: for ever"""
        self._store = store
        self._queue = queue
        self._removing = removing
        self._orphaned_images = orphaned_images
        self._metrics = metrics
        self._keep_assets = timedelta(days=keep_assets_days)
        self._keep_originals = timedelta(days=keep_originals_days)
        self._id = secrets.token_hex(8)

    async def run(self) -> None:
        """Remove what is due, for ever; only wait when everything is kept."""
        if not (self._keep_assets or self._keep_originals):
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(random.uniform(*LOOK_SECONDS))
            try:
                await self.round()
            except DependencyUnavailable as error:
                log.warning("expiry_postponed", cause=cause_of(error))

    async def round(self) -> None:
        """Remove what is due, unless another process does; DependencyUnavailable when store or Redis is away."""
        if not await self._queue.acquire_lock(LOCK, self._id, LOCK_SECONDS):
            return
        if self._keep_assets:
            before = utc_now() - self._keep_assets
            await self._remove_due(self._store.expired, before, self._expire, "assets")
        if self._keep_originals:
            before = utc_now() - self._keep_originals
            await self._remove_due(self._store.originals_before, before, self._drop_original, "originals")

    async def _remove_due(
        self, due: Due, before: datetime, remove: Callable[[Asset, datetime], Awaitable[bool]], what: str
    ) -> None:
        removed, after = 0, None
        try:
            for _ in range(PAGES_PER_ROUND):
                page = await due(before, limit=PAGE, after=after)
                for asset in page:
                    removed += await remove(asset, before)
                if len(page) < PAGE or not await self._queue.acquire_lock(LOCK, self._id, LOCK_SECONDS):
                    return
                # After assets that stay because they were changed meanwhile.
                after = when_finished(page[-1])
                await asyncio.sleep(REST_SECONDS)
        finally:
            self._metrics.expired.labels(what).inc(removed)
            if removed:
                log.info("assets_expired", what=what, count=removed)

    async def _expire(self, asset: Asset, before: datetime) -> bool:
        return await self._removing.expire(asset, before)

    async def _drop_original(self, asset: Asset, before: datetime) -> bool:
        dropped = await self._store.drop_original(asset.id, asset.processing_job_id)
        if dropped is None:
            return False
        await self._orphaned_images.discard([name for name in [asset.original.name] if name])
        return True
