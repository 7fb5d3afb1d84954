"""Reads which jobs a request means: the filter in a query, and the body of a bulk request. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.assets.failures import FINGERPRINT
from pipeline.auth import USER_ID
from pipeline.errors import ValidationError
from pipeline.handlers.query import Query
from pipeline.queue.job import JobState
from pipeline.queue.queue import LONGEST_POSTPONEMENT_SECONDS
from pipeline.settings import CATEGORY
from pipeline.texts import clean
from pipeline.usecases.bulk import Action
from pipeline.usecases.job_lists import REANALYSES, JobQuery

PROVIDER = re.compile(r"[\x21-\x7e]{1,100}", re.ASCII)
MAX_WORDS, MAX_SEARCH_LENGTH = 10, 200
SEARCH = re.compile(rf".{{0,{MAX_SEARCH_LENGTH}}}", re.DOTALL)
FILTERS = ("state", "user", "category", "provider", "failure", "q", "from", "to")
BULK_FIELDS = ("action", "filter", "all", "dryRun", "cursor", "until", "seconds", "provider", "replace", "limit")
MAX_BODY_BYTES = 16 * 1024


def read_filter(query: Query) -> JobQuery:
    """Return the filter in a query; its faults are added to the query."""
    state = query.choice("state", (*JobState, REANALYSES))
    words = (query.text("q", SEARCH, f"Must have at most {MAX_SEARCH_LENGTH} characters") or "").split()
    if len(words) > MAX_WORDS:
        query.fault("q", f"Must have at most {MAX_WORDS} words")
    return JobQuery(
        state=JobState(state) if state in tuple(JobState) else None,
        user_id=query.text("user", USER_ID, "Must be a user's id"),
        category=query.text("category", CATEGORY, "Must be the name of a category"),
        provider=query.text("provider", PROVIDER, "Must be the name of a provider"),
        failure=query.text("failure", FINGERPRINT, "Must be the failure of a job or a group"),
        words=tuple(words),
        since=query.instant("from"),
        until=query.instant("to"),
        is_reanalysis=state == REANALYSES,
    )


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; ValidationError when there is none."""
    try:
        given = json.loads(body) if len(body) <= MAX_BODY_BYTES else None
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise ValidationError.of("body", f"Must be a JSON object of at most {MAX_BODY_BYTES} bytes")
    return given


def bulk_faults(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the faults of a bulk request, field and message; the values of its filter are checked by read_filter."""
    # An unknown name may be a misspelled filter: without it the request would change more jobs.
    yield from ((_shown_name(name), "Is not known here") for name in body if name not in BULK_FIELDS)
    action, given = body.get("action"), body.get("filter", {})
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
        if not isinstance(body.get(name, False), bool):
            yield name, "Must be true or false"
    if body.get("provider") is not None and not (isinstance(body["provider"], str) and action == Action.REANALYZE):
        yield "provider", "Must be the name of a provider that is to reanalyze"
    yield from _faults_of_run(body)


def _faults_of_run(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    is_run = body.get("dryRun") is not True
    if body.get("cursor") is not None and not isinstance(body["cursor"], str):
        yield "cursor", "Must be a text"
    # Without it a run would include jobs that the dry run has not counted.
    until = body.get("until")
    if (until is None and is_run) or not (until is None or (isinstance(until, str) and until)):
        yield "until", "Must be that of the reply to a dry run"
    if not _is_number(body.get("limit", 1)):
        yield "limit", "Must be a number from 1"
    is_needed = is_run and body.get("action") == Action.POSTPONE
    if not _is_number(body.get("seconds", None if is_needed else 1), LONGEST_POSTPONEMENT_SECONDS):
        yield "seconds", f"Must be a number from 1 to {LONGEST_POSTPONEMENT_SECONDS}"


def _is_number(value: Any, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def query_texts(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the filter, the cursor and `until` of a bulk request as parameters of a query."""
    given = body.get("filter")
    named = {name: value for name, value in given.items() if name in FILTERS} if isinstance(given, dict) else {}
    named |= {name: body.get(name) for name in ("cursor", "until")}
    return {name: value for name, value in named.items() if isinstance(value, str) and value}


def shown_filter(body: Mapping[str, Any]) -> str:
    """Return the filter of a bulk request as a text for the audit list."""
    wanted = body.get("filter") or {}
    texts = [f"{name}={wanted[name]}" for name in FILTERS if wanted.get(name)]
    by = f" by {body['provider']}" if body.get("provider") else ""
    return clean((" ".join(texts) or "all") + by)


def _shown_name(name: str) -> str:
    return clean(name)[:MAX_SEARCH_LENGTH] or "body"
