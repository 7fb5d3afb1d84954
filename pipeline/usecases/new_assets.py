"""Assets that this process has just inserted, for the first start of their jobs.

Every start of a job takes a fence from the asset's document, so that a run that was overtaken commits nothing. Only
the very first has nobody to overtake. In the process that took the upload it runs on the asset as inserted, and commits
under its fence, 0: whoever starts the job after that takes a fence, and from then on 0 commits nothing either. That is
one write less for most photos. What is not known here, or is no first start, takes a fence like all others.
"""

from __future__ import annotations

import time

from pipeline.assets.asset import Asset
from pipeline.queue.job import Job

# About two megabytes.
MOST = 1000
# Where other processes take the jobs, an asset is not kept for longer when room is needed.
KEEP_SECONDS = 60.0


class NewAssets:
    """The assets, each for one start."""

    def __init__(self, most: int = MOST) -> None:
        """most: so many are remembered; those that come when there is no room take a fence."""
        self._most = most
        # By job id, the oldest first, with the time (time.monotonic()) at which it came.
        self._assets: dict[str, tuple[Asset, float]] = {}

    def add(self, asset: Asset) -> None:
        """Remember an asset that has just been inserted."""
        now = time.monotonic()
        if len(self._assets) >= self._most:
            oldest = next(iter(self._assets), None)
            if oldest is None or now - self._assets[oldest][1] < KEEP_SECONDS:
                return
            del self._assets[oldest]
        self._assets[asset.processing_job_id] = asset, now

    def take(self, job: Job) -> Asset | None:
        """Return the asset of a job that nobody has started before and forget it; None when a fence has to be taken."""
        asset, _ = self._assets.pop(job.id, (None, 0.0))
        return asset if job.is_first else None

    def drop(self, job_id: str) -> None:
        """Forget the asset of that job, which has been cancelled or deleted."""
        self._assets.pop(job_id, None)

    def clear(self) -> None:
        """Forget all: nobody knows what has become of them."""
        self._assets.clear()
