"""The ladder of transports of the Python client: which transport it uses after failures, and when it climbs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from pipeline.client.access import ClientError, Fault, Unavailable
from pipeline.client.ladder import TRANSPORTS, Ladder, climb_delays

NONE, NOT_OPENED, MUTE = Fault.NONE, Fault.NOT_OPENED, Fault.MUTE


@pytest.mark.parametrize(
    ("faults", "transport"),
    [
        ([NONE] * 9, "socket"),  # the service is down, or gives its own reason: no other transport would work
        ([NOT_OPENED], "socket"),
        ([NOT_OPENED, NONE, NOT_OPENED], "socket"),  # not in a row
        ([NOT_OPENED, NOT_OPENED], "sse"),
        ([MUTE], "sse"),
        ([NOT_OPENED, MUTE], "sse"),
        ([NOT_OPENED] * 3, "sse"),
        ([NOT_OPENED] * 4, "poll"),
        ([MUTE, MUTE], "poll"),
        ([MUTE, MUTE, NOT_OPENED, NOT_OPENED], "socket"),  # no transport works: start from the top
    ],
)
def test_ladder_descends_after_faults_of_a_transport(faults: Sequence[Fault], transport: str) -> None:
    """Two connections in a row that do not open, or one silent connection, and the next transport is used."""

    async def never(transport: str) -> None:
        raise AssertionError(transport)

    ladder = Ladder(never)  # type: ignore[arg-type]
    for fault in faults:
        ladder.count(Unavailable("", fault=fault))
    assert ladder.transport == transport


def test_ladder_climbs_to_the_highest_that_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder tries the transports from the top and ignores a refusal there.

    After faults with a reply of a gateway it tries soon.
    """
    monkeypatch.setattr("pipeline.client.ladder.CLIMB_SECONDS", (3600.0, 3600.0))
    monkeypatch.setattr("pipeline.client.ladder.QUICK_CLIMB_SECONDS", 0)
    tried: list[str] = []

    async def open_(transport: str) -> str:
        tried.append(transport)
        if transport == "socket":
            raise ClientError("refused")
        return transport

    async def climb() -> None:
        ladder = Ladder(open_)  # type: ignore[arg-type]
        for _ in range(2):
            ladder.count(Unavailable("", fault=MUTE, is_gateway=True))
        assert ladder.transport == "poll"
        async with asyncio.timeout(30):
            assert str(await ladder.climb()) == "sse"
        assert (ladder.transport, tried) == ("sse", ["socket", "sse"])

    asyncio.run(climb())


def test_reconnections_do_not_delay_the_climb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections of the lower transport that end before the time to climb do not restart this time."""
    monkeypatch.setattr("pipeline.client.ladder.CLIMB_SECONDS", (0.4, 3600.0))

    async def open_(transport: str) -> str:
        return transport

    async def climb() -> None:
        ladder = Ladder(open_)  # type: ignore[arg-type]
        ladder.count(Unavailable("", fault=MUTE))
        async with asyncio.timeout(30):
            while not ladder.is_at_top:
                with suppress(TimeoutError):
                    await asyncio.wait_for(ladder.climb(), 0.15)

    asyncio.run(climb())


def test_waits_between_climbs_grow() -> None:
    """The wait before a climb grows from about one minute to about ten minutes."""
    delays = climb_delays()
    waits = [next(delays) for _ in range(6)]
    for wait, longest in zip(waits, (60, 120, 240, 480, 600, 600), strict=True):
        assert 0.8 * longest <= wait <= longest
    assert TRANSPORTS == ("socket", "sse", "poll")
