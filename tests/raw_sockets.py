"""WebSockets as plain TCP sockets, for clients that break the protocol. Pure: no part of the service is used here."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct

READ_SECONDS = 10.0


def make_handshake(host: str, *headers: str) -> bytes:
    """Return the bytes of an upgrade request.

    headers: more lines of it.
    """
    lines = [
        "GET /ws HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode()


async def read_raw(raw: socket.socket) -> list[tuple[int, bytes]]:
    """Return (opcode, payload) of every complete frame until the server closes the connection; send nothing."""
    loop = asyncio.get_running_loop()
    received = b""
    try:
        async with asyncio.timeout(READ_SECONDS):
            while chunk := await loop.sock_recv(raw, 1 << 20):
                received += chunk
    except ConnectionResetError:
        pass
    frames = []
    while len(received) >= 2:
        length, start = received[1] & 0x7F, 2
        if length == 126:
            length, start = struct.unpack("!H", received[2:4])[0], 4
        elif length == 127:
            length, start = struct.unpack("!Q", received[2:10])[0], 10
        if len(received) < start + length:
            break
        frames.append((received[0] & 0x0F, received[start : start + length]))
        received = received[start + length :]
    return frames


def reset(raw: socket.socket) -> None:
    """Close with a TCP reset, without a close frame."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()
