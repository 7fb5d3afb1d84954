"""The Python client reads the list of assets when it missed more events than the socket replays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

import pipeline.client.feed
from pipeline.assets.asset import AiMetadata, AssetStatus, ImageRef
from pipeline.assets.events import asset_processed
from pipeline.client import Client, event_of
from pipeline.clock import utc_now
from tests.factories import make_asset
from tests.integration.scripted_service import Peer, ScriptedService, at, cut, make_event, next_events, numbers, page
from tests.integration.scripted_service import reconnects_at_once  # noqa: F811

__all__ = ["reconnects_at_once"]


@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.gen_test(timeout=60)
async def test_client_reads_the_list_after_resync() -> None:
    """The client reads all pages, oldest first, from 30 s before `since`. Live events follow and do not move it."""

    async def script(peer: Peer) -> None:
        await peer.accept(at(1000))
        await peer.send({"event": "resync"}, make_event(900))
        await peer.wait_until_closed()

    async with ScriptedService(script) as fake, Client(fake.url, "a token", since=at(30)) as client:
        fake.replies += [page(range(20, 120), "the cursor"), page([*range(120, 150), 900])]
        await client.listen()
        events = await next_events(client, 1)
        assert client.since == at(30)  # The first event is older than `since`.
        events += await next_events(client, 100)
        assert client.since == at(120)
        events += await next_events(client, 30)
        assert numbers(events) == [*range(20, 150), 900]
        assert events[0] == make_event(20)
        query = {"finishedSince": at(0), "limit": "100"}
        assert [dict(request.query) for request in fake.api_requests] == [query, query | {"cursor": "the cursor"}]


@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda: web.Response(status=503, headers={"Retry-After": "0"}), id="503"),
        pytest.param(lambda: web.Response(status=500), id="500"),
        pytest.param(lambda: cut, id="cut"),
    ],
)
@pytest.mark.gen_test(timeout=60)
async def test_client_reconnects_when_a_page_fails(fault: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that fails counts as a lost connection: the next connection begins at the last yielded event."""
    monkeypatch.setattr(pipeline.client.feed, "BACKOFF_SECONDS", (0.1, 0.1))

    async def resync(peer: Peer) -> None:
        await peer.accept(at(1000))
        await peer.send({"event": "resync"}, make_event(900))
        await peer.wait_until_closed()

    async def replay(peer: Peer) -> None:
        await peer.accept(at(1000))
        await peer.send(*(make_event(number) for number in (3, 4, 5, 900)))
        await peer.wait_until_closed()

    async with ScriptedService(resync, replay) as fake, Client(fake.url, "a token", since=at(0)) as client:
        fake.replies += [page([1, 2, 3], "the cursor"), fault()]
        await client.listen()
        events = await next_events(client, 3)
        assert (await fake.handshake(2)).query["since"] == at(3)
        assert numbers(events + await next_events(client, 3)) == [1, 2, 3, 4, 5, 900]


FOUND = {"value": "Nike", "confidence": 0.9}


@pytest.mark.parametrize("status", list(AssetStatus))
@pytest.mark.parametrize(
    ("meta", "processed"),
    [
        (
            AiMetadata(FOUND, FOUND, FOUND, utc_now()),
            ImageRef("", "", "https://images.example/p.webp"),
        ),
        (AiMetadata(brand=FOUND), None),
        (AiMetadata(error="AI service unavailable"), None),
        (AiMetadata(), None),
    ],
)
def test_event_of_an_asset_is_the_event_of_the_service(
    status: AssetStatus, meta: AiMetadata, processed: ImageRef | None
) -> None:
    """From a listed asset the client makes the event that the service sends; from an unfinished one, None."""
    asset = dataclasses.replace(
        make_asset(), status=status, ai_metadata=meta, processed=processed, finished_at=utc_now()
    )
    event = event_of(json.loads(json.dumps(asset.to_json({}))))
    assert event == (asset_processed(asset, processed and processed.url) if asset.is_finished else None)
