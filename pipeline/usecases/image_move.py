"""Use case: all images go to another storage while the service runs.

A record in the asset store tells every process where new images go from now on; usecases/storage_choice.py follows it.
Each image is copied, read back and compared, then named in its asset's document if that still names the old one. A
local one is removed then, because /media leads on to where it is; another one stays for as long as URLs of it may work,
and is then removed by the sweeper. Interrupted and begun again it goes on; what is done is not done again.
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
from pipeline.usecases.storages_in_use import note_left

KIND, STORAGE = "move", "storage"
# Those whose images are had under the old address all the same: /media leads on to where they are.
LEADS_ON = ("local",)
# A job may save an image in the old storage shortly before it learns of the move, and name it after its asset's turn.
ROUNDS = 3
# So many assets at a time: most of it is waiting for the storages. An image of each, and its copy, is in memory.
AT_ONCE = 4
# How often it is noted that images have just left a storage.
NOTED_SECONDS = 30.0
DAY_SECONDS = 86_400


@dataclass(slots=True)
class Moved:
    """What was done. left: images that stay where they are, each in one line with the reason."""

    assets: int = 0
    images: int = 0
    left: list[str] = field(default_factory=list)


async def probe(storage: StoredImages) -> None:
    """Return when the current storage keeps what it is given; DependencyUnavailable when it does not."""
    public_id = f"probe/{secrets.token_hex(8)}"
    saved = await storage.save(public_id, io.BytesIO(MARK), "image/gif")
    name = ImageName(saved.backend, public_id)
    try:
        found = await storage.read(name)
    except FileNotFoundError:
        found = b""
    await storage.delete(name)
    if found != MARK:
        raise _does_not_keep(saved.backend)


async def choose_storage(store: AssetStore, name: str, *, instead_of: str) -> None:
    """Let every process save new images there whose settings name that storage or one it stands in for."""
    found = await store.find_record(KIND, STORAGE)
    # Also the target of the move before: somebody may have named it in the settings since.
    before = {*found.data["insteadOf"], found.data["to"]} if found is not None else set()
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

    url_seconds: MEDIA_URL_SECONDS. DependencyUnavailable: a storage or the store is away for long; begin again later.
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
        # When it was last noted that images left a storage, by its name.
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
            # An asset that is being erased has lost its images shortly before its document goes.
            if moved.images == before and (number or not moved.left):
                break
        for backend in self._noted:
            await self._note_left(backend, now=True)
        return moved

    async def _move_assets(self, assets: Sequence[Asset], moved: Moved) -> None:
        # Each ends what it has begun, whatever becomes of the others: half a copy is left by none.
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
                wrong = what_is_wrong(error)
            except DependencyUnavailable:
                raise
            except PipelineError as error:
                wrong = f"refused by {self._target}: {error.message}"
            else:
                moved.images += count
                continue
            current = await self._outage_retry.run(partial(self._store.get, asset.id))
            if current is not None and image.name in current.image_names:
                moved.left.append(f"{image.public_id} of asset {asset.id} in {image.backend} is {wrong}")

    async def _check_alone(self) -> None:
        """Conflict when images are to go elsewhere by now: two moves would undo each other's work."""
        found = await self._store.find_record(KIND, STORAGE)
        if found is not None and found.data["to"] != self._target:
            raise Conflict(f"Another move has begun, to {found.data['to']}: this one ends here")

    async def _move(self, asset: Asset, image: ImageRef) -> int:
        """Return 1 when the image was moved, 0 when its asset does not name it any more."""
        name = image.name
        assert name is not None
        content = await self._outage_retry.read(self._storage, image)
        await self._note_left(image.backend)
        copy = await self._outage_retry.run(lambda: self._copy(image, content))
        replaced = await self._outage_retry.run(lambda: self._store.replace_image(asset.id, name, copy))
        if replaced is None and not await self._is_named(asset.id, copy):
            await self._remove_copy(asset.id, copy)
            return 0
        if image.backend in LEADS_ON:
            # Else the sweeper does it.
            with suppress(DependencyUnavailable):
                await self._storage.delete(name)
        return 1

    async def _copy(self, image: ImageRef, content: bytes) -> ImageRef:
        """Return the image as the target holds it; DependencyUnavailable when that does not give it back."""
        content_type = image.content_type or content_type_of(content)
        saved = await self._storage.save(image.public_id, io.BytesIO(content), content_type)
        digest = await sha256_of(content)
        copy = replace(image, backend=saved.backend, url=saved.url, sha256=digest, bytes=len(content))
        try:
            await read_checked(self._storage, copy)
        except (FileNotFoundError, ValueError) as error:
            await self._remove_copy(image.public_id.partition("/")[0], copy)
            raise _does_not_keep(saved.backend) from error
        return copy

    async def _is_named(self, asset_id: str, copy: ImageRef) -> bool:
        current = await self._outage_retry.run(partial(self._store.get, asset_id))
        return current is not None and copy.name is not None and current.names(copy.name)

    async def _remove_copy(self, asset_id: str, copy: ImageRef) -> None:
        """Remove a copy, unless its asset names it: because of another move to the same storage."""
        if copy.name is not None and not await self._is_named(asset_id, copy):
            with suppress(DependencyUnavailable):
                await self._storage.delete(copy.name)

    async def _note_left(self, backend: str, *, now: bool = False) -> None:
        if backend in LEADS_ON:
            return
        if now or time.monotonic() > self._noted.get(backend, -NOTED_SECONDS) + NOTED_SECONDS:
            await note_left(self._store, backend, self._url_seconds)
            self._noted[backend] = time.monotonic()


def _does_not_keep(backend: str) -> DependencyUnavailable:
    return DependencyUnavailable(f"The storage {backend} does not give back what it is given")
