"""A provider whose rate all processes share: python -m benchmarks.pacing [--jobs 300] [--rate 5] [--processes 3]

All photos are uploaded at once to processes that share a queue; a fake AI service records the time of each call. Prints
the most calls within one second, the calls per second over the whole run, and the share of the time that the rate would
have allowed for more calls. Real processes with default settings.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.paced_ai import PacedAi
from tests.redis_server import RedisServer
from tests.service import Service


class Paced(NamedTuple):
    """The calls that the AI service got.

    idle_share: the share of the run's time that this many calls at that rate do not need.
    by_process: the jobs that each process ran.
    uploaded_seconds: the time of all uploads.
    """

    most_in_a_second: int
    calls_a_second: float
    idle_share: float
    by_process: list[int]
    uploaded_seconds: float


def measure(folder: Path, redis_url: str, jobs: int, rate: float, processes: int) -> Paced:
    """Upload that many photos and wait until the AI service was called for each."""
    with PacedAi() as ai, ExitStack() as stack:
        settings = ai.settings(folder / "packages", rate=(rate, 1)) | {"REDIS_URL": redis_url}
        services = [stack.enter_context(Service(folder / "data", **settings)) for _ in range(processes)]
        started_at = time.monotonic()
        for number in range(jobs):
            services[number % processes].upload()
        uploaded_seconds = time.monotonic() - started_at
        while sum(len(service.find("asset_finished")) for service in services) < jobs:
            time.sleep(0.2)
        called_at = sorted(ai.called_at)
        assert len(called_at) == jobs, "the AI service was called twice for a photo"
        seconds = called_at[-1] - called_at[0]
        return Paced(
            ai.most_in(1),
            (jobs - 1) / seconds,
            1 - (jobs - 1) / rate / seconds,
            [len(service.find("asset_finished")) for service in services],
            uploaded_seconds,
        )


def main() -> None:
    """Print one table row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--rate", type=float, default=5)
    parser.add_argument("--processes", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis:
        paced = measure(Path(folder), redis.url, arguments.jobs, arguments.rate, arguments.processes)
    print("| processes | rate | jobs | most in a second | calls a second | idle share | by process |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {arguments.processes} | {arguments.rate:g}/s | {arguments.jobs} | {paced.most_in_a_second} | "
        f"{paced.calls_a_second:.2f} | {paced.idle_share:.1%} | {paced.by_process} |"
    )


if __name__ == "__main__":
    main()
