"""Stand-ins for what is behind the HTTP border: submission, progress and the asset store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

from pipeline.assets.asset import Asset
from pipeline.usecases.bounds import Quota
from pipeline.usecases.submission import Receipt
from pipeline.usecases.upload import Upload

ASSET_ID = "0123456789abcdef01234567"
RECEIPT = Receipt(ASSET_ID, f"ai-processing:{ASSET_ID}")


class StandInProgress:
    """Show no progress of any asset."""

    async def shown(self, assets: Sequence[Asset]) -> list[dict[str, Any]]:
        return [asset.to_json({}) for asset in assets]


class StandInSubmission:
    """Remember the calls, and read the file like a storage.

    error: raised instead, if set.
    """

    def __init__(self) -> None:
        self.quota = Quota(cast(Any, SimpleNamespace(stored_bytes=None)), most_bytes=0)
        self.uploads: list[tuple[Upload, bytes]] = []
        self.calls: list[tuple[str, ...]] = []
        self.error: Exception | None = None
        self.entered = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    async def admit(self, user_id: str, idempotency_key: str | None) -> None:
        """Admit every user."""

    async def submit(self, upload: Upload) -> Receipt:
        self.entered.set()
        await asyncio.to_thread(self.may_go_on.wait, 10)
        if self.error:
            raise self.error
        self.uploads.append((upload, upload.file.read()))
        return RECEIPT

    async def retry(self, asset_id: str, user_id: str, request_id: str) -> Receipt:
        if self.error:
            raise self.error
        self.calls.append(("retry", asset_id, user_id, request_id))
        return RECEIPT

    async def delete(self, asset_id: str, user_id: str) -> None:
        if self.error:
            raise self.error
        self.calls.append(("delete", asset_id, user_id))


class StandInStore:
    """Answer the three reads of the border from a list of assets."""

    def __init__(self) -> None:
        self.assets: list[Asset] = []

    async def get(self, asset_id: str) -> Asset | None:
        return next((asset for asset in self.assets if asset.id == asset_id), None)

    async def page(
        self, user_id: str, *, status: Any = None, category: Any = None, limit: int = 20, after: Any = None
    ) -> Sequence[Asset]:
        found = [
            asset
            for asset in sorted(self.assets, key=lambda asset: (asset.created_at, asset.id), reverse=True)
            if asset.user_id == user_id
            and status in (None, asset.status)
            and category in (None, asset.category)
            and (after is None or (asset.created_at, asset.id) < after)
        ]
        return found[:limit]

    async def finished_since(
        self, user_id: str, since: datetime, *, limit: int, after: Any = None
    ) -> Sequence[Asset]:
        found = [
            asset
            for asset in sorted(self.assets, key=lambda asset: (asset.finished_at or since, asset.id))
            if asset.user_id == user_id
            and asset.finished_at is not None
            and asset.finished_at >= since
            and (after is None or (asset.finished_at, asset.id) > after)
        ]
        return found[:limit]
