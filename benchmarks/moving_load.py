"""The load of benchmarks/moving.py, a process of its own: python -m benchmarks.moving_load URL

Uploads at a fixed rate, whether the service accepts or refuses; users listen on sockets; images that the service shows
now or showed before are fetched. It stops when its standard input ends, waits until all accepted assets are finished,
and prints {"sent", "refused", "lost", "sockets_closed", "dead", "looked", "p50_ms", "p99_ms"}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.moving_photos import PHOTOS, USERS
from tests.factories import make_token

FINISHED = {"active", "partial", "failed"}
DRAIN_SECONDS = 60.0
LOOK_SECONDS = 0.1
SHOWN_AT_MOST = 2000


@dataclass
class Load:
    """The clients of one service and their results.

    accepted: asset id -> user.
    refused: the answer of each upload but 202.
    events: the ids of the assets whose event came.
    dead: the URLs that did not give their image, with the answer.
    looked: the number of images fetched.
    seconds: of each upload.
    shown: the image URLs that the service has shown.
    """

    url: str
    session: aiohttp.ClientSession
    sent: int = 0
    accepted: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    events: set[str] = field(default_factory=set)
    dead: list[str] = field(default_factory=list)
    looked: int = 0
    seconds: list[float] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def upload(self, number: int) -> None:
        """Upload a photo; any answer but 202 is a refusal."""
        name, content_type, content = PHOTOS[number % len(PHOTOS)]
        form = aiohttp.FormData({"category": "sneaker"})
        form.add_field("image", content, filename=name, content_type=content_type)
        user, began_at = USERS[number % len(USERS)], time.perf_counter()
        try:
            url = f"{self.url}/api/assets/analyze-queue"
            async with self.session.post(url, data=form, headers=headers(user)) as reply:
                body = await reply.text()
                if reply.status == 202:
                    self.accepted[json.loads(body)["data"]["assetId"]] = user
                else:
                    self.refused.append(f"{reply.status} {body[:200]}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.refused.append(repr(error))
        self.seconds.append(time.perf_counter() - began_at)

    async def send(self, per_second: float) -> None:
        """Upload at this rate until `is_over`; a slow answer delays no other upload."""
        sending, began_at = set(), time.monotonic()
        while not self.is_over.is_set():
            sending.add(asyncio.create_task(self.upload(self.sent)))
            self.sent += 1
            await asyncio.sleep(max(0, began_at + self.sent / per_second - time.monotonic()))
        await asyncio.gather(*sending)

    async def listen(self, user: str) -> None:
        """Record the events of a user until the socket closes."""
        async with self.session.ws_connect(f"{self.url}/ws", headers=headers(user), heartbeat=10) as socket:
            async for message in socket:
                frame = json.loads(message.data)
                if frame["event"] == "asset_processed":
                    self.events.add(frame["assetId"])
        raise ConnectionError("the socket was closed")

    async def look(self) -> None:
        """Fetch images of an asset that is shown now, and one image that was shown before, until `is_over`."""
        while not self.is_over.is_set():
            await asyncio.sleep(LOOK_SECONDS)
            user = random.choice(USERS)
            if urls := [url for asset in await self.page(user) for url in image_urls(asset)]:
                chosen = random.sample(urls, min(2, len(urls)))
                self.shown = (self.shown + chosen)[-SHOWN_AT_MOST:]
                for url in {*chosen, random.choice(self.shown)}:
                    await self.fetch(url)

    async def page(self, user: str) -> list[dict[str, Any]]:
        """Return a random page of the user's list: the newest, or one of the next seven."""
        items: list[dict[str, Any]] = []
        cursor = ""
        for _ in range(random.choice((1, 1, 2, 4, 8))):
            url = f"{self.url}/api/assets?limit=50&cursor={cursor}" if cursor else f"{self.url}/api/assets?limit=50"
            async with self.session.get(url, headers=headers(user)) as reply:
                data = (await reply.json())["data"]
            items, cursor = data["items"], data["nextCursor"]
            if not cursor:
                break
        return items

    async def fetch(self, url: str) -> None:
        self.looked += 1
        try:
            async with self.session.get(url) as reply:
                content = await reply.read()
                if reply.status != 200 or len(content) < 100 or content[:1] in b"<{":
                    self.dead.append(f"{reply.status} {url}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.dead.append(f"{error!r} {url}")

    async def unfinished(self) -> list[str]:
        """Return the accepted assets that are not finished within DRAIN_SECONDS."""
        deadline, ids = time.monotonic() + DRAIN_SECONDS, list(self.accepted)
        while ids and time.monotonic() < deadline:
            ids = [asset_id for asset_id in ids if not await self.is_finished(asset_id)]
            await asyncio.sleep(0.2)
        return ids

    async def is_finished(self, asset_id: str) -> bool:
        url = f"{self.url}/api/assets/{asset_id}"
        async with self.session.get(url, headers=headers(self.accepted[asset_id])) as reply:
            return reply.status == 200 and (await reply.json())["data"]["status"] in FINISHED


def headers(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(user)}"}


def image_urls(asset: dict[str, Any]) -> list[str]:
    """Return the URLs of the asset's images."""
    images = asset["images"]
    present = [images["original"], images["processed"], *(images["previews"] or {}).values()]
    return [image["url"] or "no URL" for image in present if image]


async def run(url: str, per_second: float) -> dict[str, Any]:
    """Load the service until the standard input ends; return the figures."""
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        load = Load(url, session)
        listening = [asyncio.create_task(load.listen(user)) for user in USERS]
        loading = [asyncio.create_task(work) for work in (load.send(per_second), load.look())]
        while load.looked < 2:
            await asyncio.sleep(LOOK_SECONDS)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        load.is_over.set()
        await asyncio.gather(*loading)
        unfinished = await load.unfinished()
        lost = {*unfinished, *(load.accepted.keys() - load.events)}
        closed = [task for task in listening if task.done()]
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    slow = sorted(load.seconds)
    return {
        "sent": load.sent,
        "refused": load.refused,
        "lost": sorted(lost),
        "sockets_closed": len(closed),
        "dead": load.dead,
        "looked": load.looked,
        "p50_ms": round(slow[len(slow) // 2] * 1000),
        "p99_ms": round(slow[int(len(slow) * 0.99)] * 1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--per-second", type=float, default=10)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(run(options.url, options.per_second))))


if __name__ == "__main__":
    main()
