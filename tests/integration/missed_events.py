"""Assets that finished while a client was away, and sockets that ask for the missed events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus
from pipeline.assets.events import asset_processed
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from tests.factories import make_asset, make_token
from tests.sockets import Client, Process

NOON = datetime(2026, 1, 31, 12, 0, 0, 123_000, UTC)
SECOND = timedelta(seconds=1)
FOUND = AiMetadata(
    brand={"value": "Nike", "confidence": 0.93}, model={"value": "Air Max 90", "confidence": 0.5}, processed_at=NOON
)


class ControlledStore(SqliteAssetStore):
    """A real store; the test can make the reads of a replay wait, and can make them fail."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "assets.sqlite")
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.is_away = False
        self.reads: asyncio.Queue[str] = asyncio.Queue()

    async def finished_since(self, user_id: str, since: datetime, **options: Any) -> Sequence[Asset]:
        self.reads.put_nowait(user_id)
        may_go_on = self.may_go_on
        if self.is_away:
            raise DependencyUnavailable("asset store")
        found = await super().finished_since(user_id, since, **options)
        await may_go_on.wait()
        return found


async def finish(process: Process, seconds: float, user_id: str = "user-1", **fields: Any) -> dict[str, Any]:
    """Store an asset that was finished `seconds` after noon, and return its event."""
    at = NOON + seconds * SECOND
    fields = {"status": AssetStatus.ACTIVE, "ai_metadata": FOUND} | fields
    asset = make_asset(user_id, created_at=at, finished_at=at, **fields)
    assert await process.store.create(asset)
    return asset_processed(asset)


async def connect_since(process: Process, way: str, since: str, sub: str = "user-1") -> Client:
    """Open a socket that asks for the events since that time, and read its first frame, `connected`."""
    if way == "first frame":
        client = await process.open()
        await client.send({"auth": {"token": make_token(sub)}, "since": since})
    elif way == "query, then frame":
        client = await process.open(params={"since": since})
        await client.send({"auth": {"token": make_token(sub)}})
    elif way == "query with header":
        client = await process.open(params={"since": since}, headers={"Authorization": f"Bearer {make_token(sub)}"})
    else:
        client = await process.open(params={"since": since}, protocols=["pipeline.v1", f"bearer.{make_token(sub)}"])
    assert (await client.frame())["event"] == "connected"
    return client


def make_finished() -> Asset:
    """Return an asset that was finished now."""
    return make_asset(status=AssetStatus.ACTIVE, finished_at=utc_now(), ai_metadata=FOUND)
