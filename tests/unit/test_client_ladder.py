"""Which transport the Python client takes next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from pipeline.client.access import ClientError, Fault, Unavailable
from pipeline.client.ladder import TRANSPORTS, Ladder, climb_delays

OWN, SHUT, MUTE = Fault.NONE, Fault.NOT_OPENED, Fault.MUTE


@pytest.mark.parametrize(
    ("faults", "transport"),
    [
        ([OWN] * 9, "socket"),  # the service is away, or says itself why not: no other transport is better
        ([SHUT], "socket"),
        ([SHUT, OWN, SHUT], "socket"),  # not in a row
        ([SHUT, SHUT], "sse"),
        ([MUTE], "sse"),
        ([SHUT, MUTE], "sse"),
        ([SHUT] * 3, "sse"),
        ([SHUT] * 4, "poll"),
        ([MUTE, MUTE], "poll"),
        ([MUTE, MUTE, SHUT, SHUT], "socket"),  # nothing works: from the top
    ],
)
def test_ladder_goes_down_by_what_failed(faults: Sequence[Fault], transport: str) -> None:
    """Two failures in a row, or one silence, and the next one is tried."""

    async def never(transport: str) -> None:
        raise AssertionError(transport)

    ladder = Ladder(never)  # type: ignore[arg-type]
    for fault in faults:
        ladder.count(Unavailable("", fault=fault))
    assert ladder.transport == transport


def test_ladder_climbs_to_the_highest_that_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Top first, again and again; what refuses there concerns nobody. After a gateway's answer it tries at once."""
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


def test_reconnections_do_not_put_off_the_climb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections of the lower transport that each end before the climb is due: it comes all the same."""
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


def test_climbs_grow_rarer() -> None:
    """After about a minute, later every ten minutes."""
    delays = climb_delays()
    waits = [next(delays) for _ in range(6)]
    for wait, longest in zip(waits, (60, 120, 240, 480, 600, 600), strict=True):
        assert 0.8 * longest <= wait <= longest
    assert TRANSPORTS == ("socket", "sse", "poll")
