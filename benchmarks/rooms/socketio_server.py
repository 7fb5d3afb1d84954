"""The python-socketio server of the comparison: python -m benchmarks.rooms.socketio_server SECRET [REDIS_URL]

Runs in an environment of its own with python-socketio and uvicorn[standard] (uvloop, httptools). Prints its port; GET
/emit?count=&rate=&users= emits. With Redis: AsyncRedisManager.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import jwt
import socketio
import uvicorn

from benchmarks.rooms.emission import emit, make_event, room_of

Send = Callable[[dict[str, Any]], Awaitable[None]]


def make_app(secret: str, redis_url: str | None) -> socketio.ASGIApp:
    """Return Socket.IO with /emit beside it."""
    manager = socketio.AsyncRedisManager(redis_url) if redis_url else None
    server = socketio.AsyncServer(async_mode="asgi", transports=["websocket"], client_manager=manager)

    @server.event
    async def connect(sid: str, _environ: dict[str, Any], auth: dict[str, str]) -> None:
        try:
            claims = jwt.decode(auth["token"], secret, algorithms=["HS256"])
        except jwt.PyJWTError as error:
            raise socketio.exceptions.ConnectionRefusedError("invalid token") from error
        await server.enter_room(sid, f"user:{claims['sub']}")

    async def emitting(scope: dict[str, Any], _receive: object, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode())
        count, rate, users = (int(query[name][0]) for name in ("count", "rate", "users"))

        async def send_slice(numbers: range) -> None:
            for number in numbers:
                await server.emit("asset_processed", make_event(number), room=room_of(number, users))

        await emit(send_slice, count, rate)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    return socketio.ASGIApp(server, emitting)


def main(secret: str, redis_url: str | None = None) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(make_app(secret, redis_url), log_level="warning", ws_per_message_deflate=False)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
