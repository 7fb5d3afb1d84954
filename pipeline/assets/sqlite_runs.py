"""How SqliteAssetStore changes assets by the runs of their jobs: a part of it, see sqlite.py."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipeline.assets.asset import (
    ATTEMPTS_AT_MOST,
    CANCELLED,
    FINISHED,
    SCHEMA,
    AiMetadata,
    Asset,
    AssetStatus,
    ImageRef,
)
from pipeline.assets.asset_parts import failure_of, image_document, previews_document
from pipeline.assets.failures import fingerprint
from pipeline.assets.sqlite_reads import SqliteReads
from pipeline.assets.sqlite_rows import COLUMNS, asset_of, json_text, from_json, metadata_json, row_of
from pipeline.assets.sqlite_writes import RowStatement
from pipeline.assets.photo_store import FailByFinish
from pipeline.assets.upgrade import BackendOf, missing_backends
from pipeline.clock import utc_now
from pipeline.images import ImageName
from pipeline.instants import milliseconds_of

# The asset's attempts and one more, without the oldest when there would be too many.
WITH_ATTEMPT = (
    f"json_insert(CASE WHEN json_array_length(COALESCE(attempts, '[]')) >= {ATTEMPTS_AT_MOST} "
    "THEN json_remove(attempts, '$[0]') ELSE COALESCE(attempts, '[]') END, '$[#]', json(:attempt))"
)
# Later than before, also where two changes come in one millisecond: `finish` recognizes a changed asset by it.
TOUCHED = "updatedAt = max(:now, updatedAt + 1)"
CURRENT_RUN = "id = :id AND processingJobId = :job AND fence = :fence"
FINISHED_STATUSES = ", ".join(f"'{status}'" for status in sorted(FINISHED))
CREATE = RowStatement(
    f"INSERT INTO assets ({', '.join(COLUMNS)}) VALUES",
    f"({', '.join('?' * len(COLUMNS))})",
    "ON CONFLICT (id) DO NOTHING",
)
# For a run that knows its asset: it is written only if unchanged since; every change of an asset raises updatedAt.
SEEN = ("id", "processingJobId", "fence", "updatedAt")
RESULT = (
    *("status", "aiMetadata", "processed", "previews", "attempts", "provenance", "finishedAt", "failure", "updatedAt"),
)
FINISH, FINISH_REANALYSIS = (
    RowStatement(
        f"UPDATE assets SET {', '.join(f'{name} = new.column{at}' for at, name in enumerate(RESULT, len(SEEN) + 1))} "
        "FROM (VALUES",
        f"({', '.join('?' * len(SEEN + RESULT))})",
        f") AS new WHERE {' AND '.join(f'{name} = new.column{at}' for at, name in enumerate(SEEN, 1))} AND {status}",
    )
    for status in ("status = 'processing'", f"status IN ({FINISHED_STATUSES})")
)


class SqliteRuns(FailByFinish, SqliteReads):
    """Writes to the table `assets`. Methods: see AssetRuns."""

    async def create(self, asset: Asset) -> bool:
        row = row_of(asset)
        is_new: bool = await self._add(CREATE, [row[name] for name in COLUMNS])
        return is_new

    async def begin(self, asset_id: str, user_id: str, job_id: str, *, is_reanalysis: bool = False) -> Asset | None:
        return await self._update(
            f"UPDATE assets SET fence = fence + 1, excused = excused + {int(is_reanalysis)}, {TOUCHED} "
            "WHERE id = :id AND userId = :user AND processingJobId = :job "
            f"AND {_status_of_run(is_reanalysis)} RETURNING *",
            {"id": asset_id, "user": user_id, "job": job_id},
        )

    async def finish(
        self,
        asset_id: str,
        job_id: str,
        fence: int,
        *,
        status: AssetStatus,
        ai_metadata: AiMetadata,
        processed: ImageRef | None,
        finished_at: datetime,
        previews: Mapping[str, ImageRef] | None = None,
        attempt: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        is_reanalysis: bool = False,
        seen: Asset | None = None,
    ) -> Asset | None:
        if seen is not None:
            now = utc_now()
            done = seen.finished(status, ai_metadata, processed, finished_at, now, previews, attempt, provenance)
            if await self._finish_unchanged(seen, done, job_id, fence, is_reanalysis):
                return done
        added = f", attempts = {WITH_ATTEMPT}" if attempt else ""
        return await self._update(
            "UPDATE assets SET status = :status, aiMetadata = :meta, processed = :processed, finishedAt = :finished, "
            f"previews = COALESCE(:previews, previews), provenance = :provenance{added}, failure = :failure, "
            f"{TOUCHED} "
            f"WHERE {CURRENT_RUN} AND {_status_of_run(is_reanalysis)} RETURNING *",
            {
                **{"id": asset_id, "job": job_id, "fence": fence},
                "attempt": json_text(attempt),
                "provenance": json_text(provenance),
                "status": status.value,
                "meta": metadata_json(ai_metadata),
                "processed": json_text(image_document(processed)),
                "previews": json_text(None if previews is None else previews_document(previews)),
                "finished": milliseconds_of(finished_at),
                "failure": failure_of(status, ai_metadata),
            },
        )

    async def _finish_unchanged(self, seen: Asset, done: Asset, job_id: str, fence: int, is_reanalysis: bool) -> bool:
        """Commit `done` if the asset is as in `seen`; return whether it was."""
        row = row_of(done)
        values = [seen.id, job_id, fence, milliseconds_of(seen.updated_at), *(row[name] for name in RESULT)]
        is_written: bool = await self._add(FINISH_REANALYSIS if is_reanalysis else FINISH, values)
        return is_written

    async def add_attempt(self, asset_id: str, job_id: str, fence: int, attempt: Mapping[str, Any]) -> None:
        await self._update(
            f"UPDATE assets SET attempts = {WITH_ATTEMPT}, {TOUCHED} WHERE {CURRENT_RUN} RETURNING *",
            {"id": asset_id, "job": job_id, "fence": fence, "attempt": json_text(attempt)},
        )

    async def correct(self, seen: Asset, corrected: Asset) -> Asset | None:
        before, after = seen.to_document(), corrected.to_document()
        return await self._update(
            "UPDATE assets SET corrections = :corrections, history = :history, status = :status, failure = :failure, "
            f"{TOUCHED} "
            "WHERE id = :id AND status = :seen AND fence = :fence AND COALESCE(corrections, '{}') = :same RETURNING *",
            {
                "id": seen.id,
                "seen": seen.status.value,
                "fence": seen.fence,
                "same": json_text(before["corrections"]),
                "status": after["status"],
                "failure": after["failure"],
                **{name: json_text(after[name]) for name in ("corrections", "history")},
            },
        )

    async def cancel(self, asset_id: str, job_id: str, *, finished_at: datetime) -> Asset | None:
        return await self._update(
            "UPDATE assets SET status = 'failed', aiMetadata = :meta, processed = NULL, finishedAt = :finished, "
            f"fence = fence + 1, failure = :failure, {TOUCHED} "
            "WHERE id = :id AND processingJobId = :job AND status = 'processing' RETURNING *",
            {
                "failure": fingerprint(CANCELLED),
                "id": asset_id,
                "job": job_id,
                "meta": metadata_json(AiMetadata(error=CANCELLED)),
                "finished": milliseconds_of(finished_at),
            },
        )

    async def refund_start(self, asset_id: str, job_id: str) -> None:
        await self._update(
            f"UPDATE assets SET excused = excused + 1, {TOUCHED} "
            "WHERE id = :id AND processingJobId = :job AND status = 'processing' AND excused < fence RETURNING *",
            {"id": asset_id, "job": job_id},
        )

    async def requeue(self, asset_id: str, user_id: str, job_id: str) -> Asset | None:
        return await self._update(
            "UPDATE assets SET status = 'processing', processingJobId = :job, aiMetadata = :meta, processed = NULL, "
            f"provenance = NULL, finishedAt = NULL, failure = NULL, excused = fence, {TOUCHED} "
            "WHERE id = :id AND userId = :user AND status IN ('failed', 'partial') AND originalGone IS NULL "
            "RETURNING *",
            {"id": asset_id, "user": user_id, "job": job_id, "meta": metadata_json(AiMetadata())},
        )

    async def replace_image(self, asset_id: str, old: ImageName, new: ImageRef) -> Asset | None:
        current = await self.get(asset_id)
        place = current.image_path(old) if current else None
        if place is None:
            return None
        column, path = place[0], "".join(f'."{step}"' for step in place[1:])
        return await self._update(
            f"UPDATE assets SET {column} = json_set({column}, :path, json(:new)), {TOUCHED} WHERE id = :id "
            f"AND json_extract({column}, :path || '.publicId') = :public_id "
            f"AND COALESCE(json_extract({column}, :path || '.backend'), :backend) = :backend RETURNING *",
            {
                "id": asset_id,
                "path": f"${path}",
                "new": json_text(image_document(new)),
                "public_id": old.public_id,
                "backend": old.backend,
            },
        )

    async def upgrade(self, after: str, *, limit: int, backend_of: BackendOf) -> tuple[int, str | None]:
        page = await self._read(
            "SELECT id, original, processed, schema FROM assets WHERE id > :after ORDER BY id LIMIT :limit",
            {"after": after, "limit": limit},
        )
        done = await asyncio.gather(*(self._upgrade(row, backend_of) for row in page if row["schema"] is None))
        return sum(done), page[-1]["id"] if len(page) == limit else None

    async def _upgrade(self, row: sqlite3.Row, backend_of: BackendOf) -> int:
        try:
            images = {role: from_json(row[role]) for role in ("original", "processed")}
        except ValueError:
            return 0
        if (backends := missing_backends(images, backend_of)) is None:
            return 0
        texts = {role: json_text(images[role] | {"backend": backend}) for role, backend in backends.items()}
        rows = await self._write(
            "UPDATE assets SET original = :original, processed = :processed, schema = :schema WHERE id = :id "
            "AND schema IS NULL AND original IS :original_was AND processed IS :processed_was RETURNING id",
            {role: texts.get(role, row[role]) for role in images}
            | {f"{role}_was": row[role] for role in images}
            | {"id": row["id"], "schema": SCHEMA},
        )
        return len(rows)

    async def _update(self, sql: str, values: dict[str, Any]) -> Asset | None:
        rows = await self._write(sql, {"now": milliseconds_of(utc_now())} | values)
        return asset_of(rows[0]) if rows else None


def _status_of_run(is_reanalysis: bool) -> str:
    return f"status IN ({FINISHED_STATUSES})" if is_reanalysis else "status = 'processing'"
