"""Use case: the state of each event that a durable notifier has to deliver, for seven days.

The record of a delivery has its last state and the event itself, so that the event can be sent again. The job that
delivers writes it before it is acknowledged, so that nothing is written about an asset or a user that was erased. Runs
on the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any

from pipeline.assets.asset import to_timestamp
from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.usecases.paging import Cursor, newest_page

KIND = "delivery"
RETENTION = timedelta(days=7)
# The fields of the job's payload that the record has.
PAYLOAD = ("notifier", "event", "userId", "assetId")


class DeliveryState(StrEnum):
    """waiting: for the first or the next attempt"""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


class Deliveries:
    """The records of deliveries."""

    def __init__(self, store: AssetStore) -> None:
        self._store = store

    async def insert(self, job_id: str, payload: Mapping[str, Any], *, replaces: bool = False) -> Record | None:
        """Insert the record of an event that is about to be enqueued, if there is none.

        replaces: also if there is one
        Returns the earlier record, for `restore`.
        """
        record = await self._store.find_record(KIND, job_id)
        if replaces or record is None:
            await self._put(job_id, payload, utc_now(), DeliveryState.WAITING)
        return record

    async def restore(self, job_id: str, record: Record | None) -> None:
        """Restore the earlier record, if there was one: the event could not be enqueued again."""
        await (self._store.put_record(record) if record else self.forget(job_id))

    async def update(
        self,
        job_id: str,
        payload: Mapping[str, Any],
        at: datetime,
        state: DeliveryState,
        *,
        attempts: int,
        response: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Update the record of a delivery, unless its asset is deleted.

        at: when the event was enqueued
        response: the receiver's answer
        reason: why the event was not delivered
        """
        await self._put(job_id, payload, at, state, attempts=attempts, response=response, reason=reason)
        if not await self._store.existing_ids([str(payload.get("assetId"))]):
            # The asset was deleted meanwhile, and its records before this one was written.
            await self._store.delete_records(KIND, job_id)

    async def _put(
        self, job_id: str, payload: Mapping[str, Any], at: datetime, state: DeliveryState, **fields: Any
    ) -> None:
        if not all(isinstance(payload.get(name), str) for name in ("notifier", "userId", "assetId")):
            return  # a damaged payload can neither be sent again nor shown
        finished_at = None if state is DeliveryState.WAITING else to_timestamp(utc_now())
        data = {name: payload.get(name) for name in PAYLOAD}
        data |= {"state": state.value, "finishedAt": finished_at} | fields
        await self._store.put_record(Record(KIND, job_id, at, data, payload["userId"], payload["assetId"]))

    async def find(self, job_id: str) -> tuple[Mapping[str, Any], DeliveryState] | None:
        """Return the payload of the delivery and its state, None when there is no record."""
        record = await self._store.find_record(KIND, job_id)
        if record is None:
            return None
        return {name: record.data[name] for name in PAYLOAD}, DeliveryState(record.data["state"])

    async def forget(self, *job_ids: str) -> None:
        """Remove records."""
        await self._store.delete_records(KIND, *job_ids)

    async def of_asset(self, user_id: str, asset_id: str) -> Sequence[Record]:
        """Return the records of a user's asset, newest first."""
        records = [each for each in await self._store.records_of(user_id, asset_id, kinds=[KIND]) if each.data]
        return sorted(records, key=lambda each: (each.at, each.id), reverse=True)

    async def page(
        self,
        *,
        limit: int,
        after: Cursor | None = None,
        asset_id: str | None = None,
        state: str | None = None,
        notifier: str | None = None,
    ) -> tuple[Sequence[dict[str, Any]], Cursor | None]:
        """Return records, newest first, and the cursor of the next page.

        asset_id, state, notifier: only records with these values
        """
        read = partial(self._store.newest_records, KIND)
        if asset_id is not None:
            asset = await self._store.get(asset_id)
            records = await self.of_asset(asset.user_id, asset.id) if asset else ()
            read = partial(_page_of, records)

        def is_wanted(record: Record) -> bool:
            return state in (None, record.data.get("state")) and notifier in (None, record.data.get("notifier"))

        page, cursor = await newest_page(read, limit, after, is_wanted if state or notifier else None)
        return [shown(record) for record in page], cursor

    async def purge(self) -> None:
        """Remove old records."""
        await self._store.purge_records(KIND, utc_now() - RETENTION)


def delivery_ids(records: Sequence[Record]) -> list[str]:
    """Return the ids of the records of deliveries."""
    return [each.id for each in records if each.kind == KIND]


async def _page_of(records: Sequence[Record], *, limit: int, after: Cursor | None) -> Sequence[Record]:
    return [each for each in records if after is None or (each.at, each.id) < after][:limit]


def shown(record: Record) -> dict[str, Any]:
    """Return a record as schema Delivery in contracts/analyze-queue.openapi.json has it."""
    data = record.data
    return {
        "deliveryId": record.id,
        "assetId": record.asset_id,
        "notifier": data.get("notifier"),
        "state": data.get("state"),
        "attempts": data.get("attempts", 0),
        "response": data.get("response"),
        "reason": data.get("reason"),
        "at": to_timestamp(record.at),
        "finishedAt": data.get("finishedAt"),
    }
