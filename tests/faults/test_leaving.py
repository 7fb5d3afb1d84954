"""A process that ends announces it first, serves for LAME_DUCK_SECONDS, and answers all clients that are connected."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path

import aiohttp
import httpx
import pytest

from tests.factories import make_token, make_upload
from tests.faults.uploads import accept
from tests.slowdown import slowdown
from tests.rolling import Instances
from tests.service import AiService, Service

WAITING = 20


def connect(service: Service) -> socket.socket:
    """Return a connection of a client."""
    return socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=30)


def an_upload() -> bytes:
    """Return the bytes of an upload request."""
    body, content_type = make_upload()
    head = (
        "POST /api/assets/analyze-queue HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {make_token()}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def answer_on(client: socket.socket) -> bytes:
    """Return all bytes until the service closes the connection."""
    with client:
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.gen_test(timeout=60)
@pytest.mark.fault("O12")
async def test_lame_duck_serves_and_announces_its_end(tmp_path: Path, ai_service: AiService) -> None:
    """While /readyz answers 503, uploads are accepted and sockets opened, and each answer closes its connection.

    A second signal ends the process at once.
    """
    with Service(tmp_path, ai_service.url, LAME_DUCK_SECONDS="60") as service, httpx.Client() as client:
        assert client.get(f"{service.url}/readyz?local").json()["data"] == {
            "dependencies": [{"name": name, "ok": True} for name in ("sandbox", "disk", "tasks", "process")]
        }
        service.signal(signal.SIGTERM)
        await asyncio.to_thread(service.wait_log, "service_stopping")
        for path in ("/readyz", "/readyz?local"):
            reply = client.get(service.url + path)
            assert (reply.status_code, reply.headers["Connection"]) == (503, "close")
            assert reply.json()["error"]["details"] == [{"field": "process", "message": "draining"}]
        accepted = await asyncio.to_thread(service.upload)
        assert (accepted.status_code, accepted.headers["Connection"]) == (202, "close")
        async with (
            aiohttp.ClientSession(headers=service.headers()) as session,
            session.ws_connect(f"{service.url}/ws") as opened,
        ):
            assert (await opened.receive_json(timeout=30))["event"] == "connected"
            begun_at = time.monotonic()
            assert await asyncio.to_thread(service.stop) == 130
            assert time.monotonic() - begun_at < 2 * slowdown()


def test_lame_duck_and_shutdown_add_up(tmp_path: Path, ai_service: AiService) -> None:
    """A job that does not finish gets both times; then the process ends within two seconds."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url, LAME_DUCK_SECONDS="2", SHUTDOWN_SECONDS="1") as service:
        (asset_id,) = accept(service, 1)
        service.wait_log("job_claimed")
        begun_at = time.monotonic()
        assert service.stop() == 0
        assert 3 <= time.monotonic() - begun_at < 5 * slowdown()
        assert service.find("job_released", assetId=asset_id) and not service.find("shutdown_overrun")


@pytest.mark.fault("O12")
def test_connections_in_the_backlog_are_answered(tmp_path: Path, ai_service: AiService) -> None:
    """Clients that connected while the process was stopped are answered, although the signal came before that.

    A stream begins, and ends with the event `goodbye`.
    """
    with Service(tmp_path, ai_service.url) as service:
        service.signal(signal.SIGSTOP)
        clients = [connect(service) for _ in range(WAITING)]
        for number, client in enumerate(clients):
            client.sendall(an_upload() if number % 2 else b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        stream = connect(service)
        stream.sendall(f"GET /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {make_token()}\r\n\r\n".encode())
        service.signal(signal.SIGTERM)
        service.signal(signal.SIGCONT)
        answers = [answer_on(client).split(b" ")[1] for client in clients]
        assert answers == [b"200", b"202"] * (WAITING // 2)
        begun = answer_on(stream)
        assert begun.startswith(b"HTTP/1.1 200") and b"event: connected" in begun and b"event: goodbye" in begun
        assert service.wait() == 0


@pytest.mark.fault("O12")
def test_upload_under_way_is_accepted(tmp_path: Path, ai_service: AiService) -> None:
    """Two photos are half sent when the signal comes: the one that continues is accepted.

    The client of the other one is silent, and the process does not wait for it. An unused connection is closed.
    """
    photo = an_upload()
    half = len(photo) // 2
    with Service(tmp_path, ai_service.url) as service, connect(service) as silent, httpx.Client() as idle:
        assert idle.get(f"{service.url}/livez").status_code == 200
        continuing = connect(service)
        for client in (continuing, silent):
            client.sendall(photo[:half])
        # When this is answered, the halves have been read: one loop reads all connections.
        assert service.upload().status_code == 202
        service.signal(signal.SIGTERM)
        service.wait_log("service_stopping")
        continuing.sendall(photo[half:])
        answer = answer_on(continuing)
        assert answer.startswith(b"HTTP/1.1 202") and b"\r\nConnection: close\r\n" in answer
        with pytest.raises(httpx.ConnectError):
            # The process may answer one more request, with "Connection: close".
            while True:
                idle.get(f"{service.url}/livez")
        begun_at = time.monotonic()
        assert service.wait() == 0
        assert time.monotonic() - begun_at < 10 * slowdown()  # SHUTDOWN_SECONDS is 25


def test_processes_share_a_port(tmp_path: Path) -> None:
    """With REUSE_PORT two processes listen on one port, and the end of one loses no request."""
    with Instances(tmp_path, is_one_port=True) as instances:
        first, second = instances.services
        assert first.url == second.url
        assert first.stop() == 0
        assert {httpx.get(f"{second.url}/livez").status_code for _ in range(20)} == {200}
