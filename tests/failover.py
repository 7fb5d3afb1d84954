"""Two processes of the service on one Redis, with a fault of that Redis: one gets the uploads, one has the sockets."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import aiohttp

from pipeline.supervision import cancel
from tests.constants import RECONCILE_AGE_SECONDS, RECONCILE_SECONDS
from tests.factories import make_image, make_token
from tests.redis_topologies import QUEUE_KEY, Topology
from tests.service import AiService, Service

WAIT_SECONDS = 60.0
PER_SECOND = 40
PARALLEL = 8
DOWN_SECONDS = 1.0
# With these settings the reconciler enqueues lost jobs within seconds instead of the default minute.
QUICK = {"LEASE_SECONDS": "6", RECONCILE_SECONDS: "2", RECONCILE_AGE_SECONDS: "5"}


@dataclass
class Outcome:
    """The results of the uploads.

    accepted: the assets of the uploads.
    received: the assets whose event came.
    live_seconds: from the fault to the first event of a later upload.
    all_seconds: from the fault to the last event.
    readiness: seconds since the fault and status of /readyz, for each change of the status.
    """

    accepted: set[str] = field(default_factory=set)
    received: set[str] = field(default_factory=set)
    live_seconds: float = float("inf")
    all_seconds: float = float("inf")
    readiness: list[tuple[float, int]] = field(default_factory=list)

    @property
    def lost(self) -> set[str]:
        """Assets whose event never came."""
        return self.accepted - self.received


class Pair:
    """Two processes: `near` gets the uploads and runs the jobs, `far` has the sockets. `with` starts and ends them."""

    def __init__(self, folder: Path, topology: Topology) -> None:
        self.topology = topology
        self._stack = ExitStack()
        self._folder = folder

    def __enter__(self) -> Pair:
        ai = self._stack.enter_context(AiService())
        self.near, self.far = (
            self._stack.enter_context(Service(self._folder, ai.url, REDIS_URL=self.topology.url, ROLE=role, **QUICK))
            for role in ("all", "web")
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    async def run_fault(self, fault: str, *, uploads: int, sockets: int) -> Outcome:
        """Cause the fault after a quarter of the uploads; return when all events have come, or after WAIT_SECONDS."""
        return await Run(self, fault, uploads, sockets).go()


class Run:
    """One fault with its uploads and its sockets."""

    def __init__(self, pair: Pair, fault: str, uploads: int, sockets: int) -> None:
        self._pair = pair
        self._fault = fault
        self._uploads = uploads
        self._users = [f"user-{number}" for number in range(sockets)]
        self._failed_at = float("inf")
        self._after_fault: set[str] = set()
        self._arrived = asyncio.Event()
        self._parallel = asyncio.Semaphore(PARALLEL)
        self._image = make_image()
        self.outcome = Outcome()

    async def go(self) -> Outcome:
        """Open the sockets, upload, cause the fault, and wait for all events."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            self._session = session
            joined = [asyncio.Event() for _ in self._users]
            listening = [
                asyncio.create_task(self._listen(user, event))
                for user, event in zip(self._users, joined, strict=True)
            ]
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await asyncio.gather(*(event.wait() for event in joined))
                listening.append(asyncio.create_task(self._watch_readiness()))
                await self._upload_all()
                await self._until_received()
                await self._until_ready()
            finally:
                await cancel(listening)
        return self.outcome

    async def _upload_all(self) -> None:
        uploading = []
        for number in range(self._uploads):
            if number == self._uploads // 4:
                await asyncio.to_thread(self._pair.topology.cause, self._fault, QUEUE_KEY)
                self._failed_at = time.monotonic()
                if self._fault == "restart":
                    uploading.append(asyncio.create_task(self._heal()))
            uploading.append(asyncio.create_task(self._upload(self._users[number % len(self._users)])))
            await asyncio.sleep(1 / PER_SECOND)
        await asyncio.gather(*uploading)

    async def _heal(self) -> None:
        await asyncio.sleep(DOWN_SECONDS)
        await asyncio.to_thread(self._pair.topology.heal)

    async def _upload(self, user: str) -> None:
        form = aiohttp.FormData({"category": "sneaker"})
        form.add_field("image", self._image, filename="photo.jpg", content_type="image/jpeg")
        is_after_fault = time.monotonic() > self._failed_at
        url = f"{self._pair.near.url}/api/assets/analyze-queue"
        headers = {"Authorization": f"Bearer {make_token(user)}"}
        async with self._parallel, self._session.post(url, data=form, headers=headers) as reply:
            assert reply.status == 202, await reply.text()
            asset_id: str = (await reply.json())["data"]["assetId"]
        self.outcome.accepted.add(asset_id)
        if is_after_fault:
            self._after_fault.add(asset_id)
        self._record_live(asset_id)

    async def _listen(self, user: str, joined: asyncio.Event) -> None:
        """Record one user's events on a socket that is opened only once."""
        headers = {"Authorization": f"Bearer {make_token(user)}"}
        async with self._session.ws_connect(f"{self._pair.far.url}/ws", headers=headers) as socket:
            async for message in socket:
                frame = json.loads(message.data)
                if frame["event"] == "connected":
                    joined.set()
                elif frame["event"] == "asset_processed":
                    self.outcome.received.add(frame["assetId"])
                    self._record_live(frame["assetId"])
                    self._arrived.set()

    def _record_live(self, asset_id: str) -> None:
        """Record the time of the first event of a later upload; the event may come before the answer to the upload."""
        if asset_id in self._after_fault and asset_id in self.outcome.received:
            self.outcome.live_seconds = min(self.outcome.live_seconds, time.monotonic() - self._failed_at)

    async def _until_received(self) -> None:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while self.outcome.lost:
                    self._arrived.clear()
                    await self._arrived.wait()
            self.outcome.all_seconds = time.monotonic() - self._failed_at
        except TimeoutError:
            pass  # outcome.lost has the missing assets

    async def _watch_readiness(self) -> None:
        last = 0
        while True:
            async with self._session.get(f"{self._pair.far.url}/readyz") as reply:
                if reply.status != last:
                    last = reply.status
                    self.outcome.readiness.append((max(0.0, time.monotonic() - self._failed_at), last))
            self._arrived.set()
            await asyncio.sleep(0.1)

    async def _until_ready(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while self.outcome.readiness[-1][1] != 200:
                self._arrived.clear()
                await self._arrived.wait()
