"""taskiq with the roles of noop_job.py. `list` is BRPOP: a killed worker's job is lost. `stream` acknowledges jobs."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

from taskiq.receiver import Receiver
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from benchmarks.queue.noop_job import GAP_SECONDS, PAYLOAD, SLOTS, TRICKLE, JobCounter, print_figures, stamped_payload


async def main(kind: str, role: str, url: str, count: int) -> None:
    logging.disable(logging.INFO)
    broker = ListQueueBroker(url) if kind == "list" else RedisStreamBroker(url)
    broker.is_worker_process = role == "work"
    counter = JobCounter(count)

    async def noop(payload: dict[str, Any]) -> None:
        counter.count(payload)

    task = broker.register_task(noop, task_name="noop")
    await broker.startup()
    if role == "work":
        await Receiver(broker, max_async_tasks=SLOTS, run_startup=False).listen(asyncio.Event())
    started_at = time.perf_counter()
    if role == "enqueue":
        for _ in range(count):
            await task.kiq(PAYLOAD)
    print_figures(seconds=time.perf_counter() - started_at)
    if role == "trickle":
        for _ in range(TRICKLE):
            await task.kiq(stamped_payload())
            await asyncio.sleep(GAP_SECONDS)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
