"""The service with one guarantee switched off, to show that the checker sees it.

python -m tests.faults.chaos.mutant NAME

fence: a result is committed whatever has happened to the asset meanwhile.
first: no start takes a fence, as if each were the first start of its photo.
reconciler: no process searches for lost jobs.
lease: leases are not renewed, a process does not stop when one is lost, and an acknowledgement without a lease is
accepted.
attempt: a start that the provider answered with an error gives its attempt back.
undelivered: the store keeps no events.
pause: only Redis knows that a queue is paused.
prefix: rooms have one name whatever QUEUE_PREFIX says.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from pipeline import cli
from pipeline.assets import sqlite_runs
from pipeline.assets.asset import Asset
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import AssetStore
from pipeline.errors import PermanentJobError
from pipeline.queue import attempt, calls
from pipeline.queue.claim import Claim
from pipeline.queue.queue import JobQueue
from pipeline.rooms.fanout import RoomFanout
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.pause import Pause
from pipeline.usecases.reconciler import Reconciler


def without_fence() -> None:
    update = MongoAssetStore._update

    async def update_anyway(self: MongoAssetStore, asset_id: str, wanted: Any, change: Any) -> Any:
        return await update(self, asset_id, {} if "fence" in wanted and "userId" not in wanted else wanted, change)

    MongoAssetStore._update = update_anyway  # type: ignore[method-assign]
    # The status, which follows with AND, narrows the second part alone.
    sqlite_runs.CURRENT_RUN = "id = :id OR id = :id"


def only_first_starts() -> None:
    async def read(
        self: AssetStore, asset_id: str, user_id: str, job_id: str, *, is_reanalysis: bool = False
    ) -> Asset | None:
        asset = await self.get(asset_id)
        is_to_run = asset is not None and asset.processing_job_id == job_id and not asset.is_finished
        return asset if is_to_run else None

    for store in (MongoAssetStore, SqliteAssetStore):
        store.begin = read  # type: ignore[method-assign, assignment]


def without_reconciler() -> None:
    async def idle(self: Reconciler) -> None:
        await asyncio.Event().wait()

    Reconciler.run = idle  # type: ignore[method-assign]


def without_lease() -> None:
    async def renew_nothing(self: JobQueue, leases: Sequence[str]) -> list[str]:
        return []

    async def unbounded(self: Any, work: Any, seconds: float = 0) -> Any:
        return await work

    source = calls._source

    def source_without_check(verb: str) -> str:
        checked, unchecked = "local list = scores[i] and ours or lost", "local list = ours; scores[i] = 1"
        return source(verb).replace(checked, unchecked)

    JobQueue.renew = renew_nothing  # type: ignore[method-assign]
    calls._source = source_without_check
    Claim.bounded = unbounded  # type: ignore[method-assign]
    Claim.has_lease = True  # type: ignore[assignment, method-assign]


def without_attempts() -> None:
    attempt._spends_attempt = lambda error: isinstance(error, PermanentJobError)


def without_undelivered() -> None:
    JobRecords.put = _nothing  # type: ignore[method-assign, assignment]


def without_pause() -> None:
    async def set_in_redis(self: Pause) -> None:
        await self._queue.pause()

    async def is_not_known(self: Pause) -> bool:
        return False

    Pause.set = set_in_redis  # type: ignore[method-assign]
    Pause.is_set = is_not_known  # type: ignore[method-assign]
    Pause.enforce = _nothing  # type: ignore[method-assign, assignment]


def without_prefix() -> None:
    begin = RoomFanout.__init__

    def begin_without_prefix(self: RoomFanout, *arguments: Any, prefix: str, **options: Any) -> None:
        begin(self, *arguments, **options)

    RoomFanout.__init__ = begin_without_prefix  # type: ignore[method-assign]


async def _nothing(*_: object) -> None:
    """Take the place of a method and do nothing."""


MUTANTS = {
    "fence": without_fence,
    "first": only_first_starts,
    "reconciler": without_reconciler,
    "lease": without_lease,
    "attempt": without_attempts,
    "undelivered": without_undelivered,
    "pause": without_pause,
    "prefix": without_prefix,
}

if __name__ == "__main__":
    MUTANTS[sys.argv[1]]()
    cli.main(["serve"])
