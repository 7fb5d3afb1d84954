"""The idempotency keys of SqliteAssetStore: a part of it, see sqlite.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pipeline.assets.sqlite_file import SqliteFile
from pipeline.assets.store import KeyRecord, StoredKey
from pipeline.instants import instant_of, milliseconds_of


class SqliteKeys(SqliteFile):
    """The table `idempotency_keys`. Methods: see KeyStore."""

    async def find_key(self, key: str) -> KeyRecord | None:
        rows = await self._read("SELECT * FROM idempotency_keys WHERE key = :key", {"key": key})
        return KeyRecord(rows[0]["assetId"], rows[0]["fingerprint"]) if rows else None

    async def claim_key(
        self, key: str, record: KeyRecord, created_at: datetime, *, instead_of: str | None = None
    ) -> KeyRecord:
        # An update even where nothing changes: without it a row that is there already would not be returned.
        changes = (
            f"{name} = CASE WHEN assetId = :instead THEN excluded.{name} ELSE {name} END"
            for name in ("assetId", "fingerprint", "createdAt")
        )
        (row,) = await self._write(
            "INSERT INTO idempotency_keys VALUES (:key, :asset, :fingerprint, :created) "
            f"ON CONFLICT (key) DO UPDATE SET {', '.join(changes)} RETURNING *",
            {
                "instead": instead_of,
                "key": key,
                "asset": record.asset_id,
                "fingerprint": record.fingerprint,
                "created": milliseconds_of(created_at),
            },
        )
        return KeyRecord(row["assetId"], row["fingerprint"])

    async def discard_keys(self, asset_id: str) -> None:
        await self._write("DELETE FROM idempotency_keys WHERE assetId = :asset", {"asset": asset_id})

    async def purge_keys(self, before: datetime) -> int:
        rows = await self._write(
            "DELETE FROM idempotency_keys WHERE createdAt < :before RETURNING key", {"before": milliseconds_of(before)}
        )
        return len(rows)

    async def all_keys(self, *, limit: int, after: str = "") -> Sequence[StoredKey]:
        sql = "SELECT * FROM idempotency_keys WHERE key > :after ORDER BY key LIMIT :limit"
        return [
            StoredKey(row["key"], KeyRecord(row["assetId"], row["fingerprint"]), instant_of(row["createdAt"]))
            for row in await self._read(sql, {"after": after, "limit": limit})
        ]
