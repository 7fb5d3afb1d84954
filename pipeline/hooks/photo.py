"""The photo of one analysis, in the form that each provider takes."""

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
    """The photo of one analysis, read once and brought once into the form that some providers take."""

    def __init__(self, read: ReadImage, content_type: str, sandbox: Sandbox | None) -> None:
        self._read = read
        self._content_type = content_type
        self._sandbox = sandbox
        self._content: bytes | None = None
        self._as_jpeg: bytes | None = None

    async def for_provider(self, provider: BoundPlugin, seconds: float) -> tuple[bytes | None, str]:
        """Return the bytes, None for a provider that does not want them, and what they are.

        seconds: how long it may take to convert them. PermanentJobError when they are no picture that can be read.
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
