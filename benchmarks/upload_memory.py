"""Peak memory of the service with 100 uploads of 9.5 MB in flight at once, slowly: python -m benchmarks.upload_memory

Prints the resident memory of the service process before, the peak while all bodies are under way, and the difference.
Linux only (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from tests.factories import make_noise_image, make_token
from tests.service import AiService, Service

UPLOAD_BYTES = 9_500_000
CHUNK_BYTES = 64 * 1024


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no VmRSS")


async def measure(service: Service, count: int, seconds: float) -> tuple[float, float, int]:
    """Return base and peak memory in MiB and how many uploads were accepted."""
    image = make_noise_image(UPLOAD_BYTES)
    chunks = [image[at : at + CHUNK_BYTES] for at in range(0, len(image), CHUNK_BYTES)]
    headers = {"Authorization": f"Bearer {make_token(expires_in=3600)}"}
    under_way = asyncio.Event()
    started = 0

    async def slow_body() -> AsyncIterator[bytes]:
        nonlocal started
        for number, chunk in enumerate(chunks):
            yield chunk
            if number == len(chunks) // 2:
                # All wait for each other half-way, so that all are in flight at once.
                started += 1
                if started == count:
                    under_way.set()
                await under_way.wait()
            await asyncio.sleep(seconds / len(chunks))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:

        async def upload() -> int:
            form = aiohttp.FormData({"category": "sneaker"})
            form.add_field("image", slow_body(), filename="photo.png")
            async with session.post(f"{service.url}/api/assets/analyze-queue", data=form) as reply:
                return reply.status

        base = peak = resident_mib(service.pid)
        uploads = asyncio.gather(*(upload() for _ in range(count)))
        while not uploads.done():
            peak = max(peak, resident_mib(service.pid))
            await asyncio.sleep(0.05)
        statuses = await uploads
    return base, peak, statuses.count(202)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20, help="how long one body takes at least")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        AiService(held=True) as ai_service,
        Service(Path(folder), ai_service.url, SHUTDOWN_SECONDS="0") as service,
    ):
        # Imports and pools that the first upload brings are part of the base.
        service.upload()
        started_at = time.perf_counter()
        base, peak, accepted = asyncio.run(measure(service, options.count, options.seconds))
        seconds = time.perf_counter() - started_at
    print(f"{accepted} of {options.count} uploads of {UPLOAD_BYTES} bytes accepted in {seconds:.0f} s")
    print(f"base {base:.1f} MiB, peak {peak:.1f} MiB, difference {peak - base:.1f} MiB")


if __name__ == "__main__":
    main()
