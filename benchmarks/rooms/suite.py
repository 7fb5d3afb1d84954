"""The rooms as a suite of `python -m benchmarks`; __main__.py of this folder says what is measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks import machine
from benchmarks.comparison import OURS, Column, Comparison, Goal, Report
from benchmarks.peers import FOLDER
from benchmarks.rooms.__main__ import REFERENCE, install, measure as measure_one
from benchmarks.rooms.peers import all_peers
from pipeline.handlers.server import raise_file_limit
from tests.factories import make_token

SOCKETS, EVENTS = 1_000, 20_000
COLUMNS = [
    Column("events/s", more_is_better=True),
    Column("p50 ms"),
    Column("p99 ms"),
    Column("CPU s/1,000"),
    Column("KB/socket"),
]
ONE, TWO = "Rooms in one process", "Rooms in two processes over Redis"


def measure(rounds: int) -> Report:
    """Install the peers and measure them; a peer that cannot be installed is left out."""
    raise_file_limit()  # for the servers too
    report = Report("rooms", machine=machine.describe())
    peers, lines = install(all_peers(), FOLDER)
    report.versions += [line.removeprefix("- ") for line in lines]
    users = [f"user-{number}" for number in range(SOCKETS)]
    tokens = [make_token(user, channels=[f"user:{user}"]) for user in users]
    what = f"{SOCKETS:,} sockets of as many users, {EVENTS:,} events to one room each; p50, p99: at 2,000 a second."
    for title, with_redis in ((ONE, False), (TWO, True)):
        comparison = Comparison(title, what, COLUMNS)
        candidates = {
            peer.name: partial(measure_one, peer, with_redis, tokens, EVENTS)
            for peer in peers
            if peer.has_redis or not with_redis
        }
        comparison.measure(candidates, rounds)
        report.comparisons.append(comparison)
    report.goals += goals(report.comparisons[0])
    return report


def goals(one: Comparison) -> Iterator[Goal]:
    """Yield the goals and whether they are met."""
    if (ratio := one.ratio("events/s", OURS, REFERENCE)) is not None:
        yield Goal("rooms in one process, events", f">= 1.5 x {REFERENCE}", f"{ratio:.2f} x", ratio >= 1.5)
    if (ratio := one.ratio("KB/socket", OURS, REFERENCE)) is not None:
        yield Goal("rooms in one process, memory per socket", f"<= 0.45 x {REFERENCE}", f"{ratio:.2f} x", ratio <= 0.45)
