"""Server-sent events and long polling of the JavaScript client in detail, against a fake service."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime, timedelta

import pytest

from pipeline.assets.asset import AssetStatus, to_timestamp
from pipeline.clock import utc_now
from tests.factories import make_asset
from tests.fake_service import FakeService
from tests.integration.js_scripts import in_node_and_chromium
from tests.integration.js_transports import STAYS, received_ids, refused_sockets, start_signed_in, wait_for_transport
from tests.scripts import FASTER


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_stream_is_read_in_any_pieces(kind: str) -> None:
    """Pieces may cut letters and line ends. Comments and other fields are skipped; the cursor is the last `id:`."""
    event = {"event": "asset_processed", "assetId": "1", "timestamp": to_timestamp(utc_now()), "error": "grüße"}
    async with FakeService() as far, far.script(kind) as script:
        await script.run(refused_sockets(far.url, progress=True))
        stream = await far.stream()
        assert stream.query == {"events": "progress"}
        assert stream.headers["Authorization"] == "Bearer a-token"
        await stream.connected()
        data = json.dumps(event, ensure_ascii=False)
        text = f"id: {event['timestamp']}\r\nevent: asset_processed\r\ndata: {data}\r\n\r\n".encode()
        await stream.send(*(text[place : place + 1] for place in range(len(text))))
        await stream.send(b'data:{"event":\ndata: "asset_queued",\ndata\ndata:"position":3}\n\n:\n\nretry: 10\n\n')
        assert await script.received("asset_processed") == event
        await script.run("client.on('asset_queued', (frame) => say('queued', frame))")
        await stream.send(b'data: {"event": "asset_queued", "position": 2}\n\n')
        assert await script.received("queued") == {"event": "asset_queued", "position": 2}
        later = to_timestamp(utc_now())
        await stream.send(f":\nid: {later}\n\n".encode())
        await stream.send(b'data: {"event": "asset_queued"}\n\n')
        await script.received("queued", 2)
        assert await script.run("return client.since") == later
        stream.end()
        second = await far.stream()
        assert second.query == {"events": "progress", "since": later}
        second.end()


@pytest.mark.gen_test(timeout=60)
async def test_stream_ends_like_a_socket() -> None:
    """The frame `close` has the close code, the frame before it the wait; after a silent stream the list is read."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(refused_sockets(far.url, times=STAYS | {"silenceMs": 500}))
        stream = await far.stream()
        await stream.connected()
        await stream.frames({"event": "goodbye", "retryInMs": 300}, {"event": "close", "code": 1012})
        assert (await script.received("disconnected", 3)) == {"code": 1012, "willReconnect": True, "retryInMs": 300}
        stream.end()
        stream = await far.stream()
        await stream.connected()
        call = await far.call()
        assert (call.path, call.query) == ("/api/assets", {"limit": "1"})
        stream.end()
        call.refuse(400, "VALIDATION_ERROR")
        assert (await script.received("error"))["status"] == 4400


@pytest.mark.fault("R11")
@pytest.mark.gen_test(timeout=60)
async def test_service_that_was_away_gets_its_socket_again() -> None:
    """Failures from before the service came back do not count: the stream is tried after two more."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(
            "const { fetch } = globalThis; let probes = 0;"
            "globalThis.fetch = (url, options) => {"
            "  if (!url.endsWith('/livez')) return fetch(url, options);"
            "  return ++probes === 1 ? Promise.reject(new TypeError('away')) : Promise.resolve(new Response());"
            "};" + refused_sockets(far.url)
        )
        (await far.stream()).end()
        assert len(await script.all("refused")) == 5


@pytest.mark.gen_test(timeout=60)
async def test_reconnections_do_not_delay_the_climb() -> None:
    """The socket is tried at its time, although each stream ends before that time."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(refused_sockets(far.url, times=STAYS | {"climbMs": 600}))
        for _ in range(20):
            stream = await far.stream()
            await stream.connected()
            await asyncio.sleep(0.2)
            stream.end()
        # Twice on the way down, then after 0.6 s and after 1.2 s more.
        assert len(await script.all("refused")) >= 4


@pytest.mark.gen_test(timeout=60)
async def test_long_poll_starts_before_the_cursor() -> None:
    """Each request waits for the first event since 30 s before the cursor; further events are read page by page.

    The client retries when its token is not valid yet, and when the service is too busy.
    """
    now = to_timestamp(utc_now())
    finished = make_asset(status=AssetStatus.FAILED, finished_at=datetime.fromisoformat(now)).to_json({})
    async with FakeService() as far, far.script("node") as script:
        await script.run(refused_sockets(far.url, times=STAYS | {"connectMs": 300}, since=now))
        (await far.stream()).end()
        (await far.call()).refuse(503, "UNAVAILABLE", Retry_After="0")
        (await far.call()).refuse(401, "UNAUTHORIZED", Retry_After="0")
        (await far.call()).reply({"items": [], "nextCursor": None, "serverTime": now})
        call = await far.call()
        since = to_timestamp(datetime.fromisoformat(now) - timedelta(seconds=30))
        assert call.query == {"finishedSince": since, "limit": "100", "wait": "25"}
        call.reply({"items": [finished], "nextCursor": "more", "serverTime": now})
        call = await far.call()
        assert call.query == {"finishedSince": since, "limit": "100", "cursor": "more"}
        call.reply({"items": [], "nextCursor": None, "serverTime": now})
        call = await far.call()
        assert call.query == {"finishedSince": since, "limit": "100", "wait": "25"}
        assert [each["assetId"] for each in await script.all("asset_processed")] == [finished["id"]]
        answered_at = time.monotonic()
        call.reply({"items": [finished], "nextCursor": None, "serverTime": now})
        call = await far.call()
        assert time.monotonic() - answered_at >= 0.9, "a quick answer without a new event must not become a loop"
        call.cut()
        assert (await script.all("connected"))[0]["serverTime"] == now
        assert len(await script.all("asset_processed")) == 1


@pytest.mark.gen_test(timeout=60)
async def test_list_without_the_time_of_the_service_is_no_transport() -> None:
    """Without `serverTime` there is no cursor: the next transport is tried, and `connected` is not emitted."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(refused_sockets(far.url))
        (await far.stream()).end()
        for _ in range(2):
            (await far.call()).reply({"items": [], "nextCursor": None})
        await script.received("refused", 3)
        assert await script.all("connected") == []


@pytest.mark.gen_test(timeout=60)
async def test_polls_leave_no_listeners_behind() -> None:
    """A client that polls for days does not add a listener for each wait, so Node prints no warning."""
    page = {"items": [], "nextCursor": None, "serverTime": to_timestamp(utc_now())}
    async with FakeService() as far, far.script("node") as script:
        await script.run("process.on('warning', ({ message }) => say('warning', message));" + FASTER)
        await script.run(refused_sockets(far.url, times=STAYS | {"connectMs": 20_000}))
        (await far.stream()).end()
        for _ in range(20):
            (await far.call()).reply(page)
        assert await script.all("warning") == []


@pytest.mark.gen_test(timeout=60)
async def test_silent_socket_of_a_page_is_checked_by_the_list() -> None:
    """A page sees no pings, so the client reads the list: without new events the socket stays.

    An event of the list that the socket did not send is emitted, and the next transport is used.
    """
    async with FakeService() as far, far.script("chromium") as script:
        await script.run(start_signed_in(far.url, times=STAYS | {"silenceMs": 300, "longestSilenceMs": 600}))
        link = await far.accept()
        await link.connected()
        (await far.call()).reply({"items": [], "nextCursor": None})
        call = await far.call()
        assert await script.all("disconnected") == []
        missed = make_asset(status=AssetStatus.FAILED, finished_at=utc_now() - timedelta(seconds=20))
        call.reply({"items": [missed.to_json({})], "nextCursor": None})
        await (await far.stream()).connected()
        await wait_for_transport(script, "sse")
        assert await received_ids(script, 1) == [missed.id]


@pytest.mark.gen_test(timeout=60)
async def test_event_of_an_upload_before_the_first_connection_is_not_lost() -> None:
    """The cursor of a new client starts at the reply to its first upload; then the client reads the list."""
    async with FakeService() as far, far.script("node") as script:
        upload = "globalThis.sent = client.upload(new Blob(['x']), { category: 'lego' })"
        await script.run(start_signed_in(far.url) + upload)
        link, call = await far.accept(), await far.call()
        assert "since" not in link.first
        call.reply({"assetId": "1"}, 202)
        await script.run("await sent")
        since = await script.run("return client.since")
        assert abs(datetime.fromisoformat(since) - utc_now()) < timedelta(seconds=5)
        await link.connected()
        call = await far.call()
        assert (call.path, call.query["limit"]) == ("/api/assets", "100")
        finished = make_asset(status=AssetStatus.FAILED, finished_at=utc_now())
        call.reply({"items": [finished.to_json({})], "nextCursor": None})
        assert (await script.received("asset_processed"))["assetId"] == finished.id
