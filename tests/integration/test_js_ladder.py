"""How the JavaScript client keeps hearing of events where the network is in a WebSocket's way, and what it makes of all
the service can say: behind hostile proxies in front of the real service, and against a far end.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets.asset import AssetStatus, to_timestamp
from pipeline.clock import utc_now
from tests.constants import RENEWALS_PER_LEASE
from tests.factories import make_asset, make_image, make_token
from tests.fake_service import FakeService
from tests.hostile_proxy import HostileProxy
from tests.scripts import CLIENT, HURRIED, Script, chromium, photo
from tests.service import AiService, Service
from tests.toxiproxy import Toxiproxy

ROOT = Path(__file__).parents[2]
both = pytest.mark.parametrize("kind", ["node", "chromium"])
RUNGS = {"refuses-upgrade": "sse", "mute": "sse", "buffers": "poll", "cuts": "socket"}
PROXY_FOR = {"socket": "honest", "sse": "refuses-upgrade", "poll": "buffers"}
every_rung = pytest.mark.parametrize("rung", PROXY_FOR)
# The client's own times are ten seconds and a minute.
TIMES = {"connectMs": 1000, "climbMs": 300, "longestClimbMs": 1000}
STAYS = {"connectMs": 1000, "climbMs": 600_000}


def started(url: str, token: str | None = None, **options: Any) -> str:
    """Return a script that starts a client and leaves its promise alone. token: a JavaScript expression."""
    given = json.dumps({"url": url} | options)
    return f"start({{ ...{given}, token: {token or json.dumps(make_token())} }});"


async def uploaded(script: Script, count: int) -> list[str]:
    """Upload photos through the client and return the ids of their assets."""
    uploading = f"client.upload({photo(make_image())}, {{ category: 'lego' }})"
    code = f"const ids = []; for (let i = 0; i < {count}; i++) ids.push((await {uploading}).assetId); return ids"
    ids: list[str] = await script.run(code)
    return ids


async def on_rung(script: Script, rung: str) -> None:
    """Return once the client has told that it uses the transport."""
    await script.run(f"while (client.transport !== '{rung}') await new Promise((done) => setTimeout(done, 20))")


async def heard_ids(script: Script, count: int) -> list[str]:
    """Return the assets of all events once there are so many."""
    await script.received("asset_processed", count)
    return [event["assetId"] for event in await script.all("asset_processed")]


# behind hostile proxies


@both
@pytest.mark.parametrize("mode", RUNGS)
@pytest.mark.gen_test(timeout=60)
async def test_no_event_is_lost_on_the_ladder(kind: str, mode: str, tmp_path: Path, ai_service: AiService) -> None:
    """The client finds the best transport that works, climbs up when the proxy becomes honest, and hands on every event
    once, those of the moments between included.
    """
    async with FakeService() as page:
        with Service(tmp_path, ai_service.url, ALLOWED_ORIGINS=page.url) as service:
            async with HostileProxy(service.url, mode, cut_seconds=1.0) as proxy, page.script(kind) as script:
                await script.run(started(proxy.url, times=TIMES))
                ids = await uploaded(script, 3)
                await on_rung(script, RUNGS[mode])
                ids += await uploaded(script, 5)
                await script.received("asset_processed", 8)
                if mode == "cuts":
                    await script.received("connected", 2)
                proxy.mode = "honest"
                await on_rung(script, "socket")
                ids += await uploaded(script, 2)
                assert sorted(await heard_ids(script, 10)) == sorted(ids)
                assert await script.all("error") == []
                told = [each["transport"] for each in await script.all("transport")]
                assert told == list(PROXY_FOR)[list(PROXY_FOR).index(RUNGS[mode]) :: -1]
                if mode == "mute":
                    proxy.cut()  # Node's WebSocket waits for the answer to its close


@every_rung
@pytest.mark.gen_test(timeout=60)
async def test_restart_loses_no_event(rung: str, tmp_path: Path) -> None:
    """On every transport: the service is killed with a job under way, later stopped in good order; each event arrives
    once, and the transport stays the same.
    """
    # The killed process's job is taken over when its lease has run out.
    lease = {"LEASE_SECONDS": "2", RENEWALS_PER_LEASE: "4"}
    with AiService(held=True) as ai_service, Service(tmp_path, ai_service.url, **lease) as service:
        service.environment["PORT"] = service.url.rpartition(":")[2]
        async with HostileProxy(service.url, PROXY_FOR[rung]) as proxy, FakeService() as far, far.script(
            "node"
        ) as script:
            # A service that has just started may take long to answer: that is no reason to leave a transport.
            await script.run(started(proxy.url, times=STAYS | {"connectMs": 4000}))
            await on_rung(script, rung)
            ids = await uploaded(script, 1)
            await asyncio.to_thread(service.kill)  # the proxy lives on this loop
            await script.received("disconnected")
            ai_service.order(held=False)
            await asyncio.to_thread(service.start)
            await heard_ids(script, 1)
            await asyncio.to_thread(service.stop)
            await asyncio.to_thread(service.start)
            ids += await uploaded(script, 2)
            assert sorted(await heard_ids(script, 3)) == sorted(ids)
            assert {each["transport"] for each in await script.all("transport")} == {rung}
            assert all(each["willReconnect"] for each in await script.all("disconnected"))


@every_rung
@pytest.mark.gen_test(timeout=60)
async def test_expiring_tokens_are_replaced_on_every_rung(rung: str, tmp_path: Path, ai_service: AiService) -> None:
    """Tokens that live for four seconds: an event after several of them still arrives, and nothing is given up. (The
    service bears with a token for five seconds more.)
    """
    with Service(tmp_path, ai_service.url) as service:
        async with HostileProxy(service.url, PROXY_FOR[rung]) as proxy, FakeService() as far, far.script(
            "node"
        ) as script:
            tokens = [make_token(expires_in=4 + number) for number in range(40)]
            begun = "const begun = Date.now();"
            asked = f"() => (say('token'), {json.dumps(tokens)}[Math.floor((Date.now() - begun) / 1000)])"
            await script.run(begun + started(proxy.url, asked, times=STAYS))
            await on_rung(script, rung)
            asked_before = len(await script.all("token"))
            await script.run("await new Promise((done) => setTimeout(done, 9_000))")
            ids = await uploaded(script, 1)
            assert await heard_ids(script, 1) == ids
            assert len(await script.all("token")) > asked_before
            assert await script.all("error") == []


@every_rung
@pytest.mark.gen_test(timeout=60)
async def test_slow_phone_keeps_its_rung(rung: str, tmp_path: Path, ai_service: AiService) -> None:
    """All that the client sends takes more than a second: no event is lost, and slow is not taken for mute."""
    with Service(tmp_path, ai_service.url) as service, Toxiproxy() as toxiproxy:
        async with HostileProxy(service.url, PROXY_FOR[rung]) as proxy, FakeService() as far, far.script(
            "node"
        ) as script:
            line = toxiproxy.link("phone", int(proxy.url.rpartition(":")[2]))
            line.slow(1200)
            await script.run(started(f"http://127.0.0.1:{line.port}", times=STAYS | {"connectMs": 4000}))
            ids = await uploaded(script, 2)
            await on_rung(script, rung)
            ids += await uploaded(script, 1)
            assert sorted(await heard_ids(script, 3)) == sorted(ids)
            assert [each["transport"] for each in await script.all("transport")] == [rung]


# server-sent events and long polling, in detail


def refused_sockets(url: str, **options: Any) -> str:
    """Return a script that starts a client whose WebSockets all fail; it says "refused" each time."""
    broken = "class { constructor() { say('refused'); setTimeout(() => this.onclose?.({ code: 1006 })); } close() {} }"
    given = json.dumps({"url": url, "token": "a-token", "times": STAYS} | options)
    return f"Math.random = () => 0; start({{ ...{given}, WebSocket: {broken} }});"


@both
@pytest.mark.gen_test(timeout=60)
async def test_stream_is_read_in_any_pieces(kind: str) -> None:
    """Letters and line ends cut in two, several data lines, comments and other fields; the cursor follows `id:`."""
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
        again = await far.stream()
        assert again.query == {"events": "progress", "since": later}
        again.end()


@pytest.mark.gen_test(timeout=60)
async def test_stream_ends_as_a_socket_does() -> None:
    """`close` stands for the close code, `goodbye` tells when to come back; a silent stream is left for the list."""
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


@pytest.mark.gen_test(timeout=60)
async def test_reconnections_do_not_put_off_the_climb() -> None:
    """Streams that each end before the climb is due: the socket is tried all the same."""
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
async def test_list_is_asked_to_wait_from_before_the_cursor_on() -> None:
    """Each request waits for the first event from before the cursor on, and the rest is read page by page. A token that
    is not valid yet, and a service that is too busy, are waited for.
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
        assert time.monotonic() - answered_at >= 0.9, "an answer at once that tells nothing new must not become a loop"
        call.cut()
        assert (await script.all("connected"))[0]["serverTime"] == now
        assert len(await script.all("asset_processed")) == 1


@pytest.mark.gen_test(timeout=60)
async def test_list_without_the_time_of_the_service_is_no_transport() -> None:
    """There is no cursor to begin at: the next transport is tried, and nobody is told of a connection."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(refused_sockets(far.url))
        (await far.stream()).end()
        for _ in range(2):
            (await far.call()).reply({"items": [], "nextCursor": None})
        await script.received("refused", 3)
        assert await script.all("connected") == []


@pytest.mark.gen_test(timeout=60)
async def test_polls_leave_no_listeners_behind() -> None:
    """A connection that polls for days does not gather one for each wait, and Node warns of nothing."""
    page = {"items": [], "nextCursor": None, "serverTime": to_timestamp(utc_now())}
    async with FakeService() as far, far.script("node") as script:
        await script.run("process.on('warning', ({ message }) => say('warning', message));" + HURRIED)
        await script.run(refused_sockets(far.url, times=STAYS | {"connectMs": 20_000}))
        (await far.stream()).end()
        for _ in range(20):
            (await far.call()).reply(page)
        assert await script.all("warning") == []


@pytest.mark.gen_test(timeout=60)
async def test_silent_socket_of_a_page_is_checked_by_the_list() -> None:
    """A page sees no pings. A list without news lets the socket be; an event that should have come long ago is handed
    on, and the next transport used.
    """
    async with FakeService() as far, far.script("chromium") as script:
        await script.run(started(far.url, times=STAYS | {"silenceMs": 300, "longestSilenceMs": 600}))
        link = await far.accept()
        await link.connected()
        (await far.call()).reply({"items": [], "nextCursor": None})
        call = await far.call()
        assert await script.all("disconnected") == []
        missed = make_asset(status=AssetStatus.FAILED, finished_at=utc_now() - timedelta(seconds=20))
        call.reply({"items": [missed.to_json({})], "nextCursor": None})
        await (await far.stream()).connected()
        await on_rung(script, "sse")
        assert await heard_ids(script, 1) == [missed.id]


@pytest.mark.gen_test(timeout=60)
async def test_event_of_an_upload_before_the_first_connection_is_not_lost() -> None:
    """A client without a cursor begins at the reply to its first upload; one that had asked for events before then
    reads the list.
    """
    async with FakeService() as far, far.script("node") as script:
        await script.run(started(far.url) + "globalThis.sent = client.upload(new Blob(['x']), { category: 'lego' })")
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


# what the service can say


def test_close_codes_are_those_of_the_contract() -> None:
    """The client's table is contracts/close-codes.json, without the meanings."""
    listed = json.loads((ROOT / "contracts" / "close-codes.json").read_text())
    table = re.findall(r'^ +(\d{4}): "(\w+)",$', (CLIENT / "close-codes.js").read_text(), re.MULTILINE)
    assert {int(code): client for code, client in table} == {each["code"]: each["client"] for each in listed}


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=60)
async def test_nothing_that_heals_by_itself_is_final() -> None:
    """Too many frames: back after half a minute to a minute. Too many sockets: when the service says so."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(started(far.url))
        link = await far.accept()
        await link.connected()
        await link.close(4429, {"event": "error", "message": "Too many frames"})
        told = await script.received("disconnected")
        assert (told["code"], told["willReconnect"]) == (4429, True) and 30_000 <= told["retryInMs"] <= 60_000
        await script.run(f"client.close(); {started(far.url)}")
        link = await far.accept()
        await link.connected()
        goodbye = {"event": "goodbye", "retryInMs": 400}
        await link.close(1013, goodbye, {"event": "error", "message": "Too many connections"})
        await (await far.accept()).connected()
        assert (await script.all("disconnected"))[-1] == {"code": 1013, "willReconnect": True, "retryInMs": 400}


@pytest.mark.fault("R9")
@pytest.mark.gen_test(timeout=60)
async def test_token_that_is_not_valid_yet_is_no_reason_to_give_up() -> None:
    """1013 before `connected`, many times: the client comes back, over the same transport; over HTTP it waits."""
    async with FakeService() as far, far.script("node") as script:
        await script.run("Math.random = () => 0.01;" + started(far.url))
        for _ in range(5):
            await (await far.accept()).close(1013, {"event": "error", "message": "Token not valid yet"})
        await (await far.accept()).connected()
        await script.received("connected")
        assert await script.run("return client.transport") == "socket"
        assert await script.all("error") == []
        await script.run("globalThis.asked = client.asset('1')")
        (await far.call()).refuse(401, "UNAUTHORIZED", Retry_After="0")
        (await far.call()).reply({"id": "1"})
        assert await script.run("return asked") == {"id": "1"}


@pytest.mark.fault("R7")
@pytest.mark.gen_test(timeout=60)
async def test_cursor_never_passes_the_time_of_the_service() -> None:
    """One that is an hour ahead: after a resync of a day it begins at the server's time, and not before the resync is
    complete. An event from a clock that is an hour ahead does not take it along.
    """
    now = utc_now()
    ahead = to_timestamp(now + timedelta(hours=1))
    async with FakeService() as far, far.script("node") as script:
        await script.run(started(far.url, since=ahead))
        link = await far.accept()
        assert link.first["since"] == ahead
        await link.connected(now)
        await link.send({"event": "resync"})
        call = await far.call()
        behind = now - timedelta(hours=24) - datetime.fromisoformat(call.query["finishedSince"])
        assert abs(behind) < timedelta(seconds=5)
        assert await script.run("return client.since") == ahead
        missed = make_asset(status=AssetStatus.FAILED, finished_at=now - timedelta(minutes=5))
        call.reply({"items": [missed.to_json({})], "nextCursor": None})
        await script.received("asset_processed")
        is_ahead = "Date.parse(client.since) > Date.now() + 60_000"
        await script.run(f"while ({is_ahead}) await new Promise((done) => setTimeout(done, 10))")
        event = {"event": "asset_processed", "assetId": "2", "status": "failed", "error": "x", "timestamp": ahead}
        await link.send(event)
        await script.received("asset_processed", 2)
        since = datetime.fromisoformat(await script.run("return client.since"))
        assert abs(since - now) < timedelta(seconds=10)


@pytest.mark.fault("R11")
@pytest.mark.gen_test(timeout=60)
async def test_page_of_a_foreign_origin_is_told_which_setting_is_missing(tmp_path: Path) -> None:
    """`error` says it once, the client goes on trying, and is let in when the setting names the origin."""
    async with FakeService() as page, chromium(f"{page.url}/") as script:
        with Service(tmp_path) as service:
            service.environment["PORT"] = service.url.rpartition(":")[2]
            await script.run("Math.random = () => 0.01;" + started(service.url))
            error = await script.received("error")
            assert error["code"] == "ORIGIN_NOT_ALLOWED"
            assert page.url in error["message"] and "ALLOWED_ORIGINS" in error["message"]
            await script.received("disconnected", 5)
            service.stop()
            service.environment["ALLOWED_ORIGINS"] = page.url
            service.start()
            await script.received("connected")
            assert len(await script.all("error")) == 1
            assert await script.run("return client.transport") == "socket"
