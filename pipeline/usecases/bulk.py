"""Use case: an operator does the same with all jobs that a filter finds: retry, cancel, postpone, analyze again.

First a dry run tells how many there are. Then one chunk after the other is done, newest first; each begins where the
one before ended, and jobs that were created after the dry run are left alone. To repeat a chunk does no harm: a job
with which it has been done is no longer one that it could be done with; one that is analyzed again could be once more
when that is over. Runs on the event loop.
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
from pipeline.assets.job_search import Count, Position
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
# A chunk that takes longer ends early: its caller goes on from there.
CHUNK_SECONDS = 5.0
REFUSED_AT_MOST, SAMPLE = 20, 5


class Action(StrEnum):
    """What may be done with many jobs. resume undoes postpone, and keep undoes reanalyze."""

    RETRY = "retry"
    CANCEL = "cancel"
    POSTPONE = "postpone"
    RESUME = "resume"
    DELETE = "delete"
    REANALYZE = "reanalyze"
    KEEP = "keep"


# Whose jobs an action can be done with, and which state alone it is for.
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
    """What became of some jobs. done, skipped: how many; those skipped had moved on. refused: job id and why not."""

    done: int = 0
    skipped: int = 0
    refused: Sequence[tuple[str, str]] = field(default_factory=tuple)
    next_after: Position | None = None


class Bulk:
    """Does one action with many jobs."""

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

    async def preview(
        self, action: Action, query: JobQuery, provider: str = ""
    ) -> tuple[Count, list[dict[str, Any]]]:
        """Return how many jobs the action is for, and some of them. provider: see `run`."""
        self._reanalysis.check(provider)
        query = narrowed(action, query)
        found = await self._lists.search(query, limit=SAMPLE)
        return await self._lists.count(query), await self._lists.views.shown(found.assets, found.records)

    async def run(
        self,
        action: Action,
        query: JobQuery,
        *,
        after: Position | None,
        seconds: int,
        request_id: str,
        provider: str = "",
        replaces: bool = False,
        limit: int = CHUNK,
    ) -> Chunk:
        """Do it with up to `limit` jobs, CHUNK at most.

        after: `next_after` of the chunk before. seconds: for how long to postpone. provider: which one is to analyze
        again, "" for those of each category. replaces: the new result counts also when it tells less.

        DependencyUnavailable: with some of them it may have been done.
        """
        self._reanalysis.check(provider)
        # Of an asset that is analyzed again only that ends.
        act = self._act(Action.KEEP if query.is_reanalysis else action, seconds, request_id, provider, replaces)
        page = await self._lists.search(narrowed(action, query), limit=min(limit, CHUNK), after=after)
        answers = await _answers(act, page.assets)
        refused = [(asset.processing_job_id, why) for asset, why in zip(page.assets, answers, strict=False) if why]
        is_whole = len(answers) == len(page.assets)
        last = page.assets[len(answers) - 1] if answers else None
        chunk = Chunk(
            done=answers.count(None),
            skipped=answers.count(""),
            refused=refused,
            next_after=page.next_after if is_whole or last is None else page.position_of(last),
        )
        log.info("jobs_changed", action=action.value, done=chunk.done, skipped=chunk.skipped, refused=len(refused))
        return chunk

    async def retry(self, asset: Asset, request_id: str) -> Receipt:
        """Give a failed or partial asset a new job, which settles its dead letter; NotFound or Conflict otherwise."""
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
        """Return what does the action with one asset. It returns False for one that has moved on."""
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
    """Return the query without jobs that the action cannot be done with; ValidationError when none is left."""
    if query.is_reanalysis and action in (Action.CANCEL, Action.KEEP):
        return query
    statuses, state = ELIGIBLE[action]
    possible = STATUSES[query.state] or tuple(AssetStatus)
    if query.is_reanalysis or not set(possible) & set(statuses) or (state and query.state not in (None, state)):
        raise ValidationError.of("state", f"There is nothing to {action.value} in this state")
    return replace(
        query, statuses=statuses, state=state or query.state, is_postponed=action is Action.RESUME
    )


async def _answers(act: Callable[[Asset], Awaitable[object]], assets: Sequence[Asset]) -> list[str | None]:
    """Return what became of each, as `_answer` does; of fewer when the time of a chunk is over."""
    ends_at = time.monotonic() + CHUNK_SECONDS
    answers: list[str | None] = []
    while len(answers) < len(assets) and time.monotonic() <= ends_at:
        some = assets[len(answers) : len(answers) + AT_ONCE]
        answers += await asyncio.gather(*(_answer(act, asset) for asset in some))
    return answers


async def _answer(act: Callable[[Asset], Awaitable[object]], asset: Asset) -> str | None:
    """Return None when it was done, "" when the job had moved on, else why not."""
    try:
        return "" if await act(asset) is False else None
    except NotFound:
        return ""
    except Conflict as error:
        return error.message
