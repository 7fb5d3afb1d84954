"""python -m tests.faults.chaos: random uploads under seeded faults, then the checker.

The exit code is 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import time
from pathlib import Path

import pytest

from tests.faults.chaos.checker import check
from tests.faults.chaos.clients import User
from tests.faults.chaos.driver import Driver
from tests.faults.chaos.mutant import MUTANTS
from tests.faults.chaos.operator import Operator
from tests.faults.chaos.plan import Fault, make_plan
from tests.faults.chaos.report import Report
from tests.faults.chaos.world import World

USERS = 8
# Users of the second installation: they have the names of the first one's users and upload SLOWER times less often.
OTHER_USERS, SLOWER = 2, 8


def users_of(world: World, seed: int) -> list[list[User]]:
    """Return the users of each installation."""
    return [
        [
            User(f"user-{number}", [service.url for service in each.services], seed)
            for number in range(USERS if each is world.first else OTHER_USERS)
        ]
        for each in world.installations
    ]


def accepted_by(users: list[User]) -> int:
    """Return how many uploads of these users were accepted."""
    return sum(len(user.accepted) for user in users)


async def run(
    world: World,
    plan: list[Fault],
    uploads: int,
    seed: int,
    *,
    pause_seconds: float = 0.05,
    drain_seconds: float = 300,
    prints_progress: bool = False,
) -> Report:
    """Upload until so many are accepted and all faults of the plan are healed; then let the jobs end, and check.

    pause_seconds: mean pause of a user between two uploads.
    drain_seconds: how long the jobs may take to end.
    prints_progress: print the counts from time to time.
    """
    crowds = users_of(world, seed)
    users = crowds[0]
    driver = Driver(world, plan, Operator([service.url for service in world.services], seed))
    is_enough = asyncio.Event()
    uploading = [
        asyncio.create_task(user.upload_until(is_enough, pause_seconds * (1 if crowd is users else SLOWER)))
        for crowd in crowds
        for user in crowd
    ]
    listening = [asyncio.create_task(user.listen()) for crowd in crowds for user in crowd]
    driving = asyncio.create_task(driver.run())
    printing = asyncio.create_task(_print_progress(users, driver)) if prints_progress else None
    while not driving.done() or accepted_by(users) < uploads:
        await asyncio.sleep(0.2)
        _raise_error_of(uploading)
    if printing:
        printing.cancel()
    driving.result()
    is_enough.set()
    await asyncio.gather(*uploading)
    report = await check(world, crowds, driver, drain_seconds)
    await _cancel(listening)
    return report


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel the tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _raise_error_of(tasks: list[asyncio.Task[None]]) -> None:
    """Raise the error of a task that has failed."""
    for task in tasks:
        if task.done():
            task.result()


async def _print_progress(users: list[User], driver: Driver) -> None:
    """Print every 15 seconds how many uploads were accepted and how many faults are healed."""
    started_at = time.monotonic()
    while True:
        await asyncio.sleep(15)
        counts = f"accepted {accepted_by(users)}  faults {len(driver.history)}/{len(driver.plan)}"
        print(f"{time.monotonic() - started_at:6.0f} s  {counts}", flush=True)


def _run_in_world(options: argparse.Namespace, plan: list[Fault]) -> Report:
    with World(
        processes=options.processes,
        store=options.store,
        mutant=options.mutant,
        ai_delay_ms=options.ai_delay_ms,
        is_embedded=options.embedded,
        is_shared=not options.embedded,
    ) as world:
        try:
            return asyncio.run(
                run(world, plan, options.uploads, options.seed, pause_seconds=options.pause, prints_progress=True)
            )
        finally:
            if options.log:
                _write_logs(world, options.log)


def _write_logs(world: World, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for installation in world.installations:
        for number, service in enumerate(installation.services):
            lines = (json.dumps(line) for line in service.log)
            (folder / f"{installation.prefix}-{number}.log").write_text("\n".join(lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--uploads", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--gap", type=float, default=1.2, help="mean seconds between two faults")
    parser.add_argument("--pause", type=float, default=0.05, help="mean seconds between two uploads of a user")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--embedded", action="store_true", help="one process with the Redis that it starts itself")
    parser.add_argument("--store", choices=["sqlite", "mongo"], default="sqlite")
    parser.add_argument("--ai-delay-ms", type=float, default=20)
    parser.add_argument("--mutant", choices=[*MUTANTS], default="")
    parser.add_argument("--only", help="comma-separated kinds of faults")
    parser.add_argument("--log", type=Path, help="folder for the processes' logs")
    parser.add_argument("--plan", action="store_true", help="print the plan and end")
    options = parser.parse_args()
    options.processes = 1 if options.embedded else options.processes
    return options


def main() -> None:
    options = _options()
    kinds = set(options.only.split(",")) if options.only else None
    plan = make_plan(
        options.seed,
        options.faults,
        options.processes,
        options.store,
        gap_seconds=options.gap,
        kinds=kinds,
        is_embedded=options.embedded,
    )
    if options.plan:
        print(*plan, sep="\n")
        return
    print(f"seed {options.seed}", flush=True)
    try:
        report = _run_in_world(options, plan)
    except pytest.skip.Exception as reason:  # a server that this machine lacks
        sys.exit(str(reason))
    _print_report(report, options.seed)
    sys.exit(1 if report.broken else 0)


def _print_report(report: Report, seed: int) -> None:
    for name, value in report.figures.items():
        print(f"{name:22}{value}")
    for promise in report.broken:
        print(f"BROKEN  {promise}")
    if report.broken:
        print(f"replay: python -m tests.faults.chaos {shlex.join(sys.argv[1:])} --seed {seed}")


if __name__ == "__main__":
    main()
