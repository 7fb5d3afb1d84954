"""Compares the times at which jobs were started, from the logs, with the times of the faults."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.faults.chaos.driver import Driver
from tests.faults.chaos.installation import QUEUES
from tests.faults.chaos.plan import Caused
from tests.faults.chaos.report import Report, Seen
from tests.faults.chaos.world import World

# From the claim of a job to its log line, in a process without a fault.
LOGGED_SECONDS = 1.0
# A failed renewal is repeated later, so the effect of a fault may show a while after its end.
AFTER_SECONDS = 2.0
# On a busy machine a shorter lease may be lost without a fault.
SURE_SECONDS = 5.0
SHORTEST_SECONDS = 1.0
ENDS = ("job_completed", "job_retrying", "job_postponed", "job_parked", "job_failed", "job_released")


@dataclass(frozen=True, slots=True, order=True)
class Start:
    """One start of a job, by the process with that number."""

    at: float
    process: int


def at_of(line: dict[str, Any]) -> float:
    """Return the time of a log line."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def takes_lease(history: list[Caused], process: int, since: float, until: float) -> bool:
    """True when a fault between these times keeps the process from renewing a lease, or from logging."""
    return any(
        caused.takes_lease_of(process) and caused.began_at <= until and caused.ended_at + AFTER_SECONDS >= since
        for caused in history
    )


def check_pauses(report: Report, world: World, driver: Driver) -> None:
    """Check that no job is claimed while the queue is paused, whatever Redis loses meanwhile."""
    others = [caused for caused in driver.history if "while paused" not in caused.fault.kind]
    started = []
    for number, service in enumerate(world.services):
        for line in service.log:
            if line["event"] != "job_claimed" or not line["jobId"].startswith(QUEUES[0]):
                continue
            for since, until in driver.operator.pauses:
                # A process that was stopped at the time of the pause may have claimed before it.
                if since + LOGGED_SECONDS < at_of(line) < until and not takes_lease(others, number, since, at_of(line)):
                    started.append((line["jobId"], round(at_of(line) - since, 2)))
    report.expect(not started, "no job starts while the queue is paused", f"{len(started)}: {started[:5]}")
    seconds = sum(until - since for since, until in driver.operator.pauses)
    report.figures["pauses"] = f"{len(driver.operator.pauses)}, {seconds:.0f} s, {len(started)} starts"


def check_leases(report: Report, world: World, driver: Driver, seen: Seen) -> None:
    """Check that a fault explains each stalled job, although processes have leases of different lengths."""
    starts: dict[str, list[Start]] = defaultdict(list)
    ended: dict[str, list[float]] = defaultdict(list)
    recovered = []
    for number, service in enumerate(world.services):
        for line in service.log:
            if line["event"] == "job_claimed":
                starts[line["jobId"]].append(Start(at_of(line), number))
            elif line["event"] in ENDS:
                ended[line["jobId"]].append(at_of(line))
            elif line["event"] == "jobs_recovered":
                recovered += [(job_id, at_of(line)) for job_id in line["jobIds"]]
    for each in starts.values():
        each.sort()
    unexplained_losses = []
    for job_id, at in recovered:
        # No lease ends sooner; a claim just before belongs to the process that runs the job next.
        before = bisect_left(starts[job_id], Start(at - SHORTEST_SECONDS, -1))
        # The start is not known when the process was killed before it logged its claim.
        start = starts[job_id][before - 1] if before else None
        if start and not takes_lease(driver.history, start.process, start.at, at):
            unexplained_losses.append((job_id, world.services[start.process].lease_seconds, start, at))
    long = [each for each in unexplained_losses if each[1] >= SURE_SECONDS]
    report.expect(not long, "a fault explains each lost lease", f"{len(long)}: {long[:5]}")
    errors = {asset["id"]: asset["aiMetadata"]["error"] or "" for asset in seen.all_assets}
    stalled = [asset_id for asset_id, error in errors.items() if error.startswith("Processing stalled")]
    unexplained = []
    for asset_id in stalled:
        job_id = seen.documents[asset_id]["processingJobId"]
        for start, following in zip(starts[job_id], starts[job_id][1:]):
            is_ended = any(start.at <= at <= following.at + 0.1 for at in ended[job_id])
            if not is_ended and not takes_lease(driver.history, start.process, start.at, following.at):
                unexplained.append((asset_id, start, following))
    promise = "a fault explains each stalled job"
    report.expect(not unexplained, promise, f"{len(unexplained)}: {unexplained[:3]}")
    counts = f"{len(recovered)}, {len(unexplained_losses)} of them without a fault"
    report.figures["recovered"] = f"{counts}; {len(stalled)} assets stalled"
