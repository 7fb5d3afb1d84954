"""Use case: all images go to another storage while the service runs.

A record in the asset store tells every process where new images go from now on; usecases/moves.py follows it. Each
image is copied, read back and compared, then named in its asset's document if that still names the old one. A local one
is removed then, because /media leads on to where it is; another one is left to the sweeper, so that URLs that were
handed out work on for a while. Interrupted and begun again it goes on; what is done is not done again.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pipeline.assets.asset import Asset, ImageRef
from pipeline.assets.store import AssetStore, Kept
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.texts import cause_of
from pipeline.usecases.storage import StoredImages
from pipeline.usecases.storages_in_use import KIND as IN_USE
from pipeline.usecases.verifying import every_asset, read_checked, sha256_of

KIND, STORAGE = "move", "storage"
# Those whose images are had under the old address all the same: /media leads on to where they are.
LEADS_ON = ("local",)


@dataclass(slots=True)
class Moved:
    """What was done. left: images that stay where they are, each in one line with the reason."""

    assets: int = 0
    images: int = 0
    left: list[str] = field(default_factory=list)


async def choose_storage(store: AssetStore, name: str, *, instead_of: str) -> None:
    """Let every process save new images there whose settings name that storage or the one it stands in for."""
    found = await store.find_kept(KIND, STORAGE)
    before = found.data["insteadOf"] if found is not None else []
    await store.keep(Kept(IN_USE, name, utc_now(), {}))
    await store.keep(Kept(KIND, STORAGE, utc_now(), {"to": name, "insteadOf": sorted({*before, instead_of} - {name})}))


async def move_images(
    store: AssetStore, storage: StoredImages, on_asset: Callable[[], None] = lambda: None
) -> Moved:
    """Move every image to the current storage of `storage`.

    DependencyUnavailable: a storage or the store is away; begin again later.
    """
    moved, target = Moved(), storage.backends[0]
    async for asset in every_asset(store):
        for image in asset.images:
            if image.name is not None and image.backend != target:
                try:
                    moved.images += await _move(store, storage, asset, image)
                except (FileNotFoundError, ValueError) as error:
                    what = "missing" if isinstance(error, FileNotFoundError) else cause_of(error)
                    moved.left.append(f"{image.public_id} of asset {asset.id} in {image.backend}: {what}")
        moved.assets += 1
        on_asset()
    return moved


async def _move(store: AssetStore, storage: StoredImages, asset: Asset, image: ImageRef) -> int:
    """Return 1 when the image was moved, 0 when its asset does not name it any more."""
    assert image.name is not None
    try:
        content = await read_checked(storage, image)
    except FileNotFoundError:
        current = await store.get(asset.id)
        if current is None or image.name not in current.image_names:
            return 0
        raise
    saved = await storage.save(image.public_id, io.BytesIO(content), image.content_type or "image/jpeg")
    digest = await sha256_of(content)
    copy = replace(image, backend=saved.backend, url=saved.url, sha256=digest, bytes=len(content))
    try:
        await read_checked(storage, copy)
    except (FileNotFoundError, ValueError) as error:
        raise DependencyUnavailable(f"{saved.backend} does not give back what it is given") from error
    if await store.replace_image(asset.id, image.name, copy) is None:
        current = await store.get(asset.id)
        if copy.name is not None and (current is None or copy.name not in current.image_names):
            await storage.delete(copy.name)
        return 0
    if image.backend in LEADS_ON:
        await storage.delete(image.name)
    return 1
