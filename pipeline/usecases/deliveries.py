"""Use case: what became of each event that a durable notifier had to deliver, for seven days.

The record of a delivery has its last state and the event itself, so that it can be sent again. It is written by the job
that delivers, before that is acknowledged: nothing is written about an asset or a user that an erase has ended. Runs on
the event loop.
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
KEEP = timedelta(days=7)
# The job's payload, as kept in the record.
PAYLOAD = ("notifier", "event", "userId", "assetId")


class DeliveryState(StrEnum):
    """waiting: for its first or its next attempt."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


class Deliveries:
    """The records of deliveries."""

    def __init__(self, store: AssetStore) -> None:
        self._store = store

    async def insert(self, job_id: str, payload: Mapping[str, Any], *, replaces: bool = False) -> Record | None:
        """Note an event that is about to be enqueued, unless it is known. replaces: even then.

        Returns the record that there was, for `restore`.
        """
        record = await self._store.find_record(KIND, job_id)
        if replaces or record is None:
            await self._note(job_id, payload, utc_now(), DeliveryState.WAITING)
        return record

    async def restore(self, job_id: str, record: Record | None) -> None:
        """Let a delivery be as it was: its event could not be enqueued again. record: of before, if there was one."""
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
        """Note how far a delivery is, unless its asset is gone.

        at: when the event was enqueued. response: what the receiver said. reason: why it was not delivered.
        """
        await self._note(job_id, payload, at, state, attempts=attempts, response=response, reason=reason)
        if not await self._store.known([str(payload.get("assetId"))]):
            # Deleted meanwhile: nobody else would look for this record.
            await self._store.delete_records(KIND, job_id)

    async def _note(
        self, job_id: str, payload: Mapping[str, Any], at: datetime, state: DeliveryState, **fields: Any
    ) -> None:
        if not all(isinstance(payload.get(name), str) for name in ("notifier", "userId", "assetId")):
            return  # nothing that could be sent again, or shown
        finished_at = None if state is DeliveryState.WAITING else to_timestamp(utc_now())
        data = {name: payload.get(name) for name in PAYLOAD}
        data |= {"state": state.value, "finishedAt": finished_at} | fields
        await self._store.put_record(Record(KIND, job_id, at, data, payload["userId"], payload["assetId"]))

    async def find(self, job_id: str) -> tuple[Mapping[str, Any], DeliveryState] | None:
        """Return what was, or is, to be delivered, and how far that is; None when nothing is known of it."""
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
        """Return records, newest first, and after what the next page begins. asset_id, state, notifier: only those."""
        read = partial(self._store.newest_records, KIND)
        if asset_id is not None:
            asset = await self._store.get(asset_id)
            records = await self.of_asset(asset.user_id, asset.id) if asset else ()
            read = partial(_read, records)

        def is_wanted(record: Record) -> bool:
            return state in (None, record.data.get("state")) and notifier in (None, record.data.get("notifier"))

        found, place = await newest_page(read, limit, after, is_wanted if state or notifier else None)
        return [shown(record) for record in found], place

    async def purge(self) -> None:
        """Remove what is old enough."""
        await self._store.purge_records(KIND, utc_now() - KEEP)


def delivery_ids(record: Sequence[Record]) -> list[str]:
    """Return the ids of those that are records of deliveries."""
    return [each.id for each in record if each.kind == KIND]


async def _read(records: Sequence[Record], *, limit: int, after: Cursor | None) -> Sequence[Record]:
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
