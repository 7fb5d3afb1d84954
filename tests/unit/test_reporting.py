"""The `progress` that an analyze is handed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.hooks import Attribute
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.progress import ProgressReports, takes_progress
from pipeline.metrics import Metrics

NIKE = Attribute("Nike", 0.5)
Told = list[tuple[float | None, Mapping[str, Attribute]]]


def make_reporting() -> tuple[ProgressReports, Told]:
    told: Told = []
    return ProgressReports(lambda share, partial: told.append((share, partial))), told


@pytest.mark.gen_test
async def test_reports_come_from_the_loop_and_from_threads_until_the_call_is_over() -> None:
    """Awaited or not; a share beyond the ends is the end; whatever is reported after the call is dropped."""
    reporting, told = make_reporting()
    await reporting(share=0.5, brand=NIKE)
    await asyncio.to_thread(reporting, 7)
    reporting(-1)
    reporting(10**400)
    await asyncio.sleep(0)
    reporting.end()
    await reporting(share=0.9)
    assert told == [(0.5, {"brand": NIKE}), (1.0, {}), (0.0, {}), (1.0, {})]


@pytest.mark.fault("P11")
@pytest.mark.gen_test
async def test_what_steers_a_terminal_is_not_reported() -> None:
    """What has been found so far is shown to people as a result is."""
    reporting, told = make_reporting()
    await reporting(brand=Attribute("\x1b[31mNi\u202eke\x00 ", 0.5))
    assert told == [(None, {"brand": NIKE})]


@pytest.mark.gen_test
async def test_thread_that_reports_without_end_does_not_crowd_the_loop() -> None:
    """Of what it reports while the loop is busy the first and the last report are told, in that order."""
    reporting, told = make_reporting()

    def report() -> None:
        reporting(0, brand=NIKE)
        for number in range(1, 10_001):
            reporting(number / 10_000)

    thread = threading.Thread(target=report)
    thread.start()
    thread.join()  # the loop is busy all the while
    await asyncio.sleep(0)
    assert told == [(0.0, {"brand": NIKE}), (1.0, {})]
    await asyncio.to_thread(reporting, 0.5)
    await asyncio.sleep(0)
    assert told[2:] == [(0.5, {})]


@pytest.mark.parametrize(
    ("share", "partial", "message"),
    [
        ("half", {}, "share of 'half'"),
        (float("nan"), {}, "share of nan"),
        (True, {}, "share of True"),
        (0.5, {"brand": "Nike"}, "a brand that is str"),
        (0.5, {"brand": Attribute("x" * 1001, 1)}, "at most 1000 characters"),
        (0.5, {"price": NIKE}, "'price', which is none of brand, model, colorway"),
    ],
)
@pytest.mark.gen_test
async def test_what_is_no_report_is_refused(share: Any, partial: Any, message: str) -> None:
    """The author of a plugin hears what is wrong, and nothing is told."""
    reporting, told = make_reporting()
    with pytest.raises((TypeError, ValueError), match=message):
        reporting(share, **partial)
    assert told == []


def test_analyze_says_by_a_parameter_that_it_reports() -> None:
    """Named `progress`, whatever its default."""

    class Silent:
        async def analyze(self, request: Any) -> None: ...

    class Reports:
        def analyze(self, request: Any, progress: Any = None) -> None: ...

    assert [takes_progress(each.analyze) for each in (Silent(), Reports())] == [False, True]
    assert not takes_progress(dict.__init__)


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.gen_test
async def test_progress_is_handed_by_its_name(is_async: bool) -> None:
    """Wherever it stands among the parameters: an author may well make it one that has to be named."""

    class Provider:
        def analyze(self, request: Any, more: int = 0, *, progress: Any) -> Any:
            return self.told(request, progress) if is_async else progress(request / 4)

        async def told(self, request: Any, progress: Any) -> None:
            await progress(request / 4)

    reporting, told = make_reporting()
    provider = Provider()
    plugin = BoundPlugin("provider", "named", provider, {"analyze": provider.analyze}, threads=1, metrics=Metrics())
    try:
        await plugin.call("analyze", 5, 2, keywords={"progress": reporting})
        await asyncio.sleep(0)
    finally:
        await plugin.close()
    assert told == [(0.5, {})]
