"""Use case: the audit list: who has changed what, for ninety days.

Every change by an operator becomes an entry in the asset store, after the request was answered: a store that is slow or
away delays no request. While the store is away entries wait, up to a bound; entries that are lost are logged. An erased
user's name is removed from the entries; the entries stay. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import structlog

from pipeline.assets.asset import to_timestamp
from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.delays import retry_delays
from pipeline.errors import DependencyUnavailable
from pipeline.texts import cause_of
from pipeline.usecases.paging import Cursor, dated_pages, newest_page

log = structlog.get_logger(__name__)

KIND = "audit"
RETENTION = timedelta(days=90)
# So many entries wait at most while the store is away.
WAITING_AT_MOST = 1000
RETRY_SECONDS = (0.5, 30.0)
# The characters of a user id, which is searched as a complete word.
IN_ID = "[A-Za-z0-9_.:@|-]"


@dataclass(frozen=True, slots=True)
class Act:
    """An action of an operator.

    who: the operator's user id
    action: in words, e.g. "pause queue"
    target: the id or name of the thing that was changed
    count: how many things were changed, None when it is about one
    outcome: done | refused (4xx) | failed
    address: of the client
    """

    who: str | None
    action: str
    target: str | None
    count: int | None
    outcome: str
    address: str | None
    request_id: str


class Audit:
    """The audit list."""

    def __init__(self, store: AssetStore) -> None:
        self._store = store
        self._waiting: deque[Record] = deque()
        self._numbers = count()
        self._added = asyncio.Event()
        self._writing = asyncio.Lock()

    def record(self, act: Act) -> None:
        """Have the entry of the action written soon."""
        # The number first: entries of the same millisecond are listed in the order of their ids.
        entry = Record(KIND, f"{next(self._numbers):08x}{secrets.token_hex(8)}", utc_now(), asdict(act))
        if len(self._waiting) >= WAITING_AT_MOST:
            self._lose(entry)
            return
        self._waiting.append(entry)
        self._added.set()

    async def run(self) -> None:
        """Write entries, for ever."""
        delays = retry_delays(*RETRY_SECONDS)
        while True:
            await self._added.wait()
            try:
                await self._write()
                delays = retry_delays(*RETRY_SECONDS)
            except DependencyUnavailable as error:
                log.warning("audit_postponed", entries=len(self._waiting), cause=cause_of(error))
                await asyncio.sleep(next(delays))

    async def _write(self) -> None:
        while self._waiting:
            async with self._writing:
                await self._store.put_record(self._waiting[0])
                self._waiting.popleft()
        self._added.clear()

    async def close(self, seconds: float) -> None:
        """Write the waiting entries within that time; log those that are lost. Called when `run` has ended."""
        try:
            async with asyncio.timeout(seconds):
                await self._write()
        except (DependencyUnavailable, TimeoutError):
            for entry in self._waiting:
                self._lose(entry)

    def _lose(self, entry: Record) -> None:
        names = ("who", "action", "target", "count", "outcome")
        log.error("audit_lost", **{name: entry.data[name] for name in names})

    async def page(
        self, *, limit: int, after: Cursor | None = None, who: str | None = None, action: str | None = None
    ) -> tuple[Sequence[dict[str, Any]], Cursor | None]:
        """Return entries, newest first, as schema AuditEntry of the API has them, and the cursor of the next page.

        who, action: only entries with these values
        """

        def is_wanted(entry: Record) -> bool:
            return who in (None, entry.data.get("who")) and action in (None, entry.data.get("action"))

        read = partial(self._store.newest_records, KIND)
        entries, cursor = await newest_page(read, limit, after, is_wanted if who or action else None)
        return [_shown(entry) for entry in entries], cursor

    async def forget(self, user_id: str) -> bool:
        """Remove the user's name from all entries; return whether one had it."""
        is_named = False
        async with self._writing:
            self._waiting = deque(_anonymous(entry, user_id) or entry for entry in self._waiting)
        async for page in dated_pages(partial(self._store.records, KIND)):
            for entry in page:
                if (changed := _anonymous(entry, user_id)) is not None:
                    is_named = True
                    await self._store.put_record(changed)
        return is_named

    async def purge(self) -> None:
        """Remove old entries."""
        await self._store.purge_records(KIND, utc_now() - RETENTION)


def _shown(entry: Record) -> dict[str, Any]:
    names = ("who", "action", "target", "count", "outcome", "address", "requestId")
    data = {**entry.data, "requestId": entry.data.get("request_id")}
    return {"id": entry.id, "at": to_timestamp(entry.at), **{name: data.get(name) for name in names}}


def _anonymous(entry: Record, user_id: str) -> Record | None:
    """Return the entry without the user's name, None when it does not name the user."""
    changes: dict[str, Any] = {}
    if entry.data.get("who") == user_id:
        # An address may identify the user as well as a name.
        changes = {"who": None, "address": None}
    named = rf"(?<!{IN_ID}){re.escape(user_id)}(?!{IN_ID})"
    if re.search(named, str(entry.data.get("target") or "")):
        changes["target"] = None
    return replace(entry, data={**entry.data, **changes}) if changes else None
