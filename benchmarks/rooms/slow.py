"""What clients that never read cost: python -m benchmarks.rooms.slow

500 sockets with small buffers are let in and never read again, while 2,000 events of 4 KB are sent to each of their
rooms, one round of 500 every 20 ms. Meanwhile 100 sockets that read get 1,000 ordinary events a second; their p99
stands beside that of the same run with nobody in those rooms. Prints the server's resident memory before, at the peak
and at the end, the bound (before, and OUTBOX_BYTES for each slow socket) and how many sockets were closed with 4503.
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
# Tornado hangs up on a client that does not answer the close after 5 s.
HANG_UP_SECONDS = 8.0
OUTBOX_FULL = 4503


def peak_kib(pid: int) -> int:
    """Return the most resident memory a process has had; watching it meanwhile would hold it up."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} has no VmHWM")


def measure(slow: int, rounds: int, *, are_there: bool) -> dict[str, float]:
    """Return p99 in ms of those who read, memory in MiB and how many were cut off.

    are_there: whether the slow ones are; events are sent to their rooms also when they are empty.
    """
    tokens = [make_token(f"user-{number}") for number in range(READERS + slow)]
    with ExitStack() as stack:
        server = start_ours(Path(), None, stack)
        url = f"http://127.0.0.1:{server.port}"
        readers = stack.enter_context(Load(OURS, server.port, tokens[:READERS]))
        readers.connect(READERS)
        readers.emit(server.port, READER_RATE, READER_RATE)
        deaf = stack.enter_context(Load(OURS, server.port, tokens, receive_bytes=RECEIVE_BYTES, first=READERS))
        deaf.connect(slow if are_there else 0)
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
        without, with_slow = (measure(options.slow, options.rounds, are_there=each) for each in (False, True))
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
