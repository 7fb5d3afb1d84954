"""Use case: all that the service keeps in one file, taken while it runs, and put back elsewhere.

The file is a tar. First comes what made it, then each asset: its images, then its document with their hashes; then what
the store keeps beside the assets, dead letters among them; last how much there is, without which a file is not whole.
An asset is as it was at one moment, with the images it had then; one that is deleted meanwhile is left out.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from pipeline import __version__
from pipeline.assets.asset import Asset, ImageRef, to_timestamp
from pipeline.assets.kinds import HEIC, image_type
from pipeline.assets.store import IDENTITY, AssetStore, Kept
from pipeline.clock import utc_now
from pipeline.errors import Conflict, ValidationError
from pipeline.usecases.storage import StoredImages
from pipeline.usecases.verifying import every_asset, read_checked, sha256_of

FORMAT = 1
FIRST, LAST = "backup.json", "end.json"
INSTANTS = ("createdAt", "updatedAt", "finishedAt")
PAGE = 100
TRIES = 3
MAX_MEMBER_BYTES = 256 * 1024 * 1024


@dataclass(slots=True)
class Tally:
    """How much there was. flaws: images that could not be had, each in one line."""

    assets: int = 0
    images: int = 0
    kept: int = 0
    flaws: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, int]:
        """Return the numbers."""
        return {"assets": self.assets, "images": self.images, "kept": self.kept}


async def back_up(
    store: AssetStore, storage: StoredImages, path: Path, on_asset: Callable[[], None] = lambda: None
) -> Tally:
    """Write the file; it has its name only when it is whole and on the disk. An older one of that name is replaced."""
    tally, part = Tally(), path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        with open(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                made = {"format": FORMAT, "version": __version__, "at": to_timestamp(utc_now())}
                _add_json(tar, FIRST, made)
                async for asset in every_asset(store):
                    await _back_up_asset(store, storage, tar, asset, tally)
                    on_asset()
                await _back_up_kept(store, tar, tally)
                _add_json(tar, LAST, tally.shown())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return tally


async def _back_up_asset(
    store: AssetStore, storage: StoredImages, tar: tarfile.TarFile, asset: Asset, tally: Tally
) -> None:
    current: Asset | None = asset
    for _ in range(TRIES):
        if current is None:
            return
        contents, flaws = await _contents(storage, current)
        if not flaws:
            break
        # It may have been deleted, or have another image now.
        read, current = current, await store.get(asset.id)
        if current is not None and current.image_names == read.image_names:
            tally.flaws += flaws
            break
    if current is None:
        return
    for image, content in contents:
        _add(tar, f"images/{image.public_id}", content)
    hashes = {image.public_id: await sha256_of(content) for image, content in contents}
    _add_json(tar, f"assets/{current.id}.json", {"asset": current.to_document(), "images": hashes})
    tally.assets += 1
    tally.images += len(contents)


async def _contents(storage: StoredImages, asset: Asset) -> tuple[list[tuple[ImageRef, bytes]], list[str]]:
    contents, flaws = [], []
    for image in asset.images:
        if image.name is None:
            continue
        try:
            contents.append((image, await read_checked(storage, image)))
        except (FileNotFoundError, ValueError) as error:
            what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
            flaws.append(f"{image.public_id} of asset {asset.id} is {what}")
    return contents, flaws


async def _back_up_kept(store: AssetStore, tar: tarfile.TarFile, tally: Tally) -> None:
    after = ("", "")
    while page := await store.all_kept(limit=PAGE, after=after):
        for kept in page:
            fields = {"kind": kept.kind, "id": kept.id, "at": kept.at, "data": kept.data}
            about = {"userId": kept.user_id, "assetId": kept.asset_id}
            _add_json(tar, f"kept/{tally.kept}.json", fields | about)
            tally.kept += 1
        after = (page[-1].kind, page[-1].id)


async def restore(
    store: AssetStore,
    storage: StoredImages,
    path: Path,
    *,
    resumes: bool = False,
    on_asset: Callable[[], None] = lambda: None,
) -> Tally:
    """Put everything into the store and the current storage.

    resumes: goes on where an earlier one was interrupted; otherwise Conflict unless the store is empty.
    ValidationError: the file is no backup, or damaged; what came before the damage is there then.
    """
    if not resumes and await store.all_assets(limit=1):
        raise Conflict("The asset store holds assets already: restore into an empty one, or go on with --resume")
    tally = Tally()
    saved: dict[str, ImageRef] = {}
    for name, content in _members(path):
        if name.startswith("images/"):
            public_id = name.removeprefix("images/")
            saved[public_id] = ImageRef("", public_id, sha256=await sha256_of(content), bytes=len(content))
            await _save(storage, saved, public_id, content)
        elif name.startswith("assets/"):
            await _restore_asset(store, json.loads(content), saved, tally)
            saved.clear()
            on_asset()
        elif name.startswith("kept/"):
            await _restore_kept(store, json.loads(content), resumes=resumes)
            tally.kept += 1
    return tally


async def _save(storage: StoredImages, saved: dict[str, ImageRef], public_id: str, content: bytes) -> None:
    # Its true content type is in the document, which follows; storages go by the bytes when they serve it.
    where = await storage.save(public_id, io.BytesIO(content), image_type(content) or HEIC)
    saved[public_id] = replace(saved[public_id], backend=where.backend, url=where.url)


async def _restore_asset(
    store: AssetStore, member: Mapping[str, Any], saved: Mapping[str, ImageRef], tally: Tally
) -> None:
    document = dict(member["asset"])
    for name in INSTANTS:
        document[name] = _instant(document[name])
    meta = document["aiMetadata"]
    document["aiMetadata"] = meta | {"processedAt": _instant(meta["processedAt"])}
    asset = Asset.from_document(document)
    for public_id, digest in member["images"].items():
        if public_id not in saved or saved[public_id].sha256 != digest:
            raise ValidationError(f"The backup is damaged: {public_id} is not what it was")

    def moved(image: ImageRef) -> ImageRef:
        found = saved.get(image.public_id)
        return image if found is None else replace(image, backend=found.backend, url=found.url, sha256=found.sha256)

    asset = replace(
        asset,
        original=moved(asset.original),
        processed=asset.processed and moved(asset.processed),
        previews={side: moved(image) for side, image in asset.previews.items()},
    )
    await store.create(asset)
    tally.assets += 1
    tally.images += len(saved)


async def _restore_kept(store: AssetStore, fields: Mapping[str, Any], *, resumes: bool) -> None:
    kept = Kept(
        fields["kind"],
        fields["id"],
        cast(datetime, _instant(fields["at"])),
        fields["data"],
        fields["userId"],
        fields["assetId"],
    )
    # The store may be in use already, under a name of its own.
    if not (resumes and kept.kind == IDENTITY):
        await store.keep(kept)


def check_backup(path: Path, on_asset: Callable[[], None] = lambda: None) -> Tally:
    """Return what is in a backup; its flaws are images whose hash is another one. ValidationError: it is not whole."""
    tally = Tally()
    hashes: dict[str, str] = {}
    for name, content in _members(path):
        if name.startswith("images/"):
            hashes[name.removeprefix("images/")] = hashlib.sha256(content).hexdigest()
        elif name.startswith("assets/"):
            wanted = json.loads(content)["images"]
            tally.flaws += [f"{each} is damaged" for each, digest in wanted.items() if hashes.get(each) != digest]
            tally.assets += 1
            tally.images += len(wanted)
            hashes.clear()
            on_asset()
        elif name.startswith("kept/"):
            tally.kept += 1
    return tally


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each member; ValidationError when the file is no backup, or not whole."""
    names = 0
    name = ""
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is None or member.size > MAX_MEMBER_BYTES:
                    raise ValidationError(f"{path} is no backup: {member.name} is no file of its kind")
                name, names = member.name, names + 1
                data = content.read()
                if names == 1 and (name != FIRST or json.loads(data).get("format") != FORMAT):
                    raise ValidationError(f"{path} is no backup, or one of a newer version")
                yield name, data
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ValidationError(f"{path} is no backup, or damaged: {error}") from error
    if name != LAST:
        raise ValidationError(f"{path} is not whole: it ends too early")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    tar.addfile(member, io.BytesIO(content))


def _add_json(tar: tarfile.TarFile, name: str, value: Mapping[str, Any]) -> None:
    _add(tar, name, json.dumps(value, default=to_timestamp, ensure_ascii=True).encode())


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
