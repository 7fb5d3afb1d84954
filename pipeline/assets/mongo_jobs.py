"""How MongoAssetStore searches jobs: a part of it, see mongo.py; job_search.py says how far a call reads.

DocumentDB does not read an index in its order: it sorts all documents that match the filter. So every read is of a
window of time with no more documents than a call may read. The length of the window is found by counting, which
costs no more than reading a window, and remembered. MongoDB itself would not need windows; they cost it a few counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId
from pymongo import DESCENDING

from pipeline.assets.asset import Asset, AssetStatus
from pipeline.assets.failures import fingerprint
from pipeline.assets.job_search import (
    COUNTED_AT_MOST,
    EXAMINED_AT_MOST,
    READ_AT_MOST,
    Count,
    FailureGroup,
    JobFilter,
    JobPage,
    Cursor,
    largest_first,
)
from pipeline.assets.mongo_reads import MongoReads
from pipeline.clock import utc_now
from pipeline.instants import EPOCH, instant_of, milliseconds_of

NEWEST_FIRST = [("createdAt", DESCENDING), ("_id", DESCENDING)]
OF_FAILURES = dict.fromkeys(("createdAt", "status", "aiMetadata.error", "failure"), 1)
SEARCHED = dict.fromkeys(("createdAt", "status", "userId", "aiMetadata", "corrections", "failure"), 1)
SEARCHED |= dict.fromkeys(("attempts.provider", "provenance.provider"), 1)
FIRST_SPAN_SECONDS, SHORTEST_SPAN_SECONDS = 3600.0, 0.001
SPANS_AT_MOST, TRIES = 1000, 60
READ_AT_ONCE = 200
BEFORE_ALL_IDS = "0" * 24
# A page without further conditions is read from a window with at most so many times its documents.
ROOMY = 8


@dataclass(frozen=True, slots=True)
class _Window:
    """A part of a list: the documents of an index range from one createdAt to another.

    start: None when it reaches to the end of the list. end: None when it begins with the newest.
    """

    where: dict[str, Any]
    start: datetime | None
    end: datetime | None
    after: Cursor | None = None

    @property
    def query(self) -> dict[str, Any]:
        """Return the filter that finds its documents."""
        # Always with a bound: without an instant it is no document of ours.
        bounds = {"$gte": self.start or EPOCH} | ({"$lte": self.end} if self.end else {})
        parts: list[dict[str, Any]] = [self.where, {"createdAt": bounds}]
        if self.after is not None:
            parts.append({"$or": [{"createdAt": {"$lt": self.after[0]}}, {"_id": {"$lt": ObjectId(self.after[1])}}]})
        return {"$and": parts}


class JobDocuments(MongoReads):
    """Searches of the collection `assets` for operators. Methods: see AssetReads."""

    # How long the last window of a range was, in seconds.
    _spans: dict[str, float]

    async def jobs(self, wanted: JobFilter, *, limit: int, after: Cursor | None = None) -> JobPage:
        wanted = _rounded(wanted)
        least, most = limit + 1, ROOMY * limit + 1
        if not _is_indexed(wanted):
            least, most = EXAMINED_AT_MOST // 4, EXAMINED_AT_MOST
        window = await self._window(wanted, after, least, most)
        documents = await self._found(window, wanted, limit + 1)
        if len(documents) > limit:
            last = documents[limit - 1]
            return JobPage(self._reading.all(documents[:limit]), (last["createdAt"], str(last["_id"])))
        # All of the window has been looked at.
        end = (window.start, BEFORE_ALL_IDS) if window.start and window.start != wanted.since else None
        return JobPage(self._reading.all(documents), end)

    async def count_jobs(self, wanted: JobFilter) -> Count:
        wanted = _rounded(wanted)
        if _is_indexed(wanted):
            window = _Window(_range(wanted), wanted.since, wanted.until)
            count = await self._count(window, COUNTED_AT_MOST)
            return Count(min(count, COUNTED_AT_MOST), count <= COUNTED_AT_MOST)
        most = READ_AT_MOST if _needs_reading(wanted) else COUNTED_AT_MOST
        window = await self._window(wanted, None, most // 4, most)
        is_whole = window.start in (None, wanted.since)
        if _needs_reading(wanted):
            return Count(len(await self._read(window, wanted, most)), is_whole)
        narrowed = replace(window, where=window.where | _conditions(wanted))
        return Count(await self._count(narrowed, most), is_whole)

    async def failures(self, since: datetime | None = None, until: datetime | None = None) -> Sequence[FailureGroup]:
        wanted = _rounded(JobFilter(statuses=(AssetStatus.FAILED,), since=since, until=until))
        window = await self._window(wanted, None, COUNTED_AT_MOST // 2, COUNTED_AT_MOST)
        is_whole = window.start in (None, wanted.since)
        groups: dict[str, FailureGroup] = {}
        for document in await self._call(self._assets.find(window.query, OF_FAILURES).to_list(None)):
            _add(groups, document, is_whole)
        return largest_first([*groups.values()])

    async def find_by_job(self, job_id: str) -> Asset | None:
        first = job_id[-24:]
        places: list[dict[str, Any]] = [{"retryJobId": job_id}]
        places += [{"_id": ObjectId(first)}] if ObjectId.is_valid(first) else []
        for place in places:
            found = await self._call(self._assets.find_one({**place, "processingJobId": job_id}))
            if found is not None:
                return self._reading.one(found)
        return None

    async def _window(self, wanted: JobFilter, after: Cursor | None, least: int, most: int) -> _Window:
        """Return the newest part of the list behind `after` with between least and most documents, or all."""
        end = min((each for each in (wanted.until, after and after[0]) if each), default=None)
        whole = _Window(_range(wanted), wanted.since, end, after)
        if await self._count(whole, most) <= most:
            return whole
        now = utc_now()
        newest = min(end or now, now)
        few, many = 0.0, (newest - (wanted.since or EPOCH)).total_seconds()
        key = repr(whole.where)
        span = min(self._spans.get(key, FIRST_SPAN_SECONDS), many)
        window = whole
        for _ in range(TRIES):
            window = replace(whole, start=_whole_ms(newest - timedelta(seconds=span)))
            found = await self._count(window, most)
            few, many = (few, span) if found > most else (span, many)
            if least <= found <= most or many - few < SHORTEST_SPAN_SECONDS:
                break
            # By ratio: the span may be seconds or years. A few documents already show how dense they are.
            guess = span * math.sqrt(least * most) / found if 0 < found < least else math.inf
            middle = math.sqrt(max(few, SHORTEST_SPAN_SECONDS / 2) * many)
            span = guess if few < guess < many else middle
        self._remember(key, span)
        return window

    def _remember(self, key: str, span: float) -> None:
        if len(self._spans) >= SPANS_AT_MOST:
            self._spans.clear()
        self._spans[key] = span

    async def _count(self, window: _Window, most: int) -> int:
        """Return how many documents it has; one more than most when there are more."""
        return int(await self._call(self._assets.count_documents(window.query, limit=most + 1)))

    async def _found(self, window: _Window, wanted: JobFilter, limit: int) -> list[Any]:
        """Return the first documents of a window that are wanted, newest first."""
        if _needs_reading(wanted):
            keys = [document["_id"] for document in await self._read(window, wanted, limit)]
            query: Mapping[str, Any] = {"_id": {"$in": keys}}
        else:
            query = replace(window, where=window.where | _conditions(wanted)).query
        cursor = self._assets.find(query).sort(NEWEST_FIRST).limit(limit)
        return [*await self._call(cursor.to_list(limit))]

    async def _read(self, window: _Window, wanted: JobFilter, limit: int) -> list[Any]:
        """Return what is searched of the first documents of a window that are wanted, newest first."""
        query = replace(window, where=window.where | _conditions(wanted)).query
        cursor = self._assets.find(query, SEARCHED).sort(NEWEST_FIRST).batch_size(READ_AT_ONCE)
        failure = wanted.failure
        found: list[Any] = []
        try:
            while len(found) < limit and (some := await self._call(cursor.to_list(READ_AT_ONCE))):
                found += [each for each in some if failure in (None, _failure_of(each)) and wanted.is_match(each)]
        finally:
            await self._call(cursor.close())
        return found[:limit]


def _range(wanted: JobFilter) -> dict[str, Any]:
    """Return the part of the filter that an index serves, beside createdAt."""
    if wanted.user_id is not None:
        return {"userId": wanted.user_id}
    statuses = wanted.searched_statuses if wanted.failure is None else [AssetStatus.FAILED]
    return {"status": {"$in": [status.value for status in statuses]}}


def _conditions(wanted: JobFilter) -> dict[str, Any]:
    """Return the part of the filter that the server checks in the documents."""
    found: dict[str, Any] = {}
    if wanted.statuses:
        found["status"] = {"$in": [status.value for status in wanted.statuses]}
    if wanted.failure is not None:
        # Documents of before have no such field.
        found |= {"failure": {"$in": [wanted.failure, None]}}
    if wanted.category is not None:
        found["category"] = wanted.category
    if wanted.provider is not None:
        found["$or"] = [{f"{field}.provider": wanted.provider} for field in ("provenance", "attempts")]
    return found


def _is_indexed(wanted: JobFilter) -> bool:
    return wanted.is_indexed and wanted.failure is None


def _needs_reading(wanted: JobFilter) -> bool:
    """Return whether documents must be read here to decide which are wanted."""
    return bool(wanted.words) or wanted.failure is not None


def _failure_of(document: Mapping[str, Any]) -> str | None:
    if document.get("status") != AssetStatus.FAILED:
        return None
    stored = document.get("failure")
    return stored if isinstance(stored, str) else fingerprint(_error_of(document))


def _error_of(document: Mapping[str, Any]) -> str:
    meta = document.get("aiMetadata")
    error = meta.get("error") if isinstance(meta, dict) else None
    return error if isinstance(error, str) and error else "Unknown"


def _add(groups: dict[str, FailureGroup], document: Mapping[str, Any], is_whole: bool) -> None:
    """Count a failed document in its group."""
    failure, at = _failure_of(document), document["createdAt"]
    if failure is None or not isinstance(at, datetime):
        return
    group = groups.get(failure)
    if group is None:
        groups[failure] = FailureGroup(failure, _error_of(document), Count(1, is_whole), at, at)
        return
    is_newest = at > group.last_at
    groups[failure] = FailureGroup(
        failure,
        _error_of(document) if is_newest else group.reason,
        Count(group.count.count + 1, is_whole),
        min(at, group.first_at),
        max(at, group.last_at),
    )


def _rounded(wanted: JobFilter) -> JobFilter:
    """Return the filter with whole milliseconds, as in documents: otherwise the end of a list is not recognized."""
    since = _whole_ms(wanted.since) if wanted.since else None
    return replace(wanted, since=since, until=_whole_ms(wanted.until) if wanted.until else None)


def _whole_ms(instant: datetime) -> datetime:
    return instant_of(milliseconds_of(instant))
