"""Events by long polling: repeated GET /api/assets?finishedSince=&wait=."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from .access import ClientError, Fault, Unavailable, claims_of
from .connection import MUTE_SECONDS, Transport
from .cursor import OVERLAP_SECONDS, shift
from .events import CURSOR, Frame, event_of, key_of
from .http import CONNECT_SECONDS, PAGE

# Many proxies end a request after a minute.
POLL_SECONDS = 25
# Least time between two requests when the service answers at once without new events.
EMPTY_POLL_SECONDS = 1


class Poll(Transport):
    """Requests that wait for events since shortly before the cursor; the feed drops repeats."""

    transport = "poll"
    _server_time = ""

    async def open(self) -> None:
        """Read the service's time."""
        await self._page({"limit": "1"})
        room = f"user:{claims_of(self._token).get('sub', '')}"
        self.hello = {"event": "connected", "room": room, "serverTime": self._server_time}
        self._frames = self._read_on()

    async def next_frame(self) -> Frame:
        """Return the next frame with news."""
        return await anext(self._frames)

    async def close(self) -> None:
        """Do nothing: no connection stays open between two requests."""

    async def _read_on(self) -> AsyncIterator[Frame]:
        since = self._cursor.since or self._server_time
        if self._cursor.is_ahead:
            yield {"event": "resync"}
            since = self._server_time
        previous: set[tuple[str, str]] = set()
        while True:
            asked_at, received = time.monotonic(), set()
            # From before the cursor: an event may arrive after one with a later timestamp.
            async for event in self._events(shift(since, -OVERLAP_SECONDS), {"wait": str(POLL_SECONDS)}):
                received.add(key_of(event))
                yield event
            is_news, previous, since = bool(received - previous), received, self._server_time
            yield {"event": CURSOR, "since": since}
            if not is_news and (left := asked_at + EMPTY_POLL_SECONDS - time.monotonic()) > 0:
                await asyncio.sleep(left)

    async def _events(self, since: str, wait: dict[str, str]) -> AsyncIterator[Frame]:
        """Yield the events since then. `_server_time` is then the time before the first was read."""
        params = {"finishedSince": since, "limit": str(PAGE)}
        page = await self._page(params | wait)
        server_time = self._server_time
        while True:
            for asset in page["items"]:
                if event := event_of(asset):
                    yield event
            if page["nextCursor"] is None:
                break
            page = await self._page(params | {"cursor": page["nextCursor"]})
        self._server_time = server_time

    async def _page(self, params: dict[str, str]) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=MUTE_SECONDS, sock_connect=CONNECT_SECONDS)
        reply = await self._http.ask("GET", "/api/assets", params=params, timeout=timeout)
        if reply.status != 200:
            raise reply.refusal()
        try:
            page = reply.data()
        except ClientError as error:  # a proxy's page
            raise Unavailable(str(error), fault=Fault.NOT_OPENED) from error
        self._server_time = page.get("serverTime") or reply.server_time
        if not self._server_time:
            raise Unavailable("The list does not have the service's time", fault=Fault.NOT_OPENED)
        return page
