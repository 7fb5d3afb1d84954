"""Jobs for operators: lists with filters, one job, failures by kind, and what is done with one job or with many."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipeline.assets.asset import ASSET_ID, Asset, to_timestamp
from pipeline.assets.failures import FINGERPRINT
from pipeline.assets.job_search import Position
from pipeline.auth import USER_ID
from pipeline.clock import utc_now
from pipeline.errors import ValidationError
from pipeline.handlers.base import MAX_TARGET_LENGTH, OperatorHandler
from pipeline.handlers.query import Query, encode_cursor
from pipeline.queue.job import JobState
from pipeline.queue.queue import LONGEST_POSTPONEMENT_SECONDS
from pipeline.settings import CATEGORY
from pipeline.texts import clean
from pipeline.tracing import OFF, Tracing
from pipeline.usecases.bulk import CHUNK, REFUSED_AT_MOST, Action, Bulk
from pipeline.usecases.cancelling import Cancelling
from pipeline.usecases.job_lists import AGAIN, JobLists, JobQuery
from pipeline.usecases.reanalysis import Reanalysis

STORED_ID = re.compile(r"[0-9a-f]{24}")
JOB_ID = re.compile(r"ai-processing:[0-9a-fA-F]{24}")
PROVIDER = re.compile(r"[\x21-\x7e]{1,100}", re.ASCII)
WORDS_AT_MOST, MAX_SEARCH_LENGTH = 10, 200
SEARCH = re.compile(rf".{{0,{MAX_SEARCH_LENGTH}}}", re.DOTALL)
FILTERS = ("state", "user", "category", "provider", "failure", "q", "from", "to")
BULK_FIELDS = ("action", "filter", "all", "dryRun", "cursor", "until", "seconds", "provider", "replace", "limit")
MAX_BODY_BYTES = 16 * 1024


class _JobsHandler(OperatorHandler):
    def initialize(self, *, lists: JobLists, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.lists = lists

    async def find(self, job_id: str) -> Asset:
        """Return the asset of that job; NotFound or ValidationError when there is none."""
        asset = await self.lists.find(_job_id(job_id))
        self.add_log_fields(assetId=asset.id, jobId=asset.processing_job_id)
        return asset


class JobsHandler(_JobsHandler):
    """GET /api/queue/jobs: newest first."""

    route = "/api/queue/jobs"

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        wanted, limit, after = read_filter(query), query.limit(), query.cursor(STORED_ID)
        query.check()
        found = await self.lists.search(wanted, limit=limit, after=after)
        self.reply({"items": await self.lists.shown(found.assets, found.again), **_onward(found.next_after)})


class CountHandler(_JobsHandler):
    """GET /api/queue/jobs/count: how many the same filter finds."""

    route = "/api/queue/jobs/count"

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        wanted = read_filter(query)
        query.check()
        found = await self.lists.count(wanted)
        self.reply({"count": found.count, "isExact": found.is_exact})


class FailuresHandler(_JobsHandler):
    """GET /api/queue/failures: failed jobs by kind."""

    route = "/api/queue/failures"

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        since, until = query.instant("from"), query.instant("to")
        query.check()
        self.reply({"items": await self.lists.failures(since, until)})


class JobHandler(_JobsHandler):
    """GET /api/queue/jobs/{jobId}."""

    route = "/api/queue/jobs/{jobId}"

    async def get(self, job_id: str) -> None:
        await self.authenticate()
        self.reply(await self.lists.describe(await self.find(job_id)))


class RetryJobHandler(_JobsHandler):
    """POST /api/queue/jobs/{jobId}/retry: its asset gets a new job; 409 when it has neither failed nor is partial."""

    route = "/api/queue/jobs/{jobId}/retry"
    actions = {"POST": "retry job"}

    def initialize(  # type: ignore[override]
        self, *, bulk: Bulk, tracing: Tracing = OFF, **common: Any
    ) -> None:
        super().initialize(**common)
        self.bulk = bulk
        self.tracing = tracing

    async def post(self, job_id: str) -> None:
        await self.authenticate()
        asset = await self.find(job_id)
        with self.tracing.request(self):
            receipt = await self.bulk.retry(asset, self.request_id)
            answer = {"assetId": receipt.asset_id, "jobId": receipt.job_id}
            self.reply(answer | {"status": "processing", "message": "Asset queued for AI analysis"}, status=202)


class CancelJobHandler(_JobsHandler):
    """POST /api/queue/jobs/{jobId}/cancel: its asset fails; one that is finished stays so and is not analyzed again;
    409 when neither was to be.
    """

    route = "/api/queue/jobs/{jobId}/cancel"
    actions = {"POST": "cancel job"}

    def initialize(  # type: ignore[override]
        self, *, cancelling: Cancelling, reanalysis: Reanalysis, **common: Any
    ) -> None:
        super().initialize(**common)
        self.cancelling = cancelling
        self.reanalysis = reanalysis

    async def post(self, job_id: str) -> None:
        await self.authenticate()
        asset = await self.find(job_id)
        if asset.is_finished and await self.reanalysis.take_back(asset):
            self.reply((await self.lists.shown([asset]))[0])
            return
        cancelled = await self.cancelling.cancel(asset.id, None, self.request_id)
        self.reply((await self.lists.shown([cancelled]))[0])


class BulkHandler(_JobsHandler):
    """POST /api/queue/jobs/bulk: the same with all jobs that a filter finds, so many per call."""

    route = "/api/queue/jobs/bulk"
    actions = {"POST": "bulk"}

    def initialize(self, *, bulk: Bulk, tracing: Tracing = OFF, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.bulk = bulk
        self.tracing = tracing
        self._body = b""

    def data_received(self, chunk: bytes) -> None:
        super().data_received(chunk)
        # One byte more than is taken tells that there were too many.
        self._body += chunk[: MAX_BODY_BYTES + 1 - len(self._body)]

    async def post(self) -> None:
        await self.authenticate()
        said = read_object(self._body)
        query = Query(_texts(said))
        wanted, after, until = read_filter(query), query.cursor(STORED_ID), query.instant("until")
        for field, message in bulk_faults(said):
            query.fault(field, message)
        if wanted == JobQuery() and said.get("all") is not True:
            query.fault("filter", 'Is empty: all jobs are meant only with "all": true')
        query.check()
        # What is created after the dry run is left alone.
        now = utc_now()
        wanted = replace(wanted, until=min(each for each in (wanted.until, until or now) if each))
        action = Action(said["action"])
        self.change_act(action=f"{action.value} jobs", target=_shown_filter(said))
        provider = said.get("provider") or ""
        if said.get("dryRun") is True:
            self.drop_act()
            count, sample = await self.bulk.preview(action, wanted, provider)
            told = {"count": count.count, "isExact": count.is_exact, "sample": sample}
            self.reply(told | {"until": to_timestamp(wanted.until)})
            return
        with self.tracing.request(self):
            chunk = await self.bulk.run(
                action,
                wanted,
                after=after,
                seconds=said.get("seconds", 0),
                request_id=self.request_id,
                provider=provider,
                replaces=said.get("replace") is True,
                limit=said.get("limit") or CHUNK,
            )
            refused = [{"jobId": job_id, "message": message} for job_id, message in chunk.refused[:REFUSED_AT_MOST]]
            self.change_act(count=chunk.done)
            counts = {"done": chunk.done, "skipped": chunk.skipped, "refused": refused}
            self.reply(counts | _onward(chunk.next_after))


def read_filter(query: Query) -> JobQuery:
    """Return which jobs a query is about; what is wrong with it is noted there."""
    state = query.choice("state", (*JobState, AGAIN))
    words = (query.text("q", SEARCH, f"Must have at most {MAX_SEARCH_LENGTH} characters") or "").split()
    if len(words) > WORDS_AT_MOST:
        query.fault("q", f"Must have at most {WORDS_AT_MOST} words")
    return JobQuery(
        state=JobState(state) if state in tuple(JobState) else None,
        user_id=query.text("user", USER_ID, "Must be a user's id"),
        category=query.text("category", CATEGORY, "Must be the name of a category"),
        provider=query.text("provider", PROVIDER, "Must be the name of a provider"),
        failure=query.text("failure", FINGERPRINT, "Must be the failure of a job or a group"),
        words=tuple(words),
        since=query.instant("from"),
        until=query.instant("to"),
        is_again=state == AGAIN,
    )


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds; ValidationError when it holds none."""
    try:
        said = json.loads(body) if len(body) <= MAX_BODY_BYTES else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ValidationError.of("body", f"Must be a JSON object of at most {MAX_BODY_BYTES} bytes")
    return said


def bulk_faults(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the body of a bulk request, without the values of its filter."""
    # A name that is not known may be a filter that was meant to leave jobs out.
    yield from ((_shown_name(name), "Is not known here") for name in said if name not in BULK_FIELDS)
    action, given = said.get("action"), said.get("filter", {})
    if action not in tuple(Action):
        yield "action", f"Must be one of: {', '.join(Action)}"
    if not isinstance(given, dict):
        yield "filter", "Must be an object"
        return
    for name, value in given.items():
        if name not in FILTERS:
            yield _shown_name(name), f"Must be one of: {', '.join(FILTERS)}"
        elif value is not None and not isinstance(value, str):
            yield name, "Must be a text"
    for name in ("dryRun", "all", "replace"):
        if not isinstance(said.get(name, False), bool):
            yield name, "Must be true or false"
    if said.get("provider") is not None and not (isinstance(said["provider"], str) and action == Action.REANALYZE):
        yield "provider", "Must be the name of a provider that is to reanalyze"
    yield from _faults_of_run(said)


def _faults_of_run(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    is_run = said.get("dryRun") is not True
    if said.get("cursor") is not None and not isinstance(said["cursor"], str):
        yield "cursor", "Must be a text"
    # An empty one would let a run go on to jobs that the dry run has not counted.
    until = said.get("until")
    if (until is None and is_run) or not (until is None or (isinstance(until, str) and until)):
        yield "until", "Must be that of the reply to a dry run"
    if not _is_number(said.get("limit", 1)):
        yield "limit", "Must be a number from 1"
    is_needed = is_run and said.get("action") == Action.POSTPONE
    if not _is_number(said.get("seconds", None if is_needed else 1), LONGEST_POSTPONEMENT_SECONDS):
        yield "seconds", f"Must be a number from 1 to {LONGEST_POSTPONEMENT_SECONDS}"


def _is_number(value: Any, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _texts(said: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of a bulk request as a query has them."""
    given = said.get("filter")
    named = {name: value for name, value in given.items() if name in FILTERS} if isinstance(given, dict) else {}
    named |= {name: said.get(name) for name in ("cursor", "until")}
    return {name: value for name, value in named.items() if isinstance(value, str) and value}


def _shown_filter(said: Mapping[str, Any]) -> str:
    """Return which jobs a bulk request is about, as the audit list has it."""
    wanted = said.get("filter") or {}
    texts = [f"{name}={wanted[name]}" for name in FILTERS if wanted.get(name)]
    by = f" by {said['provider']}" if said.get("provider") else ""
    return clean((" ".join(texts) or "all") + by)[:MAX_TARGET_LENGTH]


def _shown_name(name: str) -> str:
    return clean(name)[:MAX_SEARCH_LENGTH] or "body"


def _onward(next_after: Position | None) -> dict[str, str | None]:
    """Return where a list goes on, and when what was looked at last was created."""
    if next_after is None:
        return {"nextCursor": None, "searchedTo": None}
    return {"nextCursor": encode_cursor(*next_after), "searchedTo": to_timestamp(next_after[0])}


def _job_id(text: str) -> str:
    if not JOB_ID.fullmatch(text) and not ASSET_ID.fullmatch(text):
        raise ValidationError.of("jobId", "Must be 24 hex digits, as such or behind ai-processing:")
    return text.lower()
