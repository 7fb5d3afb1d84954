"""A provider with a rate over all processes: python -m benchmarks.pacing [--jobs 300] [--rate 5] [--processes 3]

All photos are uploaded at once to processes that share a queue; a far end notes when it is called. Printed: how many
calls came in the fullest second, how many a second on the whole, and how much of the time they could have taken was
left unused. Real processes and default settings.
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
    """What the far end has seen. idle_share: of the time that so many calls at that rate do not need."""

    most_in_a_second: int
    calls_a_second: float
    idle_share: float
    by_process: list[int]
    uploaded_seconds: float


def measure(folder: Path, redis_url: str, jobs: int, rate: float, processes: int) -> Paced:
    """Upload so many photos and wait until all have been asked for."""
    with PacedAi() as far_end, ExitStack() as stack:
        settings = far_end.settings(folder / "packages", rate=(rate, 1)) | {"REDIS_URL": redis_url}
        services = [stack.enter_context(Service(folder / "data", **settings)) for _ in range(processes)]
        started_at = time.monotonic()
        for number in range(jobs):
            services[number % processes].upload()
        uploaded_seconds = time.monotonic() - started_at
        while sum(len(service.find("asset_finished")) for service in services) < jobs:
            time.sleep(0.2)
        called_at = sorted(far_end.called_at)
        assert len(called_at) == jobs, "a photo was asked for twice"
        seconds = called_at[-1] - called_at[0]
        return Paced(
            far_end.most_in(1),
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
        found = measure(Path(folder), redis.url, arguments.jobs, arguments.rate, arguments.processes)
    print("| processes | rate | jobs | most in a second | calls a second | idle share | by process |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {arguments.processes} | {arguments.rate:g}/s | {arguments.jobs} | {found.most_in_a_second} | "
        f"{found.calls_a_second:.2f} | {found.idle_share:.1%} | {found.by_process} |"
    )


if __name__ == "__main__":
    main()
