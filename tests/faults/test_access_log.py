"""The access log of each request, and what a client cannot put into it: against the real process behind a proxy."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest

from tests.factories import make_token
from tests.faults.processes import wait_until
from tests.raw_sockets import reset
from tests.service import ROOT, AiService, Service
from tests.sockets import WAIT_SECONDS

CLIENT = "203.0.113.9"
PROXY = {"X-Forwarded-For": f"6.6.6.6, {CLIENT}"}
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACE = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
UPLOAD = "/api/assets/analyze-queue"
# The events of the access log; docs/operations.md, "Logs", has their fields.
ACCESS = (
    *("request_completed", "request_abandoned", "request_malformed"),
    *("socket_opened", "socket_closed", "stream_opened", "stream_closed"),
)
OF_EVERY_LINE = {"timestamp", "level", "event"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with AiService() as ai_service:
        folder = tmp_path_factory.mktemp("data")
        with Service(folder, ai_service.url, TRUSTED_PROXIES="127.0.0.1", LOG_LEVEL="DEBUG") as service:
            yield service


def address_of(service: Service) -> tuple[str, int]:
    host, _, port = service.url.removeprefix("http://").partition(":")
    return host, int(port)


def send(service: Service, *lines: bytes, until: bytes = b"") -> bytes:
    """Send a request of these raw lines and return the answer, or its beginning up to those bytes."""
    with socket.create_connection(address_of(service), timeout=WAIT_SECONDS) as raw:
        raw.sendall(b"\r\n".join([*lines, b"", b""]))
        answer = b""
        while not (until and until in answer) and (piece := raw.recv(65536)):
            answer += piece
    return answer


async def listen(service: Service, path: str, *frames: bytes) -> str:
    """Open a socket, read its first frame, send these raw frames, close it and return its request id."""
    headers = service.headers("ann") | PROXY
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.ws_connect(service.url + path, timeout=aiohttp.ClientWSTimeout(ws_close=5)) as client:
            await client.receive_json(timeout=WAIT_SECONDS)
            for frame in frames:
                transport = client._response.connection.transport  # type: ignore[union-attr]
                transport.write(frame)  # type: ignore[union-attr]
                await client.receive(timeout=WAIT_SECONDS)
            return client._response.headers["X-Request-Id"]


def line_of(service: Service, event: str, reply: httpx.Response) -> dict[str, Any]:
    return service.wait_log(event, requestId=reply.headers["X-Request-Id"])


@pytest.mark.fault("O15")
def test_access_line_has_client_user_and_ids(service: Service) -> None:
    """The lines of an upload and of requests for its asset name client, path, bytes, ids, and the user if known."""
    names = {"X-Request-Id": "photo-1", "traceparent": TRACE, "User-Agent": "PhotoApp/2.1 (Android 15)"}
    reply = service.upload("ann", headers=PROXY | names)
    ids = reply.json()["data"]
    assert reply.headers["X-Request-Id"] == "photo-1"
    line = line_of(service, "request_completed", reply)
    assert line["bytesIn"] > 1000 and line["bytesOut"] == len(reply.content) and line["durationMs"] > 0
    expected = {
        **{"level": "info", "method": "POST", "route": UPLOAD, "path": UPLOAD, "status": 202, "client": CLIENT},
        **{"userId": "ann", "assetId": ids["assetId"], "jobId": ids["jobId"], "traceId": TRACE_ID},
        "userAgent": "PhotoApp/2.1 (Android 15)",
    }
    assert expected.items() <= line.items()
    path = f"/api/assets/{ids['assetId']}"
    own = line_of(service, "request_completed", httpx.get(service.url + path, headers=service.headers("ann")))
    assert (own["path"], own["route"], own["userId"]) == (path, "/api/assets/{id}", "ann")
    unauthenticated = line_of(service, "request_completed", httpx.get(service.url + path))
    assert (unauthenticated["status"], unauthenticated["path"]) == (401, path) and "userId" not in unauthenticated


@pytest.mark.fault("O15")
def test_invalid_request_ids_and_traces_are_replaced(service: Service) -> None:
    """The service gives the request an id of its own, and logs no trace."""
    for given in ("a b", "x" * 65, "a/b", ""):
        reply = httpx.get(service.url + "/api/about", headers={"X-Request-Id": given})
        assert re.fullmatch("[0-9a-f]{32}", reply.headers["X-Request-Id"])
    no_trace = f"00-{'0' * 32}-00f067aa0ba902b7-01"
    for given in (TRACE[:-1], TRACE.upper(), no_trace, f"{TRACE},{TRACE}", "ff" + TRACE[2:]):
        reply = httpx.get(service.url + "/api/about", headers={"traceparent": given})
        assert "traceId" not in line_of(service, "request_completed", reply)


@pytest.mark.fault("O15")
def test_log_has_no_secrets(service: Service) -> None:
    """No token, ticket or signature is in the log, wherever a client puts it."""
    token = make_token("ann")
    made = httpx.post(service.url + "/api/events/ticket", headers=service.headers("ann")).json()["data"]["ticket"]
    for path in (
        *(f"/api/events?ticket={made[:-1]}x", "/media/a/b.jpg?expires=1&signature=c0ffee", f"/api/assets/{token}"),
        *(f"/ws?token={token}", f"/api/assets?cursor={token}&q=hidden-word"),
    ):
        headers = {"Authorization": f"Bearer {token}x", "Cookie": "a=secret-cookie"}
        reply = httpx.get(service.url + path, headers=headers)
        line_of(service, "request_completed", reply)
    httpx.get(f"{service.url}/api/assets?q=hidden-word", headers={"Authorization": f"Bearer {token}"})
    text = json.dumps(service.lines)
    for secret in (made[:-1], "c0ffee", token, token[:40], "hidden-word", "secret-cookie"):
        assert secret not in text


@pytest.mark.fault("O15")
def test_hostile_texts_are_harmless(service: Service) -> None:
    """Control characters and line breaks are removed from logged texts, and long texts are cut."""
    before = len(service.lines)
    agent = b"User-Agent: Evil\x9b31m\xc2\x85 " + b"x" * 5000
    answer = send(service, b"GET /api/assets/%0aFAKE\x9b2J\x85 HTTP/1.1", b"Host: a", b"Connection: close", agent)
    assert b"HTTP/1.1 4" in answer
    lines = [line for line in service.lines[before:] if line["event"] in ACCESS]
    for line in lines:
        assert all(value.isprintable() for value in line.values() if isinstance(value, str))
        assert len(json.dumps(line)) < 1500
    long = httpx.get(service.url + "/" + "p" * 20_000)
    assert len(line_of(service, "request_completed", long)["path"]) == 300


@pytest.mark.fault("O15")
def test_refusals_have_their_line(service: Service) -> None:
    """Refused requests are logged, also when the body was not read or the request could not be parsed."""
    headers = service.headers("ann") | PROXY
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    refused = {
        401: httpx.post(service.url + UPLOAD, content=b"x" * 500_000, headers=form | PROXY),
        400: httpx.post(service.url + UPLOAD, content=b"--y", headers=headers | form),
        404: httpx.get(service.url + "/no/such/../path", headers=headers),
        405: httpx.put(service.url + UPLOAD, headers=headers),
    }
    for status, reply in refused.items():
        line = line_of(service, "request_completed", reply)
        assert (line["status"], reply.status_code, line["client"]) == (status, status, CLIENT)
    too_large = httpx.post(service.url + UPLOAD, content=b"x" * (11 * 1024 * 1024), headers=headers | form)
    assert line_of(service, "request_completed", too_large)["bytesIn"] > 0
    assert send(service, b"NONSENSE").startswith(b"HTTP/1.1 400")
    assert service.wait_log("request_malformed", reason="Malformed HTTP request line")["client"] == "127.0.0.1"


@pytest.mark.fault("O15")
def test_tls_on_the_plain_port_is_refused_at_once(service: Service) -> None:
    """The client gets an error from its TLS library, the operator a log line; no side waits."""
    context = ssl.create_default_context()
    with socket.create_connection(address_of(service), timeout=WAIT_SECONDS) as raw:
        with pytest.raises(ssl.SSLError, match="(?i)wrong.version"):
            context.wrap_socket(raw, server_hostname="localhost")
    reason = "This port speaks plain HTTP, not TLS: use http://, or a proxy that takes the TLS off"
    service.wait_log("request_malformed", reason=reason, status=400, client="127.0.0.1")


@pytest.mark.fault("O15")
def test_client_that_disconnects_has_a_log_line(service: Service) -> None:
    """The line names the user, the path and the address of an upload that was broken off."""
    head = (f"POST {UPLOAD} HTTP/1.1", "Host: a", "Content-Length: 900")
    head += (f"Authorization: Bearer {make_token('leaver')}",)
    lines = [*head, "X-Request-Id: leaver-1", "Content-Type: multipart/form-data; boundary=x", "", "--x"]
    with socket.create_connection(address_of(service), timeout=WAIT_SECONDS) as raw:
        raw.sendall("\r\n".join(lines).encode())
        reset(raw)
    line = service.wait_log("request_abandoned", requestId="leaver-1")
    assert (line["userId"], line["path"], line["client"]) == ("leaver", UPLOAD, "127.0.0.1")


@pytest.mark.fault("O15")
def test_sockets_and_streams_have_lines_with_duration_and_frames(service: Service) -> None:
    """The lines name user, address, close code, seconds and frames; also of a client that breaks the protocol."""
    request_id = asyncio.run(listen(service, "/ws"))
    service.wait_log("socket_opened", requestId=request_id, userId="ann", client=CLIENT)
    closed = service.wait_log("socket_closed", requestId=request_id)
    assert {"code": 1000, "client": CLIENT, "userId": "ann", "framesIn": 0, "framesOut": 1}.items() <= closed.items()
    assert closed["seconds"] >= 0
    upgrade = service.wait_log("request_completed", requestId=request_id)
    assert (upgrade["status"], upgrade["path"]) == (101, "/ws")
    request_id = asyncio.run(listen(service, "/ws", b"\x81\x01a"))
    assert service.wait_log("socket_closed", requestId=request_id)["code"] == 1002
    assert service.wait_log("websocket_protocol_broken")["userId"] == "ann"
    with httpx.stream("GET", service.url + "/api/events", headers=service.headers("ann") | PROXY) as stream:
        next(stream.iter_lines())
    closed = service.wait_log("stream_closed", requestId=stream.headers["X-Request-Id"])
    assert {"client": CLIENT, "userId": "ann", "framesOut": 1}.items() <= closed.items()


@pytest.mark.fault("O15")
def test_audit_list_has_the_clients_address(service: Service) -> None:
    """It is the address that the proxy saw, not that of the proxy and not one that the client invented."""
    admin = {"Authorization": f"Bearer {make_token('root', role='admin')}"}
    for action in ("pause", "resume"):
        made = httpx.post(f"{service.url}/api/queue/{action}", headers=admin | PROXY)
        assert line_of(service, "request_completed", made)["operator"] == "root"

    def actions() -> list[Any]:
        items: list[Any] = httpx.get(service.url + "/api/queue/audit", headers=admin).json()["data"]["items"]
        return items

    wait_until(lambda: len(actions()) >= 2)
    assert {action["address"] for action in actions()} == {CLIENT}


@pytest.mark.fault("O15")
def test_own_pages_are_known_by_the_forwarded_host(service: Service) -> None:
    """Where a proxy changes Host, X-Forwarded-Host names the service; pages of other origins are refused."""
    asked = {"X-Forwarded-Host": "photos.example"}
    for origin, headers, status in (
        ("https://photos.example", asked, 400),  # no handshake, but not refused for its origin
        ("https://photos.example", {}, 403),
        ("https://evil.example", asked, 403),
    ):
        assert httpx.get(service.url + "/ws", headers={"Origin": origin, **headers}).status_code == status


@pytest.mark.fault("O15")
def test_probes_are_quiet(service: Service) -> None:
    """The lines of probes are DEBUG while the answer stays the same."""
    for path in ("/livez", "/readyz", "/metrics", "/readyz?verbose"):
        reply = httpx.get(service.url + path, headers=PROXY)
        assert (reply.status_code, line_of(service, "request_completed", reply)["level"]) == (200, "debug")
    assert httpx.post(service.url + "/livez").status_code == 405
    assert service.wait_log("request_completed", status=405)["level"] == "info"


@pytest.mark.fault("O15")
def test_documented_fields_are_those_of_the_access_log(service: Service) -> None:
    """Every field of every line is in the table of docs/operations.md, and the reverse."""
    service.remove_lines()  # those of the tests above
    test_sockets_and_streams_have_lines_with_duration_and_frames(service)
    test_access_line_has_client_user_and_ids(service)
    test_client_that_disconnects_has_a_log_line(service)
    send(service, b"NONSENSE")
    service.wait_log("request_malformed")
    admin = make_token("root", role="admin")
    listed = httpx.get(service.url + "/api/processes", headers={"Authorization": f"Bearer {admin}"})
    assert line_of(service, "request_completed", listed)["operator"] == "root"
    seen = {name for line in service.lines if line["event"] in ACCESS for name in line} - OF_EVERY_LINE
    section = (ROOT / "docs/operations.md").read_text().partition("\n## Logs\n")[2].partition("\n## ")[0]
    table = section.partition("| field |")[2].partition("\n\n")[0]
    assert {name for row in table.split("\n")[2:] for name in re.findall("`(.+?)`", row.split("|")[1])} == seen
    assert all(f"`{event}`" in section for event in ACCESS)
