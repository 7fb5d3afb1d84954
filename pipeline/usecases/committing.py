"""A write that has to be made, for as long as the asset store is away. Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from pipeline.delays import retry_delays
from pipeline.errors import DependencyUnavailable
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

T = TypeVar("T")
RETRY_SECONDS = (0.2, 5.0)


async def until_stored(write: Callable[[], Awaitable[T]]) -> T:
    """Return what `write` returns once the store answers; the caller's lease, or a cancellation, bounds it."""
    for delay in retry_delays(*RETRY_SECONDS):
        try:
            return await write()
        except DependencyUnavailable as error:
            log.warning("commit_deferred", delayMs=round(delay * 1000), cause=cause_of(error))
            await asyncio.sleep(delay)
    raise AssertionError("the delays never end")
