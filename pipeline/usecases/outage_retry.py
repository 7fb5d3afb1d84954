"""Retries of backup, verify and move while a storage or the asset store is away. Runs on the event loop."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pipeline.assets.asset import ImageRef
from pipeline.delays import retry_delays
from pipeline.errors import ConfigurationError, DependencyUnavailable
from pipeline.texts import cause_of
from pipeline.usecases.storage import StoredImages

T = TypeVar("T")
# The longest wait for one call: a restart or a failover is over by then.
LONGEST_SECONDS = 120.0
# The longest wait for all calls of a command: a disk with many unreadable blocks must not delay it for days.
IN_ALL_SECONDS = 900.0
FIRST_SECONDS, LAST_SECONDS = 0.5, 10.0
# After so many unreadable images in a row the storage counts as away.
FAILURES_AT_MOST = 5


class Unreadable(Exception):
    """One image cannot be read now, though its storage may have it. The text says why."""


class OutageRetry:
    """Repeats calls that fail because a store or a storage is away."""

    def __init__(
        self,
        on_wait: Callable[[str], None] = lambda cause: None,
        *,
        longest_seconds: float = LONGEST_SECONDS,
        in_all_seconds: float = IN_ALL_SECONDS,
    ) -> None:
        """on_wait: called with the cause before each delay"""
        self._on_wait = on_wait
        self._longest_seconds = longest_seconds
        self._left_seconds = in_all_seconds
        self._failures = 0

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of the work; DependencyUnavailable when it fails for too long."""
        delays, waited = retry_delays(FIRST_SECONDS, LAST_SECONDS), 0.0
        while True:
            try:
                return await work()
            except DependencyUnavailable as error:
                delay = next(delays)
                waited, self._left_seconds = waited + delay, self._left_seconds - delay
                # Waiting does not help when the configuration is wrong.
                is_hopeless = isinstance(error.__cause__, ConfigurationError)
                if is_hopeless or waited > self._longest_seconds or self._left_seconds < 0:
                    raise
                self._on_wait(cause_of(error))
                await asyncio.sleep(delay)

    async def read(self, storage: StoredImages, image: ImageRef) -> bytes:
        """Return the image's bytes.

        FileNotFoundError, ValueError: as read_checked. Unreadable: the image cannot be read now.
        DependencyUnavailable: many images in a row cannot be read, so the storage is away.
        """
        try:
            content = await self.run(lambda: read_checked(storage, image))
        except DependencyUnavailable as error:
            is_set_up = not isinstance(error.__cause__, ConfigurationError)
            self._failures += is_set_up
            if self._failures >= FAILURES_AT_MOST:
                raise DependencyUnavailable(f"The storage {image.backend} does not answer") from error
            raise Unreadable(cause_of(error)) from error
        except (FileNotFoundError, ValueError):
            self._failures = 0
            raise
        self._failures = 0
        return content


def what_is_wrong(error: Exception) -> str:
    """Return an error of OutageRetry.read in words."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    return "damaged" if isinstance(error, ValueError) else f"unreadable: {error}"


async def sha256_of(content: bytes) -> str:
    """Return the hash, hex. In a thread: ten megabytes would block the event loop for too long."""
    return await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())


async def read_checked(storage: StoredImages, image: ImageRef) -> bytes:
    """Return the image's bytes; FileNotFoundError when it is missing, ValueError when its hash differs."""
    assert image.name is not None
    content = await storage.read(image.name)
    # Images of version 0.1 have no hash.
    if image.sha256 and await sha256_of(content) != image.sha256:
        raise ValueError(f"{image.public_id} is damaged")
    return content
