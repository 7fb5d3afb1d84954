"""A client of the service: uploads photos and listens for events, as any other program would, over HTTP and
WebSocket.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

UPLOAD_SECONDS = 300
CHUNK_BYTES = 64 * 1024
PAGE = 100


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

    async def queue_status(self) -> dict[str, Any]:
        """Return the number of jobs in each state, and whether the queue is paused."""
        return await self._request("GET", "/api/assets/queue-status")

    # with an admin's token

    async def failed_jobs(self, limit: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield dead letters, newest first: so many, or all."""
        left, cursor = limit, None
        while left is None or left > 0:
            params = {"limit": str(min(left or PAGE, PAGE))} | ({"cursor": cursor} if cursor else {})
            page = await self._request("GET", "/api/queue/failed", params=params)
            for job in page["items"]:
                yield job
            if (cursor := page["nextCursor"]) is None:
                return
            left = None if left is None else left - len(page["items"])

    async def retry_failed(self, job_id: str) -> dict[str, Any]:
        """Run a dead letter again; return {"assetId", "jobId", "status", "message"} of its new job."""
        return await self._request("POST", f"/api/queue/failed/{quote(job_id, safe='')}/retry")

    async def retry_all_failed(self) -> dict[str, int]:
        """Run all dead letters again that there are now; return how many were {"retried", "skipped"}."""
        counts = {"retried": 0, "skipped": 0}
        params: dict[str, str] = {}
        while True:
            reply = await self._request("POST", "/api/queue/failed/retry", params=params)
            counts = {name: count + reply[name] for name, count in counts.items()}
            if reply["nextCursor"] is None:
                return counts
            params = {"cursor": reply["nextCursor"]}

    async def remove_failed(self, job_id: str) -> None:
        """Remove a dead letter."""
        await self._request("DELETE", f"/api/queue/failed/{quote(job_id, safe='')}")

    async def remove_all_failed(self) -> int:
        """Remove all dead letters; return how many."""
        removed: int = 0
        while True:
            reply = await self._request("DELETE", "/api/queue/failed")
            removed += reply["removed"]
            if not reply["remaining"]:
                return removed

    async def pause(self) -> None:
        """Let no process claim jobs any more."""
        await self._request("POST", "/api/queue/pause")

    async def resume(self) -> None:
        """Let jobs be claimed again."""
        await self._request("POST", "/api/queue/resume")

    # the socket

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
                if response.status == 204:
                    return {}
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
