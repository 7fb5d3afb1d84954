"""dramatiq, as tally.py asks for it: scripts that keep what is unacknowledged; a dead worker's jobs come back after a
minute. Five threads of one process.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.queue.tally import GAP_SECONDS, PAYLOAD, SLOTS, TRICKLE, Tally, say, timed, trickled


def main(role: str, url: str, count: int) -> None:
    logging.disable(logging.INFO)
    broker = RedisBroker(url=url)
    dramatiq.set_broker(broker)
    tally = Tally(count)

    @dramatiq.actor(actor_name="noop")
    def noop(payload: dict[str, Any]) -> None:
        tally.seen(payload)

    if role == "work":
        dramatiq.Worker(broker, worker_threads=SLOTS).start()
        threading.Event().wait()
    elif role == "enqueue":
        timed(lambda: [noop.send(PAYLOAD) for _ in range(count)])
    else:
        for _ in range(TRICKLE):
            noop.send(trickled())
            time.sleep(GAP_SECONDS)
        say()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
