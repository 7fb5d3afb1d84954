"""The storages in use: the current one, where new images go, and those that hold images of before.

The others are built when an image in them is first asked for, from the same settings: who changes STORAGE_BACKEND keeps
the old one's settings for as long as it holds images. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import structlog

from pipeline.errors import ConfigurationError, DependencyUnavailable, PipelineError
from pipeline.hooks.media_links import MediaLinks
from pipeline.hooks.protocols import StoredImage
from pipeline.hooks.starting import start
from pipeline.hooks.storage_calls import UNAVAILABLE, Storing
from pipeline.images import ImageName, SavedImage
from pipeline.logs import ThrottledLog
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

# One that cannot be built is tried again after this: somebody may have mounted its folder.
AGAIN_SECONDS = 30.0


# It serves what it holds for as long as it holds something, whatever the current storage is.
LOCAL = "local"


class MediaFolder(NamedTuple):
    """A folder that is served under /media. links: what its URLs are checked with; None: they are not signed."""

    backend: str
    root: Path
    links: MediaLinks | None

    def seconds_left(self, public_id: str, query: Mapping[str, str]) -> int | None:
        """Return how long a URL of that image works on: see MediaLinks."""
        try:
            return self.links.seconds_left(public_id, query) if self.links else None
        except OSError as error:
            raise DependencyUnavailable(UNAVAILABLE) from error


class Storages:
    """Every storage that holds images of ours. Methods: see usecases/storage.py."""

    def __init__(self, current: Storing, build: Callable[[str], Storing]) -> None:
        """build: returns the storage of that name; ConfigurationError when there is none, or it is not set up."""
        self.current = current
        self._build = build
        self._built: dict[str, Storing] = {current.storage.name: current}
        self._missing: dict[str, tuple[float, ConfigurationError]] = {}
        self._building = asyncio.Lock()
        self._throttled_log = ThrottledLog()

    @property
    def backends(self) -> Sequence[str]:
        current = self.current.storage.name
        return (current, *(name for name in self._built if name != current))

    async def choose(self, name: str) -> None:
        """Save new images there from now on; DependencyUnavailable when that storage cannot be had or used."""
        storing = await self.get(name)
        await storing.check()
        self.current = storing

    @property
    def all(self) -> Sequence[Storing]:
        """Those that were built."""
        return tuple(self._built.values())

    async def check(self) -> None:
        """Return when the current storage is usable; DependencyUnavailable otherwise."""
        await self.current.check()

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> SavedImage:
        storing = self.current
        return SavedImage(storing.storage.name, await storing.save(public_id, file, content_type))

    async def media_folders(self) -> Sequence[MediaFolder]:
        """Return the folders to serve under /media."""
        with suppress(DependencyUnavailable):
            await self.get(LOCAL)
        plugins: dict[str, Any] = {name: storing.storage.plugin for name, storing in self._built.items()}
        return [
            MediaFolder(name, plugin.media_root, getattr(plugin, "media_links", None))
            for name, plugin in plugins.items()
            if getattr(plugin, "media_root", None)
        ]

    @property
    def missing(self) -> Mapping[str, str]:
        """Why those storages cannot be had that were asked for in vain, by name."""
        return {name: error.message for name, (_, error) in self._missing.items()}

    async def read(self, name: ImageName) -> bytes:
        return await (await self.get(name.backend)).read(name.public_id)

    async def delete(self, name: ImageName) -> None:
        await (await self.get(name.backend)).delete(name.public_id)

    async def urls(self, names: Collection[ImageName], seconds: int) -> Mapping[ImageName, str]:
        by_backend: dict[str, list[str]] = {}
        for name in names:
            by_backend.setdefault(name.backend, []).append(name.public_id)
        urls: dict[ImageName, str] = {}
        for backend, public_ids in by_backend.items():
            try:
                storing = await self.get(backend)
                made = await storing.urls(public_ids, seconds) if storing.makes_urls else {}
            except PipelineError as error:
                cause = cause_of(error)
                facts: dict[str, Any] = {"backend": backend, "count": len(public_ids), "cause": cause}
                self._throttled_log.write(log.warning, "urls_not_made", backend + cause, **facts)
                continue
            urls |= {ImageName(backend, public_id): url for public_id, url in made.items()}
        return urls

    async def makes_urls(self, backend: str) -> bool:
        try:
            return (await self.get(backend)).makes_urls
        except DependencyUnavailable:
            return False

    async def can_list(self, backend: str) -> bool:
        try:
            return (await self.get(backend)).can_list
        except DependencyUnavailable:
            return False

    async def list_images(self, backend: str, prefix: str, at_once: int) -> AsyncIterator[Sequence[StoredImage]]:
        async for images in (await self.get(backend)).list_images(prefix, at_once):
            yield images

    async def get(self, backend: str) -> Storing:
        """Return the storage of that name, built now if need be; DependencyUnavailable when it cannot be."""
        if (found := self._built.get(backend)) is not None:
            return found
        async with self._building:
            if (found := self._built.get(backend)) is not None:
                return found
            now = asyncio.get_running_loop().time()
            until, fault = self._missing.get(backend, (0.0, None))
            if fault is None or until <= now:
                try:
                    # In a thread: it may import a large package, and look at a disk that hangs.
                    built = await asyncio.to_thread(self._build, backend)
                    if (unfit := await start(built.storage)) is not None:
                        raise unfit
                except ConfigurationError as error:
                    log.error("storage_missing", backend=backend, error=error.message)
                    self._missing[backend], fault = (now + AGAIN_SECONDS, error), error
                else:
                    self._built[backend] = built
                    self._missing.pop(backend, None)
                    log.info("storage_opened", backend=backend)
                    return built
        raise DependencyUnavailable(UNAVAILABLE) from fault

    async def open_storages(self, names: Iterable[str]) -> None:
        """Get these storages ready, beside the current one; `missing` tells which cannot be had."""
        for name in names:
            with suppress(DependencyUnavailable):
                await self.get(name)

    async def close(self) -> None:
        """Close all of them."""
        await asyncio.gather(*(storing.close() for storing in self.all))
