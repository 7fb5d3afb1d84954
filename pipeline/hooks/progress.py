"""The `progress` argument of `analyze`: reports progress from the event loop or from a thread."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

from pipeline.hooks.checks import attribute_fault
from pipeline.hooks.provider_protocol import Attribute
from pipeline.texts import clean

FIELDS = ("brand", "model", "colorway")
# Called on the event loop with the share that is done and the results so far.
OnReport = Callable[[float | None, Mapping[str, Attribute]], None]


def takes_progress(analyze: Callable[..., Any]) -> bool:
    """Return whether a provider's `analyze` takes `progress` beside the request."""
    try:
        return "progress" in inspect.signature(analyze).parameters
    except (TypeError, ValueError):
        return False


class ProgressReports:
    """The `progress` of one call of `analyze`. Made on the event loop."""

    def __init__(self, on_report: OnReport = lambda share, partial: None) -> None:
        self._on_report = on_report
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        # The reports of a thread that wait for the loop: the first and the last.
        self._waiting: list[tuple[float | None, Mapping[str, Attribute]]] = []
        self._lock = threading.Lock()
        self._is_over = False

    def __call__(self, share: float | None = None, **partial: Attribute) -> Awaitable[None]:
        """Report progress: see Progress in provider_protocol.py."""
        if share is not None:
            # An int may be too large for a float.
            is_number = isinstance(share, int) or (isinstance(share, float) and math.isfinite(share))
            if isinstance(share, bool) or not is_number:
                raise ValueError(f"progress got a share of {share!r}, which is not a number")
            share = float(min(max(share, 0), 1))
        for name, attribute in partial.items():
            if name not in FIELDS:
                raise TypeError(f"progress got {name!r}, which is none of {', '.join(FIELDS)}")
            if fault := attribute_fault(attribute):
                raise ValueError(f"progress got a {name} that {fault}")
        # As in a result: without terminal escapes.
        partial = {name: replace(each, value=clean(each.value).strip()) for name, each in partial.items()}
        if threading.get_ident() == self._thread:
            self._report(share, partial)
        else:
            self._hand_over(share, partial)
        return _Done()

    def end(self) -> None:
        """Ignore later reports: the call is over, though its thread may still run."""
        self._is_over = True

    def _hand_over(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        """Pass a thread's report to the loop, with at most one waiting callback however many reports there are."""
        with self._lock:
            del self._waiting[1:]
            self._waiting.append((share, partial))
            is_first = len(self._waiting) == 1
        if is_first and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._report_waiting)

    def _report_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for share, partial in waiting:
            self._report(share, partial)

    def _report(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        if not self._is_over:
            self._on_report(share, partial)


class _Done:
    """An awaitable that may also be ignored."""

    def __await__(self) -> Generator[None, None, None]:
        # Gives other tasks a chance to run: a provider may report in a tight loop.
        yield
