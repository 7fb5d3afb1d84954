"""Crowds of clients that mean harm, against the real process: they hurt only themselves."""

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
from tests.requirements import require
from tests.service import AiService, Service
from tests.sockets import WAIT_SECONDS, make_handshake

CROWD = 1000
# More than one such client may cost us, and far less than a leak or a missing bound would.
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
    """A well-behaved user: `hears` uploads a photo and waits for its event on a socket opened beforehand."""

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

    async def hears(self) -> None:
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
async def test_thousand_half_open_sockets_hurt_nobody(service: Service, sent: str) -> None:
    """They cost little memory each, and others are served meanwhile."""
    whole = make_handshake("127.0.0.1")
    data = {"nothing": b"", "half a handshake": whole[:60], "a handshake and no token": whole}[sent]
    async with AnalysisListener(service) as listener:
        await listener.hears()
        before = resident_mib(service.pid)
        require(before > 0, "needs /proc")
        with ExitStack() as crowd:
            for _ in range(CROWD):
                client = crowd.enter_context(socket.create_connection(address(service), timeout=WAIT_SECONDS))
                client.sendall(data)
            await listener.hears()
            assert resident_mib(service.pid) - before < CROWD * BYTES_EACH / 2**20
            await listener.hears()
        await listener.hears()


@pytest.mark.gen_test(timeout=60)
async def test_flood_of_bad_tokens_hurts_nobody(service: Service) -> None:
    """Each is told 4403, or 4429 once its address has sent too many; users with good tokens come in and hear events."""
    async with AnalysisListener(service) as listener, aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=100)
    ) as session:
        bad = {"Authorization": f"Bearer {make_token(secret='another secret of thirty-two bytes or more')}"}

        is_enough = asyncio.Event()
        codes: Counter[int | None] = Counter()

        async def knock() -> None:
            while not is_enough.is_set() or codes.total() < CROWD:
                async with session.ws_connect(f"{service.url}/ws", headers=bad) as client:
                    await client.receive(timeout=WAIT_SECONDS)
                    await client.receive(timeout=WAIT_SECONDS)
                    codes[client.close_code] += 1

        crowd = asyncio.gather(*[knock() for _ in range(100)])
        await listener.hears()
        async with AnalysisListener(service) as newcomer:
            await newcomer.hears()
        is_enough.set()
        await crowd
    assert codes.keys() == {4403, 4429} and codes.total() >= CROWD


@pytest.mark.gen_test(timeout=60)
async def test_process_with_no_file_left_serves_those_it_has(tmp_path: Path, ai_service: AiService) -> None:
    """More connections than it may open files are closed at once; who is in stays, and later others get in again."""
    with FewFiles(tmp_path, ai_service.url) as service:
        async with AnalysisListener(service) as listener:
            with ExitStack() as crowd:
                clients = [crowd.enter_context(socket.create_connection(address(service))) for _ in range(300)]
                # Refused connections end; those kept stay open and silent.
                service.wait_log("connections_refused")
                clients[-1].settimeout(WAIT_SECONDS)
                assert clients[-1].recv(1) == b""
            # The process hears of their end one by one, and a new connection may come before the first.
            await asyncio.to_thread(wait_until, lambda: answers(service), WAIT_SECONDS)
            await listener.hears()
        assert len(service.find("connections_refused")) < 10
        assert service.errors() == []
