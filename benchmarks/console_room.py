"""The cost of open consoles: one process of the service with none, one and ten sockets in the room `operators`.

    python -m benchmarks.console_room [--seconds 30] [--rounds 3]

Prints CPU milliseconds of the process, Redis commands, and frames and bytes sent to one console, each per second: in an
idle service, and with an upload every half second, so that each overview differs from the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import httpx

from benchmarks import machine
from tests.factories import make_image, make_token
from tests.redis_server import RedisServer
from tests.service import AiService, Service

CONSOLES = (0, 1, 10)
PHOTO_EVERY_SECONDS = 0.5
SETTLE_SECONDS = 3.0


@dataclass
class Figures:
    """The figures for one number of consoles, one entry for each round."""

    cpu_ms: list[float] = field(default_factory=list)
    commands: list[float] = field(default_factory=list)
    frames: list[float] = field(default_factory=list)
    frame_bytes: list[float] = field(default_factory=list)


class Console:
    """A socket in the room; it counts the overviews that it gets."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.frames = self.bytes = 0
        self._socket = socket

    async def read(self) -> None:
        """Read until the socket closes."""
        async for message in self._socket:
            if json.loads(message.data)["event"] == "overview":
                self.frames += 1
                self.bytes += len(message.data)


async def measure(service: Service, redis: RedisServer, consoles: int, seconds: float, figures: Figures) -> None:
    """Measure one round with that many consoles and add it to the figures."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        headers = {"Authorization": f"Bearer {make_token('ops-1', role='operator-read')}"}
        address = f"{service.url}/ws?events=operators"
        opened = [Console(await session.ws_connect(address, headers=headers)) for _ in range(consoles)]
        readers = [asyncio.create_task(console.read()) for console in opened]
        await asyncio.sleep(SETTLE_SECONDS)
        before = [(console.frames, console.bytes) for console in opened]
        commands, cpu, started = _commands(redis), machine.cpu_seconds([service.pid]), time.monotonic()
        await asyncio.sleep(seconds)
        took = time.monotonic() - started
        figures.cpu_ms.append(1000 * (machine.cpu_seconds([service.pid]) - cpu) / took)
        figures.commands.append((_commands(redis) - commands) / took)
        if opened:
            figures.frames.append((opened[0].frames - before[0][0]) / took)
            figures.frame_bytes.append((opened[0].bytes - before[0][1]) / took)
        for reader in readers:
            reader.cancel()


def _commands(redis: RedisServer) -> int:
    return int(redis.client().info("stats")["total_commands_processed"])


async def _upload_for_ever(service: Service) -> None:
    image = make_image()
    async with httpx.AsyncClient() as client:
        while True:
            await client.post(
                f"{service.url}/api/assets/analyze-queue",
                headers=service.headers("user-1"),
                files={"image": ("photo.jpg", image, "image/jpeg")},
                data={"category": "sneaker"},
            )
            await asyncio.sleep(PHOTO_EVERY_SECONDS)


async def run(seconds: float, rounds: int) -> None:
    """Measure and print."""
    print(machine.describe())
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer() as redis,
        AiService() as ai,
        Service(Path(folder), ai.url, REDIS_URL=redis.url) as service,
    ):
        for name, is_busy in (("nothing happens", False), ("two photos a second", True)):
            uploads = asyncio.create_task(_upload_for_ever(service)) if is_busy else None
            results = {consoles: Figures() for consoles in CONSOLES}
            # Each round measures all, so that a change of the machine's speed meets all of them.
            for _ in range(rounds):
                for consoles, figures in results.items():
                    await measure(service, redis, consoles, seconds, figures)
            if uploads is not None:
                uploads.cancel()
                with suppress(asyncio.CancelledError):
                    await uploads
            _print(name, results)


def _print(name: str, results: dict[int, Figures]) -> None:
    print(f"\n{name}, per second")
    print("| consoles | CPU ms | Redis commands | frames to each | bytes to each |\n|---|---|---|---|---|")
    for consoles, figures in results.items():
        measured = (figures.cpu_ms, figures.commands, figures.frames, figures.frame_bytes)
        cells = [f"{statistics.median(each):.1f}" if each else "-" for each in measured]
        print(f"| {consoles} | {' | '.join(cells)} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.seconds, arguments.rounds))


if __name__ == "__main__":
    main()
