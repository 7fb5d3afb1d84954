"""The JavaScript client and the code of its app: given parts, failing callbacks, close() and uploads."""

from __future__ import annotations

import time

import pytest

from tests.factories import make_noise_image
from tests.fake_service import FakeService
from tests.integration.js_scripts import FRESH, in_node_and_chromium, make_event, start_script
from tests.scripts import node, photo


@pytest.mark.gen_test(timeout=60)
async def test_app_may_bring_its_own_parts() -> None:
    """The client uses the given WebSocket and fetch. If the WebSocket cannot be made, the client does not retry."""
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


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_failing_app_code_breaks_nothing(kind: str) -> None:
    """Errors of a token function, of listeners and of a progress listener reach `error`; the client continues."""
    async with FakeService() as far, far.script(kind) as script:
        await script.run(f"""
          let calls = 0;
          {start_script(far.url, '() => { if (!calls++) throw new Error("no session"); return "a-token"; }')}
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
async def test_close_works_in_a_listener() -> None:
    """An app that closes the client when its token function fails gets no connection later."""
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
    """After close() no timer, socket or request of the client keeps Node running, in any state of the client."""
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


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_upload_is_repeated_with_one_key(kind: str) -> None:
    """After a cut connection, 429, 502 and 503 the same body is sent with the same key, not before Retry-After."""
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
async def test_upload_ends_after_a_final_failure() -> None:
    """An upload throws after five tries, for a long Retry-After, on the caller's signal, and after a second 401."""
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


# Waits of 7 and 120 seconds end when the test calls pass(); other timers stay. Each wait and each reply is recorded.
WATCHED_WAITS = """
  const real = setTimeout;
  const now = performance.now.bind(performance);
  let passed = 0;
  performance.now = () => now() + passed;
  globalThis.setTimeout = (then, ms, ...more) => {
    const seconds = Math.ceil(ms / 1000);
    // fetch sets timers, too.
    if (![7, 120].includes(seconds)) return real(then, ms, ...more);
    globalThis.pass = () => ((passed += ms), then(...more));
    say("wait", seconds);
  };
  const ask = fetch;
  globalThis.fetch = async (...given) => {
    const response = await ask(...given);
    const read = response.json.bind(response);
    response.json = async () => {
      const data = await read();
      say("answer", data.success);
      return data;
    };
    return response;
  };
"""


@pytest.mark.fault("O19")
@pytest.mark.gen_test(timeout=60)
async def test_uploads_over_the_limit_wait_together_and_are_sent_one_by_one() -> None:
    """Each upload waits as long as Retry-After says, also two minutes, but only once."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(f"""
          {WATCHED_WAITS}
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
    """The abort does not wait for the uploads in front of it; later uploads keep waiting."""
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
