"""The JavaScript client (clients/js) in a real Node and a real Chromium: against the real service, and, for what that
cannot be made to do, against a far end that speaks the protocol as the test tells it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef, to_timestamp
from pipeline.assets.events import asset_processed
from pipeline.clock import utc_now
from tests.contract.contracts import check_event
from tests.factories import make_asset, make_image, make_noise_image, make_token
from tests.fake_service import FakeService
from tests.requirements import require
from tests.scripts import CLIENT, HURRIED, NODE, WAIT_SECONDS, ChromiumScript, node, photo
from tests.service import AiService, Service

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
SINCE = to_timestamp(NOON)
both = pytest.mark.parametrize("kind", ["node", "chromium"])


def make_event(number: int, after_seconds: float = 0) -> dict[str, Any]:
    """Return an event whose assetId ends in the number, so long after noon."""
    timestamp = to_timestamp(NOON + timedelta(seconds=after_seconds))
    common = {"event": "asset_processed", "assetId": f"{number:024x}", "timestamp": timestamp}
    return common | {"status": "failed", "error": "refused"}


def started(url: str, token: str = '"a-token"', **options: Any) -> str:
    """Return a script that starts a client and leaves its promise alone. token: a JavaScript expression."""
    given = json.dumps({"url": url} | options)
    return f"start({{ ...{given}, token: {token} }});"


# against the real service


@both
@pytest.mark.gen_test(timeout=60)
async def test_operators_hear_of_the_whole_service(kind: str, tmp_path: Path) -> None:
    """With `operators` and an operator's token `overview` comes at once, also while Redis is away."""
    async with FakeService() as page:
        with Service(tmp_path, ALLOWED_ORIGINS=page.url, ROLE="web", REDIS_URL="redis://127.0.0.1:9/0") as service:
            async with page.script(kind) as script:
                token = json.dumps(make_token(role="operator-read"))
                listen = "client.on('overview', (frame) => say('overview', frame));"
                await script.run(started(service.url, token, operators=True, progress=True) + listen)
                shown = await script.received("overview")
                assert (shown["event"], shown["store"]["isUp"], shown["redis"]["isUp"]) == ("overview", True, False)


@both
@pytest.mark.gen_test(timeout=60)
async def test_upload_is_followed_to_its_event(kind: str, tmp_path: Path, ai_service: AiService) -> None:
    """From another origin: connect, upload with progress, get the one event, read the asset; refusals say why."""
    image = make_noise_image(600_000)
    async with FakeService() as page:
        with Service(tmp_path, ai_service.url, ALLOWED_ORIGINS=page.url) as service:
            async with page.script(kind) as script:
                got = await script.run(
                    f"""
                    const room = await start({{ url: "{service.url}", token: async () => "{make_token()}" }});
                    const steps = [];
                    const onProgress = (...step) => steps.push(step);
                    const receipt = await client.upload({photo(image)}, {{ category: "lego", onProgress }});
                    const event = await received("asset_processed");
                    const refusal = await failure(client.upload(new Blob(["no photo"]), {{ category: "car" }}));
                    const [asset, page] = [await client.asset(receipt.assetId), await client.assets({{ limit: 1 }})];
                    return {{ room, steps, receipt, event, refusal, asset, page, since: client.since }};
                    """
                )
                assert await script.all("asset_processed") == [got["event"]]
                assert await script.all("error") == []
    check_event(got["event"])
    assert got["room"] == "user:user-1"
    assert got["receipt"]["status"] == "processing"
    assert got["event"]["assetId"] == got["receipt"]["assetId"] == got["asset"]["id"]
    assert (got["page"]["items"], got["page"]["nextCursor"]) == ([got["asset"]], None)
    assert got["since"] == got["event"]["timestamp"]
    assert got["asset"]["images"]["original"]["bytes"] == len(image)
    assert got["steps"] == sorted(got["steps"])
    assert got["steps"][-1][0] == got["steps"][-1][1] > len(image)
    assert {key: got["refusal"][key] for key in ("name", "code", "status")} == {
        "name": "PipelineError",
        "code": "VALIDATION_ERROR",
        "status": 400,
    }
    assert "category" in {detail["field"] for detail in got["refusal"]["details"]}


@both
@pytest.mark.gen_test(timeout=60)
async def test_failed_photo_is_run_again_and_removed(kind: str, tmp_path: Path, ai_service: AiService) -> None:
    """retry gives a new job to what failed, and 409 for what did not; remove leaves nothing, also when asked twice."""
    ai_service.order(replies=[{"status": 422}])
    async with FakeService() as page:
        with Service(tmp_path, ai_service.url, ALLOWED_ORIGINS=page.url) as service:
            async with page.script(kind) as script:
                got = await script.run(
                    f"""
                    await start({{ url: "{service.url}", token: "{make_token()}" }});
                    const {{ assetId }} = await client.upload({photo(make_image())}, {{ category: "lego", tries: 1 }});
                    const first = await received("asset_processed");
                    const receipt = await client.retry(assetId);
                    const second = await received("asset_processed", 2);
                    const refusal = await failure(client.retry(assetId));
                    await client.remove(assetId);
                    await client.remove(assetId, {{ keepalive: true }});
                    const gone = await failure(client.asset(assetId));
                    return {{ first, receipt, second, refusal, gone }};
                    """
                )
    assert (got["first"]["status"], got["second"]["status"]) == ("failed", "active")
    assert got["receipt"]["status"] == "processing" and got["refusal"]["status"] == 409
    assert got["gone"]["status"] == 404


@both
@pytest.mark.gen_test(timeout=60)
async def test_event_of_an_outage_arrives_once(kind: str, tmp_path: Path) -> None:
    """The server is killed and comes back at its address; what finished meanwhile arrives, and so does what is new."""
    async with FakeService() as page:
        with AiService(held=True) as ai_service, Service(tmp_path, ai_service.url, ALLOWED_ORIGINS=page.url) as service:
            port = service.url.rpartition(":")[2]
            async with page.script(kind) as script:
                code = f"return (await client.upload({photo(make_image())}, {{ category: 'lego' }})).assetId"
                first = await script.run(f"await {started(service.url, json.dumps(make_token()))} {code}")
                service.kill()
                await script.received("disconnected")
                # The event happens at another address, where the client is not.
                ai_service.order(held=False)
                service.start()
                service.wait_log("job_completed")
                service.stop()
                service.environment["PORT"] = port
                service.start()
                await script.received("connected", 2)
                second = await script.run(code)
                await script.received("asset_processed", 2)
                events = await script.all("asset_processed")
    assert [event["assetId"] for event in events] == [first, second]


# what a client keeps


@both
@pytest.mark.gen_test(timeout=60)
async def test_since_is_the_newest_event_handed_on(kind: str) -> None:
    """Without one it is the first serverTime; older events and later serverTimes never move it; it is sent again."""
    async with FakeService() as far, far.script(kind) as script:
        await script.run(started(far.url))
        link = await far.accept()
        assert link.first == {"auth": {"token": "a-token"}}
        await link.connected(NOON)
        link.cut()
        link = await far.accept()
        assert link.first == {"auth": {"token": "a-token"}, "since": SINCE}
        await link.connected(NOON + timedelta(hours=1))
        await link.send({"event": "of a later version"}, make_event(1, 30), make_event(2, 20))
        await script.received("asset_processed", 2)
        link.cut()
        link = await far.accept()
        assert link.first["since"] == make_event(1, 30)["timestamp"] == await script.run("return client.since")


@pytest.mark.gen_test(timeout=60)
async def test_repeats_are_dropped() -> None:
    """Thousands of events come again on a new connection and none is handed on twice; the same asset's next one is.
    The memory for this is bounded.
    """
    events = [make_event(number) for number in range(5000)]
    async with FakeService() as far, far.script("node") as script:
        await script.run(started(far.url, since=SINCE))
        link = await far.accept()
        await link.connected()
        await link.send(*events, events[0])
        link.cut()
        link = await far.accept()
        await link.connected()
        await link.send(*events, make_event(0, 1), events[0])
        await script.received("asset_processed", 5002)
        assert await script.all("asset_processed") == [*events, make_event(0, 1), events[0]]


def finished_assets() -> list[Asset]:
    """Return one asset of each shape an event can have, a second apart."""
    brand, model = {"value": "Nike", "confidence": 0.9}, {"value": "Air Max 90", "confidence": 0.8}
    processed = ImageRef("", "", "https://images.example/p.webp")
    shapes: list[dict[str, Any]] = [
        {"status": AssetStatus.ACTIVE, "ai_metadata": AiMetadata(brand, model, brand), "processed": processed},
        {"status": AssetStatus.ACTIVE, "ai_metadata": AiMetadata(brand, model)},
        {"status": AssetStatus.PARTIAL, "ai_metadata": AiMetadata(model=model), "processed": processed},
        {"status": AssetStatus.PARTIAL, "ai_metadata": AiMetadata(brand=brand)},
        {"status": AssetStatus.FAILED, "ai_metadata": AiMetadata(error="The image was refused")},
        {"status": AssetStatus.FAILED, "ai_metadata": AiMetadata(brand=brand), "processed": processed},
    ]
    instants = [NOON + timedelta(seconds=number) for number in range(len(shapes))]
    return [dataclasses.replace(make_asset(), finished_at=at, **shape) for at, shape in zip(instants, shapes)]


@both
@pytest.mark.gen_test(timeout=60)
async def test_resync_is_read_page_by_page(kind: str) -> None:
    """Each listed asset becomes exactly the event the server would have sent; a live one meanwhile does not move
    `since` before all pages are read, also when the service is out of reach for a moment.
    """
    assets = finished_assets()
    live = make_event(1, 600)
    async with FakeService() as far, far.script(kind) as script:
        await script.run(started(far.url, since=SINCE))
        link = await far.accept()
        await link.connected()
        await link.send({"event": "resync"})
        call = await far.call()
        assert (call.path, call.headers["Authorization"]) == ("/api/assets", "Bearer a-token")
        assert call.query == {"finishedSince": "2026-01-31T11:59:30.000Z", "limit": "100"}
        await link.send(live)
        await script.received("asset_processed")
        assert await script.run("return client.since") == SINCE
        call.reply({"items": [asset.to_json({}) for asset in assets[:3]], "nextCursor": "page-2"})
        await script.received("asset_processed", 4)
        assert await script.run("return client.since") == to_timestamp(assets[2].finished_at)
        call = await far.call()
        assert call.query["cursor"] == "page-2"
        call.refuse(503, "UNAVAILABLE", Retry_After="0")
        call = await far.call()
        # One that got a new job after it was listed has no event yet.
        items = [assets[2], make_asset(), *assets[3:]]
        call.reply({"items": [asset.to_json({}) for asset in items], "nextCursor": None})
        await script.received("asset_processed", 7)
        assert await script.all("asset_processed") == [
            live,
            *(asset_processed(asset, asset.processed and asset.processed.url) for asset in assets),
        ]
        assert await script.run("return client.since") == live["timestamp"]


@pytest.mark.gen_test(timeout=60)
async def test_resync_survives_a_broken_connection() -> None:
    """Cut off in the middle, the client comes back with what it has got in order, not with a live event's time; told
    to wait for an hour, it does not give up.
    """
    assets = finished_assets()
    async with FakeService() as far, far.script("node") as script:
        await script.run(started(far.url, since=SINCE))
        link = await far.accept()
        await link.connected()
        await link.send({"event": "resync"}, make_event(1, 600))
        call = await far.call()
        call.reply({"items": [assets[1].to_json({})], "nextCursor": "page-2"})
        (await far.call()).refuse(503, "UNAVAILABLE", Retry_After="3600")
        await link.send(make_event(2, 601))
        await script.received("asset_processed", 3)
        link.cut()
        link = await far.accept()
        assert link.first["since"] == to_timestamp(assets[1].finished_at)


@pytest.mark.gen_test(timeout=60)
async def test_resync_asked_for_twice_is_read_twice() -> None:
    """A second resync while the first is being read begins when that has ended."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(started(far.url, since=SINCE))
        link = await far.accept()
        await link.connected()
        await link.send({"event": "resync"})
        call = await far.call()
        await link.send({"event": "resync"}, make_event(1, 600))
        await script.received("asset_processed")
        await script.run("globalThis.fence = client.asset('fence')")
        fence = await far.call()
        assert fence.path == "/api/assets/fence"
        fence.reply({})
        call.reply({"items": [], "nextCursor": None})
        call = await far.call()
        assert call.query["finishedSince"] == "2026-01-31T11:59:30.000Z"
        call.reply({"items": [asset_json(make_event(2, 5))], "nextCursor": None})
        await script.received("asset_processed", 2)
        assert await script.run("return client.since") == make_event(1, 600)["timestamp"]


@pytest.mark.gen_test(timeout=60)
async def test_resync_ends_with_the_client() -> None:
    """A listener that closes the client hears nothing more of the page."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(started(far.url, since=SINCE) + "client.on('asset_processed', () => client.close())")
        link = await far.accept()
        await link.connected()
        await link.send({"event": "resync"})
        (await far.call()).reply({"items": [asset.to_json({}) for asset in finished_assets()], "nextCursor": None})
        await link.wait_ended()
        assert len(await script.all("asset_processed")) == 1


def asset_json(event: dict[str, Any]) -> dict[str, Any]:
    """Return the asset whose event this is."""
    finished_at = datetime.fromisoformat(event["timestamp"])
    return make_asset(id=event["assetId"], status=AssetStatus.FAILED, finished_at=finished_at).to_json({})


# how a connection ends and comes back


@both
@pytest.mark.gen_test(timeout=60)
async def test_goodbye_tells_when_to_come_back(kind: str) -> None:
    """The client waits as long as the server said, neither less nor by its own backoff."""
    async with FakeService() as far, far.script(kind) as script:
        await script.run(started(far.url))
        link = await far.accept()
        await link.connected()
        closed_at = time.monotonic()
        await link.close(1012, {"event": "goodbye", "retryInMs": 700})
        link = await far.accept()
        assert link.accepted_at - closed_at >= 0.69
        assert await script.all("disconnected") == [{"code": 1012, "willReconnect": True, "retryInMs": 700}]


@pytest.mark.gen_test(timeout=60)
async def test_waits_double_with_full_jitter() -> None:
    """Half a second doubling to half a minute, a random part of it each time; a good connection starts it anew."""
    async with FakeService() as far, far.script("node") as script:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        await script.run(f"Math.random = () => 0.01; {started(nowhere)}")
        await script.received("disconnected", 8)
        waits = [event["retryInMs"] for event in await script.all("disconnected")][:8]
        assert waits == pytest.approx([5, 10, 20, 40, 80, 160, 300, 300])
        await script.run(f"client.close(); {started(far.url)}")
        link = await far.accept()
        link.cut()
        link = await far.accept()
        await link.connected()
        link.cut()
        await far.accept()
        waits = [event["retryInMs"] for event in await script.all("disconnected")]
        assert waits[waits.index(None) + 1:] == pytest.approx([5, 5])


@both
@pytest.mark.gen_test(timeout=60)
async def test_attempt_that_hangs_is_given_up(kind: str) -> None:
    """Ten seconds for all of it: the answer to the handshake, and to the token. (Timers run twenty times as fast.)
    One that was open and mute is followed by the next transport.
    """
    silent: list[asyncio.StreamWriter] = []
    hung_up = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent.append(writer)
        while await reader.read(4096):
            pass
        hung_up.set()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    mute = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, FakeService() as far, far.script(kind) as script:
        begun_at = time.monotonic()
        await script.run(HURRIED + started(mute))
        assert (await script.received("disconnected"))["code"] == 1006
        assert time.monotonic() - begun_at >= 0.5
        await asyncio.wait_for(hung_up.wait(), WAIT_SECONDS)
        begun_at = time.monotonic()
        await script.run("client.close();" + started(far.url))
        await far.accept()
        await far.stream()
        assert time.monotonic() - begun_at >= 0.49


@pytest.mark.gen_test(timeout=60)
async def test_network_that_returns_is_used_at_once() -> None:
    """In a browser `online` ends a wait, or a connection that only looks open; to be looked at ends a wait too."""
    minute = {"event": "goodbye", "retryInMs": 60_000}
    async with FakeService() as far, far.script("chromium") as script:
        assert isinstance(script, ChromiumScript)
        await script.run(started(far.url))
        link = await far.accept()
        await link.connected()
        await link.close(1012, minute)
        await script.received("disconnected")
        line = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await script.page.call("Network.emulateNetworkConditions", offline=True, **line)
        await script.page.call("Network.emulateNetworkConditions", offline=False, **line)
        link = await far.accept()
        await link.connected()
        await script.run("await received('connected', 2); dispatchEvent(new Event('online'))")
        await link.wait_ended()
        link = await far.accept()
        await link.connected()
        await link.close(1012, minute)
        await script.run("""
          await received("disconnected", 4);
          document.dispatchEvent(new Event("visibilitychange"));
        """)
        await far.accept()
        await script.run("client.close(); dispatchEvent(new Event('online'))")
        assert len(await script.all("disconnected")) == 5


# tokens

FRESH = "() => `token-${(globalThis.asked = (globalThis.asked ?? 0) + 1)}`"


@both
@pytest.mark.gen_test(timeout=60)
async def test_refused_token_is_replaced_once(kind: str) -> None:
    """A token function is asked again at once; if the fresh one is refused too, the client gives up and says so."""
    refused = {"event": "error", "message": "Invalid token"}
    async with FakeService() as far, far.script(kind) as script:
        await script.run(started(far.url, FRESH))
        for number, code in enumerate((4419, 4403, 4401), start=1):
            link = await far.accept()
            assert link.first["auth"]["token"] == f"token-{number}"
            await link.connected()
            await link.close(code)
        await (await far.accept()).close(4403, refused)
        error = await script.received("error")
        assert error == {
            "name": "PipelineError",
            "message": "Invalid token",
            "code": "UNAUTHORIZED",
            "status": 4403,
            "details": [],
        }
        assert await script.all("disconnected") == [
            *({"code": code, "willReconnect": True, "retryInMs": 0} for code in (4419, 4403, 4401)),
            {"code": 4403, "willReconnect": False, "retryInMs": None},
        ]
        # The app may have found out why, and begin again.
        await script.run("client.connect()")
        await (await far.accept()).close(4403)
        await (await far.accept()).connected()
        await script.received("connected", 4)


@pytest.mark.gen_test(timeout=60)
async def test_expired_token_that_is_borne_with_is_no_fresh_one() -> None:
    """The server lets one in that expired seconds ago and then closes with 4419; this must not become a loop."""
    token = json.dumps(make_token(expires_in=-1))
    async with FakeService() as far, far.script("node") as script:
        await script.run(started(far.url, f"() => {token}"))
        for _ in range(2):
            link = await far.accept()
            await link.connected()
            await link.close(4419)
        assert (await script.received("error"))["status"] == 4419


@pytest.mark.parametrize(
    ("kind", "code"),
    [("chromium", 4403), *(("node", code) for code in (4400, 4401, 4403, 4419, 1002, 1007, 1009))],
)
@pytest.mark.gen_test(timeout=60)
async def test_refusal_for_good_ends_it(kind: str, code: int) -> None:
    """With a token that cannot be refreshed, or by a code that means "not unchanged", connect() rejects."""
    async with FakeService() as far, far.script(kind) as script:
        await script.run(f"globalThis.refusal = failure(start({{ url: '{far.url}', token: 'a-token' }}))")
        await (await far.accept()).close(code)
        assert (await script.run("return refusal"))["status"] == code
        assert await script.all("disconnected") == [{"code": code, "willReconnect": False, "retryInMs": None}]
        assert [error["status"] for error in await script.all("error")] == [code]
        assert far.accepted == 1


@both
@pytest.mark.gen_test(timeout=60)
async def test_token_is_renewed_before_it_expires(kind: str) -> None:
    """A fresh one goes out on the open connection, a tenth of its life or a minute before its end by the server's
    clock, however wrong ours is; a token function that fails is asked again. (The first two long timers fire at once.)
    """
    hurried = """
      const real = setTimeout;
      globalThis.setTimeout = (then, ms, ...more) => {
        if (ms > 60_000) say("timer", ms);
        return real(then, ms > 60_000 && all("timer").length < 3 ? 0 : ms, ...more);
      };
    """
    answer = "() => tokens.shift() ?? Promise.reject(new Error('no session'))"
    async with FakeService() as far, far.script(kind) as script:
        # "???" is where base64 and the base64url of tokens differ.
        tokens = [make_token(expires_in=3600 + 300, note="?" * 6), None, make_token(expires_in=3600 + 7200)]
        await script.run(f"globalThis.tokens = {json.dumps(tokens)}; {hurried} {started(far.url, answer)}")
        link = await far.accept()
        await link.connected(utc_now() + timedelta(hours=1))
        assert await link.frame() == {"auth": {"token": tokens[2]}}
        await script.received("timer", 3)
        assert await script.all("timer") == pytest.approx([270_000, 270_000, 7_140_000], abs=20_000)
        assert [error["message"] for error in await script.all("error")] == ["The token function failed: no session"]
        await link.send(make_event(1))
        await script.received("asset_processed")
        assert far.accepted == 1


@pytest.mark.gen_test(timeout=60)
async def test_renewal_of_a_token_that_lives_for_years_can_wait() -> None:
    """No timer is set beyond what setTimeout can bear: it would fire at once, again and again."""
    token = make_token(expires_in=400 * 86_400)
    async with FakeService() as far, far.script("node") as script:
        watched = "const real = setTimeout; globalThis.setTimeout = (...all) => (say('timer', all[1]), real(...all));"
        await script.run(f"{watched} {started(far.url, f'() => (say(0), {json.dumps(token)})')}")
        await (await far.accept()).connected()
        await script.received("connected")
        assert max(await script.all("timer")) == 2**31 - 1
        assert len(await script.run("return all(0)")) == 1


# what the app gives us


@pytest.mark.gen_test(timeout=60)
async def test_app_may_bring_its_own_parts() -> None:
    """WebSocket and fetch are the given ones; an address no WebSocket can be made for is no reason to try for ever."""
    async with node() as script:
        refusal = await script.run("""
          class WebSocket { constructor(url, protocols) { throw new Error(`${url} ${protocols}`); } }
          const fetch = async (url) => Response.json({ success: true, data: url });
          const refusal = await failure(start({ url: "https://photos.example/base/", token: "t", WebSocket, fetch }));
          return { ...refusal, url: await client.asset("1") };
        """)
        assert refusal["message"] == "wss://photos.example/base/ws pipeline.v1"
        assert refusal["url"] == "https://photos.example/base/api/assets/1"
        assert await script.all("disconnected") == [{"code": 1006, "willReconnect": False, "retryInMs": None}]


@both
@pytest.mark.gen_test(timeout=60)
async def test_failing_app_code_breaks_nothing(kind: str) -> None:
    """A token function, listeners and a progress listener that fail are told to `error`; all goes on."""
    async with FakeService() as far, far.script(kind) as script:
        await script.run(f"""
          let calls = 0;
          {started(far.url, '() => { if (!calls++) throw new Error("no session"); return "a-token"; }')}
          client.on("asset_processed", () => {{ throw new Error("thrown"); }});
          client.on("asset_processed", async () => {{ throw new Error("rejected"); }});
          client.on("error", () => {{ throw new Error("error listener"); }});
          const end = client.on("asset_processed", () => say("unsubscribed"));
          end();
        """)
        link = await far.accept()
        await link.connected()
        await link.send(make_event(1), make_event(2))
        await script.received("error", 5)
        messages = [error["message"] for error in await script.all("error")]
        assert messages[0] == "The token function failed: no session"
        assert sorted(messages[1:]) == ["rejected", "rejected", "thrown", "thrown"]
        assert len(await script.all("asset_processed")) == 2
        assert await script.all("unsubscribed") == []
        uploading = "client.upload(new Blob(['x']), { category: 'lego', onProgress() { throw new Error('step'); } })"
        await script.run(f"globalThis.receipt = {uploading}")
        (await far.call()).reply({"assetId": "1"}, 202)
        assert await script.run("return receipt") == {"assetId": "1"}
        assert (await script.received("error", 6))["message"] == "step"


@pytest.mark.gen_test(timeout=60)
async def test_close_counts_in_every_listener() -> None:
    """An app that closes the client when its token function fails is not connected after all."""
    async with node() as script:
        await script.run("""
          const token = () => { throw new Error("no session"); };
          globalThis.refusal = failure(start({ url: "http://127.0.0.1:1", token }));
          client.on("error", () => client.close());
        """)
        assert (await script.run("return refusal"))["code"] == "CLOSED"
        assert [event["willReconnect"] for event in await script.all("disconnected")] == [True, False]
        assert await script.exit_code() == 0


@pytest.mark.parametrize("state", ["connecting", "connected", "waiting", "resync"])
@pytest.mark.gen_test(timeout=60)
async def test_close_lets_the_process_end(state: str) -> None:
    """No timer, socket or request of the client keeps Node alive, wherever close() finds it."""
    async with FakeService() as far, node() as script:
        await script.run(f"globalThis.room = failure(start({{ url: '{far.url}', token: 'a-token' }}))")
        link = await far.accept()
        if state != "connecting":
            await link.connected()
            await script.received("connected")
        if state == "waiting":
            await link.close(1012, {"event": "goodbye", "retryInMs": 60_000})
            await script.received("disconnected")
        if state == "resync":
            await link.send({"event": "resync"})
            (await far.call()).refuse(503, "UNAVAILABLE", Retry_After="50")
        await script.run("client.close(); client.close()")
        closed = (await script.all("disconnected"))[-1]
        assert closed == {"code": 1000, "willReconnect": False, "retryInMs": None}
        assert ((await script.run("return room")) or {}).get("code") == ("CLOSED" if state == "connecting" else None)
        if state != "waiting":
            await link.wait_ended()
        assert await script.exit_code() == 0
        assert far.accepted == 1


# uploads


@both
@pytest.mark.gen_test(timeout=60)
async def test_upload_is_repeated_with_one_key(kind: str) -> None:
    """After a broken line, 429, 502 and 503 the same body comes again with the same key, not before Retry-After."""
    image = make_noise_image(200_000)
    uploading = f"client.upload({photo(image)}, {{ category: 'lego', onProgress: (...step) => say('step', step) }})"
    async with FakeService() as far, far.script(kind) as script:
        await script.run(f"""
          Math.random = () => 0.01;
          globalThis.client = new PipelineClient({{ url: "{far.url}/", token: {FRESH} }});
          globalThis.receipt = {uploading};
        """)
        calls = [await far.call()]
        calls[-1].cut()
        calls.append(await far.call())
        calls[-1].reply_html(502)
        calls.append(await far.call())
        calls[-1].refuse(503, "UNAVAILABLE", Retry_After="1")
        refused_at = time.monotonic()
        calls.append(await far.call())
        assert time.monotonic() - refused_at >= 0.99
        calls[-1].refuse(429, "RATE_LIMITED")
        calls.append(await far.call())
        calls[-1].reply({"assetId": "1"}, 202)
        assert await script.run("return receipt") == {"assetId": "1"}
        steps = await script.all("step")
    assert len({call.headers["Idempotency-Key"] for call in calls}) == 1
    assert all(image in call.body and call.method == "POST" for call in calls)
    assert steps[-1] == [len(calls[-1].body)] * 2


@pytest.mark.gen_test(timeout=60)
async def test_upload_ends_when_it_should() -> None:
    """It throws after five tries, at once if told to wait for long, and on the caller's signal; a 401 is met once."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(f"""
          globalThis.client = new PipelineClient({{ url: "{far.url}", token: {FRESH} }});
          globalThis.upload = (options) => {{
            globalThis.failed = failure(client.upload(new Blob(["x"]), {{ category: "lego", ...options }}));
          }};
          upload({{ idempotencyKey: "my-key" }});
        """)
        for _ in range(5):
            call = await far.call()
            assert call.headers["Idempotency-Key"] == "my-key"
            call.refuse(503, "UNAVAILABLE", Retry_After="0")
        assert (await script.run("return failed"))["code"] == "UNAVAILABLE"
        await script.run("upload()")
        (await far.call()).refuse(503, "UNAVAILABLE", Retry_After="3600")
        assert (await script.run("return failed"))["retryAfterMs"] == 3_600_000
        await script.run("globalThis.abort = new AbortController(); upload({ signal: abort.signal })")
        call = await far.call()
        await script.run("abort.abort()")
        assert (await script.run("return failed"))["name"] == "AbortError"
        call.cut()
        await script.run("upload()")
        for token in ("token-1", "token-2"):
            call = await far.call()
            assert call.headers["Authorization"] == f"Bearer {token}"
            call.refuse(401, "UNAUTHORIZED")
        assert (await script.run("return failed"))["status"] == 401


@pytest.mark.fault("O19")
@pytest.mark.gen_test(timeout=60)
async def test_uploads_that_were_too_many_wait_together_and_go_one_by_one() -> None:
    """Each waits as long as it was told, two minutes as well, but not once more when its turn in the line comes."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(f"""
          const real = setTimeout;
          const now = performance.now.bind(performance);
          let passed = 0;
          performance.now = () => now() + passed;
          globalThis.setTimeout = (then, ms, ...more) => {{
            const seconds = Math.ceil(ms / 1000);
            // fetch has timers, too.
            if (![7, 120].includes(seconds)) return real(then, ms, ...more);
            globalThis.pass = () => ((passed += ms), then(...more));
            say("wait", seconds);
          }};
          const ask = fetch;
          globalThis.fetch = async (...given) => {{
            const response = await ask(...given);
            const read = response.json.bind(response);
            response.json = async () => {{
              const data = await read();
              say("answer", data.success);
              return data;
            }};
            return response;
          }};
          globalThis.client = new PipelineClient({{ url: "{far.url}", token: {FRESH} }});
          const upload = () => client.upload(new Blob(["x"]), {{ category: "lego" }});
          globalThis.sent = Promise.all([upload(), upload(), upload()]);
        """)
        for number, call in enumerate([await far.call() for _ in range(3)], 1):
            call.refuse(429, "RATE_LIMITED", Retry_After="120")
            assert await script.received("answer", number) is False
        assert await script.received("wait") == 120
        await script.run("pass()")
        (await far.call()).reply({"assetId": "1"}, 202)
        (await far.call()).reply({"assetId": "2"}, 202)
        (await far.call()).refuse(429, "RATE_LIMITED", Retry_After="7")
        assert await script.received("wait", 2) == 7
        await script.run("pass()")
        (await far.call()).reply({"assetId": "3"}, 202)
        assert sorted(each["assetId"] for each in await script.run("return sent")) == ["1", "2", "3"]


@pytest.mark.fault("O19")
@pytest.mark.gen_test(timeout=60)
async def test_upload_that_waits_in_line_is_aborted_at_once() -> None:
    """Not when those in front of it are done; and those behind it stay behind them."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(f"""
          globalThis.client = new PipelineClient({{ url: "{far.url}", token: {FRESH} }});
          globalThis.abort = new AbortController();
          globalThis.end = new AbortController();
          globalThis.upload = ({{ signal }}) => failure(client.upload(new Blob(["x"]), {{ category: "lego", signal }}));
          globalThis.first = upload(end);
        """)
        for begin in ("globalThis.failed = upload(abort)", "globalThis.last = upload(end)", ""):
            (await far.call()).refuse(429, "RATE_LIMITED", Retry_After="50")
            await script.run(begin)
        await script.run("abort.abort()")
        assert (await script.run("return failed"))["name"] == "AbortError"
        assert await script.run("return Promise.race([first, last, 'both wait'])") == "both wait"
        await script.run("end.abort(); await Promise.all([first, last])")


# the package


def test_readme_runs_in_node(tmp_path: Path, ai_service: AiService) -> None:
    """The README's lines for Node, run as they are: the event is printed and the process ends by itself."""
    require(NODE is not None, "needs Node 22 or newer")
    (code,) = re.findall(r"## In Node\n+```js\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes(make_image())
    with Service(tmp_path / "data", ai_service.url) as service:
        code = code.replace("http://127.0.0.1:8080", service.url).replace("photo.jpg", str(tmp_path / "photo.jpg"))
        command = [str(NODE), "--no-warnings", "--input-type=module", "--eval", code]
        done = subprocess.run(
            command,
            cwd=CLIENT,
            env={"PIPELINE_TOKEN": make_token()},
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "event: 'asset_processed'" in done.stdout and "Nike" in done.stdout


def test_package_needs_nothing() -> None:
    """The modules import each other only; the package has no dependencies."""
    package = json.loads((CLIENT / "package.json").read_text())
    assert not [name for name in package if "ependencies" in name]
    files = {path.relative_to(CLIENT) for path in CLIENT.rglob("*.js") if "node_modules" not in path.parts}
    named = {Path(name) for name in package["files"] if not name.endswith(".d.ts")}
    assert named == {path if path.parent == Path() else path.parent for path in files}
    served = {each["default"] for each in package["exports"].values() if "default" in each}
    assert served == {"./pipeline-client.js", "./photo-queue.js"}
    for path in files:
        code = re.sub(r"/\*.*?\*/|^ *//.*?$", "", (CLIENT / path).read_text(), flags=re.DOTALL | re.MULTILINE)
        for imported in re.findall(r'\b(?:from |^import |await import\()"(.*?)"', code, re.MULTILINE):
            assert (CLIENT / path.parent / imported).resolve().relative_to(CLIENT.resolve()) in files
