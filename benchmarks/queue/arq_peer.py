"""arq, as tally.py asks for it: polls a sorted set, a lock per job; a lost job runs again when its lock ends. The poll
is shortened from 0.5 s to 1 ms, or nothing would start sooner than that.
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

from benchmarks.queue.tally import GAP_SECONDS, PAYLOAD, SLOTS, TRICKLE, Tally, say, trickled


async def main(role: str, url: str, count: int) -> None:
    logging.disable(logging.INFO)
    settings = RedisSettings.from_dsn(url)
    if role == "work":
        tally = Tally(count)

        async def noop(_context: object, payload: dict[str, Any]) -> None:
            tally.seen(payload)

        functions = [func(noop, name="noop", keep_result=0)]
        await Worker(functions, redis_settings=settings, max_jobs=SLOTS, poll_delay=0.001, handle_signals=False).main()
    pool = await create_pool(settings)
    started_at = time.perf_counter()
    if role == "enqueue":
        for _ in range(count):
            await pool.enqueue_job("noop", PAYLOAD)
    say(seconds=time.perf_counter() - started_at)
    if role == "trickle":
        for _ in range(TRICKLE):
            await pool.enqueue_job("noop", trickled())
            await asyncio.sleep(GAP_SECONDS)
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
