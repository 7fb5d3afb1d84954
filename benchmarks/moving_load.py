"""Ten uploads a second on a service, whatever it answers, as a process of its own: python -m benchmarks.moving_load URL

Users listen on sockets meanwhile, and pictures that the service shows are fetched, fresh ones and ones that were shown
before. Ends when its input does, once all is finished; prints {"sent", "refused", "lost", "events", "dead", ...}.
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
    """The service's clients, and what they saw. dead: URLs that did not give their picture, with the answer."""

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
        """Send a photo; any answer but 202 is a refusal."""
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
        """Send that many photos a second until it is over, each at its time and not after the one before."""
        sending, began_at = set(), time.monotonic()
        while not self.is_over.is_set():
            sending.add(asyncio.create_task(self.upload(self.sent)))
            self.sent += 1
            await asyncio.sleep(max(0, began_at + self.sent / per_second - time.monotonic()))
        await asyncio.gather(*sending)

    async def listen(self, user: str) -> None:
        """Note the events of a user, for ever."""
        async with self.session.ws_connect(f"{self.url}/ws", headers=headers(user), heartbeat=10) as socket:
            async for message in socket:
                frame = json.loads(message.data)
                if frame["event"] == "asset_processed":
                    self.events.add(frame["assetId"])
        raise ConnectionError("the socket was closed")

    async def look(self) -> None:
        """Fetch pictures of an asset that is shown now, and one that was shown before, until it is over."""
        while not self.is_over.is_set():
            await asyncio.sleep(LOOK_SECONDS)
            user = random.choice(USERS)
            if new_assets := [url for asset in await self.page(user) for url in pictures(asset)]:
                chosen = random.sample(new_assets, min(2, len(new_assets)))
                self.shown = (self.shown + chosen)[-SHOWN_AT_MOST:]
                for url in {*chosen, random.choice(self.shown)}:
                    await self.fetch(url)

    async def page(self, user: str) -> list[dict[str, Any]]:
        """Return one of the user's pages: the newest, or one further back."""
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
        """Return the accepted assets that are not finished when all had time for that."""
        deadline, left = time.monotonic() + DRAIN_SECONDS, list(self.accepted)
        while left and time.monotonic() < deadline:
            left = [asset_id for asset_id in left if not await self.is_finished(asset_id)]
            await asyncio.sleep(0.2)
        return left

    async def is_finished(self, asset_id: str) -> bool:
        url = f"{self.url}/api/assets/{asset_id}"
        async with self.session.get(url, headers=headers(self.accepted[asset_id])) as reply:
            return reply.status == 200 and (await reply.json())["data"]["status"] in FINISHED


def headers(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(user)}"}


def pictures(asset: dict[str, Any]) -> list[str]:
    """Return the URLs of the asset's images."""
    images = asset["images"]
    found = [images["original"], images["processed"], *(images["previews"] or {}).values()]
    return [image["url"] or "no URL" for image in found if image]


async def run(url: str, per_second: float) -> dict[str, Any]:
    """Load the service until the input ends; return what was seen."""
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
