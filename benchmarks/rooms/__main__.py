"""Our rooms beside Socket.IO, python-socketio and Centrifugo, in one run: python -m benchmarks.rooms

1,000 sockets of 1,000 users. Each socket sends a JWT (HS256) that the server checks, and is in the room of its user.
Each event goes to one room, round robin: asset_processed as in contracts/, 330 bytes, built and encoded for each.
Every event must reach its socket exactly once, or the run fails. Measured with one process, and with two processes that
share a Redis (all sockets on the first, the events emitted in the second):

- events/s: 20,000 events emitted inside the server as fast as possible, in slices of 100 between which its event loop
  runs, from the request that starts them to the last event received; the median of five rounds;
- p50, p99: from the creation of an event to its arrival, at a steady 2,000 events/s for 5 s;
- CPU: seconds of the server's processes for 1,000 events of these rounds;
- memory: growth of the process's resident memory per idle socket, with 1,000; before that, 50 sockets open and close.

The servers run one after the other, in another order each time. This process is the load client (load.py). `blaster`
only writes to sockets: its figures are the limit of the load client. Centrifugo cannot emit from inside, so a third
process sends it batches of 1,000 over HTTP (of 10 at the steady pace); the CPU of that process is not counted. The
first run installs the peers into --peers with npm, Go and PyPI; a peer that cannot be installed is left out.

Compare ratios within one run only. python -m benchmarks.rooms.slow measures clients that do not read. Linux only
(/proc).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import machine
from benchmarks.comparison import show
from benchmarks.peers import FOLDER, CannotHave
from benchmarks.rooms.load import Failure, Load
from benchmarks.rooms.peers import Peer, all_peers
from pipeline.handlers.server import raise_file_limit
from tests.factories import make_token
from tests.redis_server import RedisServer

WARM_UP_SOCKETS = 50
WARM_UP_EVENTS = 10_000
ROUNDS = 5
STEADY_RATE = 2_000
STEADY_SECONDS = 5
SETTLE_SECONDS = 2.0
COLUMNS = ("events/s", "p50 ms", "p99 ms", "CPU s/1,000", "KB/socket")
REFERENCE = "Socket.IO"
Row = tuple[Peer, bool]


def measure(peer: Peer, with_redis: bool, tokens: list[str], events: int) -> dict[str, float]:
    """Start the server, measure it and end it; return the figures by column."""
    with ExitStack() as stack:
        redis_url = stack.enter_context(RedisServer("--appendonly", "no")).url if with_redis else None
        server = peer.start(peer.folder, redis_url, stack)
        load = stack.enter_context(Load(peer.codec, server.port, tokens))
        load.connect(min(WARM_UP_SOCKETS, len(tokens)))
        load.close()
        time.sleep(SETTLE_SECONDS)
        before = 1024 * machine.resident_mib(server.pids[:1])
        load.connect(len(tokens))
        load.read_for(SETTLE_SECONDS)
        memory = (1024 * machine.resident_mib(server.pids[:1]) - before) / len(tokens)
        load.emit(server.emit_port, WARM_UP_EVENTS)
        cpu = machine.cpu_seconds(server.pids)
        seconds = [load.emit(server.emit_port, events) for _ in range(ROUNDS)]
        cpu = machine.cpu_seconds(server.pids) - cpu
        load.emit(server.emit_port, STEADY_RATE * STEADY_SECONDS, STEADY_RATE)
        waits = statistics.quantiles(load.waits, n=100)
    return {
        "events/s": events / statistics.median(seconds),
        "p50 ms": waits[49] / 1e6,
        "p99 ms": waits[98] / 1e6,
        "CPU s/1,000": cpu / ROUNDS / events * 1000,
        "KB/socket": memory,
    }


def render(title: str, results: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return a table: median (lowest - highest), and the ratio to the median of Socket.IO."""
    lines = [f"**{title}**", "", "| server | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, runs in results.items():
        if not runs:
            continue
        cells = [name]
        for column in COLUMNS:
            figures = [run[column] for run in runs]
            cell = "{} ({} - {})".format(*map(show, (statistics.median(figures), min(figures), max(figures))))
            if name != REFERENCE and results.get(REFERENCE):
                reference = statistics.median(run[column] for run in results[REFERENCE])
                cell += f", x {statistics.median(figures) / reference:.2f}"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def install(peers: list[Peer], folder: Path) -> tuple[list[Peer], list[str]]:
    """Return the peers that could be installed, and a line about every peer."""
    installed, lines = [], []
    for peer in peers:
        peer.folder = folder / peer.name
        try:
            lines.append(f"- {peer.name}: {peer.install(peer.folder)}")
            installed.append(peer)
        except CannotHave as error:
            lines.append(f"- {peer.name}: left out, it cannot be installed: {error}")
        print(lines[-1], file=sys.stderr, flush=True)
    return installed, lines


def measure_all(
    rows: list[Row], tokens: list[str], events: int, repeats: int
) -> tuple[dict[bool, dict[str, list[dict[str, float]]]], list[str]]:
    """Return the figures of each row, by whether it has a Redis and by the name of the peer, and the failed runs."""
    results: dict[bool, dict[str, list[dict[str, float]]]] = {False: {}, True: {}}
    for peer, with_redis in rows:
        results[with_redis][peer.name] = []
    failures = []
    for repeat in range(repeats):
        first = repeat % len(rows) * 2
        for peer, with_redis in rows[first:] + rows[:first]:
            name = f"{peer.name}{', Redis' if with_redis else ''}"
            try:
                result = measure(peer, with_redis, tokens, events)
            except (Failure, OSError, RuntimeError) as error:
                failures.append(f"- {name}, run {repeat + 1}: failed: {error!r}")
                print(failures[-1], file=sys.stderr, flush=True)
                continue
            results[with_redis][peer.name].append(result)
            shown = "  ".join(f"{column} {value:.4g}" for column, value in result.items())
            print(f"run {repeat + 1}: {name}: {shown}", file=sys.stderr, flush=True)
    return results, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.rooms", description=__doc__.partition("\n")[0])
    parser.add_argument("--sockets", type=int, default=1_000)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only servers whose name starts with NAME")
    parser.add_argument("--peers", type=Path, default=FOLDER, help="where peers are installed")
    parser.add_argument("--out", type=Path, help="write the tables into this file too")
    options = parser.parse_args()
    raise_file_limit()  # for the servers too
    wanted = [
        peer
        for peer in all_peers()
        if not options.only or any(peer.name.lower().startswith(name.lower()) for name in options.only)
    ]
    peers, versions = install(wanted, options.peers.resolve())
    where = machine.describe()
    users = [f"user-{number}" for number in range(options.sockets)]
    tokens = [make_token(user, channels=[f"user:{user}"]) for user in users]
    rows: list[Row] = [(peer, False) for peer in peers] + [(peer, True) for peer in peers if peer.has_redis]
    results, failures = measure_all(rows, tokens, options.events, options.repeats)
    report = [
        f"{options.sockets:,} sockets, {options.events:,} events, {options.repeats} runs: median (lowest - highest), "
        f"and the ratio to {REFERENCE}'s median. {where}.",
        "",
        *versions,
        "",
        *render("One process", results[False]),
        *render("Two processes and Redis: emitted in one, received by the sockets of the other", results[True]),
        *failures,
    ]
    print("\n".join(report))
    if options.out:
        options.out.write_text("\n".join(report) + "\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
