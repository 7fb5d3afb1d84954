"""celery with the roles of noop_job.py: five threads, acks_late, no results. A killed worker's job runs again after an
hour (visibility timeout).
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from celery import Celery

from benchmarks.queue.noop_job import (
    GAP_SECONDS,
    PAYLOAD,
    SLOTS,
    TRICKLE,
    JobCounter,
    print_figures,
    timed,
    stamped_payload,
)


def main(role: str, url: str, count: int) -> None:
    logging.disable(logging.INFO)
    app = Celery("bench", broker=url)
    app.conf.update(task_acks_late=True, task_ignore_result=True, worker_redirect_stdouts=False)
    counter = JobCounter(count)

    @app.task(name="noop")
    def noop(payload: dict[str, Any]) -> None:
        counter.count(payload)

    if role == "work":
        options = ["--pool", "threads", "--concurrency", str(SLOTS), "--loglevel", "ERROR"]
        app.worker_main(["worker", "--without-gossip", "--without-mingle", "--without-heartbeat", *options])
    elif role == "enqueue":
        timed(lambda: [noop.delay(PAYLOAD) for _ in range(count)])
    else:
        for _ in range(TRICKLE):
            noop.delay(stamped_payload())
            time.sleep(GAP_SECONDS)
        print_figures()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
