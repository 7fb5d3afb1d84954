"""The field `extra` of an analysis: a provider may return any JSON of bounded size, and the store gets it unchanged."""

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
from tests.unit.provider_chains import no_image

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

INVALID: dict[str, tuple[Any, str]] = {
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
each_invalid = pytest.mark.parametrize(("extra", "fault"), INVALID.values(), ids=list(INVALID))


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
    """Terminal escapes and control characters are removed from names and texts at any depth; numbers stay."""
    analysis = Analysis(extra={"te\x1b[31mxt": ["AC\x00ME", {"size": 1.5, "is new": None}]})

    assert find_fault(analysis) is None
    assert cleaned(analysis).extra == {"text": ["ACME", {"size": 1.5, "is new": None}]}
    assert ai_metadata_document(AiMetadata(extra=cleaned(analysis).extra))["extra"] == cleaned(analysis).extra


def test_extra_is_converted_to_plain_values() -> None:
    """Values of other classes become plain ones, because a store may not know these classes."""
    extra = cleaned(Analysis(extra=MappingProxyType({"size": Size.LARGE, "sides": (1, 2)}))).extra
    assert extra == {"size": 3, "sides": [1, 2]}
    assert [type(each) for each in (extra, extra["size"], extra["sides"])] == [dict, int, list]


@pytest.mark.fault("U24")
@each_invalid
def test_invalid_extra_is_a_fault_of_the_provider(extra: Any, fault: str) -> None:
    """An extra that a store could not store is refused with a message for the author of the provider."""
    assert find_fault(Analysis(extra=extra)) == fault


@each_invalid
@pytest.mark.gen_test
async def test_invalid_extra_is_left_out(managers: ManagerFactory, extra: Any, fault: str) -> None:
    """The result is used without its extra; the log and the metric name the provider, the log the reason."""
    found = replace(make_analysis(), extra=extra, processed_image_url="https://images.example/x.png")
    manager = managers.open(providers={"odd": lambda request: found})
    with capture_logs() as logs:
        analysis = await manager.analyze(make_request(), no_image)
    assert analysis == replace(found, extra={})
    assert [(each["plugin"], each["reason"]) for each in logs if each["event"] == "extra_refused"] == [("odd", fault)]
    assert managers.count("pipeline_plugin_errors_total", "provider", "odd") == 1


@pytest.mark.gen_test
async def test_invalid_extra_of_a_filter_is_a_failure_of_the_filter(managers: ManagerFactory) -> None:
    """The analysis stays as it was before the filter, and the failure of the filter is logged."""

    def transform(analysis: Analysis) -> Analysis:
        return replace(analysis, extra={"share": float("nan")})

    manager = managers.open(make_module("odd", transform_analysis=transform))
    with capture_logs() as logs:
        assert await manager.analyze(make_request(), no_image) == make_analysis()
    assert [each["hook"] for each in logs if each["event"] == "hook_failed"] == ["transform_analysis"]
