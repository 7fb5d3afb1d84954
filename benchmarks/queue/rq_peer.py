"""rq with the roles of noop_job.py: a SimpleWorker, one job at a time. Its default worker forks for each job."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from redis import Redis
from rq import Queue, SimpleWorker

from benchmarks.queue.noop_job import GAP_SECONDS, PAYLOAD, TRICKLE, JobCounter, print_figures, timed, stamped_payload

counter: JobCounter


def noop(payload: dict[str, Any]) -> None:
    """Count a job; the worker imports this function by its name."""
    sys.modules["__main__"].counter.count(payload)


def main(role: str, url: str, count: int) -> None:
    logging.disable(logging.INFO)
    queue = Queue(connection=Redis.from_url(url))
    name = "benchmarks.queue.rq_peer.noop"
    if role == "work":
        setattr(sys.modules["__main__"], "counter", JobCounter(count))  # noqa: B010
        SimpleWorker([queue], connection=queue.connection).work(logging_level="ERROR")
    elif role == "enqueue":
        timed(lambda: [queue.enqueue(name, PAYLOAD, result_ttl=0) for _ in range(count)])
    elif role == "bulk":
        calls = [Queue.prepare_data(name, (PAYLOAD,), result_ttl=0) for _ in range(count)]
        timed(lambda: queue.enqueue_many(calls))
    else:
        for _ in range(TRICKLE):
            queue.enqueue(name, stamped_payload(), result_ttl=0)
            time.sleep(GAP_SECONDS)
        print_figures()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
