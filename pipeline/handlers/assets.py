"""A user's assets: list, get, correct, delete, retry, cancel.

Other users get 404 for them. Admins may do all of this with any asset, except correct it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog

from pipeline.assets.asset import CORRECTABLE, Asset, AssetStatus, to_timestamp
from pipeline.assets.asset_ids import ASSET_ID
from pipeline.assets.store import AssetStore
from pipeline.auth import USER_ID
from pipeline.clock import utc_now
from pipeline.errors import Forbidden, NotFound, ValidationError
from pipeline.handlers.base import BaseHandler
from pipeline.handlers.polling import MAX_WAIT_SECONDS, Polling
from pipeline.handlers.query import encode_cursor
from pipeline.texts import clean
from pipeline.usecases.admission import Admission
from pipeline.usecases.cancelling import Cancelling
from pipeline.usecases.corrections import Corrections
from pipeline.usecases.progress import Progress
from pipeline.usecases.removing import Removing
from pipeline.usecases.submission import Submission
from pipeline.tracing import OFF, Tracing

T = TypeVar("T")
Read = Callable[[], Awaitable[T]]
MAX_CORRECTION_BYTES = 16 * 1024
MAX_VALUE_LENGTH = 200
UNKNOWN_FIELD = f"Must be one of: {', '.join(CORRECTABLE)}"
STORED_ID = re.compile(r"[0-9a-f]{24}")


class _Handler(BaseHandler):
    def initialize(  # type: ignore[override]
        self,
        *,
        store: AssetStore,
        submission: Submission,
        progress: Progress,
        admission: Admission,
        tracing: Tracing = OFF,
        **common: Any,
    ) -> None:
        super().initialize(**common)
        self.polling = Polling(admission)
        self.store = store
        self.progress = progress
        self.submission = submission
        self.tracing = tracing

    async def subject(self) -> str | None:
        """Return the user whose assets the caller may read or change, None for all users."""
        caller = await self.authenticate()
        if self.may_operate(caller):
            # Every log line about an operator's request names the operator.
            structlog.contextvars.bind_contextvars(operator=caller.user_id)
            return None
        return caller.user_id

    def asset_id(self, text: str) -> str:
        """Return the asset's id in lower case and add it to the log lines; ValidationError when it is malformed."""
        asset_id = _asset_id(text)
        self.add_log_fields(assetId=asset_id)
        return asset_id

    async def own(self, asset_id: str, action: str) -> tuple[str | None, str]:
        """Return the user whose asset may be changed, see `subject`, and the asset's id in lower case.

        action: its name in the audit list, when an admin changes another user's asset.
        Forbidden when a foreign page sends an admin's request.
        """
        subject, asset_id = await self.subject(), self.asset_id(asset_id)
        asset = await self.store.get(asset_id) if subject is None else None
        if asset is not None and asset.user_id != self.principal.user_id:
            self.refuse_foreign_page()
            self.begin_act(action, asset_id)
        return subject, asset_id

    async def _polled(self, read: Read[T], is_enough: Callable[[T], bool], **options: Any) -> T:
        """Return what Polling.until returns; while this process drains, clients are sent to another one."""
        result = await self.polling.until(read, is_enough, **options)
        if self.polling.is_draining:
            self.set_header("Connection", "close")
        return result

    def on_connection_close(self) -> None:
        self.polling.abandon()
        super().on_connection_close()


class AssetsHandler(_Handler):
    """GET /api/assets: the caller's assets, newest first; with finishedSince those finished since then, oldest first.

    Operators may name another user.
    """

    route = "/api/assets"

    def initialize(self, *, categories: tuple[str, ...], **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.categories = categories

    async def get(self) -> None:
        caller, query = await self.authenticate(), self.query()
        user_id = query.text("user", USER_ID, "Must be a user's id") or caller.user_id
        if user_id != caller.user_id and not caller.is_operator:
            raise Forbidden("Only for operators")
        status, category = query.choice("status", tuple(AssetStatus)), query.choice("category", self.categories)
        limit, after, since = query.limit(), query.cursor(STORED_ID), query.instant("finishedSince")
        if since is not None and (status or category):
            query.fault("finishedSince", "Cannot be combined with status or category")
        wait = query.wait(MAX_WAIT_SECONDS)
        if wait and since is None:
            query.fault("wait", "Needs finishedSince")
        query.check()
        read_at = utc_now()

        async def read() -> Sequence[Asset]:
            nonlocal read_at
            read_at = utc_now()
            # One item more than requested shows whether there is a next page.
            if since is not None:
                return await self.store.finished_since(user_id, since, limit=limit + 1, after=after)
            chosen = AssetStatus(status) if status else None
            return await self.store.page(user_id, status=chosen, category=category, limit=limit + 1, after=after)

        items = await self._polled(read, bool, user_id=user_id, seconds=wait)
        cursor = None
        if len(items) > limit:
            last = items[limit - 1]
            ordered_by = last.created_at if since is None else last.finished_at or last.updated_at
            cursor = encode_cursor(ordered_by, last.id)
        shown = await self.progress.shown(items[:limit])
        # An instant before the read, so that a client may use it as its next finishedSince.
        self.reply({"items": shown, "nextCursor": cursor, "serverTime": to_timestamp(read_at)})


class AssetHandler(_Handler):
    """GET, PATCH and DELETE /api/assets/{id}."""

    route = "/api/assets/{id}"

    async def get(self, asset_id: str) -> None:
        subject = await self.subject()
        asset_id, query = self.asset_id(asset_id), self.query()
        wait = query.wait(MAX_WAIT_SECONDS)
        query.check()

        async def read() -> Asset:
            asset = await self.store.get(asset_id)
            if asset is None or subject not in (None, asset.user_id):
                raise NotFound("Asset not found")
            return asset

        # The asset's events go to its owner's room.
        owner = (await read()).user_id if wait else self.principal.user_id
        asset = await self._polled(read, is_done, user_id=owner, seconds=wait, asset_id=asset_id)
        self.reply((await self.progress.shown([asset]))[0])

    def initialize(  # type: ignore[override]
        self, *, removing: Removing, corrections: Corrections, **common: Any
    ) -> None:
        super().initialize(**common)
        self.removing = removing
        self.corrections = corrections
        self._body = b""

    def data_received(self, chunk: bytes) -> None:
        super().data_received(chunk)
        # One byte over the limit is stored, so that read_corrections sees that the body is too long.
        self._body += chunk[: MAX_CORRECTION_BYTES + 1 - len(self._body)]

    async def patch(self, asset_id: str) -> None:
        """Correct values of the AI; null withdraws a correction."""
        caller, asset_id = await self.authenticate(), self.asset_id(asset_id)
        asset = await self.corrections.correct(asset_id, caller.user_id, read_corrections(self._body))
        self.reply((await self.progress.shown([asset]))[0])

    async def delete(self, asset_id: str) -> None:
        subject, asset_id = await self.own(asset_id, "delete asset")
        await self.removing.delete(asset_id, subject)
        self.set_status(204)


class RetryHandler(_Handler):
    """POST /api/assets/{id}/retry: a failed or partial asset gets a new job; 409 for other assets."""

    route = "/api/assets/{id}/retry"

    async def post(self, asset_id: str) -> None:
        subject, asset_id = await self.own(asset_id, "retry asset")
        if subject is not None:
            self.limits.upload(subject)
        with self.tracing.request(self):
            receipt = await self.submission.retry(asset_id, subject, self.request_id)
            self.add_log_fields(jobId=receipt.job_id)
            answer = {"assetId": receipt.asset_id, "jobId": receipt.job_id}
            self.reply(answer | {"status": "processing", "message": "Asset queued for AI analysis"}, status=202)


class CancelHandler(_Handler):
    """POST /api/assets/{id}/cancel: an asset that is processing becomes failed; 409 for other assets."""

    route = "/api/assets/{id}/cancel"

    def initialize(self, *, cancelling: Cancelling, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.cancelling = cancelling

    async def post(self, asset_id: str) -> None:
        subject, asset_id = await self.own(asset_id, "cancel asset")
        asset = await self.cancelling.cancel(asset_id, subject, self.request_id)
        self.reply((await self.progress.shown([asset]))[0])


def read_corrections(body: bytes) -> dict[str, str | None]:
    """Return the corrections in the body of a PATCH, field -> text or None; ValidationError names every fault."""
    if len(body) > MAX_CORRECTION_BYTES:
        raise ValidationError.of("body", f"Must have at most {MAX_CORRECTION_BYTES} bytes")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or not given:
        example = '{"brand": "Adidas", "model": null}'
        raise ValidationError.of("body", f"Must be a JSON object with some of {', '.join(CORRECTABLE)}, like {example}")
    faults = []
    corrections: dict[str, str | None] = {}
    for name, value in given.items():
        if name not in CORRECTABLE:
            faults.append({"field": clean(str(name))[:MAX_VALUE_LENGTH], "message": UNKNOWN_FIELD})
            continue
        text = clean(value).strip() if isinstance(value, str) else value
        if text is not None and not (isinstance(text, str) and 0 < len(text) <= MAX_VALUE_LENGTH):
            faults.append({"field": name, "message": f"Must be a text of 1 to {MAX_VALUE_LENGTH} characters, or null"})
        else:
            corrections[name] = text
    if faults:
        raise ValidationError("Invalid correction", details=faults)
    return corrections


def is_done(asset: Asset) -> bool:
    """Return True when no job will change the asset by itself."""
    return asset.status is not AssetStatus.PROCESSING


def _asset_id(text: str) -> str:
    if not ASSET_ID.fullmatch(text):
        raise ValidationError.of("id", "Must be 24 hex digits")
    return text.lower()
