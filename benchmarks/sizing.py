"""The memory, disk and CPU of a photo, a socket and a process: python -m benchmarks.sizing

One real process with an AI service that answers at once gets photos of 12 megapixels, as phones make them, and then
listening sockets. Prints the figures from which docs/operations.md calculates the size of an installation.
"""

from __future__ import annotations

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import bson

from benchmarks import machine
from tests.factories import make_image, make_token
from tests.redis_server import RedisServer
from tests.service import AiService, Service

PHOTOS, SOCKETS = 100, 500
PHONE = (4032, 3024)


def size(folder: Path) -> int:
    """Return the bytes of all files below the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def memory(*pids: int) -> float:
    """Return the resident bytes of these processes."""
    return machine.resident_mib(pids) * 1024 * 1024


def measure(folder: Path, redis: RedisServer) -> None:
    pictures = [make_image(size=PHONE, seed=number) for number in range(4)]
    with AiService() as ai, Service(folder, ai.url, REDIS_URL=redis.url, PREVIEW_PROCESSES="1") as service:
        process = service.pid
        show("an idle process", memory(process))
        cpu = machine.cpu_seconds(machine.descendants(process))
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda number: service.upload(image=pictures[number % 4]), range(PHOTOS)))
        service.wait_log("asset_finished", count=PHOTOS)
        show("the process after the photos", memory(process))
        show("its children that read photos", memory(*machine.descendants(process)[1:]))
        cpu = machine.cpu_seconds(machine.descendants(process)) - cpu
        print(f"CPU for a photo with previews: {cpu / PHOTOS:.2f} s")
        media = folder / "media"
        originals = sum(len(pictures[number % 4]) for number in range(PHOTOS)) / PHOTOS
        show("an original, as it was sent", originals)
        show("images of one photo beside the original", size(media) / PHOTOS - originals)
        show("a document as BSON, about", len(bson.encode(service.asset(service.find("asset_finished")[0]["assetId"]))))
        before = memory(process)
        asyncio.run(listen(service, process, before))


async def listen(service: Service, process: int, before: float) -> None:
    """Open SOCKETS sockets, each of another user, and show the memory of one."""
    async with AsyncExitStack() as opened:
        session = await opened.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        for number in range(SOCKETS):
            headers = {"Authorization": f"Bearer {make_token(f'user-{number}')}"}
            socket = await opened.enter_async_context(session.ws_connect(f"{service.url}/ws", headers=headers))
            await socket.receive_json()
        show("a socket", (memory(process) - before) / SOCKETS)


def show(what: str, count: float) -> None:
    print(f"{what}: {count / 1024:,.1f} KiB")


def main() -> None:
    with tempfile.TemporaryDirectory() as name, RedisServer() as redis:
        measure(Path(name), redis)


if __name__ == "__main__":
    main()
