"""A user's assets: list, get, delete, run again. Another user's asset is answered as one that does not exist."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.assets.asset import CATEGORIES, Asset, AssetStatus
from pipeline.assets.store import AssetStore
from pipeline.errors import NotFound, ValidationError
from pipeline.handlers.base import BaseHandler
from pipeline.submission import Submission

ASSET_ID = re.compile(r"[0-9a-fA-F]{24}")
CURSOR = re.compile(rb"(\d{1,15})\.([0-9a-f]{24})")
DEFAULT_LIMIT = 20
MAX_LIMIT = 100
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Position = tuple[datetime, str]


class _Handler(BaseHandler):
    def initialize(self, *, store: AssetStore, submission: Submission, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.store = store
        self.submission = submission


class AssetsHandler(_Handler):
    """GET /api/assets: the caller's, newest first; with finishedSince those finished since then, oldest first."""

    route = "/api/assets"

    async def get(self) -> None:
        user_id = (await self.authenticate()).user_id
        query = _Query({name: self.get_query_argument(name) for name in self.request.query_arguments})
        status, category = query.choice("status", tuple(AssetStatus)), query.choice("category", CATEGORIES)
        limit, after, since = query.limit(), query.cursor(), query.instant("finishedSince")
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
        self.reply({"items": [asset.to_json() for asset in items[:limit]], "nextCursor": cursor})


class AssetHandler(_Handler):
    """GET and DELETE /api/assets/{id}."""

    route = "/api/assets/{id}"

    async def get(self, asset_id: str) -> None:
        user_id = (await self.authenticate()).user_id
        asset = await self.store.get(_asset_id(asset_id))
        if asset is None or asset.user_id != user_id:
            raise NotFound("Asset not found")
        self.reply(asset.to_json())

    async def delete(self, asset_id: str) -> None:
        user_id = (await self.authenticate()).user_id
        await self.submission.delete(_asset_id(asset_id), user_id)
        self.set_status(204)


class RetryHandler(_Handler):
    """POST /api/assets/{id}/retry: a failed or partial asset gets a new job; 409 for any other."""

    route = "/api/assets/{id}/retry"

    async def post(self, asset_id: str) -> None:
        user_id = (await self.authenticate()).user_id
        receipt = await self.submission.retry(_asset_id(asset_id), user_id, self.request_id)
        answer = {"assetId": receipt.asset_id, "jobId": receipt.job_id}
        self.reply(answer | {"status": "processing", "message": "Asset queued for AI analysis"}, status=202)


class _Query:
    """Reads query parameters and collects every fault, so that the client hears of all at once."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values
        self._faults: list[dict[str, str]] = []

    def fault(self, field: str, message: str) -> None:
        self._faults.append({"field": field, "message": message})

    def check(self) -> None:
        if self._faults:
            raise ValidationError("Invalid query", details=self._faults)

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        value = self._values.get(name)
        if value is not None and value not in choices:
            self.fault(name, f"Must be one of: {', '.join(choices)}")
        return value

    def limit(self) -> int:
        text = self._values.get("limit", str(DEFAULT_LIMIT))
        if re.fullmatch(r"[0-9]{1,3}", text) and 1 <= int(text) <= MAX_LIMIT:
            return int(text)
        self.fault("limit", f"Must be a number from 1 to {MAX_LIMIT}")
        return DEFAULT_LIMIT

    def cursor(self) -> Position | None:
        text = self._values.get("cursor")
        try:
            return decode_cursor(text) if text is not None else None
        except ValueError:
            self.fault("cursor", "Must be a nextCursor of an earlier reply")
            return None

    def instant(self, name: str) -> datetime | None:
        text = self._values.get(name)
        try:
            return parse_instant(text) if text is not None else None
        except ValueError:
            self.fault(name, "Must be a timestamp like 2026-01-31T12:00:00.000Z")
            return None


def encode_cursor(instant: datetime, asset_id: str) -> str:
    """Return a place in a list as text that clients hand back unread."""
    milliseconds = (instant - EPOCH) // timedelta(milliseconds=1)
    return base64.urlsafe_b64encode(f"{milliseconds}.{asset_id}".encode()).decode().rstrip("=")


def decode_cursor(text: str) -> Position:
    """Return the place encode_cursor wrote; ValueError for anything else."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        match = CURSOR.fullmatch(raw)
        if match is None:
            raise ValueError("not a cursor")
        return EPOCH + timedelta(milliseconds=int(match[1])), match[2].decode()
    except (binascii.Error, OverflowError) as error:
        raise ValueError("not a cursor") from error


def parse_instant(text: str) -> datetime:
    """Return the instant of an ISO 8601 timestamp with its zone, or of an HTTP Date; ValueError for anything else."""
    try:
        instant = datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)
        if instant.tzinfo is None:
            raise ValueError("a timestamp needs its zone")
        return instant.astimezone(UTC)
    except (OverflowError, TypeError, IndexError) as error:
        raise ValueError("not a timestamp") from error


def _asset_id(text: str) -> str:
    if not ASSET_ID.fullmatch(text):
        raise ValidationError.of("id", "Must be 24 hex digits")
    return text.lower()
