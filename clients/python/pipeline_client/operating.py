"""What an operator may do, most of it with an admin's token: dead letters, pause and resume, any asset, users."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from .http import PAGE
from .jobs import JobsClient

QUEUE = "ai-processing"


class Operator(JobsClient):
    """A client for an operator, with an admin's token. queue: ai-processing or notifications."""

    async def held_plugins(self) -> list[str]:
        """Return which plugins are not called at the moment, and why, each in one line; needs no admin's token."""
        reply = await self._http.ask("GET", "/readyz?verbose")
        # A service that is not ready says the same, beside why it is not.
        data = json.loads(reply.body)["data"] if reply.status == 503 else reply.data()
        held = [each for each in data["plugins"] if each["state"] == "held"]
        return [f"{each['kind']} {each['name']}: {each['reason']}" for each in held]

    async def failed_jobs(self, limit: int | None = None, *, queue: str = QUEUE) -> AsyncIterator[dict[str, Any]]:
        """Yield dead letters, newest first: so many, or all."""
        left, cursor = limit, None
        while left is None or left > 0:
            params = {"queue": queue, "limit": str(min(left or PAGE, PAGE))}
            params |= {"cursor": cursor} if cursor else {}
            page = await self._http.request("GET", "/api/queue/failed", params=params)
            for job in page["items"]:
                yield job
            if (cursor := page["nextCursor"]) is None:
                return
            left = None if left is None else left - len(page["items"])

    async def retry_failed(self, job_id: str) -> dict[str, Any]:
        """Run a dead letter again; return {"assetId", "jobId", "status", "message"} of its new job."""
        return await self._http.request("POST", f"/api/queue/failed/{quote(job_id, safe='')}/retry")

    async def retry_all_failed(self, *, queue: str = QUEUE) -> dict[str, int]:
        """Run all dead letters again that there are now; return how many were {"retried", "skipped"}."""
        counts = {"retried": 0, "skipped": 0}
        params = {"queue": queue}
        while True:
            reply = await self._http.request("POST", "/api/queue/failed/retry", params=params)
            counts = {name: count + reply[name] for name, count in counts.items()}
            if reply["nextCursor"] is None:
                return counts
            params["cursor"] = reply["nextCursor"]

    async def remove_failed(self, job_id: str) -> None:
        """Remove a dead letter."""
        await self._http.request("DELETE", f"/api/queue/failed/{quote(job_id, safe='')}")

    async def remove_all_failed(self, *, queue: str = QUEUE) -> int:
        """Remove all dead letters; return how many."""
        removed: int = 0
        while True:
            reply = await self._http.request("DELETE", "/api/queue/failed", params={"queue": queue})
            removed += reply["removed"]
            if not reply["remaining"]:
                return removed

    async def pause(self, *, queue: str = QUEUE) -> None:
        """Let no process claim jobs any more."""
        await self._http.request("POST", "/api/queue/pause", params={"queue": queue})

    async def resume(self, *, queue: str = QUEUE) -> None:
        """Let jobs be claimed again."""
        await self._http.request("POST", "/api/queue/resume", params={"queue": queue})

    async def assets_of(
        self,
        user_id: str | None = None,
        *,
        status: str | None = None,
        category: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield a user's assets, newest first: so many, or all. user_id: None: those of the token's user."""
        left, cursor = limit, None
        while left is None or left > 0:
            wanted = {"user": user_id, "status": status, "category": category, "cursor": cursor}
            params = {name: value for name, value in wanted.items() if value} | {"limit": str(min(left or PAGE, PAGE))}
            page = await self._http.request("GET", "/api/assets", params=params)
            for asset in page["items"]:
                yield asset
            if (cursor := page["nextCursor"]) is None:
                return
            left = None if left is None else left - len(page["items"])

    async def user(self, user_id: str) -> dict[str, Any]:
        """Return what a user has."""
        return await self._http.request("GET", f"/api/users/{quote(user_id, safe='')}")

    async def erase_user(self, user_id: str) -> dict[str, Any]:
        """Begin to erase a user, or go on; return what has gone, after half a minute at most.

        Its `state` is "done" at the end; while it is "running" ask again to hear how it goes.
        """
        return await self._http.request("DELETE", f"/api/users/{quote(user_id, safe='')}")
