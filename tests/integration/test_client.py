"""The Python client: comes back after whatever ends its connection, and yields each event once.

Against the real service where it is restarted or drained, against a scripted far end for what a healthy service seldom
says.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web

import pipeline.client.access
import pipeline.client.client
import pipeline.client.feed
import pipeline.client.transports
from pipeline.assets.asset import AiMetadata, AssetStatus, ImageRef
from pipeline.assets.events import asset_processed
from pipeline.client import Client, ClientError, Operator, Unavailable, event_of
from pipeline.client.access import Fault, TokenSource
from pipeline.client.cursor import Cursor, shift
from pipeline.client.http import Http
from pipeline.client.transports import open_connection
from pipeline.clock import utc_now
from pipeline.supervision import cancel
from tests.constants import MAX_REPLAY_EVENTS
from tests.factories import SECRET, make_asset, make_image, make_token
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.toxiproxy import free_port

WAIT_SECONDS = 30
START = datetime(2026, 1, 31, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def make_event(number: int, padding: str = "") -> dict[str, Any]:
    """Return the event of a failed asset, so many seconds after START."""
    event = {"event": "asset_processed", "assetId": f"{number:024x}", "status": "failed"}
    return event | {"error": f"number {number}{padding}", "timestamp": at(number)}


def make_asset_json(number: int) -> dict[str, Any]:
    """Return the asset of that event as the list has it."""
    asset = make_asset(status=AssetStatus.FAILED, ai_metadata=AiMetadata(error=f"number {number}"))
    return asset.to_json({}) | {"id": f"{number:024x}", "finishedAt": at(number)}


def make_accepted() -> web.Response:
    return web.json_response({"success": True, "data": {"assetId": "0" * 24}}, status=202)


class Peer:
    """The far end of one connection."""

    def __init__(self, socket: web.WebSocketResponse, transport: asyncio.BaseTransport | None) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.socket = socket
        self.transport = transport

    async def hello(self, server_time: str = at(0)) -> None:
        """Let the client in."""
        await self.say({"event": "connected", "room": "user:user-1", "serverTime": server_time})

    async def say(self, *frames: dict[str, Any]) -> None:
        """Send frames."""
        for frame in frames:
            await self.socket.send_json(frame)

    async def end(self, code: int, message: str | None = None) -> None:
        """Close, after an error frame if there is a message."""
        if message:
            await self.say({"event": "error", "message": message})
        await self.socket.close(code=code)

    async def stay(self) -> None:
        """Be there, and answer pings, until the client leaves."""
        async for _ in self.socket:
            pass


Script = Callable[[Peer], Awaitable[None]]


class FarEnd:
    """A service that does as told: each connection plays the next script, further ones the last.

    requests: the handshakes, as they came. replies: what is answered under /api, a response or a function of the
    request each. asked: the requests for these, with their bodies read.
    """

    def __init__(self, *scripts: Script) -> None:
        self.requests: list[web.Request] = []
        self.replies: list[web.Response | Callable[[web.Request], Awaitable[web.Response]]] = []
        self.asked: list[web.Request] = []
        self._scripts = scripts
        self._came = asyncio.Condition()

    async def __aenter__(self) -> FarEnd:
        application = web.Application()
        application.router.add_get("/ws", self._play)
        application.router.add_route("*", "/api/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def came(self, count: int) -> web.Request:
        """Return the count-th handshake, waiting for it."""
        async with asyncio.timeout(WAIT_SECONDS), self._came:
            await self._came.wait_for(lambda: len(self.requests) >= count)
        return self.requests[count - 1]

    async def _play(self, request: web.Request) -> web.WebSocketResponse:
        number = len(self.requests)
        socket = web.WebSocketResponse(autoping=False, timeout=1)
        await socket.prepare(request)
        async with self._came:
            self.requests.append(request)
            self._came.notify_all()
        await self._scripts[min(number, len(self._scripts) - 1)](Peer(socket, request.transport))
        return socket

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        reply = self.replies.pop(0)
        if callable(reply):
            return await reply(request)
        await request.read()
        return reply


class Switch:
    """One address before others: hands each new connection on to `port`, refuses when that is 0, leaves it hanging
    when it is None.
    """

    def __init__(self, port: int | None) -> None:
        self.port = port
        self._hung = 0
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Switch:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await cancel(self._tasks)

    async def hung(self, count: int) -> None:
        """Return when so many connections have been left hanging."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(lambda: self._hung >= count)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            if self.port is None:
                async with self._changed:
                    self._hung += 1
                    self._changed.notify_all()
                await reader.read()
            elif self.port:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
                writers.append(far_writer)
                await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        except OSError:
            pass
        finally:
            for each in writers:
                each.close()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()


async def take(client: Client, count: int) -> list[dict[str, Any]]:
    """Return the client's next events."""
    events = client.events()
    async with asyncio.timeout(WAIT_SECONDS):
        return [await anext(events) for _ in range(count)]


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [int(event["assetId"], 16) for event in events]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts to come back follow each other at once."""
    monkeypatch.setattr(pipeline.client.feed, "BACKOFF_SECONDS", (0.01, 0.01))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """From what to what each random wait is drawn; none takes any time."""
    ranges: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        ranges.append((low, high))
        return 0

    monkeypatch.setattr(random, "uniform", draw)
    return ranges


async def hello_and_stay(peer: Peer) -> None:
    await peer.hello()
    await peer.stay()


async def hello_and_end(peer: Peer) -> None:
    await peer.hello()
    await peer.end(1011)


# the real service


async def upload(service: Service) -> str:
    reply = await asyncio.to_thread(service.upload)
    assert reply.status_code == 202
    return str(reply.json()["data"]["assetId"])


@pytest.mark.gen_test(timeout=120)
async def test_client_outlives_a_killed_service(tmp_path: Path, ai_service: AiService) -> None:
    """kill -9 with a job running and a start at the same address: its event and the next come, each once."""
    ai_service.order(held=True)
    notices: list[str] = []
    with Service(tmp_path, ai_service.url, PORT=str(free_port())) as service:
        async with Client(service.url, make_token(), on_notice=notices.append) as client:
            assert await client.listen() == "user:user-1"
            ids = [await upload(service)]
            await asyncio.to_thread(service.wait_log, "job_claimed")
            await asyncio.to_thread(service.kill)
            ai_service.order(held=False)
            await asyncio.to_thread(service.start)
            await asyncio.to_thread(service.wait_log, "job_completed")
            ids.append(await upload(service))
            events = await take(client, 2)
            assert [event["assetId"] for event in events] == ids
            # The service's time as the client knows it is late by what `connected` was under way.
            latest = events[-1]["timestamp"]
            assert shift(latest, -1) <= (client.since or "") <= latest
    assert notices[0].endswith("trying again") and notices[1] == "Connected again" and len(notices) == 2


@pytest.mark.gen_test(timeout=120)
async def test_client_goes_to_another_process(tmp_path: Path, ai_service: AiService) -> None:
    """One of two processes drains: the client finds the other, which tells it what was finished on the way."""
    with (
        RedisServer() as redis,
        Service(tmp_path, ai_service.url, REDIS_URL=redis.url) as leaving,
        Service(tmp_path, ai_service.url, REDIS_URL=redis.url) as staying,
    ):
        async with Switch(int(leaving.url.rpartition(":")[2])) as switch, Client(switch.url, make_token()) as client:
            await client.listen()
            ids = [await upload(leaving)]
            assert [event["assetId"] for event in await take(client, 1)] == ids
            switch.port = 0
            leaving.signal(signal.SIGTERM)
            assert await asyncio.to_thread(leaving.wait) == 0
            ids.append(await upload(staying))
            await asyncio.to_thread(staying.wait_log, "job_completed", assetId=ids[-1])
            switch.port = int(staying.url.rpartition(":")[2])
            await asyncio.to_thread(staying.wait_log, "socket_opened")
            ids.append(await upload(staying))
            assert [event["assetId"] for event in await take(client, 2)] == ids[1:]


@pytest.mark.gen_test(timeout=120)
async def test_client_gets_more_than_the_service_replays(tmp_path: Path, ai_service: AiService) -> None:
    """What is too much for the socket comes all the same, oldest first, and then what is new."""
    with Service(tmp_path, ai_service.url, **{"CONCURRENCY": "1", MAX_REPLAY_EVENTS: "3"}) as service:
        ids = [await upload(service) for _ in range(5)]
        await asyncio.to_thread(service.wait_log, "job_completed", count=5)
        async with Client(service.url, make_token(), since=at(0)) as client:
            await client.listen()
            events = await take(client, 5)
            ids.append(await upload(service))
            events += await take(client, 1)
        assert [event["assetId"] for event in events] == ids
        assert {event["processedImageUrl"] for event in events} == {
            service.asset(asset_id)["images"]["processed"]["url"] for asset_id in ids
        }


@pytest.mark.gen_test(timeout=120)
async def test_client_renews_its_token_on_the_open_connection(tmp_path: Path, ai_service: AiService) -> None:
    """A connection lives on past the end of the token it was opened with, and requests use the fresh one."""
    notices: list[str] = []
    with Service(tmp_path, ai_service.url) as service:
        expires_at = time.time() + 2
        tokens = [jwt.encode({"sub": "user-1", "exp": expires_at}, SECRET), make_token()]
        async with Client(service.url, lambda: tokens.pop(0), on_notice=notices.append) as client:
            await client.listen()
            await asyncio.sleep(expires_at + 0.5 - time.time())  # there is no signal for not being cut off
            asset_id = await upload(service)
            assert [event["assetId"] for event in await take(client, 1)] == [asset_id]
            assert (await client.asset(asset_id))["id"] == asset_id
    assert (tokens, notices) == ([], [])


# connections that end


@pytest.mark.gen_test(timeout=60)
async def test_client_waits_longer_each_time(drawn: list[tuple[float, float]]) -> None:
    """The wait is drawn from 0 to 0.5 s, doubling up to 30 s, and back to 0.5 s once the service has let it in."""

    def refuse(code: int) -> Script:
        return lambda peer: peer.end(code)

    refusals = [refuse(code) for code in (1001, 1011, 1012, 1013, 4503, 4504, 1000, 1013)]
    async with FarEnd(hello_and_end, *refusals, hello_and_end, hello_and_stay) as far_end:
        async with Client(far_end.url, "a token") as client:
            await client.listen()
            await far_end.came(11)
    assert drawn == [(0, high) for high in (0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0.5)]


@pytest.mark.gen_test(timeout=60)
async def test_client_comes_back_when_goodbye_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the wait the service asked for, and without one of its own on top."""
    monkeypatch.setattr(pipeline.client.feed, "BACKOFF_SECONDS", (3600, 3600))
    left_at = 0.0

    async def leave(peer: Peer) -> None:
        nonlocal left_at
        await peer.hello()
        left_at = time.monotonic()
        await peer.say({"event": "goodbye", "retryInMs": 400})
        await peer.end(1012)

    async with FarEnd(leave, hello_and_stay) as far_end, Client(far_end.url, "a token") as client:
        await client.listen()
        await far_end.came(2)
        assert time.monotonic() - left_at >= 0.4


@pytest.mark.usefixtures("soon")
@pytest.mark.gen_test(timeout=60)
async def test_client_yields_each_event_once() -> None:
    """It asks for all since what was handed on, not since what has merely arrived, and drops what comes again."""

    async def first(peer: Peer) -> None:
        await peer.hello(at(1000))
        await peer.say({"event": "news"}, make_event(1), make_event(1), make_event(2), make_event(3))
        await peer.end(4503)

    async def second(peer: Peer) -> None:
        await peer.hello(at(1000))
        rerun = make_event(2) | {"timestamp": at(5)}
        await peer.say(*(make_event(number) for number in (1, 2, 3, 4)), rerun, make_event(6))
        await peer.stay()

    async with FarEnd(first, second) as far_end, Client(far_end.url, "a token", since=at(0)) as client:
        await client.listen()
        assert client.since == at(0)
        assert numbers(await take(client, 1)) == [1]
        assert (await far_end.came(2)).query["since"] == client.since == at(1)
        assert numbers(await take(client, 5)) == [2, 3, 4, 2, 6]
        assert client.since == at(6)


@pytest.mark.usefixtures("soon")
@pytest.mark.gen_test(timeout=60)
async def test_client_forgets_old_events_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long life it remembers so many events, and at least 2,000."""
    assert pipeline.client.feed.REMEMBERED_EVENTS >= 2000
    monkeypatch.setattr(pipeline.client.feed, "REMEMBERED_EVENTS", 3)

    async def script(peer: Peer) -> None:
        await peer.hello()
        await peer.say(*(make_event(number) for number in (1, 2, 3, 4, 2, 3, 4, 1, 5)))
        await peer.stay()

    async with FarEnd(script) as far_end, Client(far_end.url, "a token") as client:
        await client.listen()
        assert numbers(await take(client, 6)) == [1, 2, 3, 4, 1, 5]


@pytest.mark.usefixtures("soon")
@pytest.mark.gen_test(timeout=60)
async def test_client_keeps_the_first_server_time() -> None:
    """Without any event a later `serverTime` moves nothing: what was finished in between is still asked for."""

    async def later(peer: Peer) -> None:
        await peer.hello(at(100))
        await peer.end(1011)

    async with FarEnd(hello_and_end, later, hello_and_stay) as far_end, Client(far_end.url, "a token") as client:
        await client.listen()
        assert "since" not in (await far_end.came(1)).query
        assert (await far_end.came(3)).query["since"] == client.since == at(0)


@pytest.mark.gen_test(timeout=60)
async def test_client_starts_where_another_ended() -> None:
    """`since` goes out with the first connection, as an instant in the service's spelling."""
    async with FarEnd(hello_and_stay) as far_end:
        async with Client(far_end.url, "a token", since="2026-01-31T13:00:07+01:00") as client:
            await client.listen()
        assert (await far_end.came(1)).query["since"] == client.since == at(7)
    with pytest.raises(ValueError, match="zone"):
        Client(far_end.url, "a token", since="2026-01-31T13:00:07")


@pytest.mark.gen_test(timeout=60)
async def test_client_goes_on_after_a_consumer_lost_patience() -> None:
    """A cancelled wait for the next event costs no event."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.hello()
        await go.wait()
        await peer.say(make_event(1))
        await peer.stay()

    async with FarEnd(script) as far_end, Client(far_end.url, "a token") as client:
        await client.listen()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(client.events())
        go.set()
        assert numbers(await take(client, 1)) == [1]


@pytest.mark.gen_test(timeout=60)
async def test_closed_client_lets_its_consumer_go() -> None:
    """A task that waits for an event hears that there will be none; leaving at once leaves nothing open either."""
    async with FarEnd(hello_and_stay) as far_end:
        async with Client(far_end.url, "a token") as client:
            await client.listen()
        async with Client(far_end.url, "a token") as client:
            await client.listen()
            waiting = asyncio.create_task(take(client, 1))
            await asyncio.sleep(0)  # it has begun to wait
        with pytest.raises(ClientError, match="closed"):
            await waiting


# more than the socket is for


@pytest.mark.usefixtures("soon")
@pytest.mark.gen_test(timeout=60)
async def test_client_reads_the_list_after_resync() -> None:
    """Page by page, oldest first, from 30 s before `since`; live events come after, and until then move nothing."""

    async def script(peer: Peer) -> None:
        await peer.hello(at(1000))
        await peer.say({"event": "resync"}, make_event(900))
        await peer.stay()

    async with FarEnd(script) as far_end, Client(far_end.url, "a token", since=at(30)) as client:
        far_end.replies += [page(range(20, 120), "the cursor"), page([*range(120, 150), 900])]
        await client.listen()
        events = await take(client, 1)
        assert client.since == at(30)  # the first is from before
        events += await take(client, 100)
        assert client.since == at(120)
        events += await take(client, 30)
        assert numbers(events) == [*range(20, 150), 900]
        assert events[0] == make_event(20)
        asked = {"finishedSince": at(0), "limit": "100"}
        assert [dict(request.query) for request in far_end.asked] == [asked, asked | {"cursor": "the cursor"}]


def page(of: Any, cursor: str | None = None) -> web.Response:
    items = [make_asset_json(number) for number in of]
    return web.json_response({"success": True, "data": {"items": items, "nextCursor": cursor}})


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda: web.Response(status=503, headers={"Retry-After": "0"}), id="503"),
        pytest.param(lambda: web.Response(status=500), id="500"),
        pytest.param(lambda: cut, id="cut"),
    ],
)
@pytest.mark.gen_test(timeout=60)
async def test_client_reads_on_where_the_list_broke(fault: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that fails is a lost connection: the next one begins where the consumer is."""
    monkeypatch.setattr(pipeline.client.feed, "BACKOFF_SECONDS", (0.1, 0.1))

    async def resync(peer: Peer) -> None:
        await peer.hello(at(1000))
        await peer.say({"event": "resync"}, make_event(900))
        await peer.stay()

    async def replay(peer: Peer) -> None:
        await peer.hello(at(1000))
        await peer.say(*(make_event(number) for number in (3, 4, 5, 900)))
        await peer.stay()

    async with FarEnd(resync, replay) as far_end, Client(far_end.url, "a token", since=at(0)) as client:
        far_end.replies += [page([1, 2, 3], "the cursor"), fault()]
        await client.listen()
        events = await take(client, 3)
        assert (await far_end.came(2)).query["since"] == at(3)
        assert numbers(events + await take(client, 3)) == [1, 2, 3, 4, 5, 900]


async def cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


FOUND = {"value": "Nike", "confidence": 0.9}


@pytest.mark.parametrize("status", list(AssetStatus))
@pytest.mark.parametrize(
    ("meta", "processed"),
    [
        (
            AiMetadata(FOUND, FOUND, FOUND, utc_now()),
            ImageRef("", "", "https://images.example/p.webp"),
        ),
        (AiMetadata(brand=FOUND), None),
        (AiMetadata(error="AI service unavailable"), None),
        (AiMetadata(), None),
    ],
)
def test_event_of_an_asset_is_the_services(
    status: AssetStatus, meta: AiMetadata, processed: ImageRef | None
) -> None:
    """What the client makes of a listed asset is what the service would have sent; of an unfinished one, nothing."""
    asset = dataclasses.replace(
        make_asset(), status=status, ai_metadata=meta, processed=processed, finished_at=utc_now()
    )
    event = event_of(json.loads(json.dumps(asset.to_json({}))))
    assert event == (asset_processed(asset, processed and processed.url) if asset.is_finished else None)


# tokens


@pytest.mark.usefixtures("soon")
@pytest.mark.gen_test(timeout=60)
async def test_client_asks_for_a_token_when_its_own_has_expired() -> None:
    """4419 with a function: one question, the next connection and later requests bring the fresh token."""
    asked = 0

    async def token() -> str:
        nonlocal asked
        asked += 1
        return f"token-{asked}"

    async def expire(peer: Peer) -> None:
        await peer.hello()
        await peer.end(4419, "Token expired")

    async with FarEnd(expire, hello_and_stay) as far_end, Client(far_end.url, token) as client:
        await client.listen()
        await far_end.came(2)
        far_end.replies.append(web.json_response({"success": True, "data": {}}))
        await client.queue_status()
        sent = [request.headers["Authorization"] for request in far_end.requests + far_end.asked]
        assert sent == ["Bearer token-1", "Bearer token-2", "Bearer token-2"]
        assert asked == 2


@pytest.mark.gen_test(timeout=60)
async def test_client_renews_its_token_before_the_end() -> None:
    """The fresh token goes over the open connection."""
    old = jwt.encode({"sub": "user-1", "exp": time.time() + 1.2}, SECRET)
    tokens = [old, make_token()]
    new = tokens[1]
    shown: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.hello()
        shown.append(await peer.socket.receive_json())
        await peer.say(make_event(1))
        await peer.stay()

    async with FarEnd(script) as far_end, Client(far_end.url, lambda: tokens.pop(0)) as client:
        await client.listen()
        await take(client, 1)
        assert shown == [{"auth": {"token": new}}]
        far_end.replies.append(web.json_response({"success": True, "data": {}}))
        await client.queue_status()
        assert far_end.asked[0].headers["Authorization"] == f"Bearer {new}"


@pytest.mark.gen_test(timeout=60)
async def test_client_asks_for_a_token_once() -> None:
    """4403 twice in a row: the second refusal stands."""
    asked = []

    def token() -> str:
        asked.append(None)
        return "a token"

    async with FarEnd(lambda peer: peer.end(4403, "Invalid token")) as far_end, Client(far_end.url, token) as client:
        with pytest.raises(ClientError, match=r"Invalid token \(4403\)"):
            await client.listen()
        assert (len(asked), len(far_end.requests)) == (2, 2)


@pytest.mark.gen_test(timeout=60)
async def test_ids_and_tokens_name_nothing_else() -> None:
    """An id with slashes is one part of the path, one that steps up is refused, and so is a token of two lines."""
    async with FarEnd(hello_and_stay) as far_end, Operator(far_end.url, "a token") as operator:
        for number, ask in enumerate((operator.delete, operator.asset, operator.erase_user, operator.retry_failed), 1):
            far_end.replies.append(web.json_response({"success": True, "data": {}}))
            await ask("../users/ada")
            assert far_end.asked[-1].raw_path.count("/") == 3 + (ask == operator.retry_failed) * 2, number
            for none in ("", ".", ".."):
                with pytest.raises(ClientError, match="is no id"):
                    await ask(none)
            assert len(far_end.asked) == number
    async with FarEnd(hello_and_stay) as far_end, Operator(far_end.url, "a\r\ntoken") as operator:
        for ask_with in (operator.queue_status, operator.listen):
            with pytest.raises(ClientError, match="line break"):
                await ask_with()


@pytest.mark.usefixtures("soon")
@pytest.mark.gen_test(timeout=60)
async def test_client_tries_again_when_no_token_can_be_had() -> None:
    """A token service that is out of reach for a while delays the client; a fault of the function ends it."""
    away = [OSError("away"), aiohttp.ClientError("away")]
    answers: list[str | Exception] = ["1", *away, "2", ZeroDivisionError("a fault")]

    def token() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def expire(peer: Peer) -> None:
        await peer.hello()
        await peer.end(4419, "Token expired")

    async with FarEnd(expire) as far_end, Client(far_end.url, token) as client:
        await client.listen()
        with pytest.raises(ZeroDivisionError):
            await take(client, 1)
        assert [request.headers["Authorization"] for request in far_end.requests] == ["Bearer 1", "Bearer 2"]


@pytest.mark.gen_test(timeout=60)
async def test_request_asks_for_a_token_once() -> None:
    """401: a request is sent again with a fresh token, and a second 401 stands; a fixed token is not tried twice."""
    tokens = ["1", "2", "3"]
    refusal = {"success": False, "error": {"code": "UNAUTHORIZED", "message": "Invalid token"}}
    async with FarEnd(hello_and_stay) as far_end:
        async with Client(far_end.url, lambda: tokens.pop(0)) as client:
            far_end.replies += [web.json_response(refusal, status=401), make_accepted()]
            await client.asset("1")
            far_end.replies += [web.json_response(refusal, status=401) for _ in range(2)]
            with pytest.raises(ClientError, match="Invalid token"):
                await client.asset("1")
        async with Client(far_end.url, "fixed") as client:
            far_end.replies.append(web.json_response(refusal, status=401))
            with pytest.raises(ClientError, match="Invalid token"):
                await client.asset("1")
    sent = [request.headers["Authorization"] for request in far_end.asked]
    assert sent == ["Bearer 1", "Bearer 2", "Bearer 2", "Bearer 3", "Bearer fixed"]


@pytest.mark.fault("R9")
@pytest.mark.usefixtures("soon")
@pytest.mark.gen_test(timeout=60)
async def test_client_waits_for_a_token_to_become_valid() -> None:
    """4403: a fresh token, once; where the service says that this one is not valid yet, the client comes back with it,
    by the same transport.
    """
    tokens = ["old", "early", "never asked for"]
    transports: list[str] = []

    async def not_yet(peer: Peer) -> None:
        await peer.end(1013, "Token not valid yet")

    async def refuse(peer: Peer) -> None:
        await peer.hello()
        await peer.end(4403, "Invalid token")

    async with FarEnd(refuse, not_yet, not_yet, not_yet, hello_and_stay) as far_end:
        async with Client(far_end.url, lambda: tokens.pop(0), on_transport=transports.append) as client:
            await client.listen()
            await far_end.came(5)
            refusal = {"success": False, "error": {"code": "UNAUTHORIZED", "message": "Token not valid yet"}}
            far_end.replies.append(web.json_response(refusal, status=401, headers={"Retry-After": "3"}))
            with pytest.raises(Unavailable) as caught:
                await client.asset("1")
            assert caught.value.retry_seconds == 3
    sent = [request.headers["Authorization"] for request in far_end.requests]
    assert sent == ["Bearer old"] + ["Bearer early"] * 4
    assert (tokens, transports) == (["never asked for"], ["socket"])


@pytest.mark.fault("R9")
@pytest.mark.gen_test(timeout=60)
async def test_upload_waits_for_its_token_to_become_valid(tmp_path: Path, photo: Path) -> None:
    """A clock that is ahead made a token for in eight seconds: the real service takes the upload when it may."""
    with Service(tmp_path / "data") as service:
        async with Client(service.url, make_token(nbf=time.time() + 8)) as client:
            assert (await client.upload(photo, "lego"))["status"] == "processing"


# the end


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=60)
async def test_nothing_that_heals_by_itself_is_final(drawn: list[tuple[float, float]]) -> None:
    """Too many frames: back after half a minute to a minute. Too many sockets: when the service says so."""
    ended_at = 0.0

    async def too_many_frames(peer: Peer) -> None:
        await peer.hello()
        await peer.end(4429, "Too many frames")

    async def too_many_sockets(peer: Peer) -> None:
        nonlocal ended_at
        await peer.hello()
        ended_at = time.monotonic()
        await peer.say({"event": "goodbye", "retryInMs": 400})
        await peer.end(1013, "Too many connections")

    notices: list[str] = []
    async with FarEnd(too_many_frames, too_many_sockets, hello_and_stay) as far_end:
        async with Client(far_end.url, "a fixed token", on_notice=notices.append) as client:
            await client.listen()
            await far_end.came(3)
            assert drawn == [(30, 60)]
            assert time.monotonic() - ended_at >= 0.4
    assert "Too many frames (4429)" in notices[0] and "Too many connections (1013)" in notices[2]


@pytest.mark.gen_test(timeout=60)
async def test_client_yields_progress_to_those_who_ask() -> None:
    """With `progress` the connection asks for it, and its frames come between the events; without it they do not."""
    queued = {"event": "asset_queued", "assetId": "1", "position": 3, "etaSeconds": 12}

    async def script(peer: Peer) -> None:
        await peer.hello()
        await peer.say(queued, make_event(1), queued)
        await peer.stay()

    async with FarEnd(script) as far_end:
        async with Client(far_end.url, "a token", progress=True) as client:
            assert await take(client, 3) == [queued, make_event(1), queued]
        async with Client(far_end.url, "a token") as client:
            assert await take(client, 1) == [make_event(1)]
    assert [request.query.get("events") for request in far_end.requests] == ["progress", None]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (4400, "Malformed since"),
        (4403, "Invalid token"),
        (4419, "Token expired"),
        (1002, None),
        (1007, None),
        (1009, None),
    ],
)
@pytest.mark.gen_test(timeout=60)
async def test_client_gives_up_when_refused(code: int, message: str | None) -> None:
    """What arrived before is still yielded; then, and ever after, an error that names the reason."""

    async def refuse(peer: Peer) -> None:
        await peer.hello()
        await peer.say(make_event(1))
        await peer.end(code, message)

    async with FarEnd(hello_and_end, refuse) as far_end, Client(far_end.url, "a fixed token") as client:
        await client.listen()
        assert numbers(await take(client, 1)) == [1]
        for _ in range(2):
            with pytest.raises(ClientError, match=rf"{message or ''}.*\({code}\)"):
                await take(client, 1)
        assert len(far_end.requests) == 2


@pytest.mark.gen_test(timeout=60)
async def test_listen_tells_at_once_what_is_wrong() -> None:
    """The first attempt is not repeated, whatever it ends with; the client may be told to try again."""

    async def refuse(peer: Peer) -> None:
        await peer.end(1013)

    async with FarEnd(refuse, hello_and_stay) as far_end, Client(far_end.url, "a token") as client:
        with pytest.raises(ClientError, match="1013"):
            await client.listen()
        assert await client.listen() == await client.listen() == "user:user-1"
        assert len(far_end.requests) == 2
    async with Client(f"http://127.0.0.1:{free_port()}", "a token") as client:
        with pytest.raises(ClientError, match="Cannot reach"):
            await client.listen()


@pytest.mark.gen_test(timeout=60)
async def test_attempt_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer to the handshake, or none after it, and none by the other transports: at first an error, later a
    reason to try again.
    """
    monkeypatch.setattr(pipeline.client.transports, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(pipeline.client.feed, "BACKOFF_SECONDS", (0.01, 0.01))
    left, release = asyncio.Event(), asyncio.Event()

    async def stay_silent(peer: Peer) -> None:
        await peer.stay()
        left.set()

    async def hold_then_end(peer: Peer) -> None:
        await peer.hello()
        await release.wait()
        await peer.end(1011)

    async with FarEnd(stay_silent, hold_then_end, stay_silent, hello_and_stay) as far_end:
        async with Switch(None) as switch, Client(switch.url, "a token") as client:
            with pytest.raises(ClientError, match="no answer in time"):
                await client.listen()
            switch.port = int(far_end.url.rpartition(":")[2])
            far_end.replies += [web.Response(status=404) for _ in range(4)]
            with pytest.raises(ClientError, match="404"):
                await client.listen()
            await left.wait()
            await client.listen()
            switch.port = None
            release.set()
            await switch.hung(5)
            far_end.replies += [web.Response(status=404) for _ in range(4)]
            switch.port = int(far_end.url.rpartition(":")[2])
            await far_end.came(4)


@pytest.mark.usefixtures("soon")
@pytest.mark.gen_test(timeout=60)
async def test_client_notices_a_dead_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket, then a stream on which nothing arrives any more, not even an answer to a ping, is given up for the
    next transport.
    """
    monkeypatch.setattr(pipeline.client.transports, "MUTE_SECONDS", 0.3)
    release = asyncio.Event()
    transports: list[str] = []

    async def fall_silent(peer: Peer) -> None:
        await peer.hello()
        await release.wait()

    async def stream(request: web.Request) -> web.Response:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        hello = {"event": "connected", "room": "user:user-1", "serverTime": at(0)}
        await response.write(f"event: connected\ndata: {json.dumps(hello)}\n\n:\n\n".encode())
        await release.wait()
        return response

    async with FarEnd(fall_silent) as far_end:
        async with Client(far_end.url, "a token", on_transport=transports.append) as client:
            far_end.replies += [stream, page([]), page([]), page([1])]
            await client.listen()
            assert numbers(await take(client, 1)) == [1]
            assert transports == ["socket", "sse", "poll"] and client.transport == "poll"
            release.set()


@pytest.mark.gen_test(timeout=60)
async def test_list_without_the_time_of_the_service_is_no_transport() -> None:
    """There is no cursor to begin at: that is a transport that could not be opened."""
    async with FarEnd() as far_end:
        http = Http(far_end.url, TokenSource("a token"))
        http.open()
        data = {"items": [], "nextCursor": None}
        far_end.replies.append(web.json_response({"success": True, "data": data}, headers={"Date": ""}))
        with pytest.raises(Unavailable, match="time") as caught:
            await open_connection("poll", http, "a token", Cursor(None), False)
        assert caught.value.fault is Fault.NOT_OPENED
        await http.close()


# slow consumers


@pytest.mark.gen_test(timeout=60)
async def test_client_answers_pings_while_its_consumer_is_busy() -> None:
    """A consumer may await something for as long as it likes without being taken for dead."""
    busy, answered = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.hello()
        await peer.say(make_event(1))
        await busy.wait()
        await peer.socket.ping(b"there?")
        if (await peer.socket.receive()).type is aiohttp.WSMsgType.PONG:
            answered.set()
        await peer.stay()

    async with FarEnd(script) as far_end, Client(far_end.url, "a token") as client:
        await client.listen()
        async for _ in client.events():
            busy.set()
            async with asyncio.timeout(WAIT_SECONDS):
                await answered.wait()
            break


@pytest.mark.usefixtures("soon")
@pytest.mark.gen_test(timeout=60)
async def test_client_far_behind_stops_reading_and_catches_up() -> None:
    """With 20 MB of events before a busy consumer it takes in a little of them; cut off for that, it gets the rest."""
    count, padding = 5000, "x" * 4096
    sent: list[int] = []
    ended = asyncio.Event()

    async def flood(peer: Peer) -> None:
        await peer.hello()
        try:
            async with asyncio.timeout(1):  # so long it does not read: there is no signal for what does not happen
                for number in range(1, count + 1):
                    await peer.say(make_event(number, padding))
                    sent.append(number)
        except TimeoutError:
            pass
        peer.transport.abort()
        ended.set()

    async def replay(peer: Peer) -> None:
        await peer.hello()
        await peer.say(*(make_event(number) for number in range(1, count + 1)))
        await peer.stay()

    async with FarEnd(flood, replay) as far_end, Client(far_end.url, "a token") as client:
        await client.listen()
        events = await take(client, 1)
        await ended.wait()
        assert len(sent) < count
        events += await take(client, count - 1)
        assert numbers(events) == [*range(1, count + 1)]


# uploads


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(make_image())
    return path


@pytest.mark.gen_test(timeout=60)
async def test_upload_is_repeated_under_one_key(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken connection, 502, 503 and 429: the same photo again under the same key, a new one for each upload."""
    monkeypatch.setattr(pipeline.client.client, "REPEAT_SECONDS", (0.01,) * 4)
    progress: list[int] = []
    busy = {"success": False, "error": {"code": "RATE_LIMITED", "message": "Too many photos"}}
    photos: list[bytes] = []

    async def accept(request: web.Request) -> web.Response:
        form = await request.post()
        image = form["image"]
        assert isinstance(image, web.FileField)
        photos.append(image.file.read())
        return make_accepted()

    async with FarEnd(hello_and_stay) as far_end, Client(far_end.url, "a token") as client:
        far_end.replies += [cut, web.Response(status=502, text="<html>"), web.Response(status=503)]
        far_end.replies += [web.json_response(busy, status=429), accept]
        assert (await client.upload(photo, "lego", on_progress=progress.append))["assetId"] == "0" * 24
        far_end.replies += [accept]
        await client.upload(photo, "lego")
        far_end.replies += [cut, accept]
        await client.upload(photo, "lego", idempotency_key="mine")
        far_end.replies += [web.json_response(busy, status=429) for _ in range(5)]
        with pytest.raises(ClientError, match="Too many photos"):
            await client.upload(photo, "lego")
    keys = [request.headers["Idempotency-Key"] for request in far_end.asked]
    assert sorted(Counter(keys).values()) == [1, 2, 5, 5] and keys[6:8] == ["mine", "mine"]
    assert photos == [photo.read_bytes()] * 3
    assert sum(progress) == photo.stat().st_size and min(progress) < 0


@pytest.mark.fault("O19")
@pytest.mark.gen_test(timeout=60)
async def test_uploads_that_were_too_many_wait_together(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits as long as it was told, but not once more when its turn in the line comes."""
    now, real_sleep = [0.0], asyncio.sleep
    waits: list[float] = []
    refused_at: list[float] = []

    def refuse() -> float:
        refused_at.append(now[0])
        return now[0]

    async def sleep(seconds: float) -> None:
        while len(refused_at) < 3:
            await real_sleep(0)
        now[0] += seconds
        waits.append(seconds)

    async with FarEnd(hello_and_stay) as far_end, Client(far_end.url, "a token") as client:
        far_end.replies += [web.Response(status=429, headers={"Retry-After": "120"}) for _ in range(3)]
        far_end.replies += [make_accepted(), make_accepted()]
        far_end.replies += [web.Response(status=429, headers={"Retry-After": "7"}), make_accepted()]
        with monkeypatch.context() as patched:
            patched.setattr(pipeline.client.access, "time", SimpleNamespace(monotonic=refuse))
            patched.setattr(pipeline.client.client, "time", SimpleNamespace(monotonic=lambda: now[0]))
            patched.setattr(asyncio, "sleep", sleep)
            await asyncio.gather(*(client.upload(photo, "lego") for _ in range(3)))
        assert [seconds for seconds in waits if seconds] == [120, 7] and far_end.replies == []


@pytest.mark.gen_test(timeout=60)
async def test_waits_that_were_too_many_do_not_come_back_together(
    drawn: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond Retry-After they spread over a longer time after each refusal, at most half a minute."""
    monkeypatch.setattr(pipeline.client.client, "ASK_AGAIN_SECONDS", 0)
    async with FarEnd(hello_and_stay) as far_end, Client(far_end.url, "a token") as client:
        far_end.replies += [web.Response(status=429, headers={"Retry-After": "0"}) for _ in range(6)]
        far_end.replies += [web.json_response({"success": True, "data": make_asset_json(1)})]
        assert (await client.wait("1"))["id"] == make_asset_json(1)["id"]
    assert drawn == [(0, 2), (0, 4), (0, 8), (0, 16), (0, 30), (0, 30)]


@pytest.mark.gen_test(timeout=60)
async def test_upload_waits_as_long_as_it_is_told(photo: Path) -> None:
    """Retry-After is kept to, but nobody waits an hour; other refusals are not repeated."""
    async with FarEnd(hello_and_stay) as far_end, Client(far_end.url, "a token") as client:
        far_end.replies += [web.Response(status=503, headers={"Retry-After": "1"}), make_accepted()]
        started_at = time.monotonic()
        await client.upload(photo, "lego")
        assert time.monotonic() - started_at >= 1
        far_end.replies += [web.Response(status=429, headers={"Retry-After": "3600"})]
        with pytest.raises(ClientError, match="429"):
            await client.upload(photo, "lego")
        far_end.replies += [web.Response(status=500)]
        with pytest.raises(ClientError, match="500"):
            await client.upload(photo, "lego")
        with pytest.raises(ClientError, match="Cannot read"):
            await client.upload(photo.parent / "missing.jpg", "lego")
        assert far_end.replies == []
