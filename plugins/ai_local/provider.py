"""LocalProvider: one photo in, one Analysis out. Runs on the event loop; all work is done in children of the sandbox.

The light child decodes the photo and cuts the product out after the reading. The provider's own children have the OCR
models: so a photo that crashes or hangs the light child does not cost the time to load the models again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.errors import DependencyUnavailable, JobError, PermanentJobError, SandboxLimit
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute, Picture, ProcessedImage, Sandbox
from . import work

# The longest time of each step: ten times its time on a present machine.
DECODE_SECONDS, READ_SECONDS, FINISH_SECONDS = 30.0, 45.0, 10.0
CUT_OUT_CPU_SECONDS = 6.0
CHECK_SECONDS = 9.0
ROTATION_SHARE = 0.5  # of the time for reading: after that no further rotation is tried
READER_MEMORY_MB = 1024


class LocalProvider:
    """Names brand, model and colorway from lettering and pixels, and returns all legible texts as `extra.text`.

    If the product can surely be separated from its background, or lies on its side, there is a processed image too: an
    upright WebP. In doubt there is none.

    Each confidence is a product of measured values: the OCR's certainty, the similarity to the lexicon and the factor
    of the rule (lexicon.py, models.py); for the colorway the share of the subject that the named colours cover and the
    reliability of the mask (colors.py).
    """

    needs_image = True
    cost = 0
    sees = (
        "Reads the lettering on a product and measures its colours. It does not know products by their shape: "
        "where no name can be read, it finds neither brand nor model."
    )

    def __init__(self, sandbox: Sandbox, processes: int) -> None:
        """processes: how many photos may be read at once, each in a child with the models."""
        self._sandbox = sandbox
        self._readers = sandbox.pool("local", setup=work.load, processes=processes, memory_mb=READER_MEMORY_MB)

    async def analyze(self, request: AnalyzeRequest) -> Analysis:
        """Return the analysis of the photo; PermanentJobError when the bytes are no picture."""
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
        """End the children with the models."""
        await self._readers.close()

    async def _finish(self, picture: Picture, turn: int | None, boxes: list[Any], budget: Budget) -> Any:
        """Return colorway and processed image; with the original background when cutting out takes too long."""
        args = (*_sent(picture), turn, boxes)
        try:
            seconds, wait = budget.step(FINISH_SECONDS)
            limits = {"seconds": seconds, "cpu_seconds": CUT_OUT_CPU_SECONDS, "wait_seconds": wait}
            return await self._sandbox.run(work.finish, *args, True, **limits)
        except SandboxLimit:
            seconds, wait = budget.step(FINISH_SECONDS)
            return await self._sandbox.run(work.finish, *args, False, seconds=seconds, wait_seconds=wait)


class Budget:
    """The time of one call, divided among its steps."""

    def __init__(self, seconds: float) -> None:
        self._ends_at = asyncio.get_running_loop().time() + seconds

    def step(self, most: float) -> tuple[float, float]:
        """Return how long the next step may run, and how long it may wait for a child before that.

        most: the longest time it may run.
        Together they are the rest of the call's time: a photo that gets no child in time is not worked on at all.
        """
        left = max(0.0, self._ends_at - asyncio.get_running_loop().time())
        seconds = min(most, left / 2)
        return seconds, left - seconds


def _sent(picture: Picture) -> tuple[int, int, bytes]:
    return picture.width, picture.height, picture.rgb
