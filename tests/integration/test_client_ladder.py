"""The Python client behind proxies that block or cut WebSockets, in front of the real service: it loses no event."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline.client.cursor
import pipeline.client.ladder
import pipeline.client.transports
from pipeline.client import Client
from tests.factories import make_token
from tests.hostile_proxy import HostileProxy
from tests.service import ROOT, AiService, Service
from tests.toxiproxy import free_port

WAIT_SECONDS = 45
RUNGS = {"refuses-upgrade": "sse", "mute": "sse", "buffers": "poll", "cuts": "socket"}
PROXY_FOR = {"socket": "honest", "sse": "refuses-upgrade", "poll": "buffers"}
every_rung = pytest.mark.parametrize("rung", PROXY_FOR)


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits one second where it usually waits ten or sixty."""
    monkeypatch.setattr(pipeline.client.transports, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(pipeline.client.ladder, "CLIMB_SECONDS", (0.3, 1))


@pytest.fixture
def no_climbing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not try a better transport, except after the service was away."""
    monkeypatch.setattr(pipeline.client.ladder, "CLIMB_SECONDS", (600, 600))


class Listener:
    """One client of the user, with the transports, notices and events that it received."""

    def __init__(self, url: str, token: str | Callable[[], str] | None = None, **options: Any) -> None:
        self.transports: list[str] = []
        self.notices: list[str] = []
        self.events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self.client = Client(
            url,
            token or make_token(),
            on_transport=self._append_to(self.transports),
            on_notice=self._append_to(self.notices),
            **options,
        )

    async def __aenter__(self) -> Listener:
        await self.client.__aenter__()
        assert await self.client.listen() == "user:user-1"
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        await asyncio.wait([self._watching])
        await self.client.__aexit__()

    @property
    def ids(self) -> list[str]:
        return sorted(event["assetId"] for event in self.events if event["event"] == "asset_processed")

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Return when the condition is true; it is checked after each event, notice and change of transport."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not is_true():
                    assert not self._watching.done(), self._watching.exception()
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError((self.transports, self.notices, self.events)) from None

    async def _watch(self) -> None:
        try:
            async for event in self.client.events():
                self.events.append(event)
                self._changed.set()
        finally:
            self._changed.set()

    def _append_to(self, received: list[str]) -> Callable[[str], None]:
        def append(text: str) -> None:
            received.append(text)
            self._changed.set()

        return append


async def upload(service: Service, count: int) -> list[str]:
    replies = [await asyncio.to_thread(service.upload) for _ in range(count)]
    return [reply.json()["data"]["assetId"] for reply in replies]


@pytest.mark.parametrize("mode", RUNGS)
@pytest.mark.gen_test(timeout=90)
async def test_no_event_is_lost_on_the_ladder(mode: str, tmp_path: Path, ai_service: AiService) -> None:
    """The client uses the best transport that works, and a better one when the proxy allows it.

    It yields each event once, also events of the moments between two transports.
    """
    with Service(tmp_path, ai_service.url) as service:
        async with HostileProxy(service.url, mode, cut_seconds=1.0) as proxy, Listener(proxy.url) as listener:
            assert listener.client.transport == RUNGS[mode]
            ids = await upload(service, 5)
            await listener.until(lambda: len(listener.ids) >= 5)
            if mode == "cuts":
                await listener.until(lambda: listener.notices.count("Connected again") >= 2)
            proxy.mode = "honest"
            uploading = asyncio.create_task(upload(service, 10))
            await listener.until(lambda: listener.client.transport == "socket")
            ids += await uploading + await upload(service, 2)
            await listener.until(lambda: len(listener.ids) >= 17)
            assert listener.ids == sorted(ids)
            assert listener.transports == ([] if mode == "cuts" else [RUNGS[mode]]) + ["socket"]


@every_rung
@pytest.mark.gen_test(timeout=90)
async def test_restart_loses_no_event(rung: str, tmp_path: Path) -> None:
    """The service is killed with a running job and later drained: on each transport each event arrives once.

    While the service is away the proxy replies 502, and the client may use a lesser transport for that time.
    """
    port = str(free_port())
    with AiService(paused=True) as ai_service, Service(tmp_path, ai_service.url, PORT=port) as service:
        async with HostileProxy(service.url, PROXY_FOR[rung]) as proxy, Listener(proxy.url) as listener:
            assert listener.client.transport == rung
            ids = await upload(service, 1)
            await asyncio.to_thread(service.wait_log, "job_claimed")
            await asyncio.to_thread(service.kill)
            await listener.until(lambda: listener.notices != [])
            ai_service.configure(paused=False)
            await asyncio.to_thread(service.start)
            await listener.until(lambda: len(listener.ids) == 1)
            assert await asyncio.to_thread(service.stop) == 0
            await asyncio.to_thread(service.start)
            ids += await upload(service, 2)
            await listener.until(lambda: len(listener.ids) == 3 and listener.client.transport == rung)
            assert listener.ids == sorted(ids)


@pytest.mark.usefixtures("no_climbing")
@every_rung
@pytest.mark.gen_test(timeout=90)
async def test_expired_tokens_are_replaced_on_every_rung(rung: str, tmp_path: Path, ai_service: AiService) -> None:
    """A token expires after five seconds: an event after that arrives by the same transport, once."""
    with Service(tmp_path, ai_service.url) as service:
        async with HostileProxy(service.url, PROXY_FOR[rung]) as proxy:
            # The proxy that buffers would pass on a stream that ended before the client closed it.
            expires_at = time.time() + 5
            tokens = [make_token(expires_in=5), make_token()]
            async with Listener(proxy.url, lambda: tokens.pop(0)) as listener:
                # The service accepts an expired token for five more seconds. No signal exists for "not closed".
                await asyncio.sleep(expires_at + 6 - time.time())
                ids = await upload(service, 1)
                await listener.until(lambda: listener.ids == ids)
                # A poll that waits began before the token expired; the next poll begins after it.
                await upload(service, 1)
                await listener.until(lambda: len(listener.ids) == 2)
                assert (listener.transports, tokens) == ([rung], [])


@pytest.mark.usefixtures("no_climbing")
@every_rung
@pytest.mark.gen_test(timeout=90)
async def test_one_cursor_serves_every_transport(rung: str, tmp_path: Path, ai_service: AiService) -> None:
    """Events of the time without a client arrive at the next client, which has the cursor, on each transport."""
    with Service(tmp_path, ai_service.url) as service:
        async with HostileProxy(service.url) as proxy:
            async with Listener(proxy.url) as listener:
                earlier = await upload(service, 1)
                await listener.until(lambda: len(listener.ids) == 1)
                since = listener.client.since
            missed = await upload(service, 3)
            await asyncio.to_thread(service.wait_log, "job_completed", count=4)
            proxy.mode = PROXY_FOR[rung]
            async with Listener(proxy.url, since=since) as listener:
                await listener.until(lambda: set(missed) <= set(listener.ids))
                assert listener.client.transport == rung
                assert set(listener.ids) <= {*earlier, *missed} and len(listener.events) == len(listener.ids)


@pytest.mark.fault("R7")
@pytest.mark.usefixtures("no_climbing")
@every_rung
@pytest.mark.gen_test(timeout=90)
async def test_cursor_an_hour_ahead_is_reset(rung: str, tmp_path: Path, ai_service: AiService) -> None:
    """The client gets the events of the last day, and its cursor becomes the service's time."""
    with Service(tmp_path, ai_service.url) as service:
        missed = await upload(service, 2)
        await asyncio.to_thread(service.wait_log, "job_completed", count=2)
        async with HostileProxy(service.url, PROXY_FOR[rung]) as proxy:
            ahead = pipeline.client.cursor.shift(service.asset(missed[0])["finishedAt"], 3600)
            async with Listener(proxy.url, since=ahead) as listener:
                await listener.until(lambda: len(listener.ids) == 2)
                later = await upload(service, 1)
                await listener.until(lambda: len(listener.ids) == 3)
                assert listener.ids == sorted(missed + later)
                assert listener.client.since is not None and listener.client.since < ahead
                finished_at = service.asset(missed[-1])["finishedAt"]
                assert listener.client.since >= finished_at


@pytest.mark.gen_test(timeout=60)
async def test_watch_prints_the_transport(tmp_path: Path, ai_service: AiService) -> None:
    """`run.py watch` behind a proxy without WebSockets prints its transport and the event."""
    with Service(tmp_path, ai_service.url) as service:
        async with HostileProxy(service.url, "refuses-upgrade") as proxy:
            watch = [sys.executable, "run.py", "watch", "--url", proxy.url, "--token", make_token()]
            watching = await asyncio.create_subprocess_exec(
                *watch, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            assert watching.stdout is not None and watching.stderr is not None
            printed = [(await watching.stderr.readline()).decode().strip() for _ in range(2)]
            assert printed == ["Events come by sse now", "Listening in user:user-1"]
            ids = await upload(service, 1)
            assert json.loads(await watching.stdout.readline())["assetId"] == ids[0]
            watching.send_signal(signal.SIGINT)
            _, rest = await watching.communicate()
            assert watching.returncode == 0 and rest.startswith(b"To continue from here: ") and rest.count(b"\n") == 1
