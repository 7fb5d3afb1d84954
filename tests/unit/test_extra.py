"""What else a provider has to say is kept as it is, when it is JSON of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.assets.asset import AiMetadata
from pipeline.assets.asset_parts import ai_metadata_document
from pipeline.hooks import Analysis
from pipeline.hooks.checks import cleaned, find_fault
from tests.fake_plugins import ManagerFactory, make_analysis, make_module, make_request

NOT_JSON = "extra has a value that JSON cannot represent"
NO_TEXT = "extra has a name that is not a text"
COMMAND = "extra has a name that begins with $"
TOO_DEEP = "extra has more than 10 levels"
TOO_LARGE = "extra has more than 8192 bytes"
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]
CIRCLE: list[Any] = []
CIRCLE.extend([CIRCLE] * 10)

UNKEEPABLE: dict[str, tuple[Any, str]] = {
    "no mapping": ([], "extra is list, not a mapping"),
    "nothing": (None, "extra is NoneType, not a mapping"),
    "too large": ({"text": "x" * 8192}, TOO_LARGE),
    "too large in UTF-8": ({"text": "é" * 5000}, TOO_LARGE),
    "too many": ({"list": [0] * 1_000_000}, TOO_LARGE),
    "no number": ({"share": float("nan")}, NOT_JSON),
    "infinite": ({"deep": [{"share": float("-inf")}]}, NOT_JSON),
    "bytes": ({"photo": b"bytes"}, NOT_JSON),
    "a set": ({"names": {1, 2}}, NOT_JSON),
    "half a character": ({"half": "\ud800"}, NOT_JSON),
    "too deep": ({"deep": DEEP}, TOO_DEEP),
    "a circle": ({"deep": CIRCLE}, TOO_DEEP),
    "a number as a name": ({"names": {1: "one"}}, NO_TEXT),
    "a command": ({"a": [{"$where": 1}]}, COMMAND),
    "a hidden command": ({"\x1b[31m$ref": 1, "$id": 2}, COMMAND),
    "large number": ({"large": 2**63}, "extra has an integer of more than 64 bits"),
}
of_unkeepable = pytest.mark.parametrize(("extra", "fault"), UNKEEPABLE.values(), ids=list(UNKEEPABLE))


class Size(IntEnum):
    """A number with a name."""

    LARGE = 3


@pytest.fixture
def managers(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """Managers that are closed after the test."""
    managers = ManagerFactory()
    yield managers
    io_loop.run_sync(managers.close)


@pytest.mark.fault("U24")
def test_extra_is_cleaned_like_other_texts() -> None:
    """Terminal escapes and control characters are gone from names and texts, however deep; numbers stay."""
    analysis = Analysis(extra={"te\x1b[31mxt": ["AC\x00ME", {"size": 1.5, "is new": None}]})

    assert find_fault(analysis) is None
    assert cleaned(analysis).extra == {"text": ["ACME", {"size": 1.5, "is new": None}]}
    assert ai_metadata_document(AiMetadata(extra=cleaned(analysis).extra))["extra"] == cleaned(analysis).extra


def test_extra_is_kept_as_plain_values() -> None:
    """Whatever classes the provider uses: a store may know none of them."""
    extra = cleaned(Analysis(extra=MappingProxyType({"size": Size.LARGE, "sides": (1, 2)}))).extra
    assert extra == {"size": 3, "sides": [1, 2]}
    assert [type(each) for each in (extra, extra["size"], extra["sides"])] == [dict, int, list]


@pytest.mark.fault("U24")
@of_unkeepable
def test_extra_that_cannot_be_kept_is_the_providers_fault(extra: Any, fault: str) -> None:
    """What no store could keep is refused in words for the provider's author."""
    assert find_fault(Analysis(extra=extra)) == fault


@of_unkeepable
@pytest.mark.gen_test
async def test_extra_that_cannot_be_kept_is_left_out(managers: ManagerFactory, extra: Any, fault: str) -> None:
    """The result stands with its picture; log and metric name the provider, the log the reason."""
    found = replace(make_analysis(), extra=extra, processed_image_url="https://images.example/x.png")
    manager = managers.open(providers={"odd": lambda request: found})
    with capture_logs() as logs:
        analysis = await manager.analyze(make_request(), no_image)
    assert analysis == replace(found, extra={})
    assert [(each["plugin"], each["reason"]) for each in logs if each["event"] == "extra_refused"] == [("odd", fault)]
    assert managers.count("pipeline_plugin_errors_total", "provider", "odd") == 1


@pytest.mark.gen_test
async def test_extra_of_a_filter_that_cannot_be_kept_is_the_filters_failure(managers: ManagerFactory) -> None:
    """The analysis stays as it was before the filter."""

    def transform(analysis: Analysis) -> Analysis:
        return replace(analysis, extra={"share": float("nan")})

    manager = managers.open(make_module("odd", transform_analysis=transform))
    with capture_logs() as logs:
        assert await manager.analyze(make_request(), no_image) == make_analysis()
    assert [each["hook"] for each in logs if each["event"] == "hook_failed"] == ["transform_analysis"]


async def no_image() -> bytes:
    """Nobody asks for the photo."""
    raise AssertionError("not needed")
