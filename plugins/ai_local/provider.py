"""LocalProvider: one photo in, one Analysis out. Runs on the event loop; all work is done in children of the sandbox.

The light child decodes the photo and, when it was read, cuts the product out. Children of the provider's own hold the
OCR models: a photo that the light child never comes back from must not cost the time to load those.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.errors import DependencyUnavailable, JobError, PermanentJobError, SandboxLimit
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute, Picture, ProcessedImage, Sandbox
from . import work

# The longest each step may take: ten times what it takes on a machine of today.
DECODE_SECONDS, READ_SECONDS, FINISH_SECONDS = 30.0, 45.0, 10.0
CUT_OUT_CPU_SECONDS = 6.0
CHECK_SECONDS = 9.0
ROTATION_SHARE = 0.5  # of the time for reading: turns are tried no longer
READER_MEMORY_MB = 1024


class LocalProvider:
    """Names brand, model and colorway from lettering and pixels, and hands on what else it can read as `extra.text`.

    Where the product can surely be told from its background, or lies on its side, there is a processed image too: an
    upright WebP. In doubt there is none.

    Each confidence is a product of what was measured: how sure the OCR is of the letters, how well they match the
    lexicon, and how much the rule that picked them is worth (lexicon.py, models.py); for the colorway the share of the
    subject the named colours cover and how far the mask can be trusted (colors.py).
    """

    needs_image = True
    cost = 0
    sees = (
        "Reads the lettering on a product and measures its colours. It does not know products by their shape: "
        "where no name can be read, it finds neither brand nor model."
    )

    def __init__(self, sandbox: Sandbox, processes: int) -> None:
        """processes: how many photos may be read at once, each in a child that holds the models."""
        self._sandbox = sandbox
        self._readers = sandbox.pool("local", setup=work.load, processes=processes, memory_mb=READER_MEMORY_MB)

    async def analyze(self, request: AnalyzeRequest) -> Analysis:
        """Return what can be seen; PermanentJobError when the bytes are no picture."""
        if not request.image:
            raise PermanentJobError("The photo is empty")
        budget = Budget(request.timeout_seconds)
        seconds, wait = budget.step(DECODE_SECONDS)
        picture = await self._sandbox.reduce(request.image, seconds=seconds, wait_seconds=wait)
        seconds, wait = budget.step(READ_SECONDS)
        args = (*_sent(picture), request.category, seconds * ROTATION_SHARE)
        read = await self._readers.run(work.read, *args, seconds=seconds, wait_seconds=wait)
        colorway, webp = await self._finish(picture, read["turn"], read["boxes"], budget)
        return Analysis(
            brand=Attribute(*read["brand"]),
            model=Attribute(*read["model"]),
            colorway=Attribute(*colorway),
            processed_image=ProcessedImage(webp, "image/webp") if webp else None,
            extra={"text": read["text"]} if read["text"] else {},
        )

    async def check(self) -> None:
        """Return when a child can load the models; else DependencyUnavailable, the reason as its cause."""
        try:
            await self._readers.run(work.is_loaded, seconds=CHECK_SECONDS, wait_seconds=CHECK_SECONDS)
        except JobError as error:
            raise DependencyUnavailable("The models cannot be loaded") from error.__cause__ or error

    async def close(self) -> None:
        """End the children that hold the models."""
        await self._readers.close()

    async def _finish(self, picture: Picture, turn: int | None, boxes: list[Any], budget: Budget) -> Any:
        """Return colorway and processed image; with the background as it is when cutting out takes too long."""
        args = (*_sent(picture), turn, boxes)
        try:
            seconds, wait = budget.step(FINISH_SECONDS)
            limits = {"seconds": seconds, "cpu_seconds": CUT_OUT_CPU_SECONDS, "wait_seconds": wait}
            return await self._sandbox.run(work.finish, *args, True, **limits)
        except SandboxLimit:
            seconds, wait = budget.step(FINISH_SECONDS)
            return await self._sandbox.run(work.finish, *args, False, seconds=seconds, wait_seconds=wait)


class Budget:
    """The time of one call, from which each step takes a part."""

    def __init__(self, seconds: float) -> None:
        self._ends_at = asyncio.get_running_loop().time() + seconds

    def step(self, most: float) -> tuple[float, float]:
        """Return how long the next step may run, and how long it may wait for a child before; most: it may run.

        Together they are what is left, so that a photo whose turn does not come was not asked about at all.
        """
        left = max(0.0, self._ends_at - asyncio.get_running_loop().time())
        seconds = min(most, left / 2)
        return seconds, left - seconds


def _sent(picture: Picture) -> tuple[int, int, bytes]:
    return picture.width, picture.height, picture.rgb
