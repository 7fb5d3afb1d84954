"""Use case: a backup is checked, and restored into an empty store and storage."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from pipeline.assets.asset import Asset, ImageRef
from pipeline.assets.asset_ids import ASSET_ID
from pipeline.assets.store import IDENTITY, SCHEMA_KIND, AssetStore, KeyRecord, Record
from pipeline.clock import utc_now
from pipeline.errors import Conflict, ConfigurationError, DependencyUnavailable, PipelineError, ValidationError
from pipeline.images import content_type_of
from pipeline.usecases.backup_file import LAST, UNREADABLE, BackupCounts, Member, check_totals, members
from pipeline.usecases.image_move import KIND as MOVE
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.storage import StoredImages
from pipeline.usecases.storages_in_use import KIND as IN_USE
from pipeline.usecases.storages_in_use import LEFT_KIND

INSTANTS = ("createdAt", "updatedAt", "finishedAt")
PUBLIC_ID = re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)*")
# Kinds of records that are only true of the store and the storages that were backed up.
NOT_RESTORED = {IN_USE, LEFT_KIND, MOVE, SCHEMA_KIND}


async def restore(
    store: AssetStore,
    storage: StoredImages,
    path: Path,
    *,
    resumes: bool = False,
    is_partial: bool = False,
    on_asset: Callable[[], None] = lambda: None,
    outage_retry: OutageRetry | None = None,
) -> BackupCounts:
    """Restore everything into the store and the current storage, one image in memory at a time.

    resumes: continue an earlier restore that was interrupted; otherwise Conflict unless the store is empty
    is_partial: restore the sound part of a damaged file; otherwise ValidationError, and nothing is written
    """
    if not resumes and await store.all_ids(limit=1):
        raise Conflict("The asset store holds assets already: restore into an empty one, or go on with --resume")
    if not is_partial and (damage := (await asyncio.to_thread(check_backup, path)).damage):
        raise ValidationError(f"The backup is damaged: {damage[0]}. With --partial what is whole is restored")
    restoring = _Restoring(store, storage, outage_retry or OutageRetry(), resumes=resumes)
    await restoring.begin()
    try:
        for member in members(path):
            await restoring.restore(member, on_asset)
    except ValidationError as error:
        if not is_partial:
            raise
        restoring.counts.damage.append(error.message)
    return restoring.counts


class _Restoring:
    """One run of the command."""

    def __init__(self, store: AssetStore, storage: StoredImages, outage_retry: OutageRetry, *, resumes: bool) -> None:
        self.counts = BackupCounts()
        self._store = store
        self._storage = storage
        self._outage_retry = outage_retry
        self._resumes = resumes
        # The images since the last document, by public_id; those that were not saved have the storage "".
        self._images: dict[str, ImageRef] = {}

    async def begin(self) -> None:
        """Record that the current storage has images from now on."""
        await self._store.put_record(Record(IN_USE, self._storage.backends[0], utc_now(), {}))

    async def restore(self, member: Member, on_asset: Callable[[], None]) -> None:
        """Restore one member; its problems are added to the counts."""
        kind, _, name = member.name.partition("/")
        try:
            if kind == "images":
                await self._restore_image(name, member)
            elif kind == "assets":
                await self._restore_asset(name.removesuffix(".json"), member.json())
                on_asset()
            elif kind == "kept":
                await self._restore_record(member.json())
            elif kind == "keys":
                await self._restore_key(member.json())
            elif member.name == LAST:
                check_totals(member, self.counts)
        except UNREADABLE:
            self.counts.damage.append(f"{member.name} is damaged")

    async def _restore_image(self, public_id: str, member: Member) -> None:
        if not member.is_sound or not PUBLIC_ID.fullmatch(public_id):
            raise ValueError(public_id)
        image = ImageRef("", public_id, sha256=member.digest, bytes=len(member.content))
        # Images of an earlier run may have changed since.
        if self._resumes and await self._store.existing_ids([public_id.partition("/")[0]]):
            self._images[public_id] = image
            return
        content_type = content_type_of(member.content)
        try:
            saved = await self._outage_retry.run(
                lambda: self._storage.save(public_id, io.BytesIO(member.content), content_type)
            )
        except (DependencyUnavailable, ConfigurationError):
            raise
        except PipelineError as error:
            self.counts.flaws.append(f"{public_id} is refused by the storage: {error.message}")
            return
        self._images[public_id] = replace(image, backend=saved.backend, url=saved.url)

    async def _restore_asset(self, asset_id: str, fields: Mapping[str, Any]) -> None:
        images, self._images = self._images, {}
        asset = _asset(fields["asset"])
        if asset.id != asset_id or not ASSET_ID.fullmatch(asset_id):
            raise ValueError(asset_id)
        for public_id, digest in fields["images"].items():
            if public_id in images and images[public_id].sha256 != digest:
                self.counts.damage.append(f"images/{public_id} is damaged")
                del images[public_id]

        def restored(image: ImageRef) -> ImageRef:
            new = images.get(image.public_id)
            return replace(image, backend=new.backend, url=new.url, sha256=new.sha256) if new else image

        asset = replace(
            asset,
            original=restored(asset.original),
            processed=asset.processed and restored(asset.processed),
            previews={side: restored(image) for side, image in asset.previews.items()},
        )
        await self._outage_retry.run(partial(self._store.create, asset))
        self.counts.assets += 1
        self.counts.images += len(images)

    async def _restore_record(self, fields: Mapping[str, Any]) -> None:
        at = cast(datetime, _instant(fields["at"]))
        record = Record(fields["kind"], fields["id"], at, fields["data"], fields["userId"], fields["assetId"])
        self.counts.kept += 1
        if record.kind in NOT_RESTORED:
            return
        # A store that is in use has its own id, and records of an earlier run may have changed since.
        if (self._resumes or record.kind == IDENTITY) and await self._store.find_record(
            record.kind, record.id
        ) is not None:
            return
        await self._outage_retry.run(partial(self._store.put_record, record))

    async def _restore_key(self, fields: Mapping[str, Any]) -> None:
        record = KeyRecord(str(fields["assetId"]), str(fields["fingerprint"]))
        at = cast(datetime, _instant(fields["createdAt"]))
        await self._outage_retry.run(partial(self._store.claim_key, str(fields["key"]), record, at))
        self.counts.keys += 1


def check_backup(path: Path, on_asset: Callable[[], None] = lambda: None) -> BackupCounts:
    """Return the totals of a backup, with its problems. ValidationError: it is no backup, or not complete."""
    counts = BackupCounts()
    hashes: dict[str, str] = {}
    for member in members(path):
        kind, _, name = member.name.partition("/")
        try:
            if kind == "images":
                hashes[name] = member.digest
                if not member.is_sound or not PUBLIC_ID.fullmatch(name):
                    raise ValueError(name)
            elif kind == "assets":
                present, hashes = hashes, {}
                fields = member.json()
                _asset(fields["asset"])
                wrong = [each for each, digest in fields["images"].items() if present.get(each) != digest]
                # An image that was changed in the file is counted as damaged already.
                counts.damage += [f"images/{each} is missing" for each in wrong if each not in present]
                counts.assets += 1
                counts.images += len(fields["images"])
                on_asset()
            elif kind in ("kept", "keys"):
                member.json()
                counts.kept += kind == "kept"
                counts.keys += kind == "keys"
            elif member.name == LAST:
                check_totals(member, counts)
        except UNREADABLE:
            counts.damage.append(f"{member.name} is damaged")
    return counts


def _asset(fields: Mapping[str, Any]) -> Asset:
    document = dict(fields)
    for name in INSTANTS:
        document[name] = _instant(document[name])
    meta = document["aiMetadata"]
    document["aiMetadata"] = meta | {"processedAt": _instant(meta["processedAt"])}
    return Asset.from_document(document)


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
