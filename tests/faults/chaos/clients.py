"""The users of a run: they upload, repeat uploads with their keys, listen on sockets, disconnect and reconnect."""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter, defaultdict
from typing import Any

import aiohttp

from pipeline.assets.asset import to_timestamp
from pipeline.client.cursor import OVERLAP_SECONDS, shift
from pipeline.clock import utc_now
from tests.factories import make_image, make_token
from tests.faults.chaos.world import DECODED, LIMITED, POISON
from tests.pictures import empty_webp, many_items

TRIES_AGAIN = (429, 502, 503)
# Mostly photos for the first AI service; some that it always fails on, some for the limited service, some to decode.
CATEGORIES = [*["sneaker"] * 17, POISON, LIMITED, DECODED]
# A BOMB is refused for the memory that it would take; an ENDLESS photo keeps its decoder busy for many seconds.
PHOTO, BOMB, ENDLESS = make_image(size=(16, 16)), empty_webp(), many_items(b"avif", 60_000)
# The first photos of the first users, so that the shortest run has one of each kind.
OPENINGS = {
    "user-0": (POISON, PHOTO),
    "user-1": (LIMITED, PHOTO),
    "user-2": (DECODED, PHOTO),
    "user-3": (DECODED, ENDLESS),
}
TIMEOUT = aiohttp.ClientTimeout(total=8)


def state_of(found: dict[str, Any]) -> tuple[str, ...]:
    """Return the result that an event or an asset states: its status, its model or error, and its time."""
    meta = found.get("aiMetadata") or {}
    text = (meta.get("model") or {}).get("value") or found.get("error") or meta.get("error") or ""
    return found["status"], text, found.get("timestamp") or found["finishedAt"]


class User:
    """One user: the uploads, the replies and the events received."""

    def __init__(self, name: str, urls: list[str], seed: int) -> None:
        self.name, self.urls = name, urls
        self.chance = random.Random(f"{seed} {name}")
        self.accepted: set[str] = set()
        self.endless: set[str] = set()  # those of them with an ENDLESS photo
        self.by_key: dict[str, set[str]] = defaultdict(set)
        self.refused: Counter[str] = Counter()
        self.unsure = 0  # uploads that may have been accepted or not: no answer, or 503
        self.received: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        self.live: set[str] = set()  # assets whose event came on a socket, at once or by replay
        self.resyncs = 0
        self._headers = {"Authorization": f"Bearer {make_token(name, expires_in=7200)}"}

    def session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=self._headers, timeout=TIMEOUT)

    async def upload_until(self, is_enough: asyncio.Event, pause_seconds: float) -> None:
        """Upload one photo after the other."""
        number = 0
        async with self.session() as session:
            while not is_enough.is_set():
                number += 1
                key = f"{self.name}-{number}" if self.chance.random() < 0.5 else None
                category, image = self._any_photo()
                if number == 1:
                    category, image = OPENINGS.get(self.name, (category, image))
                await self._upload(session, key, category, image)
                await asyncio.sleep(self.chance.uniform(0, 2) * pause_seconds)

    def _any_photo(self) -> tuple[str, bytes]:
        category = self.chance.choice(CATEGORIES)
        return category, self.chance.choice((PHOTO, PHOTO, BOMB, ENDLESS) if category == DECODED else (PHOTO,))

    async def _upload(self, session: aiohttp.ClientSession, key: str | None, category: str, image: bytes) -> None:
        while True:
            form = aiohttp.FormData({"category": category})
            form.add_field("image", io.BytesIO(image), filename="photo.jpg", content_type="image/jpeg")
            url = f"{self.chance.choice(self.urls)}/api/assets/analyze-queue"
            try:
                async with session.post(url, data=form, headers={"Idempotency-Key": key} if key else {}) as reply:
                    body = await reply.json()
                    if reply.status == 202:
                        self.accepted.add(body["data"]["assetId"])
                        if image is ENDLESS:
                            self.endless.add(body["data"]["assetId"])
                        if key:
                            self.by_key[key].add(body["data"]["assetId"])
                        return
                    self.refused[str(reply.status)] += 1
                    if reply.status == 400 and image is BOMB:
                        return
                    assert reply.status in TRIES_AGAIN, (reply.status, body)
            except (aiohttp.ClientError, TimeoutError, OSError):
                self.refused["no answer"] += 1
            if key is None:
                self.unsure += 1
                return
            await asyncio.sleep(0.2)

    async def listen(self) -> None:
        """Stay connected to some process; send at each connection `since`, the time of the last event."""
        since = to_timestamp(utc_now()) or ""
        while True:
            url = self.chance.choice(self.urls)
            address = f"{url}/ws?since={since}"
            try:
                async with self.session() as session, session.ws_connect(address, heartbeat=3) as socket:
                    await socket.receive_json(timeout=5)
                    async for message in socket:
                        event = message.json()
                        if event["event"] == "asset_processed":
                            self.live.add(event["assetId"])
                            self.received[event["assetId"]].add(state_of(event))
                            since = max(since, event["timestamp"])
                        elif event["event"] == "resync":
                            self.resyncs += 1
                            query = {"finishedSince": shift(since, -OVERLAP_SECONDS), "limit": "100"}
                            async for asset in self._pages(session, url, query):
                                self.live.add(asset["id"])
                                since = max(since, asset["finishedAt"])
            except (aiohttp.ClientError, TimeoutError, OSError, TypeError, ValueError):
                pass
            # Now and then a user stays disconnected for a while.
            await asyncio.sleep(self.chance.choice((0.1, 0.1, 0.1, 3)))

    async def catch_up(self, session: aiohttp.ClientSession, url: str, since: str) -> None:
        """Read all assets that were finished since then."""
        query = {"finishedSince": since, "limit": "100"}
        async for asset in self._pages(session, url, query):
            self.received[asset["id"]].add(state_of(asset))

    async def assets(self, url: str, **query: str) -> list[dict[str, Any]]:
        """Return all assets of the user, as the user sees them."""
        async with self.session() as session:
            return [asset async for asset in self._pages(session, url, {"limit": "100"} | query)]

    @staticmethod
    async def _pages(session: aiohttp.ClientSession, url: str, query: dict[str, str]) -> Any:
        while True:
            async with session.get(f"{url}/api/assets", params=query) as reply:
                reply.raise_for_status()
                page = (await reply.json())["data"]
            for asset in page["items"]:
                yield asset
            if page["nextCursor"] is None:
                return
            query = query | {"cursor": page["nextCursor"]}
