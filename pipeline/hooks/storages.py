"""The storages in use: the current one for new images, and the former ones that contain older images.

A former storage is built when one of its images is first needed, from the same settings. So after a change of
STORAGE_BACKEND leave the settings of the former storage in place as long as it contains images. Runs on the event loop.
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
from pipeline.hooks.storage_protocol import StoredImage
from pipeline.hooks.plugin_start import start
from pipeline.hooks.storage_calls import UNAVAILABLE, StorageCalls
from pipeline.images import ImageName, SavedImage
from pipeline.logs import ThrottledLog
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

# A storage that cannot be built is built again after this time: perhaps its folder is mounted by then.
REBUILD_SECONDS = 30.0
# The service serves the images of this storage under /media, whatever the current storage is.
LOCAL = "local"


class MediaFolder(NamedTuple):
    """A folder that is served under /media.

    links: checks its URLs; None: they are not signed.
    """

    backend: str
    root: Path
    links: MediaLinks | None

    def seconds_left(self, public_id: str, query: Mapping[str, str]) -> int | None:
        """Return how long a URL of that image stays valid: see MediaLinks."""
        try:
            return self.links.seconds_left(public_id, query) if self.links else None
        except OSError as error:
            raise DependencyUnavailable(UNAVAILABLE) from error


# Many methods because it implements the storage interface of the use cases (usecases/storage.py).
class Storages:
    """All storages that contain images of the service. Methods: see usecases/storage.py."""

    def __init__(self, current: StorageCalls, build: Callable[[str], StorageCalls]) -> None:
        """build: returns the storage of that name; ConfigurationError when it does not exist or is not configured."""
        self.current = current
        self._build = build
        self._built: dict[str, StorageCalls] = {current.storage.name: current}
        self._missing: dict[str, tuple[float, ConfigurationError]] = {}
        self._building = asyncio.Lock()
        self._throttled_log = ThrottledLog()

    @property
    def backends(self) -> Sequence[str]:
        current = self.current.storage.name
        return (current, *(name for name in self._built if name != current))

    async def choose(self, name: str) -> None:
        """Save new images in that storage from now on; DependencyUnavailable when it cannot be built or used."""
        storage = await self.get(name)
        await storage.check()
        self.current = storage

    @property
    def all(self) -> Sequence[StorageCalls]:
        """The storages that are built."""
        return tuple(self._built.values())

    async def check(self) -> None:
        """Return when the current storage is usable; DependencyUnavailable otherwise."""
        await self.current.check()

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> SavedImage:
        storage = self.current
        return SavedImage(storage.storage.name, await storage.save(public_id, file, content_type))

    async def media_folders(self) -> Sequence[MediaFolder]:
        """Return the folders to serve under /media."""
        with suppress(DependencyUnavailable):
            await self.get(LOCAL)
        plugins: dict[str, Any] = {name: storage.storage.plugin for name, storage in self._built.items()}
        return [
            MediaFolder(name, plugin.media_root, getattr(plugin, "media_links", None))
            for name, plugin in plugins.items()
            if getattr(plugin, "media_root", None)
        ]

    @property
    def missing(self) -> Mapping[str, str]:
        """The errors of the storages that could not be built, by name."""
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
                storage = await self.get(backend)
                made = await storage.urls(public_ids, seconds) if storage.makes_urls else {}
            except PipelineError as error:
                cause = cause_of(error)
                fields: dict[str, Any] = {"backend": backend, "count": len(public_ids), "cause": cause}
                self._throttled_log.write(log.warning, "urls_not_made", backend + cause, **fields)
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

    async def get(self, backend: str) -> StorageCalls:
        """Return the storage of that name, built now if it is not yet; DependencyUnavailable when that fails."""
        if (known := self._built.get(backend)) is not None:
            return known
        async with self._building:
            if (known := self._built.get(backend)) is not None:
                return known
            now = asyncio.get_running_loop().time()
            until, fault = self._missing.get(backend, (0.0, None))
            if fault is None or until <= now:
                try:
                    # In a thread: it may import a large package, and read from a disk that hangs.
                    built = await asyncio.to_thread(self._build, backend)
                    if (start_fault := await start(built.storage)) is not None:
                        raise start_fault
                except ConfigurationError as error:
                    log.error("storage_missing", backend=backend, error=error.message)
                    self._missing[backend], fault = (now + REBUILD_SECONDS, error), error
                else:
                    self._built[backend] = built
                    self._missing.pop(backend, None)
                    log.info("storage_opened", backend=backend)
                    return built
        raise DependencyUnavailable(UNAVAILABLE) from fault

    async def open_storages(self, names: Iterable[str]) -> None:
        """Build these storages beside the current one; `missing` lists those that cannot be built."""
        for name in names:
            with suppress(DependencyUnavailable):
                await self.get(name)

    async def close(self) -> None:
        """Close all built storages."""
        await asyncio.gather(*(storage.close() for storage in self.all))
