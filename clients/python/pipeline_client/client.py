"""A client of the service: uploads photos and listens for events over whatever the network lets through."""

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
# Waits before an upload is sent again, unless the service says how long.
REPEAT_SECONDS = (0.5, 1.0, 2.0, 4.0)
CHUNK_BYTES = 64 * 1024
WAIT_SECONDS = 25
# How long until a service that could not answer is asked again.
ASK_AGAIN_SECONDS = 1.0
# Those who wait for results and are too many come again over so long, at most: together they would be refused again.
SPREAD_SECONDS = 30.0
# How often it is told that uploads wait.
TELL_AGAIN_SECONDS = 30.0
Send = Callable[[], Awaitable[dict[str, Any]]]
FINISHED = ("active", "partial", "failed", "archived")


class Client:
    """One user's door to the service. Use as `async with`."""

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
        """url: e.g. http://127.0.0.1:8080. token: a token, or a function, sync or async, that returns a fresh one.

        The function is asked again shortly before its last token expires and when the service refuses that one. An
        OSError or aiohttp.ClientError of it counts as the service being out of reach; any other goes to the caller.
        since: where an earlier client's `since` stood; `events` begins there, or a little before.
        progress: `events` also yields what happens to a photo before its result (`asset_queued`, `asset_started`, ...).
        on_notice: told in words when the connection of `events` is lost and when it is back.
        on_transport: told "socket", "sse" or "poll" whenever `events` comes by another one than before.
        """
        self._http = Http(url, TokenSource(token))
        self._on_notice = on_notice
        # Uploads that were too many go on one after the other: together they would only be refused again.
        self._line = asyncio.Lock()
        self._told_at = -TELL_AGAIN_SECONDS
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

        Sent again a few times, within five minutes, when the service cannot be reached or is too busy. While the
        service says that the user sends too many, and when to come again, the upload waits in line, for as long as that
        takes. The key, a new one for each call unless given, makes that one upload.
        on_progress: called with a number of bytes each time so many went out, and before a repeat with minus all that
        went out in vain, so that the sum is always what has been sent.
        """
        form = _Form(Path(path), category, on_progress)
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}

        async def send() -> dict[str, Any]:
            return await self._http.request("POST", "/api/assets/analyze-queue", body=form.make, headers=headers)

        try:
            return await _persist(send)
        except TooMany as error:
            self._tell_of_wait(error)
            async with self._line:
                return await _be_patient(send, error)

    def _tell_of_wait(self, error: TooMany) -> None:
        """Tell that uploads wait, now and then."""
        now = time.monotonic()
        if now - self._told_at >= TELL_AGAIN_SECONDS:
            self._told_at = now
            self._on_notice(f"{error}: waiting, the rest follows as there is room")

    async def asset(self, asset_id: str) -> dict[str, Any]:
        """Return the asset as it is now."""
        return await self._http.request("GET", f"/api/assets/{segment(asset_id)}")

    async def wait(self, asset_id: str, *, timeout_seconds: float | None = None) -> dict[str, Any]:
        """Return the asset as soon as it is finished, or TimeoutError; goes on after a restart of the service."""
        refusals = 0
        async with asyncio.timeout(timeout_seconds):
            while True:
                asked_at = time.monotonic()
                wait = ASK_AGAIN_SECONDS
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
        """End the work on an asset: it fails with the error "Cancelled", and its event comes."""
        return await self._http.request("POST", f"/api/assets/{segment(asset_id)}/cancel")

    async def correct(self, asset_id: str, **said: str | None) -> dict[str, Any]:
        """Say what is in the photo, as brand="Adidas", model=None: a text counts for good, None asks the AI again."""
        return await self._http.request("PATCH", f"/api/assets/{segment(asset_id)}", json=said)

    async def delete(self, asset_id: str) -> None:
        """Remove the asset with its images."""
        await self._http.request("DELETE", f"/api/assets/{segment(asset_id)}")

    async def queue_status(self) -> dict[str, Any]:
        """Return the number of jobs in each state, and whether the queue is paused."""
        return await self._http.request("GET", "/api/assets/queue-status")

    # events

    @property
    def since(self) -> str | None:
        """The timestamp up to which `events` has yielded all; keep it to go on from there with another client."""
        return self._feed.cursor.since

    @property
    def transport(self) -> str | None:
        """How events come: "socket", "sse" or "poll"; None before `listen`."""
        return self._feed.transport

    async def listen(self) -> str:
        """Begin to listen, unless it does, and return the room; from then on `events` misses nothing.

        ClientError when the service cannot be reached now or refuses.
        """
        return await self._feed.start()

    async def next_event(self) -> Frame:
        """Return the next event, after `listen`. A cancelled call costs no event."""
        await self.listen()
        return await self._feed.next()

    async def events(self) -> AsyncIterator[Frame]:
        """Yield each asset_processed event once, over as many connections as it takes; from `listen` on.

        ClientError when the service refuses for good.
        """
        while True:
            yield await self.next_event()


async def _persist(send: Send) -> dict[str, Any]:
    """Return the reply once there is one. TooMany, and what does not heal by itself, are raised at once."""
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


async def _be_patient(send: Send, error: TooMany) -> dict[str, Any]:
    """Return the reply once there is room, however often the service has to say that there is none."""
    while error.retry_seconds is not None and error.retry_seconds <= UPLOAD_SECONDS:
        # It may have stood in line for so long already.
        await asyncio.sleep(max(0, error.free_at - time.monotonic()))
        try:
            return await _persist(send)
        except TooMany as again:
            error = again
    raise error


class _Form:
    """The body of an upload, made anew each time it is sent."""

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
        # No header may hold what a file's name may.
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
