"""Removes the metadata of images that are in memory: what a provider made, and old originals that a provider reads.

Runs on the event loop, the work in the pool. assets/hygiene does it.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from io import BytesIO

from pipeline.assets.hygiene import clean


class Cleaning:
    """Cleans images in threads of ours."""

    def __init__(self, pool: Executor | None = None) -> None:
        """pool: threads in which no plugin runs; None takes the event loop's own."""
        self._pool = pool

    async def clean(self, content: bytes, content_type: str) -> bytes:
        """Return the image without metadata; ValueError when it is not built as its format says."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, _cleaned, content, content_type)


def _cleaned(content: bytes, content_type: str) -> bytes:
    target = BytesIO()
    return target.getvalue() if clean(BytesIO(content), target, content_type) else content
