"""Helpers for tests of event streams: published events, tickets, refused requests, and raw TCP connections."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.contract import contracts
from tests.factories import make_token
from tests.sockets import Process, Stream, make_event

PATH = "/api/events"


async def publish(process: Process, number: int, sub: str = "user-1", **fields: Any) -> dict[str, Any]:
    """Publish an event to the room of the user, and return it."""
    event = make_event(number) | fields
    await process.fanout.publish(f"user:{sub}", event)
    return event


async def refusal(process: Process, status: int, method: str = "GET", path: str = "", **options: Any) -> dict[str, Any]:
    """Send a request that is refused with this status; return its error, checked against the contract."""
    async with process.session.request(method, process.events_url + path, **options) as reply:
        assert reply.status == status, await reply.text()
        body = await reply.json()
        contracts.check_reply(method, PATH + path, status, body, reply.headers)
        error: dict[str, Any] = body["error"]
        return error


async def make_ticket(process: Process, **claims: Any) -> str:
    """Return a new ticket of a token with these claims."""
    headers = {"Authorization": f"Bearer {make_token(**claims)}"}
    async with process.session.post(process.events_url + "/ticket", headers=headers) as reply:
        body = await reply.json()
        contracts.check_reply("POST", PATH + "/ticket", reply.status, body, reply.headers)
        return str(body["data"]["ticket"])


async def begin_raw(process: Process, version: str = "1.1") -> Any:
    """Open a stream on a TCP connection, from which only the test reads; return the connection after `connected`."""
    loop = asyncio.get_running_loop()
    raw = process.tcp()
    await loop.sock_connect(raw, ("127.0.0.1", process.port))
    head = f"GET {PATH} HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {make_token()}\r\n\r\n"
    await loop.sock_sendall(raw, head.encode())
    while not any(connection.is_started for connection in process.rooms.members("user:user-1")):
        await asyncio.sleep(0.01)
    return raw


async def read_all(raw: Any) -> bytes:
    """Return all bytes until the service closes the connection."""
    received = b""
    while chunk := await asyncio.get_running_loop().sock_recv(raw, 1 << 20):
        received += chunk
    return received


async def last_code(stream: Stream) -> int:
    """Return the code of the close event, which follows the frame `goodbye`."""
    assert (await stream.frame())["event"] == "goodbye"
    return await stream.code()
