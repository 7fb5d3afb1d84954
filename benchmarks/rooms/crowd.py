"""10,000 sockets on one process: python -m benchmarks.rooms.crowd

Two processes of our rooms (server.py) on one Redis, each with a store. All sockets, one for each user, are on the first
process; several load processes share them. The steps:

- accept: from the first connection to the last `connected`, with the tokens checked and the channels confirmed by
  Redis; then KB of resident memory for each socket;
- events: the other process emits one every half a millisecond, each to one room, over Redis: p50 and p99;
- Redis restart: Redis is stopped; a finished asset of each user is put into the store, as if another process had
  finished it; Redis is started. Measured from the start until the last user has the event, which comes from the store;
- restart and events are repeated, three times in all, with the resident memory after each.

--transport sse: the same with GET /api/events. Every event must reach its owner, or the run fails.
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
LONGEST_SECONDS = 300.0
CODECS = {"socket": OURS, "sse": OURS_STREAM}


def run_load(pipe: Connection, codec: Codec, port: int, tokens: list[str], first: int, share: int) -> None:
    """The main function of a load process: reads its sockets, and executes the commands that come over the pipe.

    first: the user of its first socket.
    share: the number of its sockets.
    """
    with Load(codec, port, tokens, first=first) as load:
        while True:
            load.run(pipe.poll, LONGEST_SECONDS)
            match pipe.recv():
                case "connect":
                    load.connect(share)
                    pipe.send(time.monotonic())
                case ("expect", int(number), int(lowest)):
                    load.expect(number, lowest)
                    own = sum(first <= each % len(tokens) < first + share for each in range(number))
                    pipe.send(own)
                    load.run(partial(has_received, load, own), LONGEST_SECONDS)
                    pipe.send((load.last_at / 1e9, load.waits.tolist()))
                case _:
                    return


def has_received(load: Load, count: int) -> bool:
    """Return whether that many events have come."""
    return load.received >= count


class Crowd:
    """All load processes."""

    def __init__(self, stack: ExitStack, codec: Codec, port: int, people: int) -> None:
        tokens = [make_token(f"user-{number}") for number in range(people)]
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        share = people // LOADS
        for number in range(LOADS):
            ours, theirs = context.Pipe()
            process = context.Process(target=run_load, args=(theirs, codec, port, tokens, number * share, share))
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)
            self._pipes.append(ours)

    def connect(self) -> float:
        """Open all sockets; return the seconds."""
        started_at = time.monotonic()
        self._send("connect")
        return float(max(self._receive())) - started_at

    def expect(self, number: int, lowest: int = 0) -> None:
        """Return when all load processes are ready for that many events, numbered from `lowest`."""
        self._send(("expect", number, lowest))
        self._receive()

    def arrivals(self) -> tuple[float, list[int]]:
        """Wait for all expected events.

        Returns when the last one came (CLOCK_MONOTONIC), and for each the nanoseconds from its creation to its arrival.
        """
        results = self._receive()
        return max(last for last, _ in results), [wait for _, waits in results for wait in waits]

    def leave(self) -> None:
        """Close all sockets."""
        self._send("leave")

    def _send(self, command: object) -> None:
        for pipe in self._pipes:
            pipe.send(command)

    def _receive(self) -> list[Any]:
        results = []
        for pipe in self._pipes:
            if not pipe.poll(LONGEST_SECONDS):
                raise TimeoutError("a load process does not answer")
            results.append(pipe.recv())
        return results


def quantiles(waits: list[int]) -> str:
    """Return p50 and p99 in milliseconds, as a text."""
    cuts = statistics.quantiles(waits, n=100)
    return f"{cuts[49] / 1e6:.2f} / {cuts[98] / 1e6:.2f}"


def measure(transport: str, people: int) -> list[str]:
    """Run all steps with one transport; return the cells of its row."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer("--appendonly", "no"))
        server = start_ours(Path(), redis.url, stack)
        crowd = Crowd(stack, CODECS[transport], server.port, people)
        memory = [machine.resident_mib(server.pids[:1])]

        def steady() -> str:
            count = RATE * SECONDS
            crowd.expect(count)
            urlopen(f"http://127.0.0.1:{server.emit_port}/emit?count={count}&rate={RATE}&users={people}").read()
            _, waits = crowd.arrivals()
            memory.append(machine.resident_mib(server.pids[:1]))
            return quantiles(waits)

        accept_seconds = crowd.connect()
        time.sleep(SETTLE_SECONDS)
        memory.append(machine.resident_mib(server.pids[:1]))
        before = steady()
        replayed, after = [], []
        for number in range(RESTARTS):
            replayed.append(f"{restart(redis, crowd, server.port, people, (number + 1) * 1000 * people):.1f}")
            after.append(steady())
        crowd.leave()
    per_person = 1024 * (memory[1] - memory[0]) / people
    figures = [transport, f"{accept_seconds:.1f}", f"{per_person:.1f}", before, ", ".join(replayed), ", ".join(after)]
    return [*figures, ", ".join(f"{each:.0f}" for each in memory)]


def restart(redis: RedisServer, crowd: Crowd, port: int, people: int, lowest: int) -> float:
    """Restart Redis; return the seconds from its start until every user has the event of the time without Redis.

    port: of the server with the sockets.
    lowest: the number of the first event.
    """
    redis.stop()
    crowd.expect(people, lowest)
    urlopen(f"http://127.0.0.1:{port}/finish?users={people}&first={lowest}").read()
    redis.start()
    started_at = time.monotonic()
    last_at, _ = crowd.arrivals()
    return last_at - started_at


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.rooms.crowd", description=__doc__.partition("\n")[0])
    parser.add_argument("--people", type=int, default=10_000)
    parser.add_argument("--transport", choices=list(CODECS), nargs="+", default=list(CODECS))
    parser.add_argument("--out", type=Path, help="write the table into this file too")
    options = parser.parse_args()
    raise_file_limit()  # for the server and the load too
    lines = [
        f"{options.people:,} sockets on one process, {LOADS} load processes. {machine.describe()}.",
        "",
        f"| transport | all connected, s | KB each | p50 / p99 ms at {RATE:,}/s | all events after a Redis restart, s "
        "| p50 / p99 ms after it | MiB before, all connected, after each round of events |",
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
