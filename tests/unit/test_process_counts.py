"""How many processes are alive, and how many were lost and not replaced: the alert PipelineProcessLost reads it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.usecases.processes import by_state


def entry(role: str, started: int, seen: int | None = None) -> dict[str, Any]:
    """An entry as Redis has it, by the minute of its start; seen: the minute of the last sign of one that was lost."""
    at = [f"2026-01-31T12:{minute or 0:02}:00.000Z" for minute in (started, seen)]
    return {"role": role, "startedAt": at[0], "seenAt": at[1], "isAlive": seen is None}


@pytest.mark.parametrize(
    ("entries", "expected", "remark"),
    [
        ([], {}, "none"),
        ([entry("all", 1), entry("all", 2), entry("web", 3)], {("all", "alive"): 2, ("web", "alive"): 1}, "all alive"),
        (
            [entry("all", 1, 5), entry("all", 2)],
            {("all", "alive"): 1, ("all", "lost"): 1},
            "the other one has been there all along",
        ),
        ([entry("all", 1, 5), entry("all", 6)], {("all", "alive"): 1}, "one that started since replaces it"),
        (
            [entry("all", 1, 5), entry("all", 1, 6), entry("all", 7)],
            {("all", "alive"): 1, ("all", "lost"): 1},
            "one replaces one",
        ),
        (
            [entry("all", 1, 5), entry("all", 1, 8), entry("all", 6), entry("all", 9)],
            {("all", "alive"): 2},
            "each lost one by the first that started after it",
        ),
        (
            [entry("worker", 1, 5), entry("web", 6)],
            {("worker", "alive"): 0, ("worker", "lost"): 1, ("web", "alive"): 1},
            "a process of another role does not replace it",
        ),
    ],
)
def test_processes_by_state(entries: list[dict[str, Any]], expected: dict[tuple[str, str], int], remark: str) -> None:
    """A crash that was made good by a restart is no lost process."""
    assert {key: count for key, count in by_state(entries).items()} == expected, remark
