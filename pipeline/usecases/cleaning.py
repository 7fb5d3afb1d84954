"""Removes the metadata of images that are in memory: what a provider made, and originals that a provider reads.

An original that was stored by an earlier version, or with KEEP_METADATA, has its metadata still. Runs on the event
loop, the work in the pool; assets/hygiene does it.
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
    """Cleans images in threads of ours."""

    def __init__(self, pool: Executor | None = None, *, keeps_metadata: bool = False) -> None:
        """pool: threads in which no plugin runs; None takes the event loop's own.

        keeps_metadata: what is stored is left as it is. What a provider gets is clean all the same, where it can be
        cleaned.
        """
        self._pool = pool
        self._keeps_metadata = keeps_metadata

    async def for_provider(self, content: bytes, content_type: str) -> bytes:
        """Return the image as a provider may see it; PermanentJobError when its metadata cannot be removed."""
        try:
            return await self._clean(content, content_type)
        except ValueError as error:
            if self._keeps_metadata:
                return content
            raise PermanentJobError("The photo cannot be read: the file is damaged or not an image") from error

    async def for_storing(self, content: bytes, content_type: str) -> bytes | None:
        """Return the image that a provider made as it is stored; None when its metadata cannot be removed."""
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
