"""Use case: small pictures of a photo, for whoever shows it: upright, in sRGB, as WebP, so that also a HEIC is seen.

They are made beside the analysis, in a child that gives way to everything else. None of what goes wrong with them fails
a job, or keeps it for long. Those of an attempt that fails are for the next one, or for the asset that has failed.
Those that nobody waits for any more are removed by the sweeper (retention.py). Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog

from pipeline.assets.asset import PREVIEW_SIDES, Asset, ImageRef, preview_public_id
from pipeline.metrics import Metrics
from pipeline.sandbox import Preview
from pipeline.supervision import cancel
from pipeline.texts import cause_of
from pipeline.usecases.storage import StoredImages

log = structlog.get_logger(__name__)

CONTENT_TYPE = "image/webp"
# All of it: reading the photo, waiting for a child, decoding, storing. A large photo needs a second or two.
LONGEST_SECONDS = 20.0
# What a result waits for them when there is nothing else to wait for. Half of it after each that were late, all of it
# after some that were not: a machine that cannot keep up delays a burst of results by seconds, not each of them.
MAX_WAIT_SECONDS = 5.0
# How many jobs may have previews that nobody has taken: another process may make a failed job's next attempt.
KEPT_AT_MOST = 1000
ReadImage = Callable[[], Awaitable[bytes]]
Making = asyncio.Task[Mapping[str, ImageRef] | None]


class PreviewMaker(Protocol):
    """Makes the pictures; sandbox/sandbox.py has it."""

    async def previews(self, content: bytes, sides: Sequence[int]) -> Sequence[Preview]:
        """Return the photo in those sizes; PermanentJobError or RetryableJobError when that fails."""


class Previews:
    """Makes previews and stores them."""

    def __init__(
        self,
        storage: StoredImages,
        maker: PreviewMaker | None,
        metrics: Metrics,
        *,
        seconds: float = LONGEST_SECONDS,
        wait_seconds: float = MAX_WAIT_SECONDS,
    ) -> None:
        """maker: None makes none.

        seconds: how long making them may take.
        patience_seconds: how long a job waits for them that has nothing else to do.
        """
        self._storage = storage
        self._maker = maker
        self._metrics = metrics
        self._seconds = seconds
        self._wait_seconds = self._left_seconds = wait_seconds
        self._making: dict[str, Making] = {}

    def begin(self, asset: Asset, read_image: ReadImage) -> None:
        """Make the asset's previews, unless it has some, or they are on their way or made since an earlier attempt."""
        if self._maker is None or asset.previews or not asset.has_original:
            return
        if (making := self._making.pop(asset.id, None)) and (not making.done() or _result(making)):
            self._making[asset.id] = making
            return
        self._making[asset.id] = asyncio.create_task(
            self._make(self._maker, asset, read_image), name=f"previews of {asset.id}"
        )
        if len(self._making) > KEPT_AT_MOST:
            del self._making[next(iter(self._making))]

    async def take(self, asset: Asset) -> Mapping[str, ImageRef] | None:
        """Return the previews that were begun, when they are ready soon; None otherwise."""
        making = self._making.get(asset.id)
        if making is None:
            return None
        await asyncio.wait([making], timeout=self._left_seconds)
        if self._making.get(asset.id) is making:
            del self._making[asset.id]
        if making.done():
            self._left_seconds = self._wait_seconds
            return _result(making)
        self._left_seconds /= 2
        await cancel([making])
        self._note("late", asset, TimeoutError())
        return None

    async def drop(self, asset: Asset) -> None:
        """End what was begun, and forget it."""
        if making := self._making.pop(asset.id, None):
            await cancel([making])

    async def _make(
        self, maker: PreviewMaker, asset: Asset, read_image: ReadImage
    ) -> Mapping[str, ImageRef] | None:
        try:
            async with asyncio.timeout(self._seconds):
                found = await maker.previews(await read_image(), PREVIEW_SIDES)
                stored = await asyncio.gather(*(self._store(asset, preview) for preview in found))
        # Also what a storage's plugin raises by mistake: the result is worth more than its previews.
        except Exception as error:
            outcome = "late" if isinstance(error, TimeoutError) else "failed"
            self._note(outcome, asset, error)
            return None
        self._metrics.previews.labels("made").inc()
        return dict(stored)

    def _note(self, outcome: str, asset: Asset, error: Exception) -> None:
        self._metrics.previews.labels(outcome).inc()
        log.warning("previews_not_made", assetId=asset.id, outcome=outcome, cause=cause_of(error))

    async def _store(self, asset: Asset, preview: Preview) -> tuple[str, ImageRef]:
        public_id = preview_public_id(asset.id, preview.side)
        saved = await self._storage.save(public_id, io.BytesIO(preview.content), CONTENT_TYPE)
        return str(preview.side), ImageRef(
            backend=saved.backend,
            public_id=public_id,
            url=saved.url,
            sha256=hashlib.sha256(preview.content).hexdigest(),
            bytes=len(preview.content),
            width=preview.width,
            height=preview.height,
            content_type=CONTENT_TYPE,
        )


def _result(making: Making) -> Mapping[str, ImageRef] | None:
    """Return what was made; None when another run of the same job has ended it."""
    return None if making.cancelled() else making.result()
