"""A client of the service: uploads photos and listens for events, as any other program would, over HTTP and WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from tornado.websocket import WebSocketClientConnection, websocket_connect

UPLOAD_SECONDS = 300


class ClientError(Exception):
    """The service refused, or could not be reached; the message is for people."""


class Client:
    """One user's door to the service. url: e.g. http://127.0.0.1:8080. Use as `async with`."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._http = httpx.AsyncClient(
            base_url=self._url, headers={"Authorization": f"Bearer {token}"}, timeout=UPLOAD_SECONDS
        )
        self._socket: WebSocketClientConnection | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
        await self._http.aclose()

    async def upload(
        self,
        path: Path,
        category: str,
        *,
        idempotency_key: str | None = None,
        on_progress: Callable[[int], None] = lambda sent: None,
    ) -> dict[str, Any]:
        """Upload a photo; return {"assetId", "jobId", "status", "message"}.

        on_progress: called with the number of bytes each time some were read for sending.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        with path.open("rb") as file:
            reply = await self._request(
                "POST",
                "/api/assets/analyze-queue",
                files={"image": (path.name, _Counted(file, on_progress))},
                data={"category": category},
                headers=headers,
            )
        return reply

    async def asset(self, asset_id: str) -> dict[str, Any]:
        """Return the asset as it is now."""
        return await self._request("GET", f"/api/assets/{asset_id}")

    async def listen(self) -> str:
        """Open the socket and return the room it is in; from then on no event of ours is missed by `events`."""
        address = self._url.replace("http", "ws", 1) + "/ws"
        try:
            self._socket = await websocket_connect(address, connect_timeout=10)
        except Exception as error:  # Tornado raises its own, httpclient's and the operating system's errors here
            raise ClientError(f"Cannot reach {address}: {error}") from error
        await self._socket.write_message(json.dumps({"auth": {"token": self._token}}))
        frame = await self._read()
        if frame["event"] != "connected":
            raise ClientError(frame.get("message", "The service refused the connection"))
        return str(frame["room"])

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield each event as it arrives; ClientError when the connection ends."""
        while True:
            yield await self._read()

    async def _read(self) -> dict[str, Any]:
        assert self._socket is not None, "listen first"
        message = await self._socket.read_message()
        if message is None:
            raise ClientError(f"The service closed the connection ({self._socket.close_code})")
        frame: dict[str, Any] = json.loads(message)
        return frame

    async def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, **options)
            reply = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ClientError(f"Cannot reach {self._url}: {error or type(error).__name__}") from error
        if not reply["success"]:
            details = "".join(f"; {each['field']}: {each['message']}" for each in reply["error"].get("details", ()))
            raise ClientError(f"{reply['error']['message']}{details}")
        data: dict[str, Any] = reply["data"]
        return data


class _Counted:
    """A file that tells how much was read from it."""

    def __init__(self, file: BinaryIO, on_progress: Callable[[int], None]) -> None:
        self._file = file
        self._on_progress = on_progress

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self._on_progress(len(chunk))
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
