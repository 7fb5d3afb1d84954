"""The nginx and Caddy files of deploy/, each in front of two real processes.

The tests check the requests that a proxy passes on, its own replies, and restarts that cause no failed request.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from pipeline.handlers.polling import MAX_WAIT_SECONDS
from pipeline.handlers.socket import PING_SECONDS
from tests.certificates import Authority
from tests.factories import make_image, make_noise_image, make_token
from tests.fake_receiver import Reply, running_in_thread
from tests.faults.processes import wait_until
from tests.requirements import program
from tests.proxies import CADDYFILE, NGINX_CONF, Caddy, Nginx, Proxy
from tests.rolling import Instances, Load, slow_upload
from tests.toxiproxy import free_port

KINDS = ("nginx", "caddy")
MEGABYTE = 1024 * 1024
LAME_DUCK_SECONDS = 5


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    """Two processes behind both proxies."""
    with Instances(tmp_path_factory.mktemp("service"), LAME_DUCK_SECONDS=str(LAME_DUCK_SECONDS)) as instances:
        yield instances


@pytest.fixture(scope="module")
def proxies(instances: Instances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Proxy]]:
    """The proxies by their names."""
    folder = tmp_path_factory.mktemp("proxies")
    with Nginx(folder, instances.ports) as nginx, Caddy(folder, instances.ports) as caddy:
        yield {"nginx": nginx, "caddy": caddy}


@pytest.fixture(params=KINDS)
def proxy(request: pytest.FixtureRequest, proxies: dict[str, Proxy]) -> Proxy:
    """One proxy after the other."""
    return proxies[request.param]


def upload(url: str, image: bytes, sub: str = "user-1") -> httpx.Response:
    return httpx.post(
        f"{url}/api/assets/analyze-queue",
        headers={"Authorization": f"Bearer {make_token(sub)}"},
        files={"image": ("photo.png", image, "image/png")},
        data={"category": "sneaker"},
        timeout=60,
    )


def test_files_are_valid(tmp_path: Path) -> None:
    """`nginx -t` and `caddy validate` accept the files without a warning, and `caddy fmt` changes nothing."""
    nginx = subprocess.run([*Nginx(tmp_path, (1, 2)).command, "-t"], capture_output=True, text=True)
    assert nginx.returncode == 0 and "warn" not in nginx.stderr, nginx.stderr
    for command in (["validate", "--adapter", "caddyfile", "--config"], ["fmt", "--diff"]):
        checked = subprocess.run([program("caddy"), *command, str(CADDYFILE)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_timeouts_of_proxies_fit_the_service() -> None:
    """The longest poll and the ping interval are shorter than nginx's read limit; Caddy has none.

    Both proxies close their idle connections to a process before this process ends.
    """
    limits = dict(re.findall(r"(\w+_timeout) (\d+)s;", NGINX_CONF.read_text()))
    assert int(limits["proxy_read_timeout"]) > max(MAX_WAIT_SECONDS, PING_SECONDS)
    assert int(limits["keepalive_timeout"]) < LAME_DUCK_SECONDS
    assert int(re.findall(r"keepalive (\d+)s", CADDYFILE.read_text())[0]) < LAME_DUCK_SECONDS


@pytest.mark.fault("O12")
def test_large_photo_is_accepted_through_the_proxy(proxy: Proxy) -> None:
    """The proxy and the service accept 9.9 MB."""
    assert upload(proxy.url, make_noise_image(int(9.9 * MEGABYTE))).status_code == 202


@pytest.mark.fault("O12")
@pytest.mark.parametrize("megabytes", [11, 17])
def test_photo_over_the_limit_gets_the_reply_of_the_service(proxy: Proxy, instances: Instances, megabytes: int) -> None:
    """The client gets the reply of the service, also if the proxy refuses the body before the service gets it."""
    image = bytes(megabytes * MEGABYTE)
    refused, directly = upload(proxy.url, image), upload(instances.services[0].url, image)
    assert (refused.status_code, refused.json()) == (directly.status_code, directly.json())
    assert refused.json()["error"]["details"] == [{"field": "image", "message": "Maximum file size is 10MB"}]


@pytest.mark.gen_test(timeout=60)
async def test_proxy_passes_sockets_streams_and_polls(proxy: Proxy) -> None:
    """A socket and a stream get their first frame at once and later the event of the photo; a poll gets its reply."""
    sub = f"reader-{proxy.name}"
    headers = {"Authorization": f"Bearer {make_token(sub)}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.ws_connect(f"{proxy.url}/ws") as socket,
        session.get(f"{proxy.url}/api/events") as stream,
    ):
        assert (await socket.receive_json(timeout=30))["event"] == "connected"
        assert await frame_of(stream) == "connected"
        asset_id = (await asyncio.to_thread(upload, proxy.url, make_image(), sub)).json()["data"]["assetId"]
        async with session.get(f"{proxy.url}/api/assets/{asset_id}", params={"wait": "60"}) as polled:
            assert (await polled.json())["data"]["status"] in ("active", "partial")
        assert (await socket.receive_json(timeout=30))["assetId"] == asset_id
        assert await frame_of(stream) == "asset_processed"


async def frame_of(stream: aiohttp.ClientResponse) -> str:
    """Return the name of the next event of a stream."""
    async with asyncio.timeout(30):
        async for line in stream.content:
            if line.startswith(b"event: "):
                return line.decode().removeprefix("event: ").strip()
    raise AssertionError("the stream has ended")


def test_no_token_is_logged(proxy: Proxy) -> None:
    """The log has no token of a header or subprotocol and no ticket of a stream."""
    token, ticket = make_token("logged"), "ticket-that-is-none"
    headers = {"Authorization": f"Bearer {token}", "Sec-WebSocket-Protocol": f"pipeline.v1, bearer.{token}"}
    assert httpx.get(f"{proxy.url}/api/assets", headers=headers).status_code == 200
    assert httpx.get(f"{proxy.url}/api/events", params={"ticket": ticket}).status_code == 401
    # A proxy sends its reply before it logs.
    wait_until(lambda: "/api/events" in proxy.log)
    assert token not in proxy.log and ticket not in proxy.log


@pytest.mark.gen_test(timeout=180)
@pytest.mark.fault("O12")
async def test_rolling_restart_loses_no_request_and_no_event(instances: Instances, proxies: dict[str, Proxy]) -> None:
    """Both processes restart during uploads and with open sockets: no request fails and no event is lost.

    A slow phone's upload also succeeds, though it takes longer than a process has before it ends.
    """
    async with AsyncExitStack() as clients:
        loads = [await clients.enter_async_context(Load(proxy.url)) for proxy in proxies.values()]
        photo = make_noise_image(300_000)
        slow = [asyncio.create_task(slow_upload(proxy.url, photo, 30_000)) for proxy in proxies.values()]
        for load in loads:
            await load.until(20)
        await instances.roll()
        for load in loads:
            await load.until(20)
        assert [status for status, _seconds in await asyncio.gather(*slow)] == [202, 202]
    for load in loads:
        assert (dict(load.seen.failures), load.seen.lost) == ({}, [])
        assert len(load.seen.uploaded) > 40


@pytest.mark.parametrize("kind", [Nginx, Caddy], ids=KINDS)
def test_proxy_sends_host_address_and_protocol_of_the_client(tmp_path: Path, kind: type[Proxy]) -> None:
    """The service gets the client's real host, address and protocol, even if the client sends its own headers."""
    with running_in_thread() as receiver, kind(tmp_path, (receiver.port, receiver.port)) as proxy:
        assert httpx.get(f"{proxy.url}/api/assets", headers={"X-Forwarded-For": "6.6.6.6"}).status_code == 204
        (headers,) = [request.headers for request in receiver.requests if request.path == "/api/assets"]
        assert headers["Host"] == headers["X-Forwarded-Host"] == f"127.0.0.1:{proxy.port}"
        assert (headers["X-Forwarded-For"], headers["X-Forwarded-Proto"]) == ("127.0.0.1", "http")
        assert "upgrade" not in headers.get("Connection", "").lower()


@pytest.mark.parametrize("kind", [Nginx, Caddy], ids=KINDS)
def test_metrics_and_console_are_for_operators(tmp_path: Path, kind: type[Proxy]) -> None:
    """The proxy refuses clients of other networks in the error envelope, for each way to write the path."""
    changes: dict[str, Any] = {"changes": {"allow 127.0.0.1;": ""}} if kind is Nginx else {}
    with running_in_thread() as receiver:
        proxy = kind(tmp_path, (receiver.port, receiver.port), **changes)
        proxy.environment["PIPELINE_OPERATORS"] = "10.0.0.0/8"
        with proxy:
            for path in ("/metrics", "/readyz?verbose", "/console", "/console/jobs", "//metrics", "/%6detrics"):
                refused = httpx.get(proxy.url + path)
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "FORBIDDEN"), path
            assert httpx.get(f"{proxy.url}/livez").status_code == 204


@pytest.mark.fault("O12")
def test_upload_that_one_process_refuses_is_sent_to_the_other(tmp_path: Path) -> None:
    """nginx repeats the upload at the other process with the same Idempotency-Key, and makes one if there is none."""
    with (
        running_in_thread() as first,
        running_in_thread() as second,
        Nginx(tmp_path, (first.port, second.port)) as proxy,
    ):
        first.script(Reply(503))
        assert upload(proxy.url, make_image()).status_code == 204
        (refused,), (taken,) = first.requests, second.requests
        key = taken.headers["Idempotency-Key"]
        assert refused.headers["Idempotency-Key"] == key and len(key) > 32
        httpx.post(f"{proxy.url}/api/assets/analyze-queue", headers={"Idempotency-Key": "mine"})
        (own,) = [*first.requests[1:], *second.requests[1:]]
        assert own.headers["Idempotency-Key"] == "mine"


@pytest.mark.parametrize("kind", [Nginx, Caddy], ids=KINDS)
def test_proxy_without_a_process_replies_in_the_envelope(tmp_path: Path, kind: type[Proxy]) -> None:
    """If no process runs, also an upload gets 503 with Retry-After and the error code of the contract."""
    with kind(tmp_path, (free_port(), free_port())) as alone:
        reply = upload(alone.url, make_image())
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "2")
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.json() == {
            "success": False,
            "error": {"code": "UNAVAILABLE", "message": "The service cannot be reached"},
        }


def test_nginx_accepts_an_upload_over_http_2(tmp_path: Path, instances: Instances) -> None:
    """With a certificate and `http2` in its `listen` line, nginx accepts a large upload over HTTP/2."""
    authority = Authority(tmp_path, "authority")
    authority.server_context("127.0.0.1")
    (certificate,) = tmp_path.glob("127.0.0.1-*.pem")
    port = free_port()
    tls = f"listen 127.0.0.1:{port} ssl http2; ssl_certificate {certificate}; ssl_certificate_key {certificate};"
    photo = tmp_path / "photo.png"
    photo.write_bytes(make_noise_image(9 * MEGABYTE))
    with Nginx(tmp_path, instances.ports, changes={"server_tokens off;": f"server_tokens off; {tls}"}):
        command = [program("curl"), "-sS", "--http2", "--cacert", str(authority.ca_file)]
        command += ["-w", "\n%{http_version} %{http_code}"]
        command += ["-F", f"image=@{photo}", "-F", "category=sneaker", "-H", f"Authorization: Bearer {make_token()}"]
        command += [f"https://127.0.0.1:{port}/api/assets/analyze-queue"]
        sent = subprocess.run(command, capture_output=True, text=True)
        assert sent.stdout.splitlines()[-1] == "2 202", sent.stdout + sent.stderr
