"""Use case: the content of one asset store is copied into another, and compared. store_moving.py says when.

Every step may be interrupted and repeated. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pipeline.assets.asset import Asset
from pipeline.assets.store import IDENTITY, SCHEMA_KIND, AssetStore, Record
from pipeline.assets.store_move import IS_MOVED, MOVE, PROBE, STORE, Move, Phase, is_of_move
from pipeline.clock import utc_now
from pipeline.errors import Conflict
from pipeline.usecases.paging import PAGE, id_pages, record_pages, key_pages

# So many copies at once.
AT_ONCE = 16
EVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Copied:
    """How much was copied.

    late: assets that a suspended process may have changed after the decision, one line each
    """

    assets: int = 0
    records: int = 0
    keys: int = 0
    late: list[str] = field(default_factory=list)


class StoreCopy:
    """Copies from the old store into the new one."""

    def __init__(self, old: AssetStore, new: AssetStore) -> None:
        self._old = old
        self._new = new
        self.copied = Copied()

    async def check_target(self) -> None:
        """Refuse a target that is the same store, or that holds the assets of another service."""
        mark = Record(MOVE, PROBE, utc_now(), {"mark": secrets.token_hex(8)})
        await self._old.put_record(mark)
        seen = await self._new.find_record(MOVE, PROBE)
        await self._old.delete_records(MOVE, PROBE)
        if seen is not None and seen.data == mark.data:
            raise Conflict("The asset store is there already")
        # The identity is made now if there is none: by it a process recognizes the new store.
        own, identity = await self._old.identity(), await self._new.find_record(IDENTITY, IDENTITY)
        is_ours = identity is not None and identity.data["id"] == own
        if not is_ours and await self._new.all_ids(limit=1):
            raise Conflict("The other asset store holds assets that are not from here: name an empty one")
        await self._check_earlier_move()

    async def _check_earlier_move(self) -> None:
        """Refuse a target from which a move has begun and not ended: the old store may be an unfinished copy of it."""
        earlier = Move.of(await self._new.find_record(MOVE, STORE))
        if earlier is None or earlier.phase is Phase.MOVED:
            return
        record = await self._new.find_key(earlier.decision)
        if record is None or record.fingerprint != IS_MOVED:
            raise Conflict("A move away from the other asset store is not finished: finish or abandon that first")
        # Its command died before it wrote this phase; the decision is removed with the keys of the target.
        await self._new.put_record(replace(earlier, phase=Phase.MOVED).record())

    async def clear_target(self) -> None:
        """Remove what an earlier try, or the time before a move back, has left in the new store."""
        await self._new.purge_keys(EVER)
        async for ids in id_pages(self._new.all_ids):
            await self._remove(set(ids) - set(await self._old.existing_ids(ids)))
        async for page in record_pages(self._new.all_records):
            for record in filter(is_copied, page):
                if await self._old.find_record(record.kind, record.id) is None:
                    await self._new.delete_records(record.kind, record.id)

    async def copy_records(self) -> None:
        """Copy the records: everything but assets and keys."""
        self.copied.records = 0
        async for page in record_pages(self._old.all_records):
            wanted = [record for record in page if is_copied(record)]
            await asyncio.gather(*(self._new.put_record(record) for record in wanted))
            self.copied.records += len(wanted)

    async def copy_keys(self) -> None:
        """Copy the idempotency keys."""
        self.copied.keys = 0
        async for page in key_pages(self._old.all_keys):
            await asyncio.gather(*(self._new.claim_key(each.key, each.record, each.created_at) for each in page))
            self.copied.keys += len(page)

    async def copy_page(self, after: str) -> Sequence[str]:
        """Copy the page of assets after that id; return the ids of the page, none at the end."""
        ids = await self._old.all_ids(limit=PAGE, after=after)
        assets = await self._old.get_many(ids)
        await self.put(assets)
        self.copied.assets += len(assets)
        return ids

    async def complete(self) -> Sequence[str]:
        """Copy missing assets: the new store may have lost what an earlier run copied.

        Return the ids of documents that cannot be copied because they cannot be read.
        """
        damaged: list[str] = []
        async for ids in id_pages(self._old.all_ids):
            missing = set(ids) - set(await self._new.existing_ids(ids))
            assets = await self._old.get_many(missing)
            await self.put(assets)
            unreadable = missing - {asset.id for asset in assets}
            # The other assets were deleted meanwhile, and their deletion is noted.
            damaged += sorted(await self._old.existing_ids(unreadable))
        return damaged

    async def put(self, assets: Collection[Asset]) -> None:
        """Copy the assets, and compare the copies."""
        await asyncio.gather(*map(self._put_one, assets))
        copies = {copy.id: copy for copy in await self._new.get_many([asset.id for asset in assets])}
        for asset in assets:
            if asset.id not in copies or copies[asset.id].to_document() != asset.to_document():
                raise Conflict(f"The other asset store does not give back what it is given: asset {asset.id}")

    async def _put_one(self, asset: Asset) -> None:
        if await self._new.create(asset):
            return
        copy = await self._new.get(asset.id)
        if copy is None or copy.to_document() != asset.to_document():
            await self._remove([asset.id])
            await self._new.create(asset)

    async def _remove(self, asset_ids: Iterable[str]) -> None:
        for asset_id in asset_ids:
            if (copy := await self._new.get(asset_id)) is not None:
                await self._new.delete(asset_id, copy.user_id)

    async def copy_noted(self, notes: Sequence[Record]) -> None:
        """Copy the subjects of the notes again, as they are now; remove those that are deleted."""
        subjects = {tuple(subject) for note in notes for subject in note.data["subjects"]}
        asset_ids = [each[1] for each in subjects if each[0] == "asset"]
        for at in range(0, len(asset_ids), PAGE):
            some = asset_ids[at : at + PAGE]
            assets = await self._old.get_many(some)
            await self.put(assets)
            await self._remove(set(some) - {asset.id for asset in assets})
        # First the notes that remove keys: keys that were claimed after that are copied next.
        for kinds in (("keys",), ("key", "kept")):
            copies = [self._copy_subject(*subject) for subject in subjects if subject[0] in kinds]
            for at in range(0, len(copies), AT_ONCE):
                await asyncio.gather(*copies[at : at + AT_ONCE])

    async def _copy_subject(self, kind: str, *name: str) -> None:
        if kind == "keys":
            await self._new.discard_keys(name[0])
        elif kind == "key":
            await self._copy_key(name[0])
        elif is_copied(Record(name[0], name[1], EVER, {})):
            record = await self._old.find_record(name[0], name[1])
            await (self._new.put_record(record) if record is not None else self._new.delete_records(name[0], name[1]))

    async def _copy_key(self, key: str) -> None:
        record, copy = await self._old.find_key(key), await self._new.find_key(key)
        if record is not None and record != copy:
            instead_of = copy.asset_id if copy is not None else None
            await self._new.claim_key(key, record, utc_now(), instead_of=instead_of)


def is_copied(record: Record) -> bool:
    """Return whether the record is copied: not records of the move, nor of the schema of one database."""
    return record.kind != SCHEMA_KIND and not is_of_move(record)
