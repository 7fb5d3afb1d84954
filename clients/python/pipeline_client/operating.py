"""What an operator may do, most of it with an admin's token: dead letters, pause and resume, any asset, users."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from .http import PAGE, segment
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

    async def _listed(self, path: str, limit: int | None, **wanted: str | None) -> AsyncIterator[dict[str, Any]]:
        """Yield the items of a list: so many, or all."""
        left, cursor = limit, None
        while left is None or left > 0:
            params = {name: value for name, value in {**wanted, "cursor": cursor}.items() if value}
            page = await self._http.request("GET", path, params=params | {"limit": str(min(left or PAGE, PAGE))})
            for item in page["items"]:
                yield item
            if (cursor := page["nextCursor"]) is None:
                return
            left = None if left is None else left - len(page["items"])

    def failed_jobs(self, limit: int | None = None, *, queue: str = QUEUE) -> AsyncIterator[dict[str, Any]]:
        """Yield dead letters, newest first: so many, or all."""
        return self._listed("/api/queue/failed", limit, queue=queue)

    def audit(
        self, limit: int | None = None, *, who: str | None = None, action: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield what operators have changed, newest first: so many, or all.

        who: only what this operator did. action: only this, as entries name it.
        """
        return self._listed("/api/queue/audit", limit, who=who, action=action)

    def deliveries(
        self,
        limit: int | None = None,
        *,
        asset_id: str | None = None,
        state: str | None = None,
        notifier: str | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield what durable notifiers had to deliver, newest first: so many, or all.

        state: waiting, delivered or failed.
        """
        return self._listed("/api/queue/deliveries", limit, asset=asset_id, state=state, notifier=notifier)

    async def send_again(self, delivery_id: str) -> dict[str, Any]:
        """Send an event again, also one that was delivered."""
        return await self._http.request("POST", f"/api/queue/deliveries/{segment(delivery_id)}/retry")

    async def charts(self, window: str = "1h") -> dict[str, Any]:
        """Return what jobs did in the last hour, day or week, step by step. window: 1h, 24h or 7d."""
        return await self._http.request("GET", "/api/queue/charts", params={"window": window})

    async def busiest_users(self) -> dict[str, Any]:
        """Return the ten users with the most unfinished jobs."""
        return await self._http.request("GET", "/api/queue/users")

    async def retry_failed(self, job_id: str) -> dict[str, Any]:
        """Run a dead letter again; return {"assetId", "jobId", "status", "message"} of its new job."""
        return await self._http.request("POST", f"/api/queue/failed/{segment(job_id)}/retry")

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
        await self._http.request("DELETE", f"/api/queue/failed/{segment(job_id)}")

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

    async def overview(self) -> dict[str, Any]:
        """Return how the whole service is: schema Overview of the contract. A reader's token will do."""
        return await self._http.request("GET", "/api/queue/overview")

    async def processes(self) -> list[dict[str, Any]]:
        """Return the processes of the service, the one that runs longest first. A reader's token will do."""
        items: list[dict[str, Any]] = (await self._http.request("GET", "/api/processes"))["items"]
        return items

    async def plugins(self) -> list[dict[str, Any]]:
        """Return the plugins in use, as the process that answers knows them. A reader's token will do."""
        items: list[dict[str, Any]] = (await self._http.request("GET", "/api/plugins"))["items"]
        return items

    async def drain_process(self, process_id: str) -> dict[str, Any]:
        """Let a process claim no more jobs; return it as it will be within seconds."""
        return await self._http.request("POST", f"/api/processes/{segment(process_id)}/drain")

    async def resume_process(self, process_id: str) -> dict[str, Any]:
        """Let a process claim jobs again; return it as it will be within seconds."""
        return await self._http.request("POST", f"/api/processes/{segment(process_id)}/resume")

    def assets_of(
        self,
        user_id: str | None = None,
        *,
        status: str | None = None,
        category: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield a user's assets, newest first: so many, or all. user_id: None: those of the token's user."""
        return self._listed("/api/assets", limit, user=user_id, status=status, category=category)

    async def user(self, user_id: str) -> dict[str, Any]:
        """Return what a user has."""
        return await self._http.request("GET", f"/api/users/{segment(user_id)}")

    async def erase_user(self, user_id: str) -> dict[str, Any]:
        """Begin to erase a user, or go on; return what has gone, after half a minute at most.

        Its `state` is "done" at the end; while it is "running" ask again to hear how it goes.
        """
        return await self._http.request("DELETE", f"/api/users/{segment(user_id)}")
