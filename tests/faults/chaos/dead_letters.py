"""Each asset that failed has one dead letter, unless an operator removed it; none that is settled comes back."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.faults.chaos.installation import QUEUES
from tests.faults.chaos.operator import NOTIFICATIONS
from tests.faults.chaos.report import Report, Seen


async def check_all(report: Report, seen: Seen) -> None:
    """Compare what is listed with what failed and with what the operator did."""
    operator = seen.operator
    times_listed = Counter(dead["jobId"] for dead in await operator.dead_letters())
    listed = set(times_listed)
    twice = [job_id for job_id, times in times_listed.items() if times > 1]
    report.expect(not twice, "a dead letter is listed once", twice[:5])
    failed = {found["processingJobId"] for found in seen.documents.values() if found["status"] == "failed"}
    missing = failed - listed - operator.settled - operator.unsure
    report.expect(not missing, "every failed asset has its dead letter", f"{len(missing)}: {sorted(missing)[:5]}")
    back = listed & operator.settled
    report.expect(not back, "no dead letter that was removed or run again comes back", sorted(back)[:5])
    # The answer was lost after the asset had got its new job: the dead letter stays until it is removed.
    needless = listed - failed - operator.settled - operator.unsure
    report.expect(not needless, "nothing else is a dead letter", sorted(needless)[:5])
    undone, dead = await asyncio.to_thread(seen.installation.kept, QUEUES[0])
    report.expect(dead == listed and not undone, "the store keeps what is listed", sorted(undone | dead ^ listed)[:5])
    events = await operator.dead_letters(NOTIFICATIONS)
    report.expect(not events, "every event that was run again is delivered", events[:3])
    report.figures["dead letters"] = {
        "listed": len(listed),
        "removed": operator.removed,
        "run again": len(operator.settled) - operator.removed,
        "without answer": len(operator.unsure),
    }
