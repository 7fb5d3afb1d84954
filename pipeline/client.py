"""A client of the service: uploads photos and listens for events, as any other program would, over HTTP and
WebSocket.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from pipeline.access import ClientError, Reply, Token, TokenSource, Unavailable, words_of
from pipeline.feed import CONNECT_SECONDS, Feed
from pipeline.texts import clean

__all__ = ["Client", "ClientError"]

UPLOAD_SECONDS = 300
# Waits before an upload is sent again, unless the service says how long.
REPEAT_SECONDS = (0.5, 1.0, 2.0, 4.0)
CHUNK_BYTES = 64 * 1024
PAGE = 100
QUEUE = "ai-processing"
MISSING = {"value": "", "confidence": 0}


class Client:
    """One user's door to the service. Use as `async with`."""

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        since: str | None = None,
        on_notice: Callable[[str], None] = lambda words: None,
    ) -> None:
        """url: e.g. http://127.0.0.1:8080. token: a token, or a function, sync or async, that returns a fresh one.

        The function is asked again shortly before its last token expires and when the service refuses that one. An
        OSError or aiohttp.ClientError of it counts as the service being out of reach; any other goes to the caller.
        since: where an earlier client's `since` stood; `events` begins there, or a little before.
        on_notice: told in words when the connection of `events` is lost and when it is back.
        """
        self._url = url.rstrip("/")
        self._tokens = TokenSource(token)
        self._session: aiohttp.ClientSession | None = None
        self._feed = Feed(self._url, self._tokens, since=since, events_since=self._events_since, on_notice=on_notice)

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=UPLOAD_SECONDS, sock_connect=CONNECT_SECONDS)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._feed.stop()
        if self._session is not None:
            await self._session.close()

    async def upload(
        self,
        path: Path,
        category: str,
        *,
        idempotency_key: str | None = None,
        on_progress: Callable[[int], None] = lambda sent: None,
    ) -> dict[str, Any]:
        """Upload a photo; return {"assetId", "jobId", "status", "message"}.

        Sent again a few times, within five minutes, when the service cannot be reached or is too busy; the key, a new
        one for each call unless given, makes that one upload.
        on_progress: called with a number of bytes each time so many went out, and before a repeat with minus all that
        went out in vain, so that the sum is always what has been sent.
        """
        try:
            path.open("rb").close()
        except OSError as error:
            raise ClientError(f"Cannot read {path}: {error.strerror}") from error
        sent = 0

        def count(number: int) -> None:
            nonlocal sent
            sent += number
            on_progress(number)

        def form() -> aiohttp.FormData:
            if sent:
                count(-sent)
            form = aiohttp.FormData()
            form.add_field("category", category)
            # No header may hold what a file's name may.
            name, content_type = clean(path.name), "application/octet-stream"
            form.add_field("image", _read(path, count), filename=name, content_type=content_type)
            return form

        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        deadline = time.monotonic() + UPLOAD_SECONDS
        repeats = iter(REPEAT_SECONDS)
        while True:
            try:
                return await self._request("POST", "/api/assets/analyze-queue", body=form, headers=headers)
            except Unavailable as error:
                longest = next(repeats, None)
                if longest is None:
                    raise
                wait = random.uniform(longest / 2, longest) if error.retry_seconds is None else error.retry_seconds
                if time.monotonic() + wait > deadline:
                    raise
                await asyncio.sleep(wait)

    async def asset(self, asset_id: str) -> dict[str, Any]:
        """Return the asset as it is now."""
        return await self._request("GET", f"/api/assets/{asset_id}")

    async def queue_status(self) -> dict[str, Any]:
        """Return the number of jobs in each state, and whether the queue is paused."""
        return await self._request("GET", "/api/assets/queue-status")

    async def held_plugins(self) -> list[str]:
        """Return which plugins are not called at the moment, and why, each in one line."""
        reply = await self._send(await self._tokens.get(), "GET", "/readyz?verbose")
        # A service that is not ready says the same, beside why it is not.
        data = json.loads(reply.body)["data"] if reply.status == 503 else reply.data()
        held = [each for each in data["plugins"] if each["state"] == "held"]
        return [f"{each['kind']} {each['name']}: {each['reason']}" for each in held]

    # with an admin's token

    async def failed_jobs(self, limit: int | None = None, *, queue: str = QUEUE) -> AsyncIterator[dict[str, Any]]:
        """Yield dead letters, newest first: so many, or all. queue: ai-processing or notifications."""
        left, cursor = limit, None
        while left is None or left > 0:
            params = {"queue": queue, "limit": str(min(left or PAGE, PAGE))}
            params |= {"cursor": cursor} if cursor else {}
            page = await self._request("GET", "/api/queue/failed", params=params)
            for job in page["items"]:
                yield job
            if (cursor := page["nextCursor"]) is None:
                return
            left = None if left is None else left - len(page["items"])

    async def retry_failed(self, job_id: str) -> dict[str, Any]:
        """Run a dead letter again; return {"assetId", "jobId", "status", "message"} of its new job."""
        return await self._request("POST", f"/api/queue/failed/{quote(job_id, safe='')}/retry")

    async def retry_all_failed(self, *, queue: str = QUEUE) -> dict[str, int]:
        """Run all dead letters again that there are now; return how many were {"retried", "skipped"}."""
        counts = {"retried": 0, "skipped": 0}
        params = {"queue": queue}
        while True:
            reply = await self._request("POST", "/api/queue/failed/retry", params=params)
            counts = {name: count + reply[name] for name, count in counts.items()}
            if reply["nextCursor"] is None:
                return counts
            params["cursor"] = reply["nextCursor"]

    async def remove_failed(self, job_id: str) -> None:
        """Remove a dead letter."""
        await self._request("DELETE", f"/api/queue/failed/{quote(job_id, safe='')}")

    async def remove_all_failed(self, *, queue: str = QUEUE) -> int:
        """Remove all dead letters; return how many."""
        removed: int = 0
        while True:
            reply = await self._request("DELETE", "/api/queue/failed", params={"queue": queue})
            removed += reply["removed"]
            if not reply["remaining"]:
                return removed

    async def pause(self, *, queue: str = QUEUE) -> None:
        """Let no process claim jobs any more."""
        await self._request("POST", "/api/queue/pause", params={"queue": queue})

    async def resume(self, *, queue: str = QUEUE) -> None:
        """Let jobs be claimed again."""
        await self._request("POST", "/api/queue/resume", params={"queue": queue})

    # the socket

    @property
    def since(self) -> str | None:
        """The timestamp up to which `events` has yielded all; keep it to go on from there with another client."""
        return self._feed.since

    async def listen(self) -> str:
        """Open the socket and return the room it is in; from then on `events` misses nothing.

        ClientError when the service cannot be reached now or refuses.
        """
        assert self._session is not None, "use `async with`"
        return await self._feed.start(self._session)

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield each asset_processed event once, over as many connections as it takes; `listen` first.

        ClientError when the service refuses for good.
        """
        return self._feed.events()

    async def _events_since(self, since: str) -> AsyncIterator[dict[str, Any]]:
        params = {"finishedSince": since, "limit": str(PAGE)}
        while True:
            page = await self._request("GET", "/api/assets", params=params)
            for asset in page["items"]:
                if event := event_of(asset):
                    yield event
            if page["nextCursor"] is None:
                return
            params["cursor"] = page["nextCursor"]

    # one request

    async def _request(
        self, method: str, path: str, *, body: Callable[[], Any] = lambda: None, **options: Any
    ) -> dict[str, Any]:
        """Return the reply's data. body: makes what is sent, anew when the request is repeated with a fresh token."""
        token = await self._tokens.get()
        reply = await self._send(token, method, path, data=body(), **options)
        if reply.status == 401 and self._tokens.drop(token):
            reply = await self._send(await self._tokens.get(), method, path, data=body(), **options)
        return reply.data()

    async def _send(
        self, token: str, method: str, path: str, *, headers: Mapping[str, str] = {}, **options: Any
    ) -> Reply:
        assert self._session is not None, "use `async with`"
        headers = {"Authorization": f"Bearer {token}"} | dict(headers)
        try:
            async with self._session.request(method, self._url + path, headers=headers, **options) as response:
                return Reply(response.status, response.headers.get("Retry-After", ""), await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"Cannot reach {self._url}: {words_of(error)}") from error


def event_of(asset: dict[str, Any]) -> dict[str, Any] | None:
    """Return the event that told of this asset (schema Asset in the contract), None when it is not finished."""
    meta = asset["aiMetadata"]
    event = {"event": "asset_processed", "assetId": asset["id"], "status": asset["status"]}
    if asset["status"] == "failed":
        return event | {"error": meta["error"] or "Processing failed", "timestamp": asset["finishedAt"]}
    if asset["status"] not in ("active", "partial"):
        return None
    found = {"brand": meta["brand"] or MISSING, "model": meta["model"] or MISSING}
    if meta["colorway"]:
        found["colorway"] = meta["colorway"]
    event |= {"aiMetadata": found, "timestamp": asset["finishedAt"]}
    if asset["images"]["processed"]:
        event["processedImageUrl"] = asset["images"]["processed"]["url"]
    return event


async def _read(path: Path, on_progress: Callable[[int], None]) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            on_progress(len(chunk))
