"""Use case: all images move to another storage while the service runs.

A record in the asset store names the storage of new images; every process follows it (storage_choice.py). Each image is
copied, read back and compared; then its asset's document names the copy, if it still names the old image. An image of
the local storage is removed then, because /media redirects to the copy. Any other image stays as long as its URLs may
work; then the sweeper removes it. The command can be interrupted, and continues when it is run again.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from pipeline.assets.asset import Asset, ImageRef
from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, PipelineError
from pipeline.images import ImageName, content_type_of
from pipeline.usecases.asset_scan import damaged_document, every_asset
from pipeline.usecases.outage_retry import OutageRetry, Unreadable, read_checked, sha256_of, what_is_wrong
from pipeline.usecases.retention import MARK
from pipeline.usecases.storage import StoredImages
from pipeline.usecases.storages_in_use import KIND as IN_USE
from pipeline.usecases.storages_in_use import record_storage_left

KIND, STORAGE = "move", "storage"
# Storages whose old URLs still work after a move: /media redirects to the copy.
REDIRECTED = ("local",)
# A job may save an image in the old storage just before it learns of the move, and name it after its asset was moved.
ROUNDS = 3
# So many assets at a time: most of the time is spent waiting. An image of each, and its copy, is in memory.
AT_ONCE = 4
# How often the record of a storage that images have left is written.
NOTED_SECONDS = 30.0
DAY_SECONDS = 86_400


@dataclass(slots=True)
class Moved:
    """How much was moved.

    left: images that could not be moved, one line each with the reason
    """

    assets: int = 0
    images: int = 0
    left: list[str] = field(default_factory=list)


async def probe(storage: StoredImages) -> None:
    """Return when the current storage gives back a stored image; DependencyUnavailable when it does not."""
    public_id = f"probe/{secrets.token_hex(8)}"
    saved = await storage.save(public_id, io.BytesIO(MARK), "image/gif")
    name = ImageName(saved.backend, public_id)
    try:
        content = await storage.read(name)
    except FileNotFoundError:
        content = b""
    await storage.delete(name)
    if content != MARK:
        raise _loses_images(saved.backend)


async def choose_storage(store: AssetStore, name: str, *, instead_of: str) -> None:
    """Have every process save new images in that storage if its settings name `instead_of`, or an earlier such one."""
    record = await store.find_record(KIND, STORAGE)
    # Also the target of the move before: the settings may name it by now.
    before = {*record.data["insteadOf"], record.data["to"]} if record is not None else set()
    await store.put_record(Record(IN_USE, name, utc_now(), {}))
    await store.put_record(
        Record(KIND, STORAGE, utc_now(), {"to": name, "insteadOf": sorted({*before, instead_of} - {name})})
    )


async def move_images(
    store: AssetStore,
    storage: StoredImages,
    on_asset: Callable[[], None] = lambda: None,
    *,
    outage_retry: OutageRetry | None = None,
    url_seconds: int = 0,
) -> Moved:
    """Move every image to the current storage of `storage`.

    url_seconds: MEDIA_URL_SECONDS
    DependencyUnavailable: a storage or the store is away for long; run the command again later.
    Conflict: another move has begun meanwhile.
    """
    return await _Move(store, storage, outage_retry or OutageRetry(), max(url_seconds, DAY_SECONDS)).run(on_asset)


class _Move:
    """One run of the command."""

    def __init__(self, store: AssetStore, storage: StoredImages, outage_retry: OutageRetry, url_seconds: int) -> None:
        self._store = store
        self._storage = storage
        self._target = storage.backends[0]
        self._outage_retry = outage_retry
        self._url_seconds = url_seconds
        # By storage: when the record that images have left it was last written.
        self._noted: dict[str, float] = {}

    async def run(self, on_asset: Callable[[], None]) -> Moved:
        moved = Moved()
        for number in range(ROUNDS):
            before = moved.images
            moved.assets, moved.left = 0, []
            batch: list[Asset] = []
            damaged: list[str] = []
            async for asset in every_asset(self._store, self._outage_retry, damaged.append):
                batch.append(asset)
                moved.assets += 1
                if number == 0:
                    on_asset()
                if len(batch) == AT_ONCE:
                    await self._move_assets(batch, moved)
                    batch = []
            await self._move_assets(batch, moved)
            moved.left += map(damaged_document, damaged)
            # The images of an asset that is being erased disappear shortly before its document.
            if moved.images == before and (number or not moved.left):
                break
        for backend in self._noted:
            await self._record_storage_left(backend, now=True)
        return moved

    async def _move_assets(self, assets: Sequence[Asset], moved: Moved) -> None:
        # All end before an error is raised, so that none leaves half a copy.
        ends = await asyncio.gather(*(self._move_asset(asset, moved) for asset in assets), return_exceptions=True)
        for error in ends:
            if error is not None:
                raise error

    async def _move_asset(self, asset: Asset, moved: Moved) -> None:
        for image in asset.images:
            if image.name is None or image.backend == self._target:
                continue
            await self._outage_retry.run(self._check_alone)
            try:
                count = await self._move(asset, image)
            except (FileNotFoundError, ValueError, Unreadable) as error:
                problem = what_is_wrong(error)
            except DependencyUnavailable:
                raise
            except PipelineError as error:
                problem = f"refused by {self._target}: {error.message}"
            else:
                moved.images += count
                continue
            current = await self._outage_retry.run(partial(self._store.get, asset.id))
            if current is not None and image.name in current.image_names:
                moved.left.append(f"{image.public_id} of asset {asset.id} in {image.backend} is {problem}")

    async def _check_alone(self) -> None:
        """Conflict when another move has another target: two moves would undo each other's work."""
        record = await self._store.find_record(KIND, STORAGE)
        if record is not None and record.data["to"] != self._target:
            raise Conflict(f"Another move has begun, to {record.data['to']}: this one ends here")

    async def _move(self, asset: Asset, image: ImageRef) -> int:
        """Return 1 when the image was moved, 0 when its asset does not name it any more."""
        name = image.name
        assert name is not None
        content = await self._outage_retry.read(self._storage, image)
        await self._record_storage_left(image.backend)
        copy = await self._outage_retry.run(lambda: self._copy(image, content))
        replaced = await self._outage_retry.run(lambda: self._store.replace_image(asset.id, name, copy))
        if replaced is None and not await self._is_named(asset.id, copy):
            await self._remove_copy(asset.id, copy)
            return 0
        if image.backend in REDIRECTED:
            # If this fails the sweeper removes it.
            with suppress(DependencyUnavailable):
                await self._storage.delete(name)
        return 1

    async def _copy(self, image: ImageRef, content: bytes) -> ImageRef:
        """Store a copy in the target; DependencyUnavailable when the target does not give it back."""
        content_type = image.content_type or content_type_of(content)
        saved = await self._storage.save(image.public_id, io.BytesIO(content), content_type)
        digest = await sha256_of(content)
        copy = replace(image, backend=saved.backend, url=saved.url, sha256=digest, bytes=len(content))
        try:
            await read_checked(self._storage, copy)
        except (FileNotFoundError, ValueError) as error:
            await self._remove_copy(image.public_id.partition("/")[0], copy)
            raise _loses_images(saved.backend) from error
        return copy

    async def _is_named(self, asset_id: str, copy: ImageRef) -> bool:
        current = await self._outage_retry.run(partial(self._store.get, asset_id))
        return current is not None and copy.name is not None and current.refers_to(copy.name)

    async def _remove_copy(self, asset_id: str, copy: ImageRef) -> None:
        """Remove a copy, unless its asset names it because of another move to the same storage."""
        if copy.name is not None and not await self._is_named(asset_id, copy):
            with suppress(DependencyUnavailable):
                await self._storage.delete(copy.name)

    async def _record_storage_left(self, backend: str, *, now: bool = False) -> None:
        if backend in REDIRECTED:
            return
        if now or time.monotonic() > self._noted.get(backend, -NOTED_SECONDS) + NOTED_SECONDS:
            await record_storage_left(self._store, backend, self._url_seconds)
            self._noted[backend] = time.monotonic()


def _loses_images(backend: str) -> DependencyUnavailable:
    return DependencyUnavailable(f"The storage {backend} does not give back what it is given")
