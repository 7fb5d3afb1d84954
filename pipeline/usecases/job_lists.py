"""Use case: operators find jobs: lists by any filter, counts, one job, failures by kind.

A job here is an asset's last job. The asset store says whether a job has ended, and how. Redis is asked where the
unfinished jobs of one page are, so that a list costs the same however long the queue is. While Redis is away all lists
work except those of one unfinished state. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pipeline.assets.asset import Asset, AssetStatus
from pipeline.assets.asset_ids import ASSET_ID
from pipeline.assets.job_search import Count, JobFilter, Cursor
from pipeline.assets.store import AssetStore, Record
from pipeline.auth import USER_ID
from pipeline.errors import NotFound
from pipeline.queue.job import JobState
from pipeline.queue.queue import JobQueue
from pipeline.queue.snapshot import POSTPONED, JobInfo
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import FAILED, PROMISE, kind_of
from pipeline.usecases.job_views import UNFINISHED, JobViews, failure_json, unfinished_state
from pipeline.usecases.progress import Progress

# The state, in requests, of photos that are to be analyzed again (reanalysis.py): their assets are finished.
REANALYSES = "background"
STATUSES: Mapping[JobState | None, Collection[AssetStatus]] = {
    None: (),
    **dict.fromkeys(UNFINISHED, (AssetStatus.PROCESSING,)),
    JobState.FAILED: (AssetStatus.FAILED,),
    JobState.COMPLETED: tuple(each for each in AssetStatus if each not in (AssetStatus.PROCESSING, AssetStatus.FAILED)),
}
# Redis is asked about so many unfinished jobs at most, for one page.
ASKED_AT_MOST = 500
# While fewer jobs run or are delayed, the queue lists them; else the store is searched for them.
NOT_WAITING_AT_MOST = 1000
# A page of unfinished jobs reads so many more than it shows: some are in another state.
SPARE = 30
COUNTED_PAGES_AT_MOST = 20


@dataclass(frozen=True, slots=True)
class JobQuery:
    """The filters of an operator; None and () mean all.

    words: see JobFilter; a word may also be the id of a job, an asset or a user
    statuses: only jobs of assets with these statuses
    is_postponed: only jobs that an operator postponed
    is_reanalysis: only reanalyses that have not ended; then `since` and `until` are about the request for the
        reanalysis, and `provider` is the one that the request named
    The other fields: see JobFilter.
    """

    state: JobState | None = None
    user_id: str | None = None
    category: str | None = None
    provider: str | None = None
    failure: str | None = None
    words: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    statuses: Collection[AssetStatus] = ()
    is_postponed: bool = False
    is_reanalysis: bool = False

    @property
    def is_plain(self) -> bool:
        """True when there is no filter but the state."""
        return replace(self, state=None, is_reanalysis=False) == JobQuery()

    def as_filter(self) -> JobFilter:
        """Return the part of the query that the asset store can answer."""
        statuses = STATUSES[self.state]
        if self.statuses:
            statuses = [each for each in self.statuses if not statuses or each in statuses]
        return JobFilter(
            statuses=statuses,
            user_id=self.user_id,
            category=self.category,
            provider=self.provider,
            failure=self.failure,
            words=tuple(word.casefold() for word in self.words),
            since=self.since,
            until=self.until,
        )

    def matches(self, info: JobInfo | None) -> bool:
        """Return whether an unfinished job matches.

        info: the job in the queue, None when Redis does not know it
        """
        is_postponed = info is not None and info.error == POSTPONED
        return unfinished_state(info) is self.state and (is_postponed or not self.is_postponed)


@dataclass(frozen=True, slots=True)
class FoundJobs:
    """One page of assets whose jobs match, newest first.

    next_after: the position after which the next page begins, None at the end
    records: of reanalyses: the record of the job, by asset id
    """

    assets: Sequence[Asset]
    next_after: Cursor | None
    records: Mapping[str, Record] = field(default_factory=dict)

    def position_of(self, asset: Asset) -> Cursor:
        """Return the position of that asset in the list."""
        return _record_position(self.records[asset.id]) if asset.id in self.records else _position(asset)


class JobLists:
    """Finds jobs. views: makes their JSON."""

    def __init__(self, store: AssetStore, queue: JobQueue, progress: Progress, urls: ImageUrls) -> None:
        self._store = store
        self._queue = queue
        self._kind = kind_of(queue)
        self.views = JobViews(store, queue, progress, urls)

    async def search(self, query: JobQuery, *, limit: int, after: Cursor | None = None) -> FoundJobs:
        """Return up to so many assets whose jobs match; fewer when the call has examined many without a match."""
        if query.is_reanalysis:
            return await self._search_reanalyses(query, limit, after)
        query, named = await self._resolve(query)
        if named is not None:
            return FoundJobs(_older_than(await self._matching(query, named), after)[:limit], None)
        if query.state not in UNFINISHED:
            page = await self._store.jobs(query.as_filter(), limit=limit, after=after)
            return FoundJobs(page.assets, page.next_after)
        if query.state is not JobState.WAITING:
            ids, is_all = await self._queue.background_counts(query.state, at_most=NOT_WAITING_AT_MOST)
            if is_all:
                found = _older_than(await self._matching(query, await self._store.get_many(ids)), after)
                return FoundJobs(found[:limit], _position(found[limit - 1]) if len(found) > limit else None)
        return await self._search_unfinished(query, limit, after)

    async def _search_reanalyses(self, query: JobQuery, limit: int, after: Cursor | None) -> FoundJobs:
        """Return assets that are to be analyzed again, the newest requests first."""
        wanted, named = await self._resolve(replace(query, since=None, until=None, provider=None))
        last = (after[0], f"{self._queue.name}:{after[1]}") if after else None
        page = await self._store.newest_records(self._kind, limit=ASKED_AT_MOST, after=last)
        asked = [each for each in page if _is_wanted(each, query)]
        by_id = {asset.id: asset for asset in await self._store.get_many([each.asset_id for each in asked])}
        names, holds = None if named is None else {asset.id for asset in named}, wanted.as_filter().holds
        found: list[Asset] = []
        records: dict[str, Record] = {}
        for each in asked:
            asset = by_id.get(each.asset_id)
            if (
                asset is None
                or asset.id in records
                or not holds(asset)
                or (names is not None and asset.id not in names)
            ):
                continue
            if len(found) == limit:
                return FoundJobs(found, _record_position(records[found[-1].id]), records)
            found.append(asset)
            records[asset.id] = each
        return FoundJobs(found, _record_position(page[-1]) if len(page) == ASKED_AT_MOST else None, records)

    async def _count_reanalyses(self, query: JobQuery) -> Count:
        """Return how many reanalyses wait. With a filter: how many have not ended."""
        if query.is_plain:
            return Count((await self._queue.stats()).background, True)
        count, after = 0, None
        for _ in range(COUNTED_PAGES_AT_MOST):
            found = await self._search_reanalyses(query, ASKED_AT_MOST, after)
            count, after = count + len(found.assets), found.next_after
            if after is None:
                return Count(count, True)
        return Count(count, False)

    async def _search_unfinished(self, query: JobQuery, limit: int, after: Cursor | None) -> FoundJobs:
        """Search the unfinished assets of the store for jobs in a state that only Redis knows."""
        found: list[Asset] = []
        wanted = query.as_filter()
        for size in (limit + SPARE, ASKED_AT_MOST):
            page = await self._store.jobs(wanted, limit=size, after=after)
            found += await self._matching(query, page.assets)
            if len(found) > limit:
                return FoundJobs(found[:limit], _position(found[limit - 1]))
            after = page.next_after
            if after is None or len(found) == limit:
                break
        return FoundJobs(found, after)

    async def _matching(self, query: JobQuery, assets: Sequence[Asset]) -> list[Asset]:
        """Return the assets whose jobs match, newest first."""
        wanted = query.as_filter()
        matching = sorted(filter(wanted.holds, assets), key=_position, reverse=True)
        if query.state not in UNFINISHED:
            return matching
        job_infos = await self._queue.job_infos([asset.processing_job_id for asset in matching])
        return [asset for asset in matching if query.matches(job_infos.get(asset.processing_job_id))]

    async def _resolve(self, query: JobQuery) -> tuple[JobQuery, Sequence[Asset] | None]:
        """Return the query without the words that are ids, and the assets of these ids, None when no word is an id.

        A word that is a user's id becomes the user filter, which has an index.
        """
        words, named = [], None
        for word in query.words:
            if self._is_job_id(word) or ASSET_ID.fullmatch(word):
                asset = await self._find(word)
                found = [asset] if asset is not None else []
                named = found if named is None else [each for each in named if each in found]
            elif query.user_id is None and USER_ID.fullmatch(word) and await self._store.page(word, limit=1):
                query = replace(query, user_id=word)
            else:
                words.append(word)
        return replace(query, words=tuple(words)), named

    async def count(self, query: JobQuery) -> Count:
        """Return how many jobs match."""
        if query.is_reanalysis:
            return await self._count_reanalyses(query)
        query, named = await self._resolve(query)
        if named is not None:
            return Count(len(await self._matching(query, named)), True)
        if query.state not in UNFINISHED:
            return await self._store.count_jobs(query.as_filter())
        if query.is_plain:
            stats = await self._queue.stats()
            return Count(getattr(stats, query.state.value), True)
        states = UNFINISHED[1:] if query.state is JobState.WAITING else (query.state,)
        ids, is_all = await self._queue.background_counts(*states, at_most=NOT_WAITING_AT_MOST)
        not_waiting = await self._store.get_many(ids)
        if query.state is not JobState.WAITING:
            return Count(len(await self._matching(query, not_waiting)), is_all)
        counted = await self._store.count_jobs(query.as_filter())
        others = [len(await self._matching(replace(query, state=each), not_waiting)) for each in UNFINISHED[1:]]
        # The counts are taken one after the other, so their difference may be negative.
        return Count(max(0, counted.count - sum(others)), counted.is_exact and is_all)

    async def failures(self, since: datetime | None, until: datetime | None) -> list[dict[str, Any]]:
        """Return the failed jobs by kind: schema FailureGroup in contracts/analyze-queue.openapi.json."""
        return [failure_json(group) for group in await self._store.failures(since, until)]

    async def find(self, job_id: str) -> Asset:
        """Return the asset of a job; NotFound when there is none.

        job_id: of its last or its first job, or the asset's id
        """
        asset = await self._find(job_id)
        if asset is None:
            raise NotFound("There is no job of that id")
        return asset

    async def _find(self, job_id: str) -> Asset | None:
        job_id = job_id.lower()
        if not self._is_job_id(job_id):
            return await self._store.get(job_id)
        asset = await self._store.find_by_job(job_id) or await self._store.get(job_id[-24:])
        if asset is None:
            # A dead letter has its own id when its asset has a new job; so has a reanalysis.
            data = (await self.views.fields(job_id)).get("data")
            asset_id = data.get("assetId") if isinstance(data, dict) else None
            if asset_id is None and (record := await self._store.find_record(self._kind, job_id)):
                asset_id = record.asset_id
            asset = await self._store.get(asset_id) if isinstance(asset_id, str) else None
        return asset

    def _is_job_id(self, text: str) -> bool:
        name, _, digits = text.rpartition(":")
        return name == self._queue.name and ASSET_ID.fullmatch(digits) is not None


def _is_wanted(record: Record, query: JobQuery) -> bool:
    """Return whether the record is of a reanalysis that has not ended and that matches the query."""
    promise = record.data.get(PROMISE)
    if not isinstance(promise, Mapping) or FAILED in record.data:
        return False
    is_in_time = (query.since is None or record.at >= query.since) and (query.until is None or record.at <= query.until)
    return is_in_time and query.provider in (None, promise.get("provider"))


def _record_position(record: Record) -> Cursor:
    return record.at, record.id.rpartition(":")[2]


def _position(asset: Asset) -> Cursor:
    return asset.created_at, asset.id


def _older_than(assets: Iterable[Asset], after: Cursor | None) -> list[Asset]:
    return [asset for asset in assets if after is None or _position(asset) < after]
