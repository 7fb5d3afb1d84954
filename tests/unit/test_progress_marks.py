"""The signs of progress of a photo that `submit` waits for."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.commands.progress_marks import Marks


@pytest.mark.fault("O3")
@pytest.mark.parametrize(
    ("before", "now", "has_moved", "remark"),
    [
        ({}, {"position": 7}, True, "the photo is in the queue"),
        ({"position": 7}, {"position": 6}, True, "jobs before it were claimed"),
        ({"position": 7}, {"position": 7}, False, "no change"),
        ({"position": 6}, {"position": 7}, False, "it was moved back in the queue"),
        ({}, {"attempt": 1, "provider": "x"}, True, "it was started"),
        ({"attempt": 1}, {"attempt": 1}, False, "the same attempt was started once more"),
        ({"attempt": 1}, {"attempt": 2}, True, "an attempt was spent"),
        ({"attempt": 1, "share": 0.5}, {"share": 0.6}, True, "the provider reports more progress"),
        ({"attempt": 1, "share": 0.5}, {"share": 0.5}, False, "the provider repeats its report"),
        ({"attempt": 1, "share": 0.5}, {"attempt": 2, "share": 0.1}, True, "the next attempt has started"),
        ({"position": 7}, {"reason": "held", "nextAt": "2026-01-01T00:00:00.000Z"}, False, "the provider is held"),
    ],
)
def test_progress_is_a_state_that_was_never_reached_before(
    before: dict[str, Any], now: dict[str, Any], has_moved: bool, remark: str
) -> None:
    """A state is progress if this photo was never in it before; other photos do not count."""
    marks = Marks()
    marks.has_moved("one", before)
    assert marks.has_moved("one", now) is has_moved, remark
    assert marks.has_moved("two", {"position": 9})
