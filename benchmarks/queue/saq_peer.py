"""saq, as tally.py asks for it: moved to an active list, acknowledged at the end; a sweeper brings lost jobs back."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

from saq import Queue, Worker

from benchmarks.queue.tally import GAP_SECONDS, PAYLOAD, SLOTS, TRICKLE, Tally, say, trickled


async def main(role: str, url: str, count: int) -> None:
    logging.disable(logging.INFO)
    queue = Queue.from_url(url)
    await queue.connect()
    if role == "work":
        tally = Tally(count)

        async def noop(_context: object, *, payload: dict[str, Any]) -> None:
            tally.seen(payload)

        await Worker(queue, [("noop", noop)], concurrency=SLOTS).start()
    started_at = time.perf_counter()
    if role == "enqueue":
        for _ in range(count):
            await queue.enqueue("noop", payload=PAYLOAD, ttl=-1)
    say(seconds=time.perf_counter() - started_at)
    if role == "trickle":
        for _ in range(TRICKLE):
            await queue.enqueue("noop", payload=trickled(), ttl=-1)
            await asyncio.sleep(GAP_SECONDS)
    await queue.disconnect()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
