"""celery, as tally.py asks for it: five threads, acks_late; a killed worker's job comes back after an hour (visibility
timeout). Results are ignored.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from celery import Celery

from benchmarks.queue.tally import GAP_SECONDS, PAYLOAD, SLOTS, TRICKLE, Tally, say, timed, trickled


def main(role: str, url: str, count: int) -> None:
    logging.disable(logging.INFO)
    app = Celery("bench", broker=url)
    app.conf.update(task_acks_late=True, task_ignore_result=True, worker_redirect_stdouts=False)
    tally = Tally(count)

    @app.task(name="noop")
    def noop(payload: dict[str, Any]) -> None:
        tally.seen(payload)

    if role == "work":
        options = ["--pool", "threads", "--concurrency", str(SLOTS), "--loglevel", "ERROR"]
        app.worker_main(["worker", "--without-gossip", "--without-mingle", "--without-heartbeat", *options])
    elif role == "enqueue":
        timed(lambda: [noop.delay(PAYLOAD) for _ in range(count)])
    else:
        for _ in range(TRICKLE):
            noop.delay(trickled())
            time.sleep(GAP_SECONDS)
        say()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
