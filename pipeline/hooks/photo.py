"""The photo of one analysis, in a format that each provider accepts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.limits import JPEG

if TYPE_CHECKING:
    from pipeline.sandbox.sandbox import Sandbox

CONVERT_SECONDS = 30.0
ReadImage = Callable[[], Awaitable[bytes]]


class Photo:
    """The photo of one analysis: read at most once, and converted to JPEG at most once."""

    def __init__(self, read: ReadImage, content_type: str, sandbox: Sandbox | None) -> None:
        self._read = read
        self._content_type = content_type
        self._sandbox = sandbox
        self._content: bytes | None = None
        self._as_jpeg: bytes | None = None

    async def for_provider(self, provider: BoundPlugin, seconds: float) -> tuple[bytes | None, str]:
        """Return the bytes, None for a provider that does not need them, and their content type.

        seconds: how long the conversion may take.
        PermanentJobError when the bytes are no readable picture.
        """
        if not getattr(provider.plugin, "needs_image", False):
            return None, self._content_type
        if self._content is None:
            self._content = await self._read()
        if provider.limits.takes_type(self._content_type) or self._sandbox is None:
            return self._content, self._content_type
        if self._as_jpeg is None:
            part = min(CONVERT_SECONDS, seconds / 4)
            self._as_jpeg = await self._sandbox.reduce_to_jpeg(self._content, seconds=part, wait_seconds=part)
        return self._as_jpeg, JPEG
