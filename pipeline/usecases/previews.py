"""Use case: previews of a photo: small, upright, in sRGB, as WebP, so that browsers can show every format, HEIC too.

They are made during the analysis, in a child process of low priority. A failure of previews neither fails a job nor
delays it for long. The previews of a failed attempt are for the next attempt, or for the failed asset. Previews that no
asset names are removed by the sweeper (retention.py). Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog

from pipeline.assets.asset import PREVIEW_SIDES, Asset, ImageRef
from pipeline.assets.asset_ids import preview_public_id
from pipeline.metrics import Metrics
from pipeline.sandbox import Preview
from pipeline.supervision import cancel
from pipeline.texts import cause_of
from pipeline.usecases.storage import StoredImages

log = structlog.get_logger(__name__)

CONTENT_TYPE = "image/webp"
# For all steps: reading the photo, waiting for a child, decoding, storing. A large photo needs a second or two.
LONGEST_SECONDS = 20.0
# A result waits so long for its previews. Half as long after each time they were late, and all of it again when they
# were not: on a slow machine a burst of results is delayed by seconds in all, not each result.
MAX_WAIT_SECONDS = 5.0
# So many jobs may have previews that are not used yet: another process may start a failed job's next attempt.
UNUSED_AT_MOST = 1000
ReadImage = Callable[[], Awaitable[bytes]]
Making = asyncio.Task[Mapping[str, ImageRef] | None]


class PreviewMaker(Protocol):
    """Makes previews; sandbox/sandbox.py has it."""

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
        """maker: None: no previews
        seconds: how long making them may take
        wait_seconds: how long a finished analysis waits for them
        """
        self._storage = storage
        self._maker = maker
        self._metrics = metrics
        self._seconds = seconds
        self._wait_seconds = self._current_wait_seconds = wait_seconds
        self._making: dict[str, Making] = {}

    def begin(self, asset: Asset, read_image: ReadImage) -> None:
        """Make the asset's previews, unless it has some, or an earlier attempt has begun to make them."""
        if self._maker is None or asset.previews or not asset.has_original:
            return
        if (making := self._making.pop(asset.id, None)) and (not making.done() or _result(making)):
            self._making[asset.id] = making
            return
        self._making[asset.id] = asyncio.create_task(
            self._make(self._maker, asset, read_image), name=f"previews of {asset.id}"
        )
        if len(self._making) > UNUSED_AT_MOST:
            del self._making[next(iter(self._making))]

    async def take(self, asset: Asset) -> Mapping[str, ImageRef] | None:
        """Return the previews if they are ready soon; None otherwise."""
        making = self._making.get(asset.id)
        if making is None:
            return None
        await asyncio.wait([making], timeout=self._current_wait_seconds)
        if self._making.get(asset.id) is making:
            del self._making[asset.id]
        if making.done():
            self._current_wait_seconds = self._wait_seconds
            return _result(making)
        self._current_wait_seconds /= 2
        await cancel([making])
        self._record_failure("late", asset, TimeoutError())
        return None

    async def drop(self, asset: Asset) -> None:
        """Stop making the asset's previews."""
        if making := self._making.pop(asset.id, None):
            await cancel([making])

    async def _make(self, maker: PreviewMaker, asset: Asset, read_image: ReadImage) -> Mapping[str, ImageRef] | None:
        try:
            async with asyncio.timeout(self._seconds):
                previews = await maker.previews(await read_image(), PREVIEW_SIDES)
                stored = await asyncio.gather(*(self._store(asset, preview) for preview in previews))
        # Any error, also one of a storage plugin: the result matters more than its previews.
        except Exception as error:
            outcome = "late" if isinstance(error, TimeoutError) else "failed"
            self._record_failure(outcome, asset, error)
            return None
        self._metrics.previews.labels("made").inc()
        return dict(stored)

    def _record_failure(self, outcome: str, asset: Asset, error: Exception) -> None:
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
    """Return the previews; None when another run of the same job has stopped making them."""
    return None if making.cancelled() else making.result()
