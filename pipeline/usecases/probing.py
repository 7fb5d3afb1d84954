"""Whether something the process leans on can be used, asked within a time limit: readiness and the overview ask so.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter

import structlog

from pipeline.errors import PipelineError
from pipeline.logs import Seldom
from pipeline.texts import cause_of, clean

log = structlog.get_logger(__name__)

CHECK_SECONDS = 2.0


class CheckLog:
    """Tells the log when the outcome of a check changes, for each check at most once a minute: anybody may have checks
    made, as often as they like.
    """

    def __init__(self) -> None:
        self._failing: set[str] = set()
        self._seldom = Seldom()

    def note(self, name: str, cause: str | None) -> None:
        """Take the outcome of a check. cause: of its failure, None when it passed."""
        if cause is not None and name not in self._failing:
            self._failing.add(name)
            self._seldom.write(log.warning, "check_failed", name, dependency=name, error=cause)
        elif cause is None and name in self._failing:
            self._failing.discard(name)
            self._seldom.write(log.info, "check_passed", name, dependency=name)


async def probe(name: str, check: Callable[[], Awaitable[None]], told: CheckLog) -> tuple[str | None, float]:
    """Return why a dependency is not usable, or None, and how many milliseconds the check took.

    check: returns when the dependency is usable and raises otherwise. The words hold no secret.
    told: hears of the outcome.
    """
    started = perf_counter()
    fault, cause = await _fault(check)
    told.note(name, cause)
    return fault, round((perf_counter() - started) * 1000, 1)


async def _fault(check: Callable[[], Awaitable[None]]) -> tuple[str | None, str | None]:
    """Return what is wrong in words for anybody, None when nothing is; and the cause for the log."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except PipelineError as error:
        message = clean(error.message)
        return message if error.__cause__ is None else f"{message} ({cause_of(error)})", cause_of(error)
    except TimeoutError:
        fault = f"No answer within {CHECK_SECONDS:g} s"
        return fault, fault
    except Exception as error:  # a plugin's check may raise anything, with anything in its text
        return f"Check failed ({cause_of(error)})", cause_of(error)
    return None, None
