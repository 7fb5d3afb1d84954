"""Use case: stored images that no asset names are removed within a day.

Such an image is left when a process dies between saving an image and naming it in the asset store, when a storage call
ends after its timeout, when an image could not be removed with its asset, or when a newer result has replaced it. The
sweeper lists every storage in use, part by part, and looks up each image that is old enough in the asset store. The
asset store has the names of all storages that were ever in use, so that earlier ones are swept too. A lock in Redis
lets one process at a time do it. Runs on the event loop.

Two installations may store their images in one bucket or account, and each would remove the images of the other. So
each writes a mark to the storage, an image `owner/<id of the asset store>`, and sweeps no storage that has another
mark.
"""

from __future__ import annotations

import asyncio
import io
import random
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.images import ImageName
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.usecases.orphaned_images import find_unnamed
from pipeline.usecases.storage import StoredImages
from pipeline.usecases.storages_in_use import all_in_use, forget_storage, storages_left, storages_left_lately

log = structlog.get_logger(__name__)

# No upload and no job takes so long between saving an image and naming it: both end within minutes. A run that waits
# for the asset store keeps its image however long that takes, because its asset names it.
LEAST_AGE = timedelta(hours=6)
# With LEAST_AGE, and one process that dies while it sweeps, an image is removed within half a day.
EVERY_SECONDS = 6 * 3600.0
# When a process first checks whether a sweep is due, and how often after that. Random, so that processes differ.
FIRST_SECONDS = (30.0, 90.0)
LOOK_SECONDS = (200.0, 400.0)
# A sweep has low priority: it reads few images at a time, with a pause in between.
AT_ONCE = 100
REST_SECONDS = 0.1
# Longer than a part takes. If the process dies, another one sweeps after that.
LOCK_SECONDS = 300.0
LOCK = "sweep"
# After so many failures in a row the storage counts as failed.
FAILURES_AT_MOST = 5
OWNERS = "owner/"
# The smallest complete GIF, because some storages take nothing but images.
MARK = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")


class Sweeper:
    """Removes stored images that no asset names."""

    def __init__(
        self,
        store: AssetStore,
        storage: StoredImages,
        queue: JobQueue,
        metrics: Metrics,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """now: the time; only tests pass another clock"""
        self._store = store
        self._storage = storage
        self._queue = queue
        self._metrics = metrics
        self._now = now

    async def run(self) -> None:
        """Sweep whenever the last sweep of any process is long enough ago, for ever."""
        await asyncio.sleep(random.uniform(*FIRST_SECONDS))
        while True:
            try:
                await self.sweep()
            except DependencyUnavailable as error:
                log.warning("sweep_postponed", cause=cause_of(error))
            await asyncio.sleep(random.uniform(*LOOK_SECONDS))

    async def sweep(self) -> None:
        """Sweep all storages in use, if a sweep is due and no other process does it.

        DependencyUnavailable when Redis, the asset store or a storage is away; the rest is then swept later.
        """
        # A new owner each time, so that this process's own last lock prevents the next sweep from being too soon.
        owner = secrets.token_hex(8)
        if not await self._queue.acquire_lock(LOCK, owner, LOCK_SECONDS):
            return
        before = self._now() - LEAST_AGE
        failure: DependencyUnavailable | None = None
        left, resting = await storages_left(self._store), await storages_left_lately(self._store, self._now())
        for backend in await all_in_use(self._store, self._storage):
            if backend in resting:
                continue
            try:
                if not await self._storage.can_list(backend):
                    continue
                if not await self._owns_all_since(backend, before):
                    continue
                if (seen := await self._sweep(backend, before, owner)) is None:
                    return
                if seen <= 1 and backend in left and backend != self._storage.backends[0]:
                    await self._forget(backend)
            except DependencyUnavailable as error:
                # A storage that is away does not stop the sweep of the others.
                failure = error
                log.warning("sweep_failed", backend=backend, cause=cause_of(error))
        if failure is not None:
            raise failure
        await self._queue.acquire_lock(LOCK, owner, EVERY_SECONDS)

    async def _owns_all_since(self, backend: str, before: datetime) -> bool:
        """Return whether the storage has only this installation's mark, and has had it since before that instant."""
        installation = await self._store.identity()
        parts = self._storage.list_images(backend, OWNERS, AT_ONCE)
        marks = {image.public_id: image.stored_at async for images in parts for image in images}
        own = f"{OWNERS}{installation}"
        if own not in marks and backend == self._storage.backends[0]:
            await self._storage.save(own, io.BytesIO(MARK), "image/gif")
            log.info("storage_marked", mark=own, backend=backend)
        if others := sorted(marks.keys() - {own}):
            reason = "Other installations keep images in this storage"
            log.warning("sweep_refused", backend=backend, reason=reason, marks=others)
            return False
        # Without an old mark of its own, this installation does not know whose images these are.
        return own in marks and marks[own] < before

    async def _forget(self, backend: str) -> None:
        """Forget a storage that images were moved away from: only the mark is left in it."""
        await self._storage.delete(ImageName(backend, f"{OWNERS}{await self._store.identity()}"))
        await forget_storage(self._store, backend)
        log.info("storage_forgotten", backend=backend)

    async def _sweep(self, backend: str, before: datetime, owner: str) -> int | None:
        """Sweep one storage; return how many images it had before, None when another process has the lock."""
        seen = removed = 0
        try:
            async for images in self._storage.list_images(backend, "", AT_ONCE):
                if not await self._queue.acquire_lock(LOCK, owner, LOCK_SECONDS):
                    return None
                seen += len(images)
                old = [ImageName(backend, image.public_id) for image in images if image.stored_at < before]
                removed += await self._remove(await find_unnamed(self._store, old))
                await asyncio.sleep(REST_SECONDS)
            return seen
        finally:
            log.info("images_swept", backend=backend, count=removed, seen=seen)

    async def _remove(self, names: Sequence[ImageName]) -> int:
        """Remove the images and return how many; DependencyUnavailable after several failures in a row."""
        removed = failures = 0
        for name in names:
            try:
                await self._storage.delete(name)
            except DependencyUnavailable as error:
                failures += 1
                log.warning("image_left_behind", publicId=name.public_id, cause=cause_of(error))
                if failures >= FAILURES_AT_MOST:
                    raise
            else:
                failures = 0
                removed += 1
                self._metrics.images_swept.inc()
        return removed
