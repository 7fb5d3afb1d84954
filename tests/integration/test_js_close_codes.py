"""What the JavaScript client does on close codes, early tokens, a wrong clock and a foreign origin."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pipeline.assets.asset import AssetStatus, to_timestamp
from pipeline.clock import utc_now
from tests.factories import make_asset
from tests.fake_service import FakeService
from tests.integration.js_transports import start_signed_in
from tests.scripts import CLIENT, chromium
from tests.service import Service

ROOT = Path(__file__).parents[2]


def test_close_codes_are_those_of_the_contract() -> None:
    """The table of the client equals contracts/close-codes.json, without the meanings."""
    listed = json.loads((ROOT / "contracts" / "close-codes.json").read_text())
    table = re.findall(r'^ +(\d{4}): "(\w+)",$', (CLIENT / "close-codes.js").read_text(), re.MULTILINE)
    assert {int(code): client for code, client in table} == {each["code"]: each["client"] for each in listed}


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=60)
async def test_temporary_close_codes_are_not_final() -> None:
    """After too many frames the client waits 30 to 60 s; after too many sockets as long as the service says."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(start_signed_in(far.url))
        link = await far.accept()
        await link.connected()
        await link.close(4429, {"event": "error", "message": "Too many frames"})
        closed = await script.received("disconnected")
        assert (closed["code"], closed["willReconnect"]) == (4429, True) and 30_000 <= closed["retryInMs"] <= 60_000
        await script.run(f"client.close(); {start_signed_in(far.url)}")
        link = await far.accept()
        await link.connected()
        wait = {"event": "goodbye", "retryInMs": 400}
        await link.close(1013, wait, {"event": "error", "message": "Too many connections"})
        await (await far.accept()).connected()
        assert (await script.all("disconnected"))[-1] == {"code": 1013, "willReconnect": True, "retryInMs": 400}


@pytest.mark.fault("R9")
@pytest.mark.gen_test(timeout=60)
async def test_token_that_is_not_valid_yet_is_retried() -> None:
    """After 1013 before `connected`, many times, the client reconnects over the same transport; HTTP calls wait."""
    async with FakeService() as far, far.script("node") as script:
        await script.run("Math.random = () => 0.01;" + start_signed_in(far.url))
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
    """A cursor an hour ahead causes a resync of a day; when that is complete the cursor is the time of the service.

    An event of a clock that is an hour ahead does not move the cursor past that time.
    """
    now = utc_now()
    ahead = to_timestamp(now + timedelta(hours=1))
    async with FakeService() as far, far.script("node") as script:
        await script.run(start_signed_in(far.url, since=ahead))
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
async def test_page_of_a_foreign_origin_gets_the_name_of_the_setting(tmp_path: Path) -> None:
    """`error` names the setting once. The client keeps trying, and connects when the setting names the origin."""
    async with FakeService() as page, chromium(f"{page.url}/") as script:
        with Service(tmp_path) as service:
            service.environment["PORT"] = service.url.rpartition(":")[2]
            await script.run("Math.random = () => 0.01;" + start_signed_in(service.url))
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
