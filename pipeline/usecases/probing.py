"""Whether something the process leans on can be used, asked within a time limit: readiness and the overview ask so.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter

import structlog

from pipeline.errors import PipelineError
from pipeline.texts import cause_of, clean

log = structlog.get_logger(__name__)

CHECK_SECONDS = 2.0


async def probe(name: str, check: Callable[[], Awaitable[None]]) -> tuple[str | None, float]:
    """Return why a dependency is not usable, or None, and how many milliseconds the check took.

    check: returns when the dependency is usable and raises otherwise. The words hold no secret.
    """
    started = perf_counter()
    fault = await _fault(name, check)
    return fault, round((perf_counter() - started) * 1000, 1)


async def _fault(name: str, check: Callable[[], Awaitable[None]]) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except PipelineError as error:
        log.warning("check_failed", dependency=name, error=cause_of(error))
        message = clean(error.message)
        return message if error.__cause__ is None else f"{message} ({cause_of(error)})"
    except TimeoutError:
        return f"No answer within {CHECK_SECONDS:g} s"
    except Exception as error:  # a plugin's check may raise anything, with anything in its text
        log.warning("check_failed", dependency=name, error=cause_of(error))
        return f"Check failed ({cause_of(error)})"
    return None
