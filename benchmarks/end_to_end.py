"""500 uploads of 100 KB, 32 at a time, until the last event: python -m benchmarks.end_to_end

The service is a real process with embedded Redis and SQLite, the AI service another one that takes 5 ms. Prints the
time until all 202s and all events are there, and percentiles of upload -> event as the client sees it. Compare ratios
of runs on one machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from tests.factories import make_noise_image, make_token
from tests.service import AiService, Service

UPLOAD_BYTES = 100_000


async def measure(url: str, count: int, parallel: int) -> dict[str, float]:
    """Return seconds until all were accepted and all events had come, and the upload -> event times."""
    image = make_noise_image(UPLOAD_BYTES)
    headers = {"Authorization": f"Bearer {make_token(expires_in=3600)}"}
    sent_at: dict[str, float] = {}
    heard_at: dict[str, float] = {}
    left = iter(range(count))
    connector = aiohttp.TCPConnector(limit=parallel + 1)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        socket = await session.ws_connect(f"{url}/ws", protocols=["pipeline.v1"])
        await socket.receive()

        async def listen() -> None:
            while len(heard_at) < count:
                event = await socket.receive_json()
                heard_at.setdefault(event["assetId"], time.perf_counter())

        async def upload() -> None:
            for _ in left:
                form = aiohttp.FormData({"category": "sneaker"})
                form.add_field("image", image, filename="photo.png")
                started_at = time.perf_counter()
                async with session.post(f"{url}/api/assets/analyze-queue", data=form) as reply:
                    body = await reply.json()
                    assert reply.status == 202, body
                    sent_at[body["data"]["assetId"]] = started_at

        listening = asyncio.create_task(listen())
        started_at = time.perf_counter()
        await asyncio.gather(*(upload() for _ in range(parallel)))
        accepted = time.perf_counter() - started_at
        await listening
        total = time.perf_counter() - started_at
        await socket.close()
    assert heard_at.keys() == sent_at.keys()
    waits = statistics.quantiles([heard_at[asset_id] - sent_at[asset_id] for asset_id in sent_at], n=100)
    return {"accepted": accepted, "total": total, "p50": waits[49], "p99": waits[98]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--parallel", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.count} uploads of {UPLOAD_BYTES} bytes, {options.parallel} at a time; seconds")
    for number in range(options.runs):
        with (
            tempfile.TemporaryDirectory() as folder,
            AiService(delay_ms=5) as ai_service,
            Service(Path(folder), ai_service.url) as service,
        ):
            result = asyncio.run(measure(service.url, options.count, options.parallel))
        print(f"run {number + 1}: " + "  ".join(f"{name} {seconds:.3f}" for name, seconds in result.items()))


if __name__ == "__main__":
    main()
