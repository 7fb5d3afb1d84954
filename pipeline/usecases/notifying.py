"""Use case: one event reaches every notifier.

Plain notifiers are told at once and once. For each durable one the event becomes a job of a queue of its own, so that a
receiver that is slow or away holds no slot of the AI's, is tried for hours, survives a crash and ends as a dead letter
that an operator can run again. The job's id is made from notifier, asset and instant: an event that comes twice is one
job.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from pipeline.assets.asset import Asset, to_timestamp
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, JobError, PermanentJobError
from pipeline.hooks.notifiers import EventContext
from pipeline.metrics import Metrics
from pipeline.queue.job import Job, NewJob
from pipeline.queue.queue import JobQueue
from pipeline.queue.records import as_instant
from pipeline.texts import cause_of
from pipeline.tracing import OFF, Tracing
from pipeline.usecases.committing import until_stored
from pipeline.usecases.deliveries import Deliveries, DeliveryState
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import JobRecords

log = structlog.get_logger(__name__)

QUEUE_NAME = "notifications"
# Tries of a durable notifier before its event is a dead letter. With the delays below that is after nearly three hours.
ATTEMPTS = 12
# Wait before the second try; doubles each time, up to two hours.
BACKOFF_MS = 5000
JOB_ID_LENGTH = 24
NOTE_SECONDS = 1.0


class Notifiers(Protocol):
    """What is needed of the plugins; hooks/notifiers.py has it."""

    @property
    def durable(self) -> Sequence[str]:
        """The names of the notifiers whose events are to be jobs."""

    async def notify(self, event: Mapping[str, Any], user_id: str, about: EventContext = EventContext()) -> None:
        """Tell every notifier that is not durable."""

    async def deliver(
        self,
        name: str,
        event: Mapping[str, Any],
        user_id: str,
        delivery_id: str,
        trace_context: str = "",
        tries: str = "",
        about: EventContext = EventContext(),
    ) -> str | None:
        """Tell a durable one and return what the receiver said, if anything; RetryableJobError or PermanentJobError
        when it is not delivered.
        """


@dataclass(frozen=True, slots=True)
class Told:
    """How a delivery has ended well.

    response: what the receiver said. is_dropped: nobody was told, and nobody may be.
    """

    response: str | None = None
    is_dropped: bool = False


class Notifying:
    """Announces events, and is the JobHandler of the `notifications` queue."""

    def __init__(
        self,
        notifiers: Notifiers,
        queue: JobQueue,
        job_records: JobRecords,
        metrics: Metrics,
        tracing: Tracing = OFF,
        *,
        store: AssetStore,
        urls: ImageUrls,
        deliveries: Deliveries,
    ) -> None:
        """kept: where events are until they are delivered, so that a Redis that loses them loses none.

        store, urls: tell where an event's image is to be had when the event is delivered. deliveries: are told how it
        goes.
        """
        self._notifiers = notifiers
        self._queue = queue
        self._job_records = job_records
        self._metrics = metrics
        self._tracing = tracing
        self._store = store
        self._urls = urls
        self._deliveries = deliveries

    @property
    def is_durable(self) -> bool:
        """True when some notifier is to be told whatever happens."""
        return bool(self._notifiers.durable)

    async def announce(self, event: Mapping[str, Any], user_id: str, about: EventContext = EventContext()) -> None:
        """Tell the plain notifiers and leave a job for each durable one; DependencyUnavailable when that fails.

        about: for the plain ones; the others get it when they are told, from the asset.
        """
        enqueued = [self._enqueue(name, event, user_id) for name in self._notifiers.durable]
        await asyncio.gather(self._notifiers.notify(event, user_id, about), *enqueued)

    async def _enqueue(self, notifier: str, event: Mapping[str, Any], user_id: str) -> None:
        unique = "\0".join((notifier, event["assetId"], event["timestamp"]))
        job_id = self._queue.job_id(hashlib.sha256(unique.encode()).hexdigest()[:JOB_ID_LENGTH])
        context = structlog.contextvars.get_contextvars()
        data = {"notifier": notifier, "userId": user_id, "assetId": event["assetId"], "event": event}
        if await self.put(job_id, data, context.get("requestId", "")):
            self._metrics.of_queue(self._queue.name).jobs_enqueued.inc()

    async def put(self, job_id: str, data: Mapping[str, Any], request_id: str, *, revive: bool = False) -> bool:
        """Enqueue the job of an event; False when it is there already. revive: also one that has ended starts over."""
        _, record = await asyncio.gather(
            self._job_records.put(NewJob(job_id, data, request_id, lane=data["notifier"])),
            self._deliveries.begin(job_id, data, is_again=revive),
        )
        is_enqueued = False
        try:
            is_enqueued = await self._enqueue_job(job_id, data, request_id, revive=revive)
        finally:
            # Redis is away, or the job was delivered and is about to be acknowledged.
            if revive and not is_enqueued:
                with suppress(DependencyUnavailable):
                    await self._deliveries.take_back(job_id, record)
        return is_enqueued

    async def _enqueue_job(self, job_id: str, data: Mapping[str, Any], request_id: str, *, revive: bool) -> bool:
        with self._tracing.enqueue(self._queue.name, job_id, data) as span:
            return await self._queue.enqueue(
                job_id,
                data,
                request_id=request_id,
                trace_context=span.trace_context,
                lane=data["notifier"],
                revive=revive,
            )

    def describe(self, job: Job) -> Mapping[str, str]:
        """Return the log fields that name the asset, its owner and the notifier."""
        return {name: str(job.data.get(name, "")) for name in ("assetId", "userId", "notifier")}

    async def process(self, job: Job) -> Told:
        """Hand the job's event to its notifier, unless its asset is gone and nobody may hear of it any more."""
        try:
            name, event, user_id = (job.data[field] for field in ("notifier", "event", "userId"))
        except KeyError:
            raise PermanentJobError("The job's payload is not that of a notification") from None
        asset = await self._store.get(event["assetId"])
        if asset is None and not await self._store.known([event["assetId"]]):
            # Deleted at the moment at which its event was announced.
            log.info("event_dropped", reason="Its asset is gone")
            return Told(is_dropped=True)
        event = await self._refreshed(event, asset)
        try:
            known = about(asset, event) if asset else EventContext()
            answer = await self._notifiers.deliver(name, event, user_id, job.id, job.trace_context, job.tries, known)
            return Told(answer)
        except JobError as error:
            await self._note_try(job, error)
            raise

    async def _note_try(self, job: Job, error: JobError) -> None:
        """Note a try that failed, if the store takes it soon: the error is worth more than its record."""
        attempts = job.attempt if error.spends_attempt else job.attempt - 1
        try:
            async with asyncio.timeout(NOTE_SECONDS):
                await self._note(job, DeliveryState.WAITING, attempts=attempts, reason=error.message)
        except (DependencyUnavailable, TimeoutError) as fault:
            log.warning("delivery_not_noted", cause=cause_of(fault))

    async def _note(self, job: Job, state: DeliveryState, **fields: Any) -> None:
        at = as_instant(job.submitted_at_ms) or utc_now()
        await self._deliveries.note(job.id, job.data, at, state, **fields)

    async def _refreshed(self, event: Mapping[str, Any], asset: Asset | None) -> Mapping[str, Any]:
        """Return the event with the URL that its image has now: the one of hours ago may have stopped working.

        An image that is not there any more has none. One that has no URL just now keeps the one it had.
        """
        if "processedImageUrl" not in event:
            return event
        if asset is None or asset.processed is None or to_timestamp(asset.finished_at) != event["timestamp"]:
            return {name: value for name, value in event.items() if name != "processedImageUrl"}
        url = await self._urls.of_image(asset.processed)
        return {**event, "processedImageUrl": url or event["processedImageUrl"]}

    async def commit(self, job: Job, result: Told) -> None:
        """Let the store know that it is delivered; while the store is away, again and again."""
        await until_stored(lambda: self._job_records.forget(job.id))
        if result.is_dropped:
            await until_stored(lambda: self._deliveries.forget(job.id))
            return
        response, attempts = result.response, job.attempt
        await until_stored(lambda: self._note(job, DeliveryState.DELIVERED, attempts=attempts, response=response))

    async def give_up(self, job: Job, message: str) -> None:
        """Keep the dead letter and how the delivery has ended: it is all that is left of the event."""
        await self._job_records.put_failed(job, message)
        await self._note(job, DeliveryState.FAILED, attempts=job.attempt, reason=message)
        log.warning("notification_failed", error=message)

    async def refund_attempt(self, job: Job) -> None:
        """Nothing outside the queue counts its starts."""


def about(asset: Asset, event: Mapping[str, Any] | None = None) -> EventContext:
    """Return what notifiers are told of the asset beside the event. event: one that may be of an earlier job of it."""
    is_of_job = event is None or to_timestamp(asset.finished_at) == event["timestamp"]
    return EventContext(asset.category, asset.processing_job_id if is_of_job else "", asset.claims)
