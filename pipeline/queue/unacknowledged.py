"""Jobs whose work is over and whose event is not published yet: they are acknowledged once it is.

Such a job occupies no slot; its lease is renewed like that of a running job. When the process ends first, another
process claims the job, finds its work done and publishes the event again. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from pipeline.queue.claim import Claim
from pipeline.queue.job import ENDS, Finish, Job, Outcome

log = structlog.get_logger(__name__)

# While events cannot be published for hours, jobs must go on all the same: beyond this number the oldest is
# acknowledged. Its event is still published later, and is lost only if this process ends before.
UNACKNOWLEDGED_AT_MOST = 1000


class Unacknowledged:
    """The jobs of one worker that wait for their event to be published."""

    def __init__(
        self, unpublished: Callable[[Job], asyncio.Future[None] | None], on_published: Callable[[Finish], None]
    ) -> None:
        """unpublished: returns the future that is done when the job's events are published, None when they are.

        on_published: called with the Finish that may be acknowledged now.
        """
        self._unpublished = unpublished
        self._on_published = on_published
        # By lease, the oldest first.
        self._waiting: dict[str, tuple[Claim, Finish]] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, claim: Claim, finish: Finish) -> Finish | None:
        """Return the Finish when it may be acknowledged now, else None: it waits until the event is published."""
        published = self._unpublished(finish.job) if finish.outcome in ENDS else None
        if published is None:
            return finish
        if self._is_closed:
            return _handed_back(finish)
        self._waiting[finish.job.lease] = claim, finish
        published.add_done_callback(partial(self._published, finish.job.lease))
        if len(self._waiting) > UNACKNOWLEDGED_AT_MOST:
            oldest = next(iter(self._waiting))
            log.warning("job_acknowledged_unpublished", jobId=self._waiting[oldest][1].job.id)
            self._published(oldest)
        return None

    def take_lost(self) -> Sequence[str]:
        """Return the leases that were lost meanwhile: another process runs these jobs now."""
        lost = [lease for lease, (claim, _) in self._waiting.items() if claim.is_lost]
        for lease in lost:
            del self._waiting[lease]
        return lost

    def close(self) -> Sequence[Finish]:
        """Accept no more jobs; return the finishes that release those that wait to other processes."""
        self._is_closed = True
        finishes = [_handed_back(finish) for _, finish in self._waiting.values()]
        if finishes:
            log.warning("jobs_released_unpublished", jobIds=[finish.job.id for finish in finishes])
        self._waiting.clear()
        return finishes

    def _published(self, lease: str, _: object = None) -> None:
        if entry := self._waiting.pop(lease, None):
            self._on_published(entry[1])


def _handed_back(finish: Finish) -> Finish:
    return Finish(finish.job, Outcome.RELEASED, refunds_attempt=True)
