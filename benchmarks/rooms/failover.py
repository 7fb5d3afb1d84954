"""The cost of a lost Redis server: python -m benchmarks.rooms.failover [--topology NAME ...]

For each kind of Redis (one server, Valkey, Sentinel, Redis Cluster) two real processes of the service on one SQLite:
200 uploads through the first, 40 a second, and 100 open sockets on the second. After a quarter of the uploads a Redis
server is lost (a single one is killed with -9 and started after a second with its append-only file). Leases last 6 s,
and the service searches for lost jobs after 5 s.

Prints a Markdown table: the events that never came (must be 0), the seconds from the fault until the first event of a
later upload and until the last event of all, and the statuses of /readyz of the process with the sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.failover import Outcome, Pair
from tests.redis_topologies import TOPOLOGIES

UPLOADS, SOCKETS = 200, 100


def main() -> None:
    """Cause every fault of the chosen topologies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", action="append", choices=TOPOLOGIES, help="Only this one; may be repeated.")
    chosen = parser.parse_args().topology or list(TOPOLOGIES)
    print("| Redis | fault | uploads | lost | live again, s | all events, s | /readyz: s since the fault |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in chosen:
        folder = tempfile.TemporaryDirectory()
        with TOPOLOGIES[name]() as topology, folder, Pair(Path(folder.name), topology) as pair:
            for fault in topology.faults:
                print(f"| {name} | {fault} | {described(asyncio.run(_run_fault(pair, fault)))} |", flush=True)
                if fault.startswith("kill"):
                    topology.heal()


async def _run_fault(pair: Pair, fault: str) -> Outcome:
    return await pair.run_fault(fault, uploads=UPLOADS, sockets=SOCKETS)


def described(outcome: Outcome) -> str:
    """Return the cells of an outcome."""
    readiness = ", ".join(f"{status} at {seconds:.1f}" for seconds, status in outcome.readiness[1:]) or "200 always"
    numbers = f"{outcome.live_seconds:.1f} | {outcome.all_seconds:.1f}"
    return f"{len(outcome.accepted)} | {len(outcome.lost)} | {numbers} | {readiness}"


if __name__ == "__main__":
    main()
