"""Crowds of hostile clients against the real process: other clients are served."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import httpx
import pytest

from tests.factories import make_token
from tests.faults.chaos.world import resident_mib
from tests.faults.processes import wait_until
from tests.raw_sockets import make_handshake
from tests.requirements import require
from tests.service import AiService, Service
from tests.sockets import WAIT_SECONDS

CROWD = 1000
# More memory than one such client needs, and far less than a leak or a missing limit would use.
BYTES_EACH = 60_000


class FewFiles(Service):
    """A process that may open 200 files."""

    command = (
        "-c",
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200));"
        "runpy.run_path('run.py', run_name='__main__')",
    )


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    with Service(tmp_path, ai_service.url) as service:
        yield service


class AnalysisListener:
    """A normal user with an open socket: `receives_event` uploads a photo and waits for its event."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __aenter__(self) -> AnalysisListener:
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(f"{self._service.url}/ws", headers=self._service.headers("ann"))
        assert (await self._socket.receive_json(timeout=WAIT_SECONDS))["event"] == "connected"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()
        await self._session.close()

    async def receives_event(self) -> None:
        """Return when an upload has been accepted and its event has come."""
        reply = await asyncio.to_thread(self._service.upload, "ann")
        assert reply.status_code == 202
        event = await self._socket.receive_json(timeout=WAIT_SECONDS)
        assert event["assetId"] == reply.json()["data"]["assetId"]


def address(service: Service) -> tuple[str, int]:
    host, port = service.url.removeprefix("http://").split(":")
    return host, int(port)


def answers(service: Service) -> bool:
    try:
        return service.get("/livez").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("sent", ["nothing", "half a handshake", "a handshake and no token"])
@pytest.mark.gen_test(timeout=60)
async def test_thousand_half_open_sockets_do_not_affect_others(service: Service, sent: str) -> None:
    """Each uses little memory, and other users are served meanwhile."""
    handshake = make_handshake("127.0.0.1")
    data = {"nothing": b"", "half a handshake": handshake[:60], "a handshake and no token": handshake}[sent]
    async with AnalysisListener(service) as listener:
        await listener.receives_event()
        before = resident_mib(service.pid)
        require(before > 0, "needs /proc")
        with ExitStack() as crowd:
            for _ in range(CROWD):
                client = crowd.enter_context(socket.create_connection(address(service), timeout=WAIT_SECONDS))
                client.sendall(data)
            await listener.receives_event()
            assert resident_mib(service.pid) - before < CROWD * BYTES_EACH / 2**20
            await listener.receives_event()
        await listener.receives_event()


@pytest.mark.gen_test(timeout=60)
async def test_flood_of_bad_tokens_does_not_affect_others(service: Service) -> None:
    """Each gets 4403, or 4429 after too many from its address; users with good tokens connect and get events."""
    async with AnalysisListener(service) as listener, aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=100)
    ) as session:
        bad = {"Authorization": f"Bearer {make_token(secret='another secret of thirty-two bytes or more')}"}

        is_enough = asyncio.Event()
        codes: Counter[int | None] = Counter()

        async def connect_with_bad_token() -> None:
            while not is_enough.is_set() or codes.total() < CROWD:
                async with session.ws_connect(f"{service.url}/ws", headers=bad) as client:
                    await client.receive(timeout=WAIT_SECONDS)
                    await client.receive(timeout=WAIT_SECONDS)
                    codes[client.close_code] += 1

        crowd = asyncio.gather(*[connect_with_bad_token() for _ in range(100)])
        await listener.receives_event()
        async with AnalysisListener(service) as newcomer:
            await newcomer.receives_event()
        is_enough.set()
        await crowd
    assert codes.keys() == {4403, 4429} and codes.total() >= CROWD


@pytest.mark.gen_test(timeout=60)
async def test_process_without_free_files_serves_its_open_connections(tmp_path: Path, ai_service: AiService) -> None:
    """Connections beyond the limit of open files are closed at once; open ones are served, and later new ones too."""
    with FewFiles(tmp_path, ai_service.url) as service:
        async with AnalysisListener(service) as listener:
            with ExitStack() as crowd:
                clients = [crowd.enter_context(socket.create_connection(address(service))) for _ in range(300)]
                # Refused connections end; accepted ones stay open and silent.
                service.wait_log("connections_refused")
                clients[-1].settimeout(WAIT_SECONDS)
                assert clients[-1].recv(1) == b""
            # The process notices their end one by one, and a new connection may come before the first.
            await asyncio.to_thread(wait_until, lambda: answers(service), WAIT_SECONDS)
            await listener.receives_event()
        assert len(service.find("connections_refused")) < 10
        assert service.errors() == []
