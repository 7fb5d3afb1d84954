"""The cost of clients that never read: python -m benchmarks.rooms.slow

500 sockets with small buffers connect and then never read, while 2,000 events of 4 KB are sent to each of their rooms,
one round of 500 every 20 ms. At the same time 100 sockets that read get 1,000 ordinary events a second; the table has
their p99, and their p99 in the same run without the slow sockets. It also has the server's resident memory before, at
the peak and at the end, the bound (before, plus OUTBOX_BYTES for each slow socket) and the sockets closed with 4503.
"""

from __future__ import annotations

import argparse
import statistics
import threading
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

from benchmarks import machine
from benchmarks.rooms.load import OURS, Load
from benchmarks.rooms.peers import start_ours
from pipeline.settings import Settings
from tests.factories import SECRET, make_token

READERS = 100
READER_RATE = 1_000
EVENT_BYTES = 4_096
PACE_MS = 20
RECEIVE_BYTES = 4_096
# Tornado closes the connection of a client that has not answered its close frame for 5 s.
HANG_UP_SECONDS = 8.0
OUTBOX_FULL = 4503


def peak_kib(pid: int) -> int:
    """Return the peak resident memory of a process in KiB, from the kernel: polling would slow the process down."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} has no VmHWM")


def measure(slow: int, rounds: int, *, has_slow: bool) -> dict[str, float]:
    """Return the latencies of the readers in ms, the memory in MiB and the number of closed sockets.

    slow: the number of slow sockets.
    rounds: the large events to each of their rooms.
    has_slow: whether the slow sockets connect; the events are sent to their rooms in either case.
    """
    tokens = [make_token(f"user-{number}") for number in range(READERS + slow)]
    with ExitStack() as stack:
        server = start_ours(Path(), None, stack)
        url = f"http://127.0.0.1:{server.port}"
        readers = stack.enter_context(Load(OURS, server.port, tokens[:READERS]))
        readers.connect(READERS)
        readers.emit(server.port, READER_RATE, READER_RATE)
        slow_sockets = stack.enter_context(Load(OURS, server.port, tokens, receive_bytes=RECEIVE_BYTES, first=READERS))
        slow_sockets.connect(slow if has_slow else 0)
        readers.read_for(2)
        base = round(1024 * machine.resident_mib(server.pids[:1]))

        def flood() -> None:
            query = f"rounds={rounds}&first={READERS}&users={slow}&bytes={EVENT_BYTES}&pace_ms={PACE_MS}"
            urlopen(f"{url}/flood?{query}").read()

        flooding = threading.Thread(target=flood, daemon=True)
        flooding.start()
        readers.emit(server.port, READER_RATE * rounds * PACE_MS // 1000, READER_RATE)
        flooding.join()
        readers.read_for(HANG_UP_SECONDS)
        after, peak = round(1024 * machine.resident_mib(server.pids[:1])), peak_kib(server.pids[0])
        closed = int(urlopen(f"{url}/closed?code={OUTBOX_FULL}").read())
    waits = statistics.quantiles(readers.waits, n=100)
    return {
        "p50": waits[49] / 1e6,
        "p99": waits[98] / 1e6,
        "base": base / 1024,
        "peak": peak / 1024,
        "after": after / 1024,
        "closed": closed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.rooms.slow", description=__doc__.partition("\n")[0])
    parser.add_argument("--slow", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the table into this file too")
    options = parser.parse_args()
    outbox_mib = Settings(jwt_secret=SECRET).outbox_bytes / 1024 / 1024
    lines = [
        f"{options.slow} sockets that never read, {options.rounds:,} events of {EVENT_BYTES:,} bytes to each; "
        f"{READERS} that read {READER_RATE:,} events a second. {machine.describe()}.",
        "",
        "| run | before MiB | peak MiB | at the end MiB | bound MiB | closed with 4503 | p99 ms, p50 of the readers "
        "| with empty rooms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for number in range(options.repeats):
        without, with_slow = (measure(options.slow, options.rounds, has_slow=each) for each in (False, True))
        bound = with_slow["base"] + options.slow * outbox_mib
        lines.append(
            f"| {number + 1} | {with_slow['base']:.0f} | {with_slow['peak']:.0f} | {with_slow['after']:.0f} "
            f"| {bound:.0f} | {with_slow['closed']:.0f} | {with_slow['p99']:.2f}, {with_slow['p50']:.2f} "
            f"| {without['p99']:.2f}, {without['p50']:.2f} |"
        )
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
