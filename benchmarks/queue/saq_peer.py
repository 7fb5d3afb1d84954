"""saq with the roles of noop_job.py. A running job is in an active list; a sweeper enqueues lost jobs again."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

from saq import Queue, Worker

from benchmarks.queue.noop_job import GAP_SECONDS, PAYLOAD, SLOTS, TRICKLE, JobCounter, print_figures, stamped_payload


async def main(role: str, url: str, count: int) -> None:
    logging.disable(logging.INFO)
    queue = Queue.from_url(url)
    await queue.connect()
    if role == "work":
        counter = JobCounter(count)

        async def noop(_context: object, *, payload: dict[str, Any]) -> None:
            counter.count(payload)

        await Worker(queue, [("noop", noop)], concurrency=SLOTS).start()
    started_at = time.perf_counter()
    if role == "enqueue":
        for _ in range(count):
            await queue.enqueue("noop", payload=PAYLOAD, ttl=-1)
    print_figures(seconds=time.perf_counter() - started_at)
    if role == "trickle":
        for _ in range(TRICKLE):
            await queue.enqueue("noop", payload=stamped_payload(), ttl=-1)
            await asyncio.sleep(GAP_SECONDS)
    await queue.disconnect()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
