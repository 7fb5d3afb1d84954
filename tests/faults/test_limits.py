"""Rate limits of one user and one address over two processes, and their lack of effect on others."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import httpx
import pytest

from pipeline.queue.queue import JobQueue
from tests.contract.contracts import check_reply
from tests.factories import make_image, make_token
from tests.faults.processes import wait_until
from tests.redis_server import RedisServer
from tests.service import AiService, Service

UPLOAD = "/api/assets/analyze-queue"
LIMITS = {
    "UPLOADS_PER_MINUTE_PER_USER": "10",
    "REQUESTS_PER_MINUTE_PER_USER": "30",
    "WRONG_TOKENS_PER_MINUTE_PER_ADDRESS": "30",
}
WRONG = make_token(secret="another secret than that of the service, 32 bytes")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[tuple[Service, Service]]:
    """Two processes on one Redis and one store. Each test uses its own users and addresses."""
    folder = tmp_path_factory.mktemp("limits")
    with AiService() as ai:
        shared = {"REDIS_URL": redis.url} | LIMITS
        with Service(folder, ai.url, **shared) as first, Service(folder, ai.url, **shared) as second:
            yield first, second


@pytest.fixture
def one(pair: tuple[Service, Service]) -> Service:
    return pair[0]


def client(address: str = "") -> httpx.Client:
    """Return a client that connects from that address of this machine."""
    return httpx.Client(transport=httpx.HTTPTransport(local_address=address or None, verify=False), timeout=30)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with client() as shared:
        yield shared


def until_refused(
    ask: Callable[[], httpx.Response], per_minute: int, *, least: int | None = None, most: int | None = None
) -> httpx.Response:
    """Return the first answer that is 429.

    least: at least so many requests are accepted before it, by default those of two minutes.
    most: at most so many, and those that the limit allows in the meantime.
    """
    began_at = time.monotonic()
    for count in range(10 * per_minute):
        if (reply := ask()).status_code == 429:
            meanwhile = (time.monotonic() - began_at) * per_minute / 60 + 1
            at_once = 2 * per_minute
            assert (at_once if least is None else least) <= count <= (at_once if most is None else most) + meanwhile
            return reply
    raise AssertionError("no request was refused")


def refused_total(service: Service, limit: str) -> float:
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    name = f'pipeline_rate_limited_total{{limit="{limit}"}} '
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.mark.fault("O19")
def test_flood_of_uploads_gets_429(pair: tuple[Service, Service], http: httpx.Client) -> None:
    """Uploads of two minutes are accepted, then 429 with Retry-After, on both processes; another user is served."""
    refused = until_refused(lambda: pair[0].upload("flood", client=http), 10)
    assert 1 <= int(refused.headers["Retry-After"]) <= 6
    assert refused.json()["error"] == {"code": "RATE_LIMITED", "message": "Too many uploads in a short time"}
    check_reply("post", UPLOAD, 429, refused.json(), refused.headers)
    line = pair[0].wait_log("rate_limited", limit="uploads")
    assert line["userId"] == "flood" and refused_total(pair[0], "uploads") >= 1
    # The other process knows the count after its first answer.
    until_refused(lambda: pair[1].upload("flood", client=http), 10, least=1)
    assert [service.upload("honest", client=http).status_code for service in pair] == [202, 202]


def test_other_requests_have_their_own_limit(one: Service, http: httpx.Client) -> None:
    """Reads do not use up uploads, nor uploads reads; each route counts; operators are not counted."""
    headers = one.headers("reader")
    refused = until_refused(lambda: http.get(f"{one.url}/api/assets", headers=headers), 30)
    check_reply("get", "/api/assets", 429, refused.json(), refused.headers)
    for method, path in [
        *(("GET", "/api/assets/" + "0" * 24), ("DELETE", "/api/assets/" + "0" * 24), ("GET", "/api/session")),
        *(("PATCH", "/api/assets/" + "0" * 24), ("POST", "/api/events/ticket"), ("GET", "/api/events")),
        *(("GET", "/api/assets/queue-status"), ("POST", f"/api/assets/{'0' * 24}/cancel")),
    ]:
        reply = http.request(method, one.url + path, headers=headers)
        assert (method, path, reply.status_code) == (method, path, 429)
        check_reply(method, path, 429, reply.json(), reply.headers)
    assert one.upload("reader", client=http).status_code == 202
    # A browser's preflight, which has no token.
    assert http.options(f"{one.url}/api/assets", headers=headers).status_code == 204
    operator = one.headers("operator", role="admin")
    assert {http.get(f"{one.url}/api/assets", headers=operator).status_code for _ in range(100)} == {200}


def test_retry_counts_as_an_upload(one: Service, http: httpx.Client) -> None:
    """A retry is limited like an upload, because it makes the same work."""
    until_refused(lambda: one.upload("retrier", client=http), 10)
    asset_id = one.get("/api/assets", "retrier").json()["data"]["items"][0]["id"]
    reply = http.post(f"{one.url}/api/assets/{asset_id}/retry", headers=one.headers("retrier"))
    assert reply.status_code == 429 and int(reply.headers["Retry-After"]) >= 1


@pytest.mark.fault("O19")
def test_wrong_tokens_of_one_address_get_429_and_affect_no_other(pair: tuple[Service, Service]) -> None:
    """Most of 300 wrong tokens get 429; good and expired tokens of the address, and other addresses, do not."""
    one = pair[0]
    with client("127.0.0.2") as flood, client("127.0.0.3") as other:
        wrong = {"Authorization": f"Bearer {WRONG}"}
        replies = [flood.get(f"{one.url}/api/assets", headers=wrong) for _ in range(300)]
        statuses = Counter(reply.status_code for reply in replies)
        assert 60 <= statuses[401] < 200 and statuses[429] == 300 - statuses[401]
        assert int(replies[-1].headers["Retry-After"]) >= 1
        assert replies[-1].json()["error"]["message"] == "Too many wrong tokens from this address"
        assert one.wait_log("rate_limited", limit="wrong_tokens")["address"] == "127.0.0.2"
        # Whatever address the client claims to have.
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "CF-Connecting-IP"):
            headers = wrong | {name: "203.0.113.7"}
            assert flood.get(f"{one.url}/api/assets", headers=headers).status_code == 429
        assert flood.get(f"{one.url}/api/events", headers=wrong).status_code == 429
        assert flood.get(f"{one.url}/api/events?ticket=made-up").status_code == 429
        assert flood.post(one.url + UPLOAD, headers=wrong, content=b"x" * 100_000).status_code == 429
        assert flood.get(f"{one.url}/api/assets", headers=one.headers("neighbour")).status_code == 200
        expired = one.headers("neighbour", exp=1)
        assert flood.get(f"{one.url}/api/assets", headers=expired).status_code == 401
        assert flood.get(f"{one.url}/api/assets").status_code == 401
        assert other.get(f"{one.url}/api/assets", headers=wrong).status_code == 401


@pytest.mark.gen_test(timeout=30)
async def test_socket_with_wrong_tokens_is_closed_with_4429(one: Service) -> None:
    """Too many wrong tokens get 4429, which is not final, in place of 4403; a good token gets its room."""
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.4", 0))
    async with aiohttp.ClientSession(connector=connector) as session:

        async def outcome(token: str) -> tuple[int | None, str]:
            async with session.ws_connect(f"{one.url}/ws") as socket:
                await socket.send_json({"auth": {"token": token}})
                first = await socket.receive_json()
                if first["event"] == "connected":
                    return None, first["room"]
                await socket.receive()
                return socket.close_code, first["message"]

        outcomes = Counter([await outcome(WRONG) for _ in range(80)])
        assert outcomes[4403, "Invalid token"] in range(60, 80)
        assert outcomes[4429, "Too many wrong tokens from this address"] == 80 - outcomes[4403, "Invalid token"]
        assert await outcome(make_token("socket-user")) == (None, "user:socket-user")


def test_refusal_comes_before_the_body_and_can_be_read(one: Service, http: httpx.Client) -> None:
    """A client that waits for 100 Continue sends no body; one in the middle of 9 MB can read the answer."""
    until_refused(lambda: one.upload("large", client=http), 10)
    host, port = str(urlsplit(one.url).hostname), urlsplit(one.url).port
    authorization = one.headers("large")["Authorization"]
    with socket.create_connection((host, port), timeout=30) as raw:
        lines = [f"POST {UPLOAD} HTTP/1.1", f"Host: {host}", f"Authorization: {authorization}"]
        lines += ["Content-Type: multipart/form-data; boundary=x", "Content-Length: 9000000"]
        lines += ["Expect: 100-continue", "", ""]
        raw.sendall("\r\n".join(lines).encode())
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 429 ") and b"Retry-After" in answer and b"100 Continue" not in answer
    connection = HTTPConnection(host, port, timeout=30)
    headers = {"Authorization": authorization, "Content-Type": "multipart/form-data; boundary=x"}
    connection.request("POST", UPLOAD, b"x" * 9_000_000, headers)
    reply = connection.getresponse()
    assert reply.status == 429 and json.loads(reply.read())["error"]["code"] == "RATE_LIMITED"
    connection.close()


def test_limit_is_per_user_whatever_the_address(one: Service, http: httpx.Client) -> None:
    """Fifty users of one address upload at once; one user with many addresses has one limit."""
    with ThreadPoolExecutor(10) as pool:
        office = pool.map(lambda number: one.upload(f"office-{number}", client=http).status_code, range(50))
        assert Counter(office) == {202: 50}
    with ExitStack() as stack:
        addresses = iter([stack.enter_context(client(f"127.0.1.{number + 1}")) for number in range(40)])
        until_refused(lambda: one.upload("traveller", client=next(addresses)), 10)


def test_limits_hold_through_a_flushall_and_without_redis(
    pair: tuple[Service, Service], redis: RedisServer, http: httpx.Client
) -> None:
    """After a FLUSHALL no second burst is accepted; while Redis is away each process counts by itself."""
    one, keys = pair[0], redis.client()
    headers = one.headers("persistent")
    until_refused(lambda: one.upload("persistent", client=http), 10)
    while not (found := [*keys.scan_iter(match="*limit:uploads:*")]):
        pass
    # -1: the key would stay for ever.
    assert all(keys.pttl(key) != -1 for key in found) and not [*keys.scan_iter(match="*persistent*")]
    keys.flushall()
    until_refused(lambda: one.upload("persistent", client=http), 10, least=0, most=0)
    redis.kill()
    until_refused(lambda: http.get(f"{one.url}/api/session", headers=headers), 30)
    assert http.get(f"{one.url}/api/session", headers=one.headers("other")).status_code == 200
    redis.start()


@pytest.mark.gen_test
async def test_redis_clock_that_is_set_back_delays_no_user(redis: RedisServer) -> None:
    """Counts from an hour ahead are dropped; a bucket has at most two minutes of requests, and expires."""
    queue = JobQueue(redis.url, name="clock", clock_offset_ms=3_600_000)
    assert await queue.fill_buckets([("anna", 1000, 120_000), ("ben", 900_000, 120_000)]) == [1000, 240_000]
    queue.clock_offset_ms = 0
    assert await queue.fill_buckets([("anna", 1000, 120_000), ("ben", 1000, 120_000)]) == [1000, 1000]
    assert 0 < redis.client().pttl("pipeline:{clock}:limit:anna") <= 1000
    await queue.close()


def test_quota_refuses_uploads_until_photos_are_deleted(
    tmp_path: Path, ai_service: AiService, http: httpx.Client
) -> None:
    """A full quota answers 403 with the figures; a repeated key gets its first answer; a delete frees space at once."""
    image = make_image()
    with Service(tmp_path, ai_service.url, MAX_STORED_BYTES_PER_USER=str(3 * len(image))) as service:
        keys = [{"Idempotency-Key": f"key-{number}"} for number in range(8)]
        accepted = [service.upload(image=image, headers=key, client=http) for key in keys]
        taken = [reply for reply in accepted if reply.status_code == 202]
        refused = accepted[-1]
        assert 1 <= len(taken) <= 4 and refused.status_code == 403, "the images made of them count as well"
        check_reply("post", UPLOAD, 403, refused.json(), refused.headers)
        assert refused.json()["error"]["code"] == "FORBIDDEN"
        assert refused.json()["error"]["message"].endswith("; delete some")
        used = [int(reply.headers["X-Stored-Bytes"]) for reply in taken]
        assert used == sorted(used) and used[0] >= len(image)
        assert taken[0].headers["X-Stored-Bytes-Limit"] == str(3 * len(image))
        repeated = service.upload(image=image, headers={"Idempotency-Key": "key-0"})
        assert repeated.json() == taken[0].json()
        service.wait_status(completed=len(taken), active=0)
        shown = httpx.get(f"{service.url}/api/users/user-1", headers=service.headers("op", role="admin"))
        check_reply("get", "/api/users/user-1", 200, shown.json(), shown.headers)
        assert shown.json()["data"]["maxBytes"] == 3 * len(image) <= shown.json()["data"]["bytes"]
        assert service.upload("user-2", image=image).status_code == 202
        for reply in taken:
            url = f"{service.url}/api/assets/{reply.json()['data']['assetId']}"
            assert httpx.delete(url, headers=service.headers()).status_code == 204
        reply = wait_until(lambda: (given := service.upload(image=image)).status_code != 403 and given)
        assert reply.status_code == 202
        assert service.find("rate_limited", limit="stored_bytes")[0]["userId"] == "user-1"
