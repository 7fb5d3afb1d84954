"""The children of one service: a light one, which decodes photos, and those that plugins have for work of their own.

None is started before its first call. hooks/protocols.py says what each method promises. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.errors import DependencyUnavailable, RetryableJobError
from pipeline.sandbox import Picture, Preview, photo
from pipeline.sandbox.cost import LONG_SIDE_PIXELS, MAX_IMAGE_PIXELS
from pipeline.sandbox.pool import FAILED, Pool

# Beside the pixels: the file itself, twice, the reply, and packages that a plugin's function imports.
ROOM_MB = 256
# The dearest picture the border takes needs about five on a machine of today.
DECODE_SECONDS = 30.0
DECODE_CPU_SECONDS = 20.0
JPEG_START = b"\xff\xd8\xff"


class Sandbox:
    """Calls functions in children that are ended when they take too much. Built from Settings by the catalogue."""

    def __init__(self, decode_memory_mb: int = 1024, preview_processes: int = 2) -> None:
        """decode_memory_mb: what a photo may need, as the border knows it.
        preview_processes: in how many children previews are made.
        """
        self._limits = (MAX_IMAGE_PIXELS, decode_memory_mb)
        self._light = Pool("light", setup=photo.prepare, memory_mb=decode_memory_mb + ROOM_MB)
        self._previews = Pool(
            "previews",
            setup=photo.prepare_previews,
            processes=preview_processes,
            memory_mb=decode_memory_mb + ROOM_MB,
        )
        self._pools = [self._light, self._previews]

    async def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        seconds: float,
        cpu_seconds: float | None = None,
        wait_seconds: float | None = None,
    ) -> Any:
        """Return function(*args), called in the light child."""
        return await self._light.run(
            function, *args, seconds=seconds, cpu_seconds=cpu_seconds, wait_seconds=wait_seconds
        )

    async def reduce(
        self,
        content: bytes,
        long_side: int = LONG_SIDE_PIXELS,
        *,
        seconds: float = DECODE_SECONDS,
        wait_seconds: float | None = None,
    ) -> Picture:
        """Return the photo upright, in RGB, at most long_side wide and high."""
        args = (content, long_side, *self._limits)
        found = await self.run(
            photo.reduce, *args, seconds=seconds, cpu_seconds=DECODE_CPU_SECONDS, wait_seconds=wait_seconds
        )
        match found:
            case [int(width), int(height), bytes(rgb)] if 0 < width <= long_side and 0 < height <= long_side:
                if len(rgb) == width * height * 3:
                    return Picture(width, height, rgb)
        raise RetryableJobError(FAILED)

    async def reduce_to_jpeg(
        self,
        content: bytes,
        long_side: int = LONG_SIDE_PIXELS,
        *,
        quality: int = 85,
        seconds: float = DECODE_SECONDS,
        wait_seconds: float | None = None,
    ) -> bytes:
        """Return the photo as a small upright JPEG."""
        args = (content, long_side, quality, *self._limits)
        found = await self.run(
            photo.reduce_to_jpeg, *args, seconds=seconds, cpu_seconds=DECODE_CPU_SECONDS, wait_seconds=wait_seconds
        )
        if not isinstance(found, bytes) or not found.startswith(JPEG_START):
            raise RetryableJobError(FAILED)
        return found

    async def previews(self, content: bytes, sides: Sequence[int]) -> Sequence[Preview]:
        """Return the photo upright, in sRGB, as WebP, in those sizes."""
        args = (content, list(sides), *self._limits)
        found = await self._previews.run(
            photo.previews, *args, seconds=DECODE_SECONDS, cpu_seconds=DECODE_CPU_SECONDS
        )
        made = [_preview(each) for each in (found if isinstance(found, list) else [])]
        if [each.side for each in made] != sorted(sides, reverse=True):
            raise RetryableJobError(FAILED)
        return made

    def pool(
        self, name: str, *, setup: Callable[[], Any] | None = None, processes: int = 1, memory_mb: int = 1024
    ) -> Pool:
        """Return children of the plugin's own."""
        pool = Pool(name, setup=setup, processes=processes, memory_mb=memory_mb)
        self._pools.append(pool)
        return pool

    async def check(self) -> None:
        """Return unless children do not start; DependencyUnavailable says why."""
        for pool in self._pools:
            try:
                pool.check()
            except RetryableJobError as error:
                raise DependencyUnavailable(error.message) from error.__cause__

    async def close(self) -> None:
        """End all children, also those of plugins."""
        await asyncio.gather(*(pool.close() for pool in self._pools))


def _preview(reply: Any) -> Preview:
    """Return the preview that a child sent; RetryableJobError for anything else, which a hostile photo may send."""
    match reply:
        case [int(side), int(width), int(height), bytes(content)] if 0 < width <= side and 0 < height <= side:
            # WebP of noise has less than three bytes a pixel.
            if content[:4] == b"RIFF" and content[8:12] == b"WEBP" and len(content) <= 4 * side * side:
                return Preview(side, width, height, content)
    raise RetryableJobError(FAILED)
