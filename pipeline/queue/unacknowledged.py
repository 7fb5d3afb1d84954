"""Jobs whose work is over and whose event Redis does not have yet: they are acknowledged only then.

Such a job holds no slot; its lease is renewed like that of a running one. When the process ends first, orderly or not,
another one gets the job, finds its work done and sends the event again. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from pipeline.queue.claim import Claim
from pipeline.queue.job import ENDS, Finish, Job, Outcome

log = structlog.get_logger(__name__)

# Where events cannot be published for hours, jobs must go on all the same: the oldest is acknowledged then. Its event
# stays owed, and is lost only if this process ends before Redis takes it.
UNACKNOWLEDGED_AT_MOST = 1000


class Unacknowledged:
    """The jobs of one worker that wait for their event to be published."""

    def __init__(
        self, unpublished: Callable[[Job], asyncio.Future[None] | None], on_published: Callable[[Finish], None]
    ) -> None:
        """unpublished: returns what is done when the job's events are published, None when they are.

        on_published: called with the Finish that may be acknowledged now.
        """
        self._unpublished = unpublished
        self._on_told = on_published
        # By lease, the oldest first.
        self._held: dict[str, tuple[Claim, Finish]] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, claim: Claim, finish: Finish) -> Finish | None:
        """Return the Finish to acknowledge now, None when that has to wait."""
        told = self._unpublished(finish.job) if finish.outcome in ENDS else None
        if told is None:
            return finish
        if self._is_closed:
            return _handed_back(finish)
        self._held[finish.job.lease] = claim, finish
        told.add_done_callback(partial(self._published, finish.job.lease))
        if len(self._held) > UNACKNOWLEDGED_AT_MOST:
            oldest = next(iter(self._held))
            log.warning("job_acknowledged_unpublished", jobId=self._held[oldest][1].job.id)
            self._published(oldest)
        return None

    def take_lost(self) -> Sequence[str]:
        """Return the leases that were lost meanwhile: another process sees to these jobs now."""
        lost = [lease for lease, (claim, _) in self._held.items() if claim.is_lost]
        for lease in lost:
            del self._held[lease]
        return lost

    def close(self) -> Sequence[Finish]:
        """Hold no more jobs; return how those that are held are given to other processes."""
        self._is_closed = True
        finishes = [_handed_back(finish) for _, finish in self._held.values()]
        if finishes:
            log.warning("jobs_released_unpublished", jobIds=[finish.job.id for finish in finishes])
        self._held.clear()
        return finishes

    def _published(self, lease: str, _: object = None) -> None:
        if found := self._held.pop(lease, None):
            self._on_told(found[1])


def _handed_back(finish: Finish) -> Finish:
    return Finish(finish.job, Outcome.RELEASED, refunds_attempt=True)
