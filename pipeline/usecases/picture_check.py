"""Checks pictures that plugins made like uploads: by their bytes, within the same limits."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import Executor

from pipeline.assets.image import inspect
from pipeline.errors import ValidationError
from pipeline.settings import Settings


class PictureCheck:
    """Returns the content type of a picture; ValidationError when it would be refused as an upload."""

    def __init__(self, settings: Settings, pool: Executor) -> None:
        """pool: threads that decode the picture"""
        self._max_bytes = settings.max_upload_bytes
        self._limits = (settings.max_image_pixels, settings.decode_memory_mb)
        self._pool = pool

    async def __call__(self, content: bytes) -> str:
        if len(content) > self._max_bytes:
            raise ValidationError.of("image", f"Has {len(content)} bytes, more than the {self._max_bytes} of an upload")
        loop = asyncio.get_running_loop()
        info = await loop.run_in_executor(self._pool, inspect, io.BytesIO(content), *self._limits)
        return info.content_type
