"""The operator of a run: removes and retries dead letters, pauses the queue and resumes it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from tests.factories import make_token
from tests.faults.chaos.clients import TIMEOUT

UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError)
NOTIFICATIONS = {"queue": "notifications"}
# A process may have been stopped after it read a request, and wait for its store afterwards.
LATE_SECONDS = 15.0


class Operator:
    """The requests of the operator and their results.

    settled: dead letters that were removed or run again.
    unsure: dead letters for which the answer was lost.
    rerun: assets that got a new job, or may have got one.
    pauses: from when the queue was paused, and until the operator asked for the end of the pause.
    """

    def __init__(self, urls: list[str], seed: int) -> None:
        self.urls = urls
        self.chance = random.Random(f"{seed} operator")
        self.settled: set[str] = set()
        self.unsure: set[str] = set()
        self.rerun: set[str] = set()
        self.removed = 0
        self.pauses: list[tuple[float, float]] = []
        self._headers = {"Authorization": f"Bearer {make_token('boss', role='admin', expires_in=7200)}"}

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=self._headers, timeout=TIMEOUT)

    async def remove_one(self) -> None:
        """Remove some dead letter, if there is one."""
        await self._settle("DELETE", "")

    async def rerun_one(self) -> None:
        """Retry some dead letter, if there is one."""
        await self._settle("POST", "/retry")

    async def _settle(self, method: str, verb: str) -> None:
        url = self.chance.choice(self.urls)
        async with self._session() as session:
            try:
                async with session.get(f"{url}/api/queue/failed", params={"limit": "100"}) as reply:
                    found = (await reply.json())["data"]["items"] if reply.status == 200 else []
            except UNREACHABLE:
                return
            if not found:
                return
            dead = self.chance.choice(found)
            self.unsure.add(dead["jobId"])
            if verb:
                self.rerun.add(dead["assetId"])
            try:
                async with session.request(method, f"{url}/api/queue/failed/{dead['jobId']}{verb}") as reply:
                    if reply.status in (202, 204):
                        self.unsure.discard(dead["jobId"])
                        self.settled.add(dead["jobId"])
                        self.removed += not verb
                    else:
                        assert reply.status in (404, 409, 503), (reply.status, await reply.text())
            except UNREACHABLE:
                pass

    async def pause(self) -> float | None:
        """Pause the queue; return when it was paused, None when no process confirmed it."""
        async with self._session() as session:
            try:
                async with session.post(f"{self.chance.choice(self.urls)}/api/queue/pause") as reply:
                    return time.time() if reply.status == 200 else None
            except UNREACHABLE:
                return None

    async def resume(self, paused_at: float | None) -> None:
        """Ask until a process resumes the queue.

        Where no process confirmed the pause, ask for a while longer: the pause may still be carried out.
        """
        if paused_at is not None:
            self.pauses.append((paused_at, time.time()))
        asked_until = time.monotonic() + (LATE_SECONDS if paused_at is None else 0)
        is_resumed = False
        async with self._session() as session:
            while not is_resumed or time.monotonic() < asked_until:
                is_resumed = False
                try:
                    async with session.post(f"{self.chance.choice(self.urls)}/api/queue/resume") as reply:
                        is_resumed = reply.status == 200
                except UNREACHABLE:
                    pass
                await asyncio.sleep(0.2)

    async def rerun_notifications(self) -> int:
        """Order the delivery of all undelivered events; return how many."""
        async with self._session() as session:
            async with session.post(f"{self.urls[0]}/api/queue/failed/retry", params=NOTIFICATIONS) as reply:
                reply.raise_for_status()
                return int((await reply.json())["data"]["retried"])

    async def status(self) -> dict[str, Any]:
        """Return the queue's counts."""
        async with self._session() as session, session.get(f"{self.urls[0]}/api/assets/queue-status") as reply:
            reply.raise_for_status()
            return dict((await reply.json())["data"])

    async def dead_letters(self, queue: Mapping[str, str] = {}) -> list[dict[str, Any]]:
        """Return all listed dead letters."""
        found: list[dict[str, Any]] = []
        query = {"limit": "100", **queue}
        async with self._session() as session:
            while True:
                async with session.get(f"{self.urls[0]}/api/queue/failed", params=query) as reply:
                    reply.raise_for_status()
                    page = (await reply.json())["data"]
                found += page["items"]
                if page["nextCursor"] is None:
                    return found
                query["cursor"] = page["nextCursor"]
