"""The JavaScript client falls back from WebSocket to server-sent events and long polling behind hostile proxies.

The ladder is this order of transports; the client climbs when a better transport works. The service is the real one.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.constants import RENEWALS_PER_LEASE
from tests.factories import make_token
from tests.fake_service import FakeService
from tests.hostile_proxy import HostileProxy
from tests.integration.js_scripts import in_node_and_chromium
from tests.integration.js_transports import STAYS, received_ids, start_signed_in, upload_photos, wait_for_transport
from tests.service import AiService, Service
from tests.toxiproxy import Toxiproxy

TRANSPORT_BEHIND = {"refuses-upgrade": "sse", "mute": "sse", "buffers": "poll", "cuts": "socket"}
PROXY_FOR = {"socket": "honest", "sse": "refuses-upgrade", "poll": "buffers"}
every_transport = pytest.mark.parametrize("transport", PROXY_FOR)
# The default times of the client are ten seconds and a minute.
TIMES = {"connectMs": 1000, "climbMs": 300, "longestClimbMs": 1000}


@in_node_and_chromium
@pytest.mark.parametrize("mode", TRANSPORT_BEHIND)
@pytest.mark.gen_test(timeout=60)
async def test_no_event_is_lost_when_the_transport_changes(
    kind: str, mode: str, tmp_path: Path, ai_service: AiService
) -> None:
    """The client finds the best transport that works, and climbs when the proxy becomes honest.

    It emits every event once, also events from the moments between two transports.
    """
    async with FakeService() as page:
        with Service(tmp_path, ai_service.url, ALLOWED_ORIGINS=page.url) as service:
            async with HostileProxy(service.url, mode, cut_seconds=1.0) as proxy, page.script(kind) as script:
                await script.run(start_signed_in(proxy.url, times=TIMES))
                ids = await upload_photos(script, 3)
                await wait_for_transport(script, TRANSPORT_BEHIND[mode])
                ids += await upload_photos(script, 5)
                await script.received("asset_processed", 8)
                if mode == "cuts":
                    await script.received("connected", 2)
                proxy.mode = "honest"
                await wait_for_transport(script, "socket")
                ids += await upload_photos(script, 2)
                assert sorted(await received_ids(script, 10)) == sorted(ids)
                assert await script.all("error") == []
                used = [each["transport"] for each in await script.all("transport")]
                assert used == list(PROXY_FOR)[list(PROXY_FOR).index(TRANSPORT_BEHIND[mode]) :: -1]
                if mode == "mute":
                    proxy.cut()  # Node's WebSocket waits for the answer to its close


@every_transport
@pytest.mark.gen_test(timeout=60)
async def test_restart_loses_no_event(transport: str, tmp_path: Path) -> None:
    """The service is killed during a job, and later stopped in order: each event arrives once, on each transport.

    The transport stays the same.
    """
    # The job of the killed process is claimed by the next process when its lease has ended.
    lease = {"LEASE_SECONDS": "2", RENEWALS_PER_LEASE: "4"}
    with AiService(paused=True) as ai_service, Service(tmp_path, ai_service.url, **lease) as service:
        service.environment["PORT"] = service.url.rpartition(":")[2]
        async with HostileProxy(service.url, PROXY_FOR[transport]) as proxy, FakeService() as far, far.script(
            "node"
        ) as script:
            # A service that has just started may answer slowly: the client must not change its transport for that.
            await script.run(start_signed_in(proxy.url, times=STAYS | {"connectMs": 4000}))
            await wait_for_transport(script, transport)
            ids = await upload_photos(script, 1)
            await asyncio.to_thread(service.kill)  # in a thread, because the proxy runs on this loop
            await script.received("disconnected")
            ai_service.configure(paused=False)
            await asyncio.to_thread(service.start)
            await received_ids(script, 1)
            await asyncio.to_thread(service.stop)
            await asyncio.to_thread(service.start)
            ids += await upload_photos(script, 2)
            assert sorted(await received_ids(script, 3)) == sorted(ids)
            assert {each["transport"] for each in await script.all("transport")} == {transport}
            assert all(each["willReconnect"] for each in await script.all("disconnected"))


@every_transport
@pytest.mark.gen_test(timeout=60)
async def test_expiring_tokens_are_replaced_on_every_transport(
    transport: str, tmp_path: Path, ai_service: AiService
) -> None:
    """Tokens expire after four seconds: an event after several tokens still arrives, and the client has no error.

    The service accepts an expired token for five more seconds.
    """
    with Service(tmp_path, ai_service.url) as service:
        async with HostileProxy(service.url, PROXY_FOR[transport]) as proxy, FakeService() as far, far.script(
            "node"
        ) as script:
            tokens = [make_token(expires_in=4 + number) for number in range(40)]
            begin = "const begun = Date.now();"
            asked = f"() => (say('token'), {json.dumps(tokens)}[Math.floor((Date.now() - begun) / 1000)])"
            await script.run(begin + start_signed_in(proxy.url, asked, times=STAYS))
            await wait_for_transport(script, transport)
            asked_before = len(await script.all("token"))
            await script.run("await new Promise((done) => setTimeout(done, 9_000))")
            ids = await upload_photos(script, 1)
            assert await received_ids(script, 1) == ids
            assert len(await script.all("token")) > asked_before
            assert await script.all("error") == []


@every_transport
@pytest.mark.gen_test(timeout=60)
async def test_slow_phone_stays_on_its_transport(transport: str, tmp_path: Path, ai_service: AiService) -> None:
    """Everything the client sends takes more than a second: no event is lost, and the transport stays the same."""
    with Service(tmp_path, ai_service.url) as service, Toxiproxy() as toxiproxy:
        async with HostileProxy(service.url, PROXY_FOR[transport]) as proxy, FakeService() as far, far.script(
            "node"
        ) as script:
            line = toxiproxy.link("phone", int(proxy.url.rpartition(":")[2]))
            line.slow(1200)
            await script.run(start_signed_in(f"http://127.0.0.1:{line.port}", times=STAYS | {"connectMs": 4000}))
            ids = await upload_photos(script, 2)
            await wait_for_transport(script, transport)
            ids += await upload_photos(script, 1)
            assert sorted(await received_ids(script, 3)) == sorted(ids)
            assert [each["transport"] for each in await script.all("transport")] == [transport]
