"""Use case: events that are to be delivered once more: dead letters of the `notifications` queue, and any other.

Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from functools import partial

import structlog

from pipeline.errors import Conflict, NotFound
from pipeline.queue.job import FailedJob, JobState
from pipeline.queue.queue import JobQueue
from pipeline.usecases.dead_letters import RetriedPage, rerun_page
from pipeline.usecases.deliveries import Deliveries, DeliveryState
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.notifying import Notifying
from pipeline.usecases.submission import Receipt

log = structlog.get_logger(__name__)


class Undelivered:
    """Removes events and lets them be delivered again."""

    def __init__(
        self,
        queue: JobQueue,
        job_records: JobRecords,
        notifying: Notifying,
        deliveries: Deliveries,
        *,
        durable: Collection[str],
    ) -> None:
        """durable: the names of the notifiers that are told by jobs."""
        self._queue = queue
        self._job_records = job_records
        self._notifying = notifying
        self._deliveries = deliveries
        self._durable = durable

    async def remove_failed(self, *job_ids: str) -> int:
        """Forget dead letters; return how many of the ids were some."""
        await self._job_records.forget(*job_ids)
        return await self._queue.remove_failed(*job_ids)

    async def retry_failed(self, job_id: str, request_id: str) -> Receipt:
        """Let a dead letter be delivered again from its first try on; NotFound when there is none."""
        dead = await self._queue.failed_job(job_id)
        if dead is None:
            raise NotFound("There is no dead letter of that id")
        return await self._run_again(dead, request_id)

    async def retry_all_failed(self, request_id: str, after: tuple[datetime, str] | None = None) -> RetriedPage:
        """Let up to RETRY_AT_MOST dead letters be delivered again, as DeadLetters.retry_all_failed does for assets."""
        return await rerun_page(self._queue, partial(self._run_again, request_id=request_id), after)

    async def send_again(self, delivery_id: str, request_id: str) -> Receipt:
        """Let an event be delivered once more, also one that was: to the same receiver, under the same id.

        NotFound: nothing is known of it. Conflict: it is on its way, or nobody would deliver it.
        """
        found = await self._deliveries.find(delivery_id)
        if found is None:
            raise NotFound("There is no delivery of that id")
        payload, state = found
        self._check_is_durable(payload["notifier"])
        # The queue is asked as well: should the record be wrong, it could never be sent again otherwise.
        is_on_its_way = state is DeliveryState.WAITING and await self._is_unfinished(delivery_id)
        if is_on_its_way or not await self._notifying.put(delivery_id, payload, request_id, revive=True):
            raise Conflict("It is on its way already")
        log.info("delivery_repeated", jobId=delivery_id)
        return Receipt(payload["assetId"], delivery_id)

    async def _is_unfinished(self, job_id: str) -> bool:
        state = (await self._queue.fields(job_id)).get("state")
        return state in (JobState.WAITING, JobState.DELAYED, JobState.ACTIVE)

    async def _run_again(self, dead: FailedJob, request_id: str) -> Receipt:
        if "notifier" not in dead.data:
            raise Conflict("Its record is damaged, this dead letter can only be removed")
        self._check_is_durable(dead.data["notifier"])
        await self._notifying.put(dead.id, dead.data, request_id, revive=True)
        log.info("dead_letter_retried", jobId=dead.id, newJobId=dead.id)
        return Receipt(str(dead.data.get("assetId", "")), dead.id)

    def _check_is_durable(self, notifier: str) -> None:
        if notifier not in self._durable:
            raise Conflict(f"The notifier {notifier!r} is not in use, so nobody would deliver it")
