"""The cost of progress events for 1,000 users with 10,000 waiting photos: python -m benchmarks.rooms.progress

One process with ROLE=web, a Redis and a SQLite with 10,000 unfinished photos of 1,000 users, whose jobs wait, and a
socket for each user. Measured without and with `?events=progress`: while the queue does not move, and while 50 jobs a
second leave it, so that the position of every other photo changes each second. Prints the CPU seconds per second of the
process and of Redis, the calls per second (scripts, and all commands, with those inside scripts), and the frames per
second to all sockets. This process has the clients.
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
# The reconciler must not enqueue again the jobs that have left the queue.
SETTINGS = {"ROLE": "web", RECONCILE_AGE_SECONDS: "3600"}


class WaitingJobs:
    """The waiting jobs; `leave` completes some of them each second."""

    def __init__(self, url: str) -> None:
        self._queue = JobQueue(url)
        self._steps = 0

    async def fill(self, assets: list[Asset]) -> None:
        """Enqueue the jobs of the assets."""
        await self._queue.restore([NewJob(each.processing_job_id, job_data(each)) for each in assets])

    async def leave(self) -> None:
        """Complete LEAVE_EACH_SECOND jobs a second until cancelled."""
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
    """Open a socket for each user; yield a list of one number: the frames that have come."""
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
    """Return the number of script calls and of all commands so far."""
    stats = redis.client().info("commandstats")
    return stats.get("cmdstat_evalsha", {"calls": 0})["calls"], sum(each["calls"] for each in stats.values())


async def measure(service: Service, redis: RedisServer, users: int, seconds: float, query: str) -> list[float]:
    """Return, per second: CPU of the process and of Redis, scripts, commands and frames."""
    async with sockets(service.url, users, query) as frames:
        await asyncio.sleep(SETTLE_SECONDS)
        started, before = time.monotonic(), (*calls(redis), frames[0])
        cpu = [machine.cpu_seconds([pid]) for pid in (service.pid, redis.pid)]
        await asyncio.sleep(seconds)
        seconds, after = time.monotonic() - started, (*calls(redis), frames[0])
        cpu = [machine.cpu_seconds([pid]) - each for pid, each in zip((service.pid, redis.pid), cpu, strict=True)]
    return [each / seconds for each in (*cpu, *(late - early for early, late in zip(before, after, strict=True)))]


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
            jobs = WaitingJobs(redis.url)
            await jobs.fill(assets)
            for name, moves in (("stands", False), (f"moves {LEAVE_EACH_SECOND} a second", True)):
                leaving = asyncio.create_task(jobs.leave()) if moves else None
                for asks in (False, True):
                    query = "?events=progress" if asks else ""
                    cpu, redis_cpu, scripts, commands, frames = await measure(service, redis, users, seconds, query)
                    row = f"| {name} | {'yes' if asks else 'no'} | {cpu:.3f} | {redis_cpu:.3f} "
                    rows.append(row + f"| {scripts:.1f} | {commands:.1f} | {frames:,.0f} |")
                    print(rows[-1], flush=True)
                if leaving is not None:
                    leaving.cancel()
                    with suppress(asyncio.CancelledError):
                        await leaving
            await jobs.close()
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
        "| queue | sockets ask | CPU s/s of the process | of Redis | scripts/s | commands/s | frames/s |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    lines += asyncio.run(run(options.users, options.photos, options.seconds))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
