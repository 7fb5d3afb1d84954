"""A client of the service: uploads photos and listens for events, as any other program would, over HTTP and
WebSocket.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp

UPLOAD_SECONDS = 300
CHUNK_BYTES = 64 * 1024


class ClientError(Exception):
    """The service refused, or could not be reached; the message is for people."""


class Client:
    """One user's door to the service. url: e.g. http://127.0.0.1:8080. Use as `async with`."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"}, timeout=aiohttp.ClientTimeout(total=UPLOAD_SECONDS)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._session is not None:
            await self._session.close()

    async def upload(
        self,
        path: Path,
        category: str,
        *,
        idempotency_key: str | None = None,
        on_progress: Callable[[int], None] = lambda sent: None,
    ) -> dict[str, Any]:
        """Upload a photo; return {"assetId", "jobId", "status", "message"}.

        on_progress: called with a number of bytes each time so many went out.
        """
        form = aiohttp.FormData()
        form.add_field("category", category)
        form.add_field("image", _read(path, on_progress), filename=path.name, content_type="application/octet-stream")
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return await self._request("POST", "/api/assets/analyze-queue", data=form, headers=headers)

    async def asset(self, asset_id: str) -> dict[str, Any]:
        """Return the asset as it is now."""
        return await self._request("GET", f"/api/assets/{asset_id}")

    async def listen(self) -> str:
        """Open the socket and return the room it is in; from then on `events` misses nothing."""
        assert self._session is not None, "use `async with`"
        try:
            self._socket = await self._session.ws_connect(f"{self._url}/ws", max_msg_size=0)
            frame = await self._receive()
        except (aiohttp.ClientError, OSError) as error:
            raise ClientError(f"Cannot reach {self._url}: {error}") from error
        if frame["event"] != "connected":
            raise ClientError(frame.get("message", "The service refused the connection"))
        return str(frame["room"])

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield each frame as it arrives; ClientError when the connection ends."""
        while True:
            yield await self._receive()

    async def _receive(self) -> dict[str, Any]:
        assert self._socket is not None, "listen first"
        message = await self._socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ClientError(f"The service closed the connection ({self._socket.close_code})")
        frame: dict[str, Any] = json.loads(message.data)
        return frame

    async def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        assert self._session is not None, "use `async with`"
        try:
            async with self._session.request(method, self._url + path, **options) as response:
                reply = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ClientError(f"Cannot reach {self._url}: {error or type(error).__name__}") from error
        if not reply["success"]:
            details = [f"{each['field']}: {each['message']}" for each in reply["error"].get("details", ())]
            raise ClientError("; ".join([reply["error"]["message"], *details]))
        data: dict[str, Any] = reply["data"]
        return data


async def _read(path: Path, on_progress: Callable[[int], None]) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            on_progress(len(chunk))
