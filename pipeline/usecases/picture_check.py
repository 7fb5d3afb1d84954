"""Looks at pictures that plugins made as at those that clients upload: by their bytes, within the same limits."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import Executor

from pipeline.assets.image import inspect
from pipeline.errors import ValidationError
from pipeline.sandbox.cost import MAX_IMAGE_PIXELS
from pipeline.settings import Settings


class PictureCheck:
    """Returns the content type that the bytes say; ValidationError when an upload could not be this. On the loop."""

    def __init__(self, settings: Settings, pool: Executor) -> None:
        """pool: where the bytes are looked at."""
        self._max_bytes = settings.max_upload_bytes
        self._limits = (MAX_IMAGE_PIXELS, settings.decode_memory_mb)
        self._pool = pool

    async def __call__(self, content: bytes) -> str:
        if len(content) > self._max_bytes:
            raise ValidationError.of("image", f"Has {len(content)} bytes, more than the {self._max_bytes} of an upload")
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._pool, inspect, io.BytesIO(content), *self._limits)
        return found.content_type
