"""A client of the service: uploads photos, and receives events over the best transport that the network permits."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import aiohttp

from .access import ClientError, Token, TokenSource, TooMany, Unavailable
from .events import Frame
from .feed import Feed
from .http import Http, segment

UPLOAD_SECONDS = 300
# Retry delays of an upload, where the service names none.
REPEAT_SECONDS = (0.5, 1.0, 2.0, 4.0)
CHUNK_BYTES = 64 * 1024
WAIT_SECONDS = 25
# Retry delay of `wait`.
WAIT_RETRY_SECONDS = 1.0
# After a 429 calls of `wait` are spread over at most this time: all at once they would be refused again.
SPREAD_SECONDS = 30.0
# Longest rate of the notices that uploads wait.
NOTICE_SECONDS = 30.0
Send = Callable[[], Awaitable[dict[str, Any]]]
FINISHED = ("active", "partial", "failed", "archived")


class Client:
    """The service as one user sees it. Use as `async with`.

    Many methods because each is one route, or one way to read events.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        since: str | None = None,
        progress: bool = False,
        on_notice: Callable[[str], None] = lambda words: None,
        on_transport: Callable[[str], None] = lambda transport: None,
    ) -> None:
        """
        url: of the service, e.g. http://127.0.0.1:8080.
        token: a token, or a function, sync or async, that returns a fresh one. The function is called again shortly
            before its last token expires, and when the service refuses that token. Its OSError and aiohttp.ClientError
            mean that the service cannot be reached; other errors go to the caller.
        since: the `since` of an earlier client; `events` begins there, or a little before.
        progress: `events` also yields the steps before the result (`asset_queued`, `asset_started`, ...).
        on_notice: called with a text when the connection of `events` is lost, and when it is back.
        on_transport: called with "socket", "sse" or "poll" when `events` changes to that transport.
        """
        self._http = Http(url, TokenSource(token))
        self._on_notice = on_notice
        # After a 429 uploads are retried one after the other: all at once they would be refused again.
        self._retrying = asyncio.Lock()
        self._noticed_at = -NOTICE_SECONDS
        self._feed = Feed(
            self._http, since=since, is_progress=progress, on_notice=on_notice, on_transport=on_transport
        )

    async def __aenter__(self) -> Self:
        self._http.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._feed.stop()
        await self._http.close()

    async def upload(
        self,
        path: str | Path,
        category: str,
        *,
        idempotency_key: str | None = None,
        on_progress: Callable[[int], None] = lambda sent: None,
    ) -> dict[str, Any]:
        """Upload a photo; return {"assetId", "jobId", "status", "message"}.

        The upload is retried within five minutes when the service cannot be reached or is too busy. After a limit of
        the user (429 with Retry-After) it waits without an end, one upload after the other. It is accepted once.

        idempotency_key: makes all attempts one upload; None: a new one for each call.
        on_progress: called with the number of bytes that were sent just now, and before a retry with minus all bytes
            of the failed attempt, so that the sum is always the bytes sent.
        """
        form = _Form(Path(path), category, on_progress)
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}

        async def send() -> dict[str, Any]:
            return await self._http.request("POST", "/api/assets/analyze-queue", body=form.make, headers=headers)

        try:
            return await _persist(send)
        except TooMany as error:
            self._notice_wait(error)
            async with self._retrying:
                return await _send_within_limit(send, error)

    def _notice_wait(self, error: TooMany) -> None:
        """Report that uploads wait, at most once in NOTICE_SECONDS."""
        now = time.monotonic()
        if now - self._noticed_at >= NOTICE_SECONDS:
            self._noticed_at = now
            self._on_notice(f"{error}: waiting until the limit allows the next upload")

    async def asset(self, asset_id: str) -> dict[str, Any]:
        """Return the asset as it is now."""
        return await self._http.request("GET", f"/api/assets/{segment(asset_id)}")

    async def wait(self, asset_id: str, *, timeout_seconds: float | None = None) -> dict[str, Any]:
        """Return the asset as soon as it is finished, or TimeoutError. It waits on after a restart of the service."""
        refusals = 0
        async with asyncio.timeout(timeout_seconds):
            while True:
                asked_at = time.monotonic()
                wait = WAIT_RETRY_SECONDS
                try:
                    params = {"wait": str(WAIT_SECONDS)}
                    asset = await self._http.request("GET", f"/api/assets/{segment(asset_id)}", params=params)
                    if asset["status"] in FINISHED:
                        return asset
                    refusals = 0
                except TooMany as error:
                    refusals += 1
                    spread = random.uniform(0, min(SPREAD_SECONDS, 2.0**refusals))
                    wait = max(wait, (error.retry_seconds or 0) + spread)
                except Unavailable as error:
                    wait = max(wait, error.retry_seconds or 0)
                await asyncio.sleep(max(0, asked_at + wait - time.monotonic()))

    async def retry(self, asset_id: str) -> dict[str, Any]:
        """Run a failed or partial asset again; return {"assetId", "jobId", "status", "message"}."""
        return await self._http.request("POST", f"/api/assets/{segment(asset_id)}/retry")

    async def cancel(self, asset_id: str) -> dict[str, Any]:
        """Cancel the job of an asset: the asset fails with the error "Cancelled", and its event is sent."""
        return await self._http.request("POST", f"/api/assets/{segment(asset_id)}/cancel")

    async def correct(self, asset_id: str, **values: str | None) -> dict[str, Any]:
        """Correct fields, as brand="Adidas", model=None. A text stays for good; None returns the field to the AI."""
        return await self._http.request("PATCH", f"/api/assets/{segment(asset_id)}", json=values)

    async def delete(self, asset_id: str) -> None:
        """Delete the asset with its images."""
        await self._http.request("DELETE", f"/api/assets/{segment(asset_id)}")

    async def queue_status(self) -> dict[str, Any]:
        """Return the number of jobs in each state, and whether the queue is paused."""
        return await self._http.request("GET", "/api/assets/queue-status")

    # events

    @property
    def since(self) -> str | None:
        """The timestamp up to which `events` has yielded all events. Another client can continue from it."""
        return self._feed.cursor.since

    @property
    def transport(self) -> str | None:
        """How events come: "socket", "sse" or "poll"; None before `listen`."""
        return self._feed.transport

    async def listen(self) -> str:
        """Connect, if it is not connected, and return the room. From then on `events` misses no event.

        ClientError when the service cannot be reached now, or refuses.
        """
        return await self._feed.start()

    async def next_event(self) -> Frame:
        """Return the next event; calls `listen` first. A cancelled call loses no event."""
        await self.listen()
        return await self._feed.next()

    async def events(self) -> AsyncIterator[Frame]:
        """Yield each asset_processed event once, across reconnections, from `listen` on.

        ClientError when the service refuses for good.
        """
        while True:
            yield await self.next_event()


async def _persist(send: Send) -> dict[str, Any]:
    """Return the reply, after retries where these can help. TooMany and permanent errors are raised at once."""
    deadline = time.monotonic() + UPLOAD_SECONDS
    repeats = iter(REPEAT_SECONDS)
    while True:
        try:
            return await send()
        except TooMany:
            raise
        except Unavailable as error:
            longest = next(repeats, None)
            if longest is None:
                raise
            wait = random.uniform(longest / 2, longest) if error.retry_seconds is None else error.retry_seconds
            if time.monotonic() + wait > deadline:
                raise
            await asyncio.sleep(wait)


async def _send_within_limit(send: Send, error: TooMany) -> dict[str, Any]:
    """Return the reply once the limit allows the request, after as many refusals as it takes."""
    while error.retry_seconds is not None and error.retry_seconds <= UPLOAD_SECONDS:
        # This time may have passed while other uploads were retried.
        await asyncio.sleep(max(0, error.free_at - time.monotonic()))
        try:
            return await _persist(send)
        except TooMany as refusal:
            error = refusal
    raise error


class _Form:
    """The body of an upload, built again for each attempt."""

    def __init__(self, path: Path, category: str, on_progress: Callable[[int], None]) -> None:
        try:
            path.open("rb").close()
        except OSError as error:
            raise ClientError(f"Cannot read {path}: {error.strerror}") from error
        self._path = path
        self._category = category
        self._on_progress = on_progress
        self._sent = 0

    def make(self) -> aiohttp.FormData:
        if self._sent:
            self._count(-self._sent)
        form = aiohttp.FormData()
        form.add_field("category", self._category)
        # File names may have characters that headers may not.
        name = "".join(each if each.isprintable() else "?" for each in self._path.name)
        form.add_field("image", self._read(), filename=name, content_type="application/octet-stream")
        return form

    async def _read(self) -> AsyncIterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
                self._count(len(chunk))

    def _count(self, number: int) -> None:
        self._sent += number
        self._on_progress(number)
