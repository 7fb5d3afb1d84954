"""Assets that this process has just inserted, for the first start of their jobs.

Every start of a job takes a fence from the asset's document, so that a run that was overtaken commits nothing. Only the
very first start overtakes no run. In the process that accepted the upload it uses the asset as inserted, with fence 0,
which saves one write for most photos. A later start takes a fence, and from then on a commit with fence 0 has no
effect. Any other start, and that of an asset that is not known here, takes a fence.
"""

from __future__ import annotations

import time

from pipeline.assets.asset import Asset
from pipeline.queue.job import Job

# About two megabytes.
MOST = 1000
# An asset older than this is forgotten when room is needed: another process has probably claimed its job.
FRESH_SECONDS = 60.0


class NewAssets:
    """New assets, each for one start."""

    def __init__(self, most: int = MOST) -> None:
        """most: so many are remembered; assets that find no room take a fence"""
        self._most = most
        # By job id, the oldest first: the asset, and when it was added (time.monotonic()).
        self._assets: dict[str, tuple[Asset, float]] = {}

    def add(self, asset: Asset) -> None:
        """Remember an asset that has just been inserted."""
        now = time.monotonic()
        if len(self._assets) >= self._most:
            oldest = next(iter(self._assets), None)
            if oldest is None or now - self._assets[oldest][1] < FRESH_SECONDS:
                return
            del self._assets[oldest]
        self._assets[asset.processing_job_id] = asset, now

    def take(self, job: Job) -> Asset | None:
        """Return and forget the asset of a job at its first start; None when a fence has to be taken."""
        asset, _ = self._assets.pop(job.id, (None, 0.0))
        return asset if job.is_first else None

    def drop(self, job_id: str) -> None:
        """Forget the asset of that job, which was cancelled or deleted."""
        self._assets.pop(job_id, None)

    def clear(self) -> None:
        """Forget all assets: they may have changed."""
        self._assets.clear()
