"""Use case: a backup of everything in one file, made while the service runs.

Each asset is stored as it was at one moment, with its images of that moment. An asset that is deleted before the backup
reaches it is not in the file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tarfile import TarFile
from typing import Any

from pipeline import __version__
from pipeline.assets.asset import Asset, ImageRef, to_timestamp
from pipeline.assets.store import AssetStore
from pipeline.assets.store_move import is_of_move
from pipeline.clock import utc_now
from pipeline.usecases import backup_file, deliveries, job_statistics
from pipeline.usecases.backup_file import FIRST, FORMAT, LAST, BackupCounts
from pipeline.usecases.asset_scan import retried, damaged_document, every_asset
from pipeline.usecases.outage_retry import OutageRetry, Unreadable, what_is_wrong
from pipeline.usecases.paging import key_pages, record_pages
from pipeline.usecases.storage import StoredImages

# An asset whose images change or disappear is read so often, with this delay: an erase removes the images before the
# document.
TRIES = 5
# Records that only show the last days, and may be as many as there are events.
LEFT_OUT = {deliveries.KIND, *job_statistics.KINDS}
RETRY_SECONDS = 1.0


async def back_up(
    store: AssetStore,
    storage: StoredImages,
    path: Path,
    on_asset: Callable[[], None] = lambda: None,
    *,
    outage_retry: OutageRetry | None = None,
) -> BackupCounts:
    """Write the file. It gets its name, and replaces an older file, only when it is complete and on the disk.

    The images of one asset are in memory at a time. DependencyUnavailable: the store, a storage or the disk is away.
    """
    backup = _Backup(store, storage, outage_retry or OutageRetry())
    with backup_file.writing(path) as tar:
        await backup.write(tar, on_asset)
    return backup.counts


class _Backup:
    """One run of the command."""

    def __init__(self, store: AssetStore, storage: StoredImages, outage_retry: OutageRetry) -> None:
        self.counts = BackupCounts()
        self._store = store
        self._storage = storage
        self._outage_retry = outage_retry

    async def write(self, tar: TarFile, on_asset: Callable[[], None]) -> None:
        damaged: list[str] = []
        _add_json(tar, FIRST, {"format": FORMAT, "version": __version__, "at": to_timestamp(utc_now())})
        async for asset in every_asset(self._store, self._outage_retry, damaged.append):
            await self._write_asset(tar, asset)
            on_asset()
        self.counts.flaws += map(damaged_document, damaged)
        await self._write_records(tar)
        await self._write_keys(tar)
        _add_json(tar, LAST, self.counts.shown() | {"flaws": self.counts.flaws})

    async def _write_asset(self, tar: TarFile, asset: Asset) -> None:
        contents, flaws = await self._contents(asset)
        for _ in range(TRIES):
            if not flaws:
                break
            # The asset may have been deleted, or have another image now.
            await asyncio.sleep(RETRY_SECONDS)
            current = await self._outage_retry.run(partial(self._store.get, asset.id))
            if current is None:
                return
            before, asset = asset.image_names, current
            contents, flaws = await self._contents(asset)
            if asset.image_names == before:
                break
        self.counts.flaws += flaws
        hashes = {
            image.public_id: backup_file.add(tar, f"images/{image.public_id}", content) for image, content in contents
        }
        _add_json(tar, f"assets/{asset.id}.json", {"asset": asset.to_document(), "images": hashes})
        self.counts.assets += 1
        self.counts.images += len(contents)

    async def _contents(self, asset: Asset) -> tuple[Sequence[tuple[ImageRef, bytes]], Sequence[str]]:
        contents, flaws = [], []
        for image in asset.images:
            if image.name is None:
                continue
            try:
                contents.append((image, await self._outage_retry.read(self._storage, image)))
            except (FileNotFoundError, ValueError, Unreadable) as error:
                flaws.append(f"{image.public_id} of asset {asset.id} is {what_is_wrong(error)}")
        return contents, flaws

    async def _write_records(self, tar: TarFile) -> None:
        async for page in record_pages(retried(self._outage_retry, self._store.all_records)):
            for record in page:
                # The record of a move contains an address with a password, and is useless in another store.
                if is_of_move(record) or record.kind in LEFT_OUT:
                    continue
                fields = {"kind": record.kind, "id": record.id, "at": record.at, "data": record.data}
                subject = {"userId": record.user_id, "assetId": record.asset_id}
                _add_json(tar, f"kept/{self.counts.kept}.json", fields | subject)
                self.counts.kept += 1

    async def _write_keys(self, tar: TarFile) -> None:
        async for page in key_pages(retried(self._outage_retry, self._store.all_keys)):
            for each in page:
                record = {"assetId": each.record.asset_id, "fingerprint": each.record.fingerprint}
                fields = {"key": each.key, "createdAt": each.created_at}
                _add_json(tar, f"keys/{self.counts.keys}.json", fields | record)
                self.counts.keys += 1


def _add_json(tar: TarFile, name: str, value: Mapping[str, Any]) -> None:
    backup_file.add(tar, name, json.dumps(value, default=to_timestamp, ensure_ascii=True).encode())
