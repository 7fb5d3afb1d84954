"""Checks and cleans images in memory.

Images that a provider made are checked like uploads, and lose their metadata. So do originals that a provider reads: an
original that was stored by an earlier version, or with KEEP_METADATA, still has its metadata. Runs on the event loop;
assets/hygiene.py and assets/image.py do the work, in the pool.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from io import BytesIO

import structlog

from pipeline.assets.hygiene import clean
from pipeline.assets.image import inspect
from pipeline.errors import PermanentJobError, ValidationError
from pipeline.sandbox.cost import MAX_IMAGE_PIXELS
from pipeline.settings import Settings

log = structlog.get_logger(__name__)


class PictureCheck:
    """Returns the content type of a picture; ValidationError when it would be refused as an upload."""

    def __init__(self, settings: Settings, pool: Executor) -> None:
        """pool: threads that decode the picture"""
        self._max_bytes = settings.max_upload_bytes
        self._limits = (MAX_IMAGE_PIXELS, settings.decode_memory_mb)
        self._pool = pool

    async def __call__(self, content: bytes) -> str:
        if len(content) > self._max_bytes:
            raise ValidationError.of("image", f"Has {len(content)} bytes, more than the {self._max_bytes} of an upload")
        loop = asyncio.get_running_loop()
        info = await loop.run_in_executor(self._pool, inspect, BytesIO(content), *self._limits)
        return info.content_type


class Cleaning:
    """Cleans images in threads."""

    def __init__(self, pool: Executor | None = None, *, keeps_metadata: bool = False) -> None:
        """pool: threads in which no plugin runs; None: those of the event loop
        keeps_metadata: stored images keep their metadata; images for a provider are cleaned all the same, if possible
        """
        self._pool = pool
        self._keeps_metadata = keeps_metadata

    async def for_provider(self, content: bytes, content_type: str) -> bytes:
        """Return the image without metadata; PermanentJobError when it cannot be removed."""
        try:
            return await self._clean(content, content_type)
        except ValueError as error:
            if self._keeps_metadata:
                return content
            raise PermanentJobError("The photo cannot be read: the file is damaged or not an image") from error

    async def for_storing(self, content: bytes, content_type: str) -> bytes | None:
        """Return an image that a provider made, as it may be stored; None when its metadata cannot be removed."""
        if self._keeps_metadata:
            return content
        try:
            return await self._clean(content, content_type)
        except ValueError as error:
            log.warning("processed_image_refused", cause=str(error))
            return None

    async def _clean(self, content: bytes, content_type: str) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._pool, _cleaned, content, content_type)


def _cleaned(content: bytes, content_type: str) -> bytes:
    target = BytesIO()
    return target.getvalue() if clean(BytesIO(content), target, content_type) else content
