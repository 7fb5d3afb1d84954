"""The service with one guarantee switched off, to show that the checker sees it: python -m tests.faults.chaos.mutant
NAME

fence: a result is committed whatever has happened to the asset meanwhile. reconciler: nobody searches for lost jobs.
lease: leases are not renewed, nobody stops when one is lost, and an acknowledgement without a lease is taken.
attempt: a start that the provider answered badly gives its attempt back.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from pipeline import cli
from pipeline.assets import sqlite
from pipeline.assets.mongo import MongoAssetStore
from pipeline.errors import PermanentJobError
from pipeline.queue import attempt, queue
from pipeline.queue.claim import Claim
from pipeline.queue.queue import JobQueue
from pipeline.usecases.reconciler import Reconciler


def without_fence() -> None:
    update = MongoAssetStore._update

    async def update_anyway(self: MongoAssetStore, asset_id: str, wanted: Any, change: Any) -> Any:
        return await update(self, asset_id, {} if "fence" in wanted and "userId" not in wanted else wanted, change)

    MongoAssetStore._update = update_anyway  # type: ignore[method-assign]
    sqlite.CURRENT_RUN = "id = :id"


def without_reconciler() -> None:
    async def idle(self: Reconciler) -> None:
        await asyncio.Event().wait()

    Reconciler.run = idle  # type: ignore[method-assign]


def without_lease() -> None:
    async def renew_nothing(self: JobQueue, leases: Sequence[str]) -> list[str]:
        return []

    async def unbounded(self: Any, work: Any, seconds: float = 0) -> Any:
        return await work

    source = queue._source

    def gullible(verb: str) -> str:
        held, gullible = "local list = scores[i] and ours or lost", "local list = ours; scores[i] = 1"
        return source(verb).replace(held, gullible)

    JobQueue.renew = renew_nothing  # type: ignore[method-assign]
    queue._source = gullible
    Claim.bounded = unbounded  # type: ignore[method-assign]
    Claim.has_lease = True  # type: ignore[assignment, method-assign]


def without_attempts() -> None:
    attempt._spends_attempt = lambda error: isinstance(error, PermanentJobError)


MUTANTS = {
    "fence": without_fence,
    "reconciler": without_reconciler,
    "lease": without_lease,
    "attempt": without_attempts,
}

if __name__ == "__main__":
    MUTANTS[sys.argv[1]]()
    cli.main(["serve"])
