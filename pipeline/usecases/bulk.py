"""Use case: an operator applies one action to all jobs that match a filter: retry, cancel, postpone, analyze again.

First a dry run returns how many jobs there are. Then the jobs are changed in chunks, newest first; each chunk begins
where the one before ended, and jobs that were created after the dry run are not changed. A chunk can be repeated: the
action is no longer possible for a job that it has changed. Only a reanalysis is possible again when it has ended. Runs
on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import structlog

from pipeline.assets.asset import FINISHED, Asset, AssetStatus
from pipeline.assets.job_search import Count, Cursor
from pipeline.errors import Conflict, DependencyUnavailable, NotFound, ValidationError
from pipeline.queue.job import JobState
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.usecases.cancelling import Cancelling
from pipeline.usecases.dead_letters import DeadLetters
from pipeline.usecases.job_lists import STATUSES, JobLists, JobQuery
from pipeline.usecases.reanalysis import Reanalysis
from pipeline.usecases.removing import Removing
from pipeline.usecases.submission import Receipt, Submission

log = structlog.get_logger(__name__)

CHUNK, AT_ONCE = 200, 20
# A chunk that takes longer ends early: its caller continues from there.
CHUNK_SECONDS = 5.0
REFUSED_AT_MOST, SAMPLE = 20, 5


class Action(StrEnum):
    """The actions. resume undoes postpone, and keep undoes reanalyze."""

    RETRY = "retry"
    CANCEL = "cancel"
    POSTPONE = "postpone"
    RESUME = "resume"
    DELETE = "delete"
    REANALYZE = "reanalyze"
    KEEP = "keep"


# The statuses of assets whose jobs an action can change, and the state that these jobs must have (None: any).
ELIGIBLE: Mapping[Action, tuple[Sequence[AssetStatus], JobState | None]] = {
    Action.RETRY: ((AssetStatus.FAILED, AssetStatus.PARTIAL), None),
    Action.CANCEL: ((AssetStatus.PROCESSING,), None),
    Action.POSTPONE: ((AssetStatus.PROCESSING,), JobState.WAITING),
    Action.RESUME: ((AssetStatus.PROCESSING,), JobState.DELAYED),
    Action.DELETE: (tuple(AssetStatus), None),
    **dict.fromkeys((Action.REANALYZE, Action.KEEP), (tuple(sorted(FINISHED)), None)),
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """The outcome of a chunk.

    done: how many jobs were changed
    skipped: how many had another state by then
    refused: job id and reason
    """

    done: int = 0
    skipped: int = 0
    refused: Sequence[tuple[str, str]] = field(default_factory=tuple)
    next_after: Cursor | None = None


class Bulk:
    """Applies an action to many jobs."""

    def __init__(
        self,
        lists: JobLists,
        queue: JobQueue,
        submission: Submission,
        dead_letters: DeadLetters,
        *,
        cancelling: Cancelling,
        removing: Removing,
        reanalysis: Reanalysis,
    ) -> None:
        self._dead_letters = dead_letters
        self._lists = lists
        self._queue = queue
        self._submission = submission
        self._cancelling = cancelling
        self._removing = removing
        self._reanalysis = reanalysis

    async def preview(self, action: Action, query: JobQuery, provider: str = "") -> tuple[Count, list[dict[str, Any]]]:
        """Return how many jobs the action would change, and some of them.

        provider: see `run`
        """
        self._reanalysis.check(provider)
        query = narrowed(action, query)
        page = await self._lists.search(query, limit=SAMPLE)
        return await self._lists.count(query), await self._lists.views.shown(page.assets, page.records)

    async def run(
        self,
        action: Action,
        query: JobQuery,
        *,
        after: Cursor | None,
        seconds: int,
        request_id: str,
        provider: str = "",
        replaces: bool = False,
        limit: int = CHUNK,
    ) -> Chunk:
        """Apply the action to up to `limit` jobs, CHUNK at most.

        after: `next_after` of the chunk before
        seconds: for how long to postpone
        provider: the one to analyze again, "" for that of each category
        replaces: the new result counts even if it is less complete
        DependencyUnavailable: some of the jobs may have been changed
        """
        self._reanalysis.check(provider)
        # A filter for reanalyses: only the reanalysis ends, not the asset's job.
        act = self._act(Action.KEEP if query.is_reanalysis else action, seconds, request_id, provider, replaces)
        page = await self._lists.search(narrowed(action, query), limit=min(limit, CHUNK), after=after)
        answers = await _answers(act, page.assets)
        refused = [
            (asset.processing_job_id, reason) for asset, reason in zip(page.assets, answers, strict=False) if reason
        ]
        is_complete = len(answers) == len(page.assets)
        last = page.assets[len(answers) - 1] if answers else None
        chunk = Chunk(
            done=answers.count(None),
            skipped=answers.count(""),
            refused=refused,
            next_after=page.next_after if is_complete or last is None else page.position_of(last),
        )
        log.info("jobs_changed", action=action.value, done=chunk.done, skipped=chunk.skipped, refused=len(refused))
        return chunk

    async def retry(self, asset: Asset, request_id: str) -> Receipt:
        """Give a failed or partial asset a new job and remove its dead letter; NotFound or Conflict otherwise."""
        receipt = await self._submission.retry(asset.id, None, request_id)
        try:
            if asset.status is AssetStatus.FAILED:
                await self._dead_letters.remove_failed(asset.processing_job_id)
        except DependencyUnavailable as error:
            log.warning("dead_letter_left", jobId=asset.processing_job_id, cause=cause_of(error))
        return receipt

    def _act(
        self, action: Action, seconds: int, request_id: str, provider: str, replaces: bool
    ) -> Callable[[Asset], Awaitable[object]]:
        """Return the function that applies the action to one asset; it returns False when the job has moved on."""
        return {
            Action.RETRY: lambda asset: self.retry(asset, request_id),
            Action.CANCEL: lambda asset: self._cancelling.cancel(asset.id, None, request_id),
            Action.POSTPONE: lambda asset: self._queue.postpone(asset.processing_job_id, seconds),
            Action.RESUME: lambda asset: self._queue.unpostpone(asset.processing_job_id),
            Action.DELETE: lambda asset: self._removing.delete(asset.id, None),
            Action.REANALYZE: lambda asset: self._reanalysis.request(asset, provider, request_id, replaces=replaces),
            Action.KEEP: self._reanalysis.withdraw,
        }[action]


def narrowed(action: Action, query: JobQuery) -> JobQuery:
    """Restrict the query to jobs that the action can change; ValidationError when there cannot be any."""
    if query.is_reanalysis and action in (Action.CANCEL, Action.KEEP):
        return query
    statuses, state = ELIGIBLE[action]
    possible = STATUSES[query.state] or tuple(AssetStatus)
    if query.is_reanalysis or not set(possible) & set(statuses) or (state and query.state not in (None, state)):
        raise ValidationError.of("state", f"There is nothing to {action.value} in this state")
    return replace(query, statuses=statuses, state=state or query.state, is_postponed=action is Action.RESUME)


async def _answers(act: Callable[[Asset], Awaitable[object]], assets: Sequence[Asset]) -> list[str | None]:
    """Return the outcome for each asset, see `_answer`; for fewer when the time of a chunk is over."""
    ends_at = time.monotonic() + CHUNK_SECONDS
    answers: list[str | None] = []
    while len(answers) < len(assets) and time.monotonic() <= ends_at:
        some = assets[len(answers) : len(answers) + AT_ONCE]
        answers += await asyncio.gather(*(_answer(act, asset) for asset in some))
    return answers


async def _answer(act: Callable[[Asset], Awaitable[object]], asset: Asset) -> str | None:
    """Return None when the job was changed, "" when it had moved on, else the reason of the refusal."""
    try:
        return "" if await act(asset) is False else None
    except NotFound:
        return ""
    except Conflict as error:
        return error.message
