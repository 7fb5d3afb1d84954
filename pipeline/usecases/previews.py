"""Use case: small pictures of a photo, for whoever shows it: upright, in sRGB, as WebP, so that also a HEIC is seen.

They are made beside the analysis, in a child that gives way to everything else. None of what goes wrong with them fails
a job, or keeps it for long. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog

from pipeline.assets.asset import PREVIEW_SIDES, Asset, ImageRef, preview_public_id
from pipeline.errors import PipelineError
from pipeline.metrics import Metrics
from pipeline.sandbox import Preview
from pipeline.texts import cause_of
from pipeline.usecases.storage import StoredImages

log = structlog.get_logger(__name__)

CONTENT_TYPE = "image/webp"
# All of it: reading the photo, waiting for a child, decoding, storing. A large photo needs a second or two.
LONGEST_SECONDS = 20.0
ReadImage = Callable[[], Awaitable[bytes]]


class PreviewMaker(Protocol):
    """Makes the pictures; sandbox/sandbox.py has it."""

    async def previews(self, content: bytes, sides: Sequence[int]) -> Sequence[Preview]:
        """Return the photo in those sizes; PermanentJobError or RetryableJobError when that fails."""


class Previews:
    """Makes previews and stores them."""

    def __init__(
        self, storage: StoredImages, maker: PreviewMaker | None, metrics: Metrics, *, seconds: float = LONGEST_SECONDS
    ) -> None:
        """maker: None makes none. seconds: how long a job waits for them at most."""
        self._storage = storage
        self._maker = maker
        self._metrics = metrics
        self._seconds = seconds

    async def of(self, asset: Asset, read_image: ReadImage) -> Mapping[str, ImageRef] | None:
        """Return the asset's previews, made and stored now; None when it has some, or none can be made."""
        if self._maker is None or asset.previews or not asset.has_original:
            return None
        try:
            async with asyncio.timeout(self._seconds):
                found = await self._maker.previews(await read_image(), PREVIEW_SIDES)
                stored = await asyncio.gather(*(self._store(asset, preview) for preview in found))
        except (PipelineError, TimeoutError) as error:
            outcome = "late" if isinstance(error, TimeoutError) else "failed"
            self._metrics.previews.labels(outcome).inc()
            log.warning("previews_not_made", assetId=asset.id, outcome=outcome, cause=cause_of(error))
            return None
        self._metrics.previews.labels("made").inc()
        return dict(stored)

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
