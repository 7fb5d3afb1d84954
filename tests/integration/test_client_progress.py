"""Both clients get each progress frame of a photo from the real service and cancel a photo, by socket and by stream."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pipeline.client import Client
from tests.factories import make_token
from tests.hostile_proxy import HostileProxy
from tests.scripts import node
from tests.service import AiService, Service

MODES = {"honest": "socket", "refuses-upgrade": "sse"}
every_transport = pytest.mark.parametrize("mode", MODES)


@every_transport
@pytest.mark.gen_test(timeout=90)
async def test_python_client_sees_progress_and_cancels(mode: str, tmp_path: Path, ai_service: AiService) -> None:
    """Frames arrive from the position in the queue to the end; a cancelled photo has the event of a failed one."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url, CONCURRENCY="1") as service:
        async with HostileProxy(service.url, mode) as proxy, Client(proxy.url, make_token(), progress=True) as client:
            await client.listen()
            assert client.transport == MODES[mode]
            first, second = [(await asyncio.to_thread(service.upload)).json()["data"]["assetId"] for _ in range(2)]
            seen: dict[str, list[str]] = {first: [], second: []}
            async for event in client.events():
                seen[event["assetId"]].append(event["event"])
                if event["event"] == "asset_queued" and event["assetId"] == second and event["position"] == 1:
                    assert (await client.cancel(second))["status"] == "failed"
                if event["event"] == "asset_processed" and event["assetId"] == second:
                    assert event["error"] == "Cancelled"
                    await asyncio.to_thread(ai_service.configure, paused=False)
                if event["event"] == "asset_processed" and event["assetId"] == first:
                    break
            assert seen[first][0] == "asset_queued" and seen[first][-2:] == ["asset_started", "asset_processed"]
            assert "asset_started" not in seen[second]


@every_transport
@pytest.mark.gen_test(timeout=90)
async def test_js_client_sees_progress_and_cancels(mode: str, tmp_path: Path, ai_service: AiService) -> None:
    """The JavaScript client gets the same frames and cancels as the Python client does."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url, CONCURRENCY="1") as service:
        async with HostileProxy(service.url, mode) as proxy, node() as script:
            await script.run(f"await start({{ url: {proxy.url!r}, token: {make_token()!r}, progress: true }})")
            assert await script.run("return client.transport") == MODES[mode]
            names = "'queued', 'started'"
            await script.run(f"for (const name of [{names}]) client.on('asset_' + name, (e) => say(name, e))")
            first, second = [(await asyncio.to_thread(service.upload)).json()["data"]["assetId"] for _ in range(2)]
            await script.run(
                f"for (let n = 1; ; n++) {{ const e = await received('queued', n);"
                f" if (e.assetId === {second!r} && e.position === 1) return; }}"
            )
            assert (await script.run(f"return client.cancel({second!r})"))["status"] == "failed"
            event = await script.received("asset_processed")
            assert (event["assetId"], event["error"]) == (second, "Cancelled")
            await asyncio.to_thread(ai_service.configure, paused=False)
            assert (await script.received("asset_processed", 2))["assetId"] == first
            assert [each["assetId"] for each in await script.all("started")] == [first]
