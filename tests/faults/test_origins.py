"""Pages of the service's own origin, of allowed ones and of others, against the real process behind a proxy."""

from __future__ import annotations

import base64
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service import Service

PUBLIC = "https://photos.example"
FRIEND = "https://friend.example"
SLOPPY_SETTINGS = {"PUBLIC_URL": "https://Photos.Example:443/app", "ALLOWED_ORIGINS": "HTTPS://Friend.Example:443/"}
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A process that proxies reach as 127.0.0.1:PORT, and whose PUBLIC_URL has another host."""
    with Service(tmp_path_factory.mktemp("data"), "http://127.0.0.1:1", **SLOPPY_SETTINGS) as service:
        yield service


def handshake(service: Service, *lines: str, host: str | None = None) -> tuple[int, bytes]:
    """Return the status and the body of the answer to an upgrade request with these header lines."""
    where, port = service.url.removeprefix("http://").split(":")
    head = ["GET /ws HTTP/1.1", f"Host: {where}:{port}" if host is None else f"Host: {host}"]
    head += [*lines, *(f"{name}: {value}" for name, value in UPGRADE.items()), "", ""]
    with socket.create_connection((where, int(port)), timeout=10) as raw:
        raw.sendall("\r\n".join(head).encode("latin-1"))
        answer = b""
        while b"\r\n\r\n" not in answer:
            assert (piece := raw.recv(65536)), answer
            answer += piece
        status = int(answer.split(b" ", 2)[1])
        if status != 101:
            raw.shutdown(socket.SHUT_WR)
            while piece := raw.recv(65536):
                answer += piece
    return status, answer.partition(b"\r\n\r\n")[2]


@pytest.mark.fault("R10")
@pytest.mark.parametrize("origin", [PUBLIC, FRIEND, "HTTPS://PHOTOS.EXAMPLE", None, "its own host"])
def test_pages_of_public_url_and_allowed_origins_may_connect(service: Service, origin: str | None) -> None:
    """They may connect whatever the spelling in the settings and the proxy; programs send no origin."""
    origin = service.url if origin == "its own host" else origin
    assert handshake(service, *([f"Origin: {origin}"] if origin else []))[0] == 101


@pytest.mark.fault("R10")
def test_host_with_the_default_port_is_the_same_host(service: Service) -> None:
    """A proxy may name the default port in Host."""
    assert handshake(service, "Origin: https://other.example", host="other.example:443")[0] == 101
    assert handshake(service, "Origin: https://other.example", host="other.example:80")[0] == 403


@pytest.mark.fault("R10")
def test_pages_of_public_url_may_call(service: Service) -> None:
    """Preflights and calls of pages of PUBLIC_URL are allowed like those of allowed origins, and no others."""
    for origin, is_allowed in ((PUBLIC, True), (FRIEND, True), ("https://evil.example", False), ("null", False)):
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = httpx.options(f"{service.url}/api/assets", headers=asks)
        answer = httpx.get(f"{service.url}/api/assets", headers={"Origin": origin} | service.headers())
        assert (preflight.status_code, answer.status_code) == (204, 200)
        assert ("Access-Control-Allow-Methods" in preflight.headers) is is_allowed
        for reply in (preflight, answer):
            assert reply.headers.get("Access-Control-Allow-Origin") == (origin if is_allowed else None)
            assert reply.headers["Vary"] == "Origin"


@pytest.mark.fault("R14")
@pytest.mark.parametrize(
    "origin",
    [
        *("http://[", "http://]", "http://[::1", "http://[v1.x]", "null", "", "x", "http://", "http://a:b:c"),
        *("http://\xff", "https:// photos.example", "javascript:1"),
        *("https://photos.example.evil.example", "https://photos.example@evil.example", "https://photos.example:444"),
        *("http://" + "a" * 5000, "https://photos.example, https://evil.example", "//photos.example"),
    ],
)
def test_broken_and_foreign_origins_are_refused_with_the_reason(service: Service, origin: str) -> None:
    """The answer is 403 in the envelope and names the setting that would allow the origin; it is never 500."""
    service.remove_lines()
    status, body = handshake(service, f"Origin: {origin}")
    assert status == 403 and b'"Origin not allowed"' in body and b"ALLOWED_ORIGINS" in body
    assert service.errors() == []


@pytest.mark.fault("R14")
@pytest.mark.parametrize("host", ["[", "[::1", "a:b", "", "photos.example:99999999999", "\xff"])
def test_broken_hosts_are_refused(service: Service, host: str) -> None:
    """The answer is neither 101 nor 500, whatever Host contains."""
    service.remove_lines()
    assert handshake(service, f"Origin: http://{host}", host=host)[0] in (400, 403)
    assert service.errors() == []


@pytest.mark.fault("R10")
@pytest.mark.parametrize(
    ("origin", "site", "status"),
    [
        ("https://elsewhere.example", "same-origin", 101),
        ("https://elsewhere.example", "same-site", 403),
        ("https://elsewhere.example", "cross-site", 403),
        ("https://elsewhere.example", "none", 403),
        (PUBLIC, "cross-site", 101),
        (FRIEND, "cross-site", 101),
        ("null", "same-origin", 403),
        ("http://[", "same-origin", 403),
        (None, "cross-site", 403),
        (None, "none", 101),
    ],
)
def test_same_origin_of_the_browser_is_accepted(
    service: Service, origin: str | None, site: str, status: int
) -> None:
    """The browser knows the origin also where a proxy hides the host; other values allow nothing."""
    lines = [f"Sec-Fetch-Site: {site}", *([f"Origin: {origin}"] if origin else [])]
    answered, body = handshake(service, *lines)
    assert answered == status and (status == 101 or b'"Origin not allowed"' in body)


@pytest.mark.fault("R11")
def test_foreign_origin_is_logged_once_with_the_setting(service: Service) -> None:
    """Sockets, calls and preflights of a foreign page write one line, which names the setting that would allow it."""
    service.remove_lines()
    for _ in range(3):
        assert handshake(service, "Origin: https://once.example")[0] == 403
        httpx.get(f"{service.url}/api/assets", headers={"Origin": "https://once.example"})
    httpx.options(f"{service.url}/api/assets", headers={"Origin": "https://page.example"})
    handshake(service, "Origin: null")
    service.wait_log("origin_refused", origin="https://page.example")
    pages = ["https://once.example", "https://page.example"]
    lines = [line for page in pages for line in service.find("origin_refused", origin=page)]
    assert [line["origin"] for line in lines] == pages
    assert all(line["level"] == "warning" and line["host"] and "ALLOWED_ORIGINS" in line["hint"] for line in lines)


@pytest.mark.fault("R11")
def test_own_and_allowed_pages_are_not_logged(service: Service) -> None:
    """Requests of allowed pages write no warning."""
    service.remove_lines()
    for origin in (PUBLIC, FRIEND, service.url):
        httpx.post(f"{service.url}/api/assets/analyze-queue", headers={"Origin": origin})
    assert service.find("origin_refused") == []


@pytest.mark.fault("R11")
def test_invented_origins_do_not_fill_the_log(tmp_path: Path) -> None:
    """A hundred origins are logged, cut to 200 characters, and no more."""
    with Service(tmp_path, "http://127.0.0.1:1") as service:
        with httpx.Client() as client:
            for number in range(300):
                client.get(f"{service.url}/livez", headers={"Origin": f"https://{number}.example" + "x" * 1000})
        lines = service.find("origin_refused")
        assert len(lines) == 100
        assert max(len(line["origin"]) for line in lines) <= 200


@pytest.mark.fault("R12")
@pytest.mark.parametrize("path", ["/api/assets?finishedSince=", "/ws?since="])
def test_unescaped_plus_in_a_timestamp_is_accepted(service: Service, path: str) -> None:
    """A browser sends it when a timestamp with its zone was pasted into an address."""
    url = f"{service.url}{path}2026-11-28T10:00:00+00:00"
    headers = service.headers() | (UPGRADE if path.startswith("/ws") else {})
    with httpx.stream("GET", url, headers=headers) as reply:
        assert reply.status_code in (200, 101)


@pytest.mark.fault("R9")
def test_token_of_an_issuer_whose_clock_is_ahead(service: Service) -> None:
    """`iat` is never a reason to refuse; with `nbf` ahead the answer is a 401 with Retry-After."""
    ahead = time.time() + 8
    assert service.get("/api/assets").status_code == 200
    assert httpx.get(f"{service.url}/api/assets", headers=service.headers(iat=ahead)).status_code == 200
    reply = httpx.get(f"{service.url}/api/assets", headers=service.headers(nbf=ahead))
    assert reply.status_code == 401 and reply.json()["error"]["message"] == "Token not valid yet"
    assert 1 <= int(reply.headers["Retry-After"]) <= 3
