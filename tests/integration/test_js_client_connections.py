"""How connections of the JavaScript client end and begin, and how it refreshes tokens, against a fake service."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from datetime import timedelta

import pytest

from pipeline.clock import utc_now
from tests.factories import make_token
from tests.fake_service import FakeService
from tests.integration.js_scripts import FRESH, in_node_and_chromium, make_event, start_script
from tests.scripts import FASTER, WAIT_SECONDS, ChromiumScript


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_close_frame_says_when_to_reconnect(kind: str) -> None:
    """The client waits as long as the service said, not less, and not by its own backoff."""
    async with FakeService() as far, far.script(kind) as script:
        await script.run(start_script(far.url))
        link = await far.accept()
        await link.connected()
        closed_at = time.monotonic()
        await link.close(1012, {"event": "goodbye", "retryInMs": 700})
        link = await far.accept()
        assert link.accepted_at - closed_at >= 0.69
        assert await script.all("disconnected") == [{"code": 1012, "willReconnect": True, "retryInMs": 700}]


@pytest.mark.gen_test(timeout=60)
async def test_waits_double_with_full_jitter() -> None:
    """The longest wait doubles from half a second to half a minute, with a random part; a good connection resets it."""
    async with FakeService() as far, far.script("node") as script:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        await script.run(f"Math.random = () => 0.01; {start_script(nowhere)}")
        await script.received("disconnected", 8)
        waits = [event["retryInMs"] for event in await script.all("disconnected")][:8]
        assert waits == pytest.approx([5, 10, 20, 40, 80, 160, 300, 300])
        await script.run(f"client.close(); {start_script(far.url)}")
        link = await far.accept()
        link.cut()
        link = await far.accept()
        await link.connected()
        link.cut()
        await far.accept()
        waits = [event["retryInMs"] for event in await script.all("disconnected")]
        assert waits[waits.index(None) + 1:] == pytest.approx([5, 5])


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_connection_attempt_that_hangs_is_ended(kind: str) -> None:
    """The handshake and the reply to the token have ten seconds together. (Timers run twenty times as fast.)

    After a socket that opened and sent nothing the next transport is tried.
    """
    closed = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            pass
        closed.set()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    silent_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, FakeService() as far, far.script(kind) as script:
        started_at = time.monotonic()
        await script.run(FASTER + start_script(silent_url))
        assert (await script.received("disconnected"))["code"] == 1006
        assert time.monotonic() - started_at >= 0.5
        await asyncio.wait_for(closed.wait(), WAIT_SECONDS)
        started_at = time.monotonic()
        await script.run("client.close();" + start_script(far.url))
        await far.accept()
        await far.stream()
        assert time.monotonic() - started_at >= 0.49


@pytest.mark.gen_test(timeout=60)
async def test_network_that_returns_is_used_at_once() -> None:
    """In a browser `online` ends a wait, or a connection that only looks open; showing the page ends a wait, too."""
    minute = {"event": "goodbye", "retryInMs": 60_000}
    async with FakeService() as far, far.script("chromium") as script:
        assert isinstance(script, ChromiumScript)
        await script.run(start_script(far.url))
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


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_refused_token_is_replaced_once(kind: str) -> None:
    """The token function is called at once; if the fresh token is refused too, the client ends with an error."""
    refused = {"event": "error", "message": "Invalid token"}
    async with FakeService() as far, far.script(kind) as script:
        await script.run(start_script(far.url, FRESH))
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
        # The app may find the cause and connect anew.
        await script.run("client.connect()")
        await (await far.accept()).close(4403)
        await (await far.accept()).connected()
        await script.received("connected", 4)


@pytest.mark.gen_test(timeout=60)
async def test_accepted_expired_token_does_not_count_as_fresh() -> None:
    """The service accepts a token that expired seconds ago and then closes with 4419; this must not become a loop."""
    token = json.dumps(make_token(expires_in=-1))
    async with FakeService() as far, far.script("node") as script:
        await script.run(start_script(far.url, f"() => {token}"))
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
async def test_final_refusal_ends_the_client(kind: str, code: int) -> None:
    """connect() rejects for a token that cannot be refreshed, and for a code that forbids a repetition."""
    async with FakeService() as far, far.script(kind) as script:
        await script.run(f"globalThis.refusal = failure(start({{ url: '{far.url}', token: 'a-token' }}))")
        await (await far.accept()).close(code)
        assert (await script.run("return refusal"))["status"] == code
        assert await script.all("disconnected") == [{"code": code, "willReconnect": False, "retryInMs": None}]
        assert [error["status"] for error in await script.all("error")] == [code]
        assert far.accepted == 1


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_token_is_renewed_before_it_expires(kind: str) -> None:
    """A fresh token is sent on the open connection, a tenth of its life or a minute before it expires.

    The clock of the service counts, not that of the client. A token function that fails is called once more. (The
    first two long timers fire at once.)
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
        await script.run(f"globalThis.tokens = {json.dumps(tokens)}; {hurried} {start_script(far.url, answer)}")
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
async def test_token_that_is_valid_for_years_sets_no_overflowing_timer() -> None:
    """No timer is longer than setTimeout accepts: a longer one would fire at once, repeatedly."""
    token = make_token(expires_in=400 * 86_400)
    async with FakeService() as far, far.script("node") as script:
        watched = "const real = setTimeout; globalThis.setTimeout = (...all) => (say('timer', all[1]), real(...all));"
        await script.run(f"{watched} {start_script(far.url, f'() => (say(0), {json.dumps(token)})')}")
        await (await far.accept()).connected()
        await script.received("connected")
        assert max(await script.all("timer")) == 2**31 - 1
        assert len(await script.run("return all(0)")) == 1
