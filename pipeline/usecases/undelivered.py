"""Use case: operators have events delivered again: dead letters of the `notifications` queue, and any other event.

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
    """Removes events and has them delivered again."""

    def __init__(
        self,
        queue: JobQueue,
        job_records: JobRecords,
        notifying: Notifying,
        deliveries: Deliveries,
        *,
        durable: Collection[str],
    ) -> None:
        """durable: the names of the durable notifiers"""
        self._queue = queue
        self._job_records = job_records
        self._notifying = notifying
        self._deliveries = deliveries
        self._durable = durable

    async def remove_failed(self, *job_ids: str) -> int:
        """Remove dead letters; return how many there were."""
        await self._job_records.forget(*job_ids)
        return await self._queue.remove_failed(*job_ids)

    async def retry_failed(self, job_id: str, request_id: str) -> Receipt:
        """Have a dead letter delivered again, with all its attempts; NotFound when there is none."""
        dead = await self._queue.failed_job(job_id)
        if dead is None:
            raise NotFound("There is no dead letter of that id")
        return await self._run_again(dead, request_id)

    async def retry_all_failed(self, request_id: str, after: tuple[datetime, str] | None = None) -> RetriedPage:
        """Have up to RETRY_AT_MOST dead letters delivered again, as DeadLetters.retry_all_failed does for assets."""
        return await rerun_page(self._queue, partial(self._run_again, request_id=request_id), after)

    async def send_again(self, delivery_id: str, request_id: str) -> Receipt:
        """Have an event delivered again, also a delivered one: by the same notifier, with the same id.

        NotFound: there is no such delivery. Conflict: it is under way, or its notifier is not in use.
        """
        delivery = await self._deliveries.find(delivery_id)
        if delivery is None:
            raise NotFound("There is no delivery of that id")
        payload, state = delivery
        self._check_is_durable(payload["notifier"])
        # The queue is asked too: if the record is wrong, the event could never be sent again otherwise.
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
            raise Conflict(f"The notifier {notifier!r} is not in use, so the event cannot be delivered")
