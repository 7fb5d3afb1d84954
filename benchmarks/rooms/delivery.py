"""Does every event reach its owner, and how soon? python -m benchmarks.rooms.delivery

Three processes of the service on one Redis and one SQLite, an AI service that answers at once, 1,000 users with a
socket each, spread over the processes, and 20,000 uploads. During the uploads a third of the sockets, chosen by the
seed, are cut repeatedly without a close frame, and connect to another process with `since`. After half of the uploads
the Redis server with the queue is killed: a single Redis is started again after 2 s; with --topology sentinel or
cluster it stays down, so that its replica takes over. At the end every user must have the event of each own photo and
no other event.

Without --rate the uploads are as fast as the service accepts them: they keep every core busy, and the latencies are
those of an overload. Measure latencies with --rate.

Prints the events that were lost (must be 0), foreign (must be 0) or repeated, and percentiles of the time from an
asset's finishedAt to its event at the sockets that were not cut: by whether the same process ran the job, and apart the
events of the outage (finished from the kill until 2 s after the queue could be written again).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from redis.exceptions import RedisError

from pipeline.link.master import Master
from tests.factories import make_image, make_token
from tests.redis_topologies import QUEUE_KEY, TOPOLOGIES, Topology
from tests.service import AiService, Service

PROCESSES = 3
OUTAGE_SECONDS = 2.0
AFTER_SECONDS = 2.0
LONGEST_SECONDS = 120.0


@dataclass
class Listener:
    """A user and its socket, with the state that a client library has.

    home: the number of the process it is connected to.
    received: asset id -> (when it was finished, when its event came).
    """

    user: str
    is_disturbed: bool
    home: int
    since: str | None = None
    received: dict[str, tuple[float, float]] = field(default_factory=dict)
    repeats: int = 0
    resyncs: int = 0
    reconnects: int = 0
    socket: aiohttp.ClientWebSocketResponse | None = None
    is_connected: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self, session: aiohttp.ClientSession, urls: list[str]) -> None:
        """Read events until cancelled; connect to the next process whenever the connection ends."""
        token = make_token(self.user, expires_in=7200)
        while True:
            try:
                async with session.ws_connect(f"{urls[self.home]}/ws", protocols=["pipeline.v1"]) as self.socket:
                    asked = {"since": self.since} if self.since else {}
                    await self.socket.send_json({"auth": {"token": token}} | asked)
                    async for message in self.socket:
                        self._on_frame(json.loads(message.data))
            except aiohttp.ClientError:
                pass
            self.is_connected.clear()
            self.reconnects += 1
            self.home = (self.home + 1) % len(urls)
            await asyncio.sleep(random.uniform(0.05, 0.5))

    def _on_frame(self, frame: dict[str, Any]) -> None:
        now = time.time()
        if frame["event"] == "connected":
            self.since = self.since or frame["serverTime"]
            self.is_connected.set()
        elif frame["event"] == "resync":
            self.resyncs += 1
        elif frame["event"] == "asset_processed":
            finished_at = datetime.fromisoformat(frame["timestamp"]).timestamp()
            if frame["assetId"] in self.received:
                self.repeats += 1
            else:
                self.received[frame["assetId"]] = (finished_at, now)
                self.since = max(self.since or "", frame["timestamp"])

    def cut(self) -> None:
        """Break the connection as a phone in a tunnel does."""
        if self.socket is not None and (connection := self.socket._response.connection) and connection.transport:
            connection.transport.abort()


@dataclass
class Result:
    """The result of the run.

    owners: asset id -> user.
    ran_at: asset id -> number of the process that ran its job.
    outage: when Redis was killed, and when it could be written again.
    """

    owners: dict[str, str]
    listeners: list[Listener]
    ran_at: dict[str, int]
    outage: tuple[float, float]
    seconds: float

    def print(self) -> None:
        """Print the figures."""
        expected: dict[str, set[str]] = {listener.user: set() for listener in self.listeners}
        for asset_id, user in self.owners.items():
            expected[user].add(asset_id)
        lost = sum(len(expected[each.user] - each.received.keys()) for each in self.listeners)
        foreign = sum(len(each.received.keys() - expected[each.user]) for each in self.listeners)
        disturbed = [each for each in self.listeners if each.is_disturbed]
        print(f"outage {self.outage[1] - self.outage[0]:.1f} s")
        print(f"sockets {len(self.listeners)}  events {len(self.owners)}  in {self.seconds:.0f} s")
        print(f"disturbed {len(disturbed)}  reconnects {sum(each.reconnects for each in self.listeners)}")
        print(f"lost {lost}  foreign {foreign}  repeats {sum(each.repeats for each in self.listeners)}", end="  ")
        print(f"resyncs {sum(each.resyncs for each in self.listeners)}")
        self._print_latencies([each for each in self.listeners if not each.is_disturbed])
        assert lost == foreign == 0

    def _print_latencies(self, listeners: list[Listener]) -> None:
        stopped, back = self.outage
        kinds: dict[str, list[float]] = {"all": [], "same process": [], "another process": [], "finished in outage": []}
        for listener in listeners:
            for asset_id, (finished_at, received_at) in listener.received.items():
                kinds["all"].append(received_at - finished_at)
                if stopped <= finished_at <= back + AFTER_SECONDS:
                    kinds["finished in outage"].append(received_at - finished_at)
                elif asset_id in self.ran_at:
                    kind = "same process" if self.ran_at[asset_id] == listener.home else "another process"
                    kinds[kind].append(received_at - finished_at)
        for kind, waits in kinds.items():
            if len(waits) > 1:
                cuts = statistics.quantiles(waits, n=100)
                figures = "  ".join(f"p{n} {cuts[n - 1] * 1000:.1f} ms" for n in (50, 95, 99))
                print(f"finished -> event, undisturbed, {kind}: {len(waits)} events  {figures}  max {max(waits):.2f} s")


async def disturb(listeners: list[Listener], source: random.Random) -> None:
    """Cut the connection of a random listener, repeatedly, until cancelled."""
    while True:
        await asyncio.sleep(source.uniform(0, 0.1))
        source.choice(listeners).cut()


def outage(redis: Topology) -> tuple[float, float]:
    """Kill the server that has the queue; return the time of the kill and the time of the next possible write."""
    stopped = time.time()
    redis.cause(redis.faults[-1] if "kill" not in redis.faults else "kill", QUEUE_KEY)
    if "kill" not in redis.faults:
        time.sleep(OUTAGE_SECONDS)
        redis.heal()
        return stopped, time.time()
    master = Master(redis.url)

    async def write() -> None:
        while True:
            try:
                await master.call(lambda link: link.ask("PERSIST", QUEUE_KEY))
                return master.close()
            except (RedisError, OSError):
                await asyncio.sleep(0.05)

    asyncio.run(write())
    return stopped, time.time()


async def upload_all(
    session: aiohttp.ClientSession, urls: list[str], sockets: int, events: int, rate: float, owners: dict[str, str]
) -> None:
    """Upload photos of all users, over 16 connections.

    rate: uploads a second, 0 for as fast as possible.
    owners: gets the user of each accepted asset, by asset id.
    """
    image, started_at, numbers = make_image(), time.time(), iter(range(events))

    async def upload() -> None:
        for number in numbers:
            if rate:
                await asyncio.sleep(started_at + number / rate - time.time())
            user = f"user-{number % sockets}"
            form = aiohttp.FormData({"category": "sneaker"})
            form.add_field("image", image, filename="photo.jpg")
            url = f"{urls[number % PROCESSES]}/api/assets/analyze-queue"
            headers = {"Authorization": f"Bearer {make_token(user)}"}
            async with session.post(url, data=form, headers=headers) as reply:
                assert reply.status == 202, await reply.text()
                owners[(await reply.json())["data"]["assetId"]] = user

    await asyncio.gather(*[upload() for _ in range(16)])


async def run(services: list[Service], redis: Topology, sockets: int, events: int, seed: int, rate: float) -> Result:
    """Run the listeners, the uploads and the outage, and return the result.

    rate: uploads a second, 0 for as fast as possible.
    """
    source = random.Random(seed)
    urls = [service.url for service in services]
    disturbed = set(source.sample(range(sockets), sockets // 3))
    listeners = [Listener(f"user-{number}", number in disturbed, number % PROCESSES) for number in range(sockets)]
    owners: dict[str, str] = {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        tasks = [asyncio.create_task(listener.listen(session, urls)) for listener in listeners]
        await asyncio.gather(*[listener.is_connected.wait() for listener in listeners])
        started_at = time.time()
        uploading = asyncio.create_task(upload_all(session, urls, sockets, events, rate, owners))
        tasks.append(asyncio.create_task(disturb([listeners[number] for number in disturbed], source)))
        while len(owners) < events // 2 and not uploading.done():
            await asyncio.sleep(0.05)
        stopped, back = await asyncio.to_thread(outage, redis)
        await uploading
        deadline = time.monotonic() + LONGEST_SECONDS
        while sum(len(each.received) for each in listeners) < events and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        seconds = time.time() - started_at
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return Result(owners, listeners, {}, (stopped, back), seconds)


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0, help="uploads a second; default: as fast as possible")
    parser.add_argument(
        "--topology", choices=list(TOPOLOGIES), default="redis", help="the kind of Redis that REDIS_URL names"
    )
    options = parser.parse_args()
    with ExitStack() as stack:
        redis = stack.enter_context(TOPOLOGIES[options.topology]())
        ai_service = stack.enter_context(AiService())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        environment = {"REDIS_URL": redis.url}
        services = [stack.enter_context(Service(folder, ai_service.url, **environment)) for _ in range(PROCESSES)]
        result = asyncio.run(run(services, redis, options.sockets, options.events, options.seed, options.rate))
        for number, service in enumerate(services):
            for line in service.find("asset_finished"):
                result.ran_at[line["assetId"]] = number
        print(f"{datetime.now(UTC):%Y-%m-%d}  seed {options.seed}")
        result.print()


if __name__ == "__main__":
    main()
