"""What counts as a sign that a photo gets on, while `submit` waits."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.commands.progress_marks import Marks


@pytest.mark.fault("O3")
@pytest.mark.parametrize(
    ("before", "now", "has_moved", "remark"),
    [
        ({}, {"position": 7}, True, "it is in the line"),
        ({"position": 7}, {"position": 6}, True, "others were before it"),
        ({"position": 7}, {"position": 7}, False, "nothing"),
        ({"position": 6}, {"position": 7}, False, "it was put back"),
        ({}, {"attempt": 1, "provider": "x"}, True, "it was started"),
        ({"attempt": 1}, {"attempt": 1}, False, "started again as its provider is away, which may go on for ever"),
        ({"attempt": 1}, {"attempt": 2}, True, "an attempt was spent"),
        ({"attempt": 1, "share": 0.5}, {"share": 0.6}, True, "the provider says so"),
        ({"attempt": 1, "share": 0.5}, {"share": 0.5}, False, "it says so again"),
        ({"attempt": 1, "share": 0.5}, {"attempt": 2, "share": 0.1}, True, "the next attempt"),
        ({"position": 7}, {"reason": "held", "nextAt": "2026-01-01T00:00:00.000Z"}, False, "held"),
    ],
)
def test_progress_is_what_was_never_reached_before(
    before: dict[str, Any], now: dict[str, Any], has_moved: bool, remark: str
) -> None:
    """Of each photo by itself."""
    marks = Marks()
    marks.has_moved("one", before)
    assert marks.has_moved("one", now) is has_moved, remark
    assert marks.has_moved("two", {"position": 9})
