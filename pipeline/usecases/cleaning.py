"""Removes the metadata of images in memory: of images that a provider made, and of originals that a provider reads.

An original that was stored by an earlier version, or with KEEP_METADATA, still has its metadata. Runs on the event
loop; assets/hygiene.py does the work, in the pool.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from io import BytesIO

import structlog

from pipeline.assets.hygiene import clean
from pipeline.errors import PermanentJobError

log = structlog.get_logger(__name__)


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
