"""A user's assets: list, get, delete, run again. Another user's asset is answered as one that does not exist."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline.assets.asset import ASSET_ID, CATEGORIES, Asset, AssetStatus
from pipeline.assets.store import AssetStore
from pipeline.errors import NotFound, ValidationError
from pipeline.handlers.base import BaseHandler
from pipeline.handlers.query import Query, encode_cursor
from pipeline.usecases.progress import Progress
from pipeline.usecases.submission import Submission
from pipeline.tracing import OFF, Tracing

STORED_ID = re.compile(r"[0-9a-f]{24}")


class _Handler(BaseHandler):
    def initialize(  # type: ignore[override]
        self,
        *,
        store: AssetStore,
        submission: Submission,
        progress: Progress,
        tracing: Tracing = OFF,
        **common: Any,
    ) -> None:
        super().initialize(**common)
        self.store = store
        self.progress = progress
        self.submission = submission
        self.tracing = tracing


class AssetsHandler(_Handler):
    """GET /api/assets: the caller's, newest first; with finishedSince those finished since then, oldest first."""

    route = "/api/assets"

    async def get(self) -> None:
        user_id = (await self.authenticate()).user_id
        query = Query({name: self.get_query_argument(name) for name in self.request.query_arguments})
        status, category = query.choice("status", tuple(AssetStatus)), query.choice("category", CATEGORIES)
        limit, after, since = query.limit(), query.cursor(STORED_ID), query.instant("finishedSince")
        if since is not None and (status or category):
            query.fault("finishedSince", "Cannot be combined with status or category")
        query.check()
        items: Sequence[Asset]
        # One more than asked for tells whether there is a next page.
        if since is not None:
            items = await self.store.finished_since(user_id, since, limit=limit + 1, after=after)
        else:
            chosen = AssetStatus(status) if status else None
            items = await self.store.page(user_id, status=chosen, category=category, limit=limit + 1, after=after)
        cursor = None
        if len(items) > limit:
            last = items[limit - 1]
            ordered_by = last.created_at if since is None else last.finished_at or last.updated_at
            cursor = encode_cursor(ordered_by, last.id)
        self.reply({"items": await self.progress.shown(items[:limit]), "nextCursor": cursor})


class AssetHandler(_Handler):
    """GET and DELETE /api/assets/{id}."""

    route = "/api/assets/{id}"

    async def get(self, asset_id: str) -> None:
        user_id = (await self.authenticate()).user_id
        asset = await self.store.get(_asset_id(asset_id))
        if asset is None or asset.user_id != user_id:
            raise NotFound("Asset not found")
        self.reply((await self.progress.shown([asset]))[0])

    async def delete(self, asset_id: str) -> None:
        user_id = (await self.authenticate()).user_id
        await self.submission.delete(_asset_id(asset_id), user_id)
        self.set_status(204)


class RetryHandler(_Handler):
    """POST /api/assets/{id}/retry: a failed or partial asset gets a new job; 409 for any other."""

    route = "/api/assets/{id}/retry"

    async def post(self, asset_id: str) -> None:
        user_id = (await self.authenticate()).user_id
        with self.tracing.request(self):
            receipt = await self.submission.retry(_asset_id(asset_id), user_id, self.request_id)
            answer = {"assetId": receipt.asset_id, "jobId": receipt.job_id}
            self.reply(answer | {"status": "processing", "message": "Asset queued for AI analysis"}, status=202)


def _asset_id(text: str) -> str:
    if not ASSET_ID.fullmatch(text):
        raise ValidationError.of("id", "Must be 24 hex digits")
    return text.lower()
