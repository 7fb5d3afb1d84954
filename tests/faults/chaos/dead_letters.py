"""Each failed asset has one dead letter; one that the operator removed or ran again does not come back."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.faults.chaos.installation import QUEUES
from tests.faults.chaos.operator import NOTIFICATIONS
from tests.faults.chaos.report import Report, Seen


async def check_all(report: Report, seen: Seen) -> None:
    """Compare the listed dead letters with the failed assets and with the actions of the operator."""
    operator = seen.operator
    times_listed = Counter(dead["jobId"] for dead in await operator.dead_letters())
    listed = set(times_listed)
    twice = [job_id for job_id, times in times_listed.items() if times > 1]
    report.expect(not twice, "a dead letter is listed once", twice[:5])
    failed = {found["processingJobId"] for found in seen.documents.values() if found["status"] == "failed"}
    missing = failed - listed - operator.settled - operator.unsure
    report.expect(not missing, "every failed asset has its dead letter", f"{len(missing)}: {sorted(missing)[:5]}")
    returned = listed & operator.settled
    report.expect(not returned, "no dead letter that was removed or run again comes back", sorted(returned)[:5])
    # The answer was lost after the asset had got its new job: the dead letter stays until it is removed.
    unexplained = listed - failed - operator.settled - operator.unsure
    report.expect(not unexplained, "nothing else is a dead letter", sorted(unexplained)[:5])
    undone, dead = await asyncio.to_thread(seen.installation.stored_jobs, QUEUES[0])
    promise = "the store has the listed dead letters"
    report.expect(dead == listed and not undone, promise, sorted(undone | dead ^ listed)[:5])
    events = await operator.dead_letters(NOTIFICATIONS)
    report.expect(not events, "every event that was run again is delivered", events[:3])
    report.figures["dead letters"] = {
        "listed": len(listed),
        "removed": operator.removed,
        "run again": len(operator.settled) - operator.removed,
        "without answer": len(operator.unsure),
    }
