"""What it costs to tell 1,000 users how 10,000 waiting photos go: python -m benchmarks.rooms.progress

One process that serves clients (ROLE=web), a Redis and a SQLite with 10,000 unfinished photos of 1,000 users, ten each,
whose jobs wait; a socket for each user. Measured twice, without asking and with `?events=progress`: while the line
stands, and while 50 jobs a second leave it, so that each of the other photos gets another place every second. Prints
the CPU seconds a second of the process and of Redis, calls a second (scripts, and all commands, those that scripts make
included), and the frames a second that the sockets were sent. The clients are this process.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from benchmarks import machine
from pipeline.assets.asset import Asset, job_data
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.handlers.server import raise_file_limit
from pipeline.queue.job import Finish, NewJob, Outcome
from pipeline.queue.queue import JobQueue
from tests.constants import RECONCILE_AGE_SECONDS
from tests.factories import make_asset, make_token
from tests.redis_server import RedisServer
from tests.service import Service

LEAVE_EACH_SECOND = 50
SETTLE_SECONDS = 5.0
# The reconciler must not bring back what has left the line.
SETTINGS = {"ROLE": "web", RECONCILE_AGE_SECONDS: "3600"}


class Line:
    """The jobs, and what makes them leave."""

    def __init__(self, url: str) -> None:
        self._queue = JobQueue(url)
        self._steps = 0

    async def fill(self, assets: list[Asset]) -> None:
        """Enqueue their jobs."""
        await self._queue.restore([NewJob(each.processing_job_id, job_data(each)) for each in assets])

    async def leave(self) -> None:
        """Complete jobs, so many a second, until cancelled."""
        finishes: list[Finish] = []
        while True:
            self._steps += 1
            step = await self._queue.step(f"benchmark:{self._steps}", finishes, LEAVE_EACH_SECOND)
            finishes = [Finish(job, Outcome.COMPLETED) for job in step.claimed]
            await asyncio.sleep(1)

    async def close(self) -> None:
        await self._queue.close()


@asynccontextmanager
async def sockets(url: str, users: int, query: str) -> AsyncIterator[list[int]]:
    """Give a socket of each user, and a list of one number: the frames that have come."""
    frames = [0]

    async def read(socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            frames[0] += message.type is aiohttp.WSMsgType.TEXT

    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        readers = []
        for number in range(users):
            headers = {"Authorization": f"Bearer {make_token(f'user-{number}')}"}
            socket = await stack.enter_async_context(session.ws_connect(f"{url}/ws{query}", headers=headers))
            readers.append(asyncio.create_task(read(socket)))
        yield frames
        for reader in readers:
            reader.cancel()


def calls(redis: RedisServer) -> tuple[int, int]:
    """Return how many scripts were called so far, and how many commands all in all."""
    stats = redis.client().info("commandstats")
    return stats.get("cmdstat_evalsha", {"calls": 0})["calls"], sum(each["calls"] for each in stats.values())


async def measure(service: Service, redis: RedisServer, users: int, seconds: float, query: str) -> list[float]:
    """Return CPU of process and Redis, scripts, commands and frames, each a second."""
    async with sockets(service.url, users, query) as frames:
        await asyncio.sleep(SETTLE_SECONDS)
        started, before = time.monotonic(), (*calls(redis), frames[0])
        cpu = [machine.cpu_seconds([pid]) for pid in (service.pid, redis.pid)]
        await asyncio.sleep(seconds)
        lasted, after = time.monotonic() - started, (*calls(redis), frames[0])
        cpu = [machine.cpu_seconds([pid]) - each for pid, each in zip((service.pid, redis.pid), cpu, strict=True)]
    return [each / lasted for each in (*cpu, *(late - early for early, late in zip(before, after, strict=True)))]


async def run(users: int, photos: int, seconds: float) -> list[str]:
    """Return the rows of the table."""
    rows = []
    with RedisServer("--appendonly", "no") as redis, tempfile.TemporaryDirectory() as folder:
        store = SqliteAssetStore(Path(folder) / "assets.sqlite")
        await store.open()
        assets = [make_asset(f"user-{number % users}") for number in range(photos)]
        for asset in assets:
            await store.create(asset)
        await store.close()
        with Service(Path(folder), "", REDIS_URL=redis.url, **SETTINGS) as service:
            line = Line(redis.url)
            await line.fill(assets)
            for name, moves in (("stands", False), (f"moves {LEAVE_EACH_SECOND} a second", True)):
                leaving = asyncio.create_task(line.leave()) if moves else None
                for asks in (False, True):
                    found = await measure(service, redis, users, seconds, "?events=progress" if asks else "")
                    row = f"| {name} | {'yes' if asks else 'no'} | {found[0]:.3f} | {found[1]:.3f} "
                    rows.append(row + f"| {found[2]:.1f} | {found[3]:.1f} | {found[4]:,.0f} |")
                    print(rows[-1], flush=True)
                if leaving is not None:
                    leaving.cancel()
                    with suppress(asyncio.CancelledError):
                        await leaving
            await line.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.rooms.progress", description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--out", type=Path, help="write the table into this file too")
    options = parser.parse_args()
    raise_file_limit()
    lines = [
        f"{options.users:,} sockets, {options.photos:,} waiting photos. {machine.describe()}.",
        "",
        "| line | sockets ask | CPU s/s of the process | of Redis | scripts/s | commands/s | frames/s |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    lines += asyncio.run(run(options.users, options.photos, options.seconds))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
