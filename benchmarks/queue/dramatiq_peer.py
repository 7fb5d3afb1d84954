"""dramatiq with the roles of noop_job.py: five threads of one process. Its Lua scripts store unacknowledged messages; a
dead worker's jobs run again after a minute.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

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
    broker = RedisBroker(url=url)
    dramatiq.set_broker(broker)
    counter = JobCounter(count)

    @dramatiq.actor(actor_name="noop")
    def noop(payload: dict[str, Any]) -> None:
        counter.count(payload)

    if role == "work":
        dramatiq.Worker(broker, worker_threads=SLOTS).start()
        threading.Event().wait()
    elif role == "enqueue":
        timed(lambda: [noop.send(PAYLOAD) for _ in range(count)])
    else:
        for _ in range(TRICKLE):
            noop.send(stamped_payload())
            time.sleep(GAP_SECONDS)
        print_figures()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
