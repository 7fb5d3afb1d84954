"""10,000 people on one process: python -m benchmarks.rooms.crowd

Two processes of our rooms (server.py) on one Redis, each with a store. All sockets, one of each user, are on the first;
several load processes share them. In turn:

- accept: from the first connection to the last `connected`, tokens checked and channels confirmed by Redis; then KB of
  resident memory for each socket;
- events: one in the other process every half a millisecond, each to one room, over Redis: p50 and p99;
- Redis restart: Redis is stopped, an asset of each user is put in the store as another process would have finished it,
  Redis is started; from there to the last of the events, one for everybody, out of the store;
- Redis restarts and events again, three times in all, and resident memory after each.

--transport sse: the same people on GET /api/events. Every event must come, and to its owner, or the run fails.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks import machine
from benchmarks.rooms.load import OURS, OURS_STREAM, Codec, Load
from benchmarks.rooms.peers import start_ours
from pipeline.handlers.server import raise_file_limit
from tests.factories import make_token
from tests.redis_server import RedisServer

LOADS = 4
RATE = 2_000
RESTARTS = 3
SECONDS = 10
SETTLE_SECONDS = 3.0
PATIENCE_SECONDS = 300.0
CODECS = {"socket": OURS, "sse": OURS_STREAM}


def hold(pipe: Connection, codec: Codec, port: int, tokens: list[str], first: int, share: int) -> None:
    """One load process: does what it is told over the pipe, and reads its sockets meanwhile."""
    with Load(codec, port, tokens, first=first) as load:
        while True:
            load.run(pipe.poll, PATIENCE_SECONDS)
            match pipe.recv():
                case "connect":
                    load.connect(share)
                    pipe.send(time.monotonic())
                case ("expect", int(number), int(lowest)):
                    load.expect(number, lowest)
                    mine = sum(first <= each % len(tokens) < first + share for each in range(number))
                    pipe.send(mine)
                    load.run(partial(has_come, load, mine), PATIENCE_SECONDS)
                    pipe.send((load.last_at / 1e9, load.waits.tolist()))
                case _:
                    return


def has_come(load: Load, count: int) -> bool:
    """Whether so many events have come."""
    return load.received >= count


class Crowd:
    """The load processes together."""

    def __init__(self, stack: ExitStack, codec: Codec, port: int, people: int) -> None:
        tokens = [make_token(f"user-{number}") for number in range(people)]
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        share = people // LOADS
        for number in range(LOADS):
            ours, theirs = context.Pipe()
            process = context.Process(target=hold, args=(theirs, codec, port, tokens, number * share, share))
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)
            self._pipes.append(ours)

    def connect(self) -> float:
        """Bring everybody in; return the seconds it took."""
        started_at = time.monotonic()
        self._tell("connect")
        return float(max(self._hear())) - started_at

    def expect(self, number: int, lowest: int = 0) -> None:
        """Return when all wait for so many events, counted from `lowest`."""
        self._tell(("expect", number, lowest))
        self._hear()

    def heard(self) -> tuple[float, list[int]]:
        """Return when the last one came (CLOCK_MONOTONIC) and nanoseconds from the making of each to its arrival."""
        heard = self._hear()
        return max(last for last, _ in heard), [wait for _, waits in heard for wait in waits]

    def leave(self) -> None:
        """Close all sockets."""
        self._tell("leave")

    def _tell(self, what: object) -> None:
        for pipe in self._pipes:
            pipe.send(what)

    def _hear(self) -> list[Any]:
        said = []
        for pipe in self._pipes:
            if not pipe.poll(PATIENCE_SECONDS):
                raise TimeoutError("a load process does not answer")
            said.append(pipe.recv())
        return said


def quantiles(waits: list[int]) -> str:
    """Return p50 and p99 in ms."""
    cuts = statistics.quantiles(waits, n=100)
    return f"{cuts[49] / 1e6:.2f} / {cuts[98] / 1e6:.2f}"


def measure(transport: str, people: int) -> list[str]:
    """Do all of it; return the cells of the table's row."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer("--appendonly", "no"))
        server = start_ours(Path(), redis.url, stack)
        crowd = Crowd(stack, CODECS[transport], server.port, people)
        memory = [machine.resident_mib(server.pids[:1])]

        def steady() -> str:
            count = RATE * SECONDS
            crowd.expect(count)
            urlopen(f"http://127.0.0.1:{server.emit_port}/emit?count={count}&rate={RATE}&users={people}").read()
            _, waits = crowd.heard()
            memory.append(machine.resident_mib(server.pids[:1]))
            return quantiles(waits)

        accept_seconds = crowd.connect()
        time.sleep(SETTLE_SECONDS)
        memory.append(machine.resident_mib(server.pids[:1]))
        quiet = steady()
        told, again = [], []
        for number in range(RESTARTS):
            redis.stop()
            lowest = (number + 1) * 1000 * people
            crowd.expect(people, lowest)
            urlopen(f"http://127.0.0.1:{server.port}/finish?users={people}&first={lowest}").read()
            redis.start()
            back_at = time.monotonic()
            last_at, _ = crowd.heard()
            told.append(f"{last_at - back_at:.1f}")
            again.append(steady())
        crowd.leave()
    per_person = 1024 * (memory[1] - memory[0]) / people
    shown = ", ".join(f"{each:.0f}" for each in memory)
    return [
        transport,
        f"{accept_seconds:.1f}",
        f"{per_person:.1f}",
        quiet,
        ", ".join(told),
        ", ".join(again),
        shown,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.rooms.crowd", description=__doc__.partition("\n")[0])
    parser.add_argument("--people", type=int, default=10_000)
    parser.add_argument("--transport", choices=list(CODECS), nargs="+", default=list(CODECS))
    parser.add_argument("--out", type=Path, help="write the table into this file too")
    options = parser.parse_args()
    raise_file_limit()  # for the server and the load too
    lines = [
        f"{options.people:,} people on one process, {LOADS} load processes. {machine.describe()}.",
        "",
        f"| transport | all in, s | KB each | p50 / p99 ms at {RATE:,}/s | all told after a Redis restart, s "
        "| p50 / p99 ms again | MiB before, all in, after each round of events |",
        "|---" * 7 + "|",
    ]
    print("\n".join(lines), flush=True)
    for transport in options.transport:
        lines.append("| " + " | ".join(measure(transport, options.people)) + " |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
