"""The number of running processes, and of lost processes without a replacement, for the alert PipelineProcessLost."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.usecases.processes import by_state


def entry(role: str, started: int, seen: int | None = None) -> dict[str, Any]:
    """Return an entry as Redis has it.

    started: the minute of its start.
    seen: the minute of the last heartbeat, if the process was lost.
    """
    at = [f"2026-01-31T12:{minute or 0:02}:00.000Z" for minute in (started, seen)]
    return {"role": role, "startedAt": at[0], "seenAt": at[1], "isAlive": seen is None}


@pytest.mark.parametrize(
    ("entries", "expected", "remark"),
    [
        ([], {}, "no process"),
        ([entry("all", 1), entry("all", 2), entry("web", 3)], {("all", "alive"): 2, ("web", "alive"): 1}, "all run"),
        (
            [entry("all", 1, 5), entry("all", 2)],
            {("all", "alive"): 1, ("all", "lost"): 1},
            "the other process ran before and replaces none",
        ),
        ([entry("all", 1, 5), entry("all", 6)], {("all", "alive"): 1}, "a process that started later replaces it"),
        (
            [entry("all", 1, 5), entry("all", 1, 6), entry("all", 7)],
            {("all", "alive"): 1, ("all", "lost"): 1},
            "one new process replaces one lost process",
        ),
        (
            [entry("all", 1, 5), entry("all", 1, 8), entry("all", 6), entry("all", 9)],
            {("all", "alive"): 2},
            "each lost process is replaced by the first one that started after it",
        ),
        (
            [entry("worker", 1, 5), entry("web", 6)],
            {("worker", "alive"): 0, ("worker", "lost"): 1, ("web", "alive"): 1},
            "a process of another role does not replace it",
        ),
    ],
)
def test_processes_by_state(entries: list[dict[str, Any]], expected: dict[tuple[str, str], int], remark: str) -> None:
    """A crashed process counts as lost only if no process of its role started later."""
    assert {key: count for key, count in by_state(entries).items()} == expected, remark
