"""arq with the roles of noop_job.py. It polls a sorted set and has a lock per job; a lost job runs again when its lock
ends. Here it polls every 1 ms instead of every 0.5 s, because a job cannot start sooner than the next poll.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

from benchmarks.queue.noop_job import GAP_SECONDS, PAYLOAD, SLOTS, TRICKLE, JobCounter, print_figures, stamped_payload


async def main(role: str, url: str, count: int) -> None:
    logging.disable(logging.INFO)
    settings = RedisSettings.from_dsn(url)
    if role == "work":
        counter = JobCounter(count)

        async def noop(_context: object, payload: dict[str, Any]) -> None:
            counter.count(payload)

        functions = [func(noop, name="noop", keep_result=0)]
        await Worker(functions, redis_settings=settings, max_jobs=SLOTS, poll_delay=0.001, handle_signals=False).main()
    pool = await create_pool(settings)
    started_at = time.perf_counter()
    if role == "enqueue":
        for _ in range(count):
            await pool.enqueue_job("noop", PAYLOAD)
    print_figures(seconds=time.perf_counter() - started_at)
    if role == "trickle":
        for _ in range(TRICKLE):
            await pool.enqueue_job("noop", stamped_payload())
            await asyncio.sleep(GAP_SECONDS)
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
