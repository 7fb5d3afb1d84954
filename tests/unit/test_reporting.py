"""The argument `progress` of `analyze`, with which a provider reports its progress."""

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
Reports = list[tuple[float | None, Mapping[str, Attribute]]]


def make_reporting() -> tuple[ProgressReports, Reports]:
    """Return a `progress` object and the list of the reports that it sends."""
    sent: Reports = []
    return ProgressReports(lambda share, partial: sent.append((share, partial))), sent


@pytest.mark.gen_test
async def test_reports_of_the_loop_and_of_threads_are_sent_until_the_call_ends() -> None:
    """A report may be awaited or not; a share is limited to 0 to 1; reports after the call are dropped."""
    reporting, sent = make_reporting()
    await reporting(share=0.5, brand=NIKE)
    await asyncio.to_thread(reporting, 7)
    reporting(-1)
    reporting(10**400)
    await asyncio.sleep(0)
    reporting.end()
    await reporting(share=0.9)
    assert sent == [(0.5, {"brand": NIKE}), (1.0, {}), (0.0, {}), (1.0, {})]


@pytest.mark.fault("P11")
@pytest.mark.gen_test
async def test_report_contains_no_control_characters() -> None:
    """Partial values are shown to users like a result, so characters that control a terminal are removed."""
    reporting, sent = make_reporting()
    await reporting(brand=Attribute("\x1b[31mNi\u202eke\x00 ", 0.5))
    assert sent == [(None, {"brand": NIKE})]


@pytest.mark.gen_test
async def test_thread_with_many_reports_does_not_overload_the_loop() -> None:
    """Of the reports made while the loop is busy only the first and the last are sent, in this order."""
    reporting, sent = make_reporting()

    def report() -> None:
        reporting(0, brand=NIKE)
        for number in range(1, 10_001):
            reporting(number / 10_000)

    thread = threading.Thread(target=report)
    thread.start()
    thread.join()  # the loop is busy during this time
    await asyncio.sleep(0)
    assert sent == [(0.0, {"brand": NIKE}), (1.0, {})]
    await asyncio.to_thread(reporting, 0.5)
    await asyncio.sleep(0)
    assert sent[2:] == [(0.5, {})]


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
async def test_invalid_report_is_refused(share: Any, partial: Any, message: str) -> None:
    """The author of a plugin gets an error that names the fault, and no report is sent."""
    reporting, sent = make_reporting()
    with pytest.raises((TypeError, ValueError), match=message):
        reporting(share, **partial)
    assert sent == []


def test_analyze_with_a_progress_parameter_reports() -> None:
    """A provider reports its progress if `analyze` has a parameter named `progress`, with any default."""

    class Silent:
        async def analyze(self, request: Any) -> None: ...

    class Reporting:
        def analyze(self, request: Any, progress: Any = None) -> None: ...

    assert [takes_progress(each.analyze) for each in (Silent(), Reporting())] == [False, True]
    assert not takes_progress(dict.__init__)


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.gen_test
async def test_progress_is_passed_by_name(is_async: bool) -> None:
    """`progress` may be at any position among the parameters, also keyword-only."""

    class Provider:
        def analyze(self, request: Any, more: int = 0, *, progress: Any) -> Any:
            return self.report_later(request, progress) if is_async else progress(request / 4)

        async def report_later(self, request: Any, progress: Any) -> None:
            await progress(request / 4)

    reporting, sent = make_reporting()
    provider = Provider()
    plugin = BoundPlugin("provider", "named", provider, {"analyze": provider.analyze}, threads=1, metrics=Metrics())
    try:
        await plugin.call("analyze", 5, 2, keywords={"progress": reporting})
        await asyncio.sleep(0)
    finally:
        await plugin.close()
    assert sent == [(0.5, {})]
