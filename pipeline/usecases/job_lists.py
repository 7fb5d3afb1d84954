"""Use case: operators look at jobs: lists by any filter, counts, one job, failures by kind.

A job here is an asset's last job. The asset store is the truth: whether a job is finished, and how. Where an unfinished
one stands is asked of Redis, for the jobs of one page at a time, so a list costs the same however long the queue is.
While Redis is away lists go on with what the store knows, except those of one unfinished state. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import structlog

from pipeline.assets.asset import ASSET_ID, CAUSE, Asset, AssetStatus, to_timestamp
from pipeline.assets.job_search import Count, FailureGroup, JobFilter, Position
from pipeline.assets.store import AssetStore, Record
from pipeline.auth import USER_ID
from pipeline.errors import DependencyUnavailable, NotFound
from pipeline.logs import ThrottledLog
from pipeline.queue.job import JobState
from pipeline.queue.queue import JobQueue
from pipeline.queue.snapshot import POSTPONED, JobInfo, Snapshot
from pipeline.texts import cause_of
from pipeline.usecases.deliveries import Deliveries, shown as shown_delivery
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import ABOUT, FAILED, kind_of
from pipeline.usecases.progress import Progress, Subject

log = structlog.get_logger(__name__)

# As a state to ask for: photos that are to be analyzed again (usecases/reanalysis.py), whose assets are finished.
AGAIN = "background"
UNFINISHED = (JobState.WAITING, JobState.DELAYED, JobState.ACTIVE)
STATUSES: Mapping[JobState | None, Collection[AssetStatus]] = {
    None: (),
    **dict.fromkeys(UNFINISHED, (AssetStatus.PROCESSING,)),
    JobState.FAILED: (AssetStatus.FAILED,),
    # Whatever is neither under way nor failed.
    JobState.COMPLETED: tuple(each for each in AssetStatus if each not in (AssetStatus.PROCESSING, AssetStatus.FAILED)),
}
# Of unfinished jobs so many are asked for in Redis at most, for one page.
ASKED_AT_MOST = 500
# While fewer jobs run or are delayed, the queue is asked which these are; beyond, the store is searched for them.
BESIDE_AT_MOST = 1000
# What a page of unfinished jobs reads more than it shows at first: some of them are in another state.
SPARE = 30
COUNTED_PAGES_AT_MOST = 20
PREVIEW = "320"


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs are wanted, as an operator says it; None and () leave all in.

    statuses: further restricts which assets' jobs are meant. is_postponed: only jobs that an operator postponed.
    is_again: only reanalyses that have not ended, and no other job; since, until: when they were asked for; provider:
    that was named for them.
    The others are those of JobFilter; a word may also be the id of a job or an asset, or a user's whole id.
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
    is_again: bool = False

    @property
    def is_plain(self) -> bool:
        """True when nothing but the state is asked for."""
        return replace(self, state=None, is_again=False) == JobQuery()

    def as_filter(self) -> JobFilter:
        """Return what the asset store can tell of it."""
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

    def keeps(self, info: JobInfo | None) -> bool:
        """Return whether an unfinished job at that place is wanted."""
        is_postponed = info is not None and info.error == POSTPONED
        return _unfinished_state(info) is self.state and (is_postponed or not self.is_postponed)


@dataclass(frozen=True, slots=True)
class AssetsFound:
    """Some of the assets whose jobs are wanted, newest first. next_after: see JobPage.

    again: of reanalyses, by asset id: what is kept of the job.
    """

    assets: Sequence[Asset]
    next_after: Position | None
    again: Mapping[str, Record] = field(default_factory=dict)

    def place_of(self, asset: Asset) -> Position:
        """Return where the list goes on behind that asset of it."""
        return _place_of(self.again[asset.id]) if asset.id in self.again else _place(asset)


class JobLists:
    """Finds jobs and shows them."""

    def __init__(self, store: AssetStore, queue: JobQueue, progress: Progress, urls: ImageUrls) -> None:
        self._store = store
        self._deliveries = Deliveries(store)
        self._queue = queue
        self._progress = progress
        self._urls = urls
        self._kind = kind_of(queue)
        self._throttled_log = ThrottledLog()

    async def search(self, query: JobQuery, *, limit: int, after: Position | None = None) -> AssetsFound:
        """Return up to so many assets whose jobs are wanted, fewer where a call has looked at enough of them."""
        if query.is_again:
            return await self._search_again(query, limit, after)
        query, named = await self._resolve(query)
        if named is not None:
            return AssetsFound(_behind(await self._matching(query, named), after)[:limit], None)
        if query.state not in UNFINISHED:
            page = await self._store.jobs(query.as_filter(), limit=limit, after=after)
            return AssetsFound(page.assets, page.next_after)
        if query.state is not JobState.WAITING:
            ids, is_all = await self._queue.background_counts(query.state, at_most=BESIDE_AT_MOST)
            if is_all:
                found = _behind(await self._matching(query, await self._store.get_many(ids)), after)
                return AssetsFound(found[:limit], _place(found[limit - 1]) if len(found) > limit else None)
        return await self._search_line(query, limit, after)

    async def _search_again(self, query: JobQuery, limit: int, after: Position | None) -> AssetsFound:
        """Return assets that are to be analyzed again, those asked for last first. A call reads so many kept jobs."""
        wanted, named = await self._resolve(replace(query, since=None, until=None, provider=None))
        last = (after[0], f"{self._queue.name}:{after[1]}") if after else None
        page = await self._store.newest_records(self._kind, limit=ASKED_AT_MOST, after=last)
        asked = [each for each in page if _is_again(each, query)]
        by_id = {asset.id: asset for asset in await self._store.get_many([each.asset_id for each in asked])}
        names, holds = None if named is None else {asset.id for asset in named}, wanted.as_filter().holds
        found: list[Asset] = []
        again: dict[str, Record] = {}
        for each in asked:
            asset = by_id.get(each.asset_id)
            if asset is None or asset.id in again or not holds(asset) or (names is not None and asset.id not in names):
                continue
            if len(found) == limit:
                return AssetsFound(found, _place_of(again[found[-1].id]), again)
            found.append(asset)
            again[asset.id] = each
        return AssetsFound(found, _place_of(page[-1]) if len(page) == ASKED_AT_MOST else None, again)

    async def _count_again(self, query: JobQuery) -> Count:
        """Return how many reanalyses wait or, with a filter, how many have not ended."""
        if query.is_plain:
            return Count((await self._queue.stats()).background, True)
        count, after = 0, None
        for _ in range(COUNTED_PAGES_AT_MOST):
            found = await self._search_again(query, ASKED_AT_MOST, after)
            count, after = count + len(found.assets), found.next_after
            if after is None:
                return Count(count, True)
        return Count(count, False)

    async def _search_line(self, query: JobQuery, limit: int, after: Position | None) -> AssetsFound:
        """Search the store's unfinished assets for jobs in a state that only Redis knows."""
        found: list[Asset] = []
        wanted = query.as_filter()
        for size in (limit + SPARE, ASKED_AT_MOST):
            page = await self._store.jobs(wanted, limit=size, after=after)
            found += await self._matching(query, page.assets)
            if len(found) > limit:
                return AssetsFound(found[:limit], _place(found[limit - 1]))
            after = page.next_after
            if after is None or len(found) == limit:
                break
        return AssetsFound(found, after)

    async def _matching(self, query: JobQuery, assets: Sequence[Asset]) -> list[Asset]:
        """Return those of the assets whose jobs are wanted, newest first."""
        wanted = query.as_filter()
        held = sorted(filter(wanted.holds, assets), key=_place, reverse=True)
        if query.state not in UNFINISHED:
            return held
        job_infos = await self._queue.job_infos([asset.processing_job_id for asset in held])
        return [asset for asset in held if query.keeps(job_infos.get(asset.processing_job_id))]

    async def _resolve(self, query: JobQuery) -> tuple[JobQuery, Sequence[Asset] | None]:
        """Return the query without words that are ids, and the assets that these name, None when there is no such word.

        A word that is a user's whole id stands for that user: an index finds those jobs, and no words would.
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
        """Return how many jobs are wanted."""
        if query.is_again:
            return await self._count_again(query)
        query, named = await self._resolve(query)
        if named is not None:
            return Count(len(await self._matching(query, named)), True)
        if query.state not in UNFINISHED:
            return await self._store.count_jobs(query.as_filter())
        if query.is_plain:
            stats = await self._queue.stats()
            return Count(getattr(stats, query.state.value), True)
        states = UNFINISHED[1:] if query.state is JobState.WAITING else (query.state,)
        ids, is_all = await self._queue.background_counts(*states, at_most=BESIDE_AT_MOST)
        beside = await self._store.get_many(ids)
        if query.state is not JobState.WAITING:
            return Count(len(await self._matching(query, beside)), is_all)
        counted = await self._store.count_jobs(query.as_filter())
        others = [len(await self._matching(replace(query, state=each), beside)) for each in UNFINISHED[1:]]
        # At least so many that exact counts, taken one after the other, do not fall below none.
        return Count(max(0, counted.count - sum(others)), counted.is_exact and is_all)

    async def failures(self, since: datetime | None, until: datetime | None) -> list[dict[str, Any]]:
        """Return the failed jobs by kind: schema FailureGroup in contracts/analyze-queue.openapi.json."""
        return [_shown_group(group) for group in await self._store.failures(since, until)]

    async def find(self, job_id: str) -> Asset:
        """Return the asset of a job; NotFound when there is none. job_id: of its last or first job, or its own."""
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
            # A dead letter keeps its id when its asset has another job, and a reanalysis has its own.
            data = (await self._fields(job_id)).get("data")
            asset_id = data.get("assetId") if isinstance(data, dict) else None
            if asset_id is None and (record := await self._store.find_record(self._kind, job_id)):
                asset_id = record.asset_id
            asset = await self._store.get(asset_id) if isinstance(asset_id, str) else None
        return asset

    def _is_job_id(self, text: str) -> bool:
        name, _, digits = text.rpartition(":")
        return name == self._queue.name and ASSET_ID.fullmatch(digits) is not None

    async def shown(self, assets: Sequence[Asset], again: Mapping[str, Record] = {}) -> list[dict[str, Any]]:
        """Return the jobs of the assets: schema Job in contracts/analyze-queue.openapi.json. again: see AssetsFound."""
        job_infos, told = await self._told(assets)
        jobs = await self._composed(assets, job_infos, told)
        return await self._as_again(jobs, again) if again else jobs

    async def _as_again(self, jobs: list[dict[str, Any]], again: Mapping[str, Record]) -> list[dict[str, Any]]:
        """Return the jobs of finished assets as those that analyze them again."""
        job_infos: Mapping[str, JobInfo] = {}
        try:
            job_infos = await self._queue.job_infos([record.id for record in again.values()])
        except DependencyUnavailable as error:
            self._throttled_log.write(log.warning, "places_unknown", cause=cause_of(error))
        return [job | _shown_again(again[job["assetId"]], job_infos, job["provider"]) for job in jobs]

    async def _composed(
        self, assets: Sequence[Asset], job_infos: Mapping[str, JobInfo], told: Mapping[str, Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        urls = await self._urls.of_images(asset.previews[PREVIEW] for asset in assets if PREVIEW in asset.previews)
        return [_shown(asset, job_infos.get(asset.id), told.get(asset.id), urls) for asset in assets]

    async def describe(self, asset: Asset) -> dict[str, Any]:
        """Return one job with all that is known of it: schema JobDetails in contracts/analyze-queue.openapi.json."""
        job_infos, told = await self._told([asset])
        (job,) = await self._composed([asset], job_infos, told)
        fields = await self._fields(asset.processing_job_id)
        request_id, trace_id = _text(fields.get("requestId")), _trace_id(_text(fields.get("trace")))
        search = [f"jobId={asset.processing_job_id}", *([f"requestId={request_id}"] if request_id else [])]
        return {
            "job": job,
            "asset": asset.to_json(await self._urls.of([asset]), told.get(asset.id)),
            "causes": [each.get(CAUSE) for each in asset.attempts],
            "history": [*map(dict, asset.history)],
            "deliveries": [*map(shown_delivery, await self._deliveries.of_asset(asset.user_id, asset.id))],
            "requestId": request_id,
            "traceId": trace_id,
            "searchFor": search,
        }

    async def _fields(self, job_id: str) -> dict[str, Any]:
        try:
            return await self._queue.fields(job_id)
        except DependencyUnavailable:
            return {}

    async def _told(self, assets: Sequence[Asset]) -> tuple[dict[str, JobInfo], dict[str, dict[str, Any]]]:
        """Return where the unfinished of the assets are and what their progress is, by asset id, as far as is known."""
        subjects = [Subject.of(asset) for asset in assets if asset.status is AssetStatus.PROCESSING]
        job_infos: dict[str, JobInfo] = {}
        snapshot: Snapshot | None = None
        try:
            job_infos = await self._queue.job_infos([each.job_id for each in subjects])
            if subjects and (recent := await self._progress.recent()):
                # The line is a second old; where these jobs are is asked just now.
                snapshot = replace(recent, others=job_infos)
        except DependencyUnavailable as error:
            self._throttled_log.write(log.warning, "places_unknown", cause=cause_of(error))
        told = {each.asset_id: self._progress.describe(each, snapshot) for each in subjects}
        return {each.asset_id: job_infos[each.job_id] for each in subjects if each.job_id in job_infos}, told


def _shown(
    asset: Asset, info: JobInfo | None, told: Mapping[str, Any] | None, urls: Mapping[Any, str]
) -> dict[str, Any]:
    told = told or {}
    last: Mapping[str, Any] = asset.attempts[-1] if asset.attempts else {}
    known, preview = asset.known, asset.previews.get(PREVIEW)
    return {
        "jobId": asset.processing_job_id,
        "assetId": asset.id,
        "userId": asset.user_id,
        "category": asset.category,
        "state": _state(asset, info).value,
        "status": asset.status.value,
        "position": told.get("position"),
        "attempt": told.get("attempt") or last.get("attempt"),
        "provider": told.get("provider") or (asset.provenance or {}).get("provider") or last.get("provider"),
        "reason": known.error if asset.status is AssetStatus.FAILED else told.get("reason"),
        "failure": asset.failure,
        "nextAt": told.get("nextAt"),
        "createdAt": to_timestamp(asset.created_at),
        "updatedAt": to_timestamp(asset.updated_at),
        "finishedAt": to_timestamp(asset.finished_at),
        "brand": (known.brand or {}).get("value"),
        "model": (known.model or {}).get("value"),
        "preview": preview.url_among(urls) if preview else None,
    }


def _shown_again(record: Record, job_infos: Mapping[str, JobInfo], provider: str | None) -> dict[str, Any]:
    """Return what is not as the asset's last job has it. provider: of that."""
    info = job_infos.get(record.id)
    return {
        "jobId": record.id,
        "state": _unfinished_state(info).value,
        "position": None,
        "attempt": (info and info.attempt) or None,
        "provider": record.data[ABOUT].get("provider") or provider,
        "reason": (info and info.error) or None,
        "nextAt": to_timestamp(info.due_at) if info else None,
    }


def _is_again(record: Record, query: JobQuery) -> bool:
    """Return whether that is a reanalysis that has not ended, was asked for then, and of that provider if of any."""
    about = record.data.get(ABOUT)
    if not isinstance(about, Mapping) or FAILED in record.data:
        return False
    is_then = (query.since is None or record.at >= query.since) and (query.until is None or record.at <= query.until)
    return is_then and query.provider in (None, about.get("provider"))


def _place_of(record: Record) -> Position:
    return record.at, record.id.rpartition(":")[2]


def _shown_group(group: FailureGroup) -> dict[str, Any]:
    return {
        "failure": group.failure,
        "reason": group.reason,
        "count": group.count.count,
        "isExact": group.count.is_exact,
        "firstAt": to_timestamp(group.first_at),
        "lastAt": to_timestamp(group.last_at),
    }


def _state(asset: Asset, info: JobInfo | None) -> JobState:
    if asset.status is AssetStatus.FAILED:
        return JobState.FAILED
    if asset.status is not AssetStatus.PROCESSING:
        return JobState.COMPLETED
    if info is None and asset.starts:
        # Redis is away: it was begun and has not ended.
        return JobState.ACTIVE
    return _unfinished_state(info)


def _unfinished_state(info: JobInfo | None) -> JobState:
    """Return the state of an unfinished job; one that Redis does not know will be put into the line."""
    return info.state if info is not None and info.state in UNFINISHED else JobState.WAITING


def _place(asset: Asset) -> Position:
    return asset.created_at, asset.id


def _behind(assets: Iterable[Asset], after: Position | None) -> list[Asset]:
    return [asset for asset in assets if after is None or _place(asset) < after]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _trace_id(trace_context: str | None) -> str | None:
    """Return the trace id of a traceparent."""
    parts = (trace_context or "").split("-")
    return parts[1] if len(parts) == 4 else None
