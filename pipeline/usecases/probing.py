"""Whether something the process depends on can be used, asked within a time limit.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter

from pipeline.errors import PipelineError
from pipeline.texts import cause_of, clean

CHECK_SECONDS = 2.0

Check = Callable[[], Awaitable[None]]


async def probe(check: Check, seconds: float = CHECK_SECONDS) -> tuple[str | None, float]:
    """Return why a dependency is not usable, or None, and how many milliseconds the check took.

    check: returns when the dependency is usable and raises otherwise. The words hold no secret.
    """
    started = perf_counter()
    fault = await _fault(check, seconds)
    return fault, round((perf_counter() - started) * 1000, 1)


async def _fault(check: Check, seconds: float) -> str | None:
    try:
        async with asyncio.timeout(seconds):
            await check()
    except PipelineError as error:
        message = clean(error.message)
        return message if error.__cause__ is None else f"{message} ({cause_of(error)})"
    except TimeoutError:
        return f"No answer within {seconds:g} s"
    except Exception as error:  # a plugin's check may raise anything, with anything in its text
        return f"Check failed ({cause_of(error)})"
    return None
