"""An operator's calls, most of them with an admin's token: dead letters, pause and resume, any asset, users."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from .http import segment
from .jobs import JobsClient

QUEUE = "ai-processing"


class Operator(JobsClient):
    """A client for an operator, with an admin's token. queue: ai-processing or notifications.

    Many methods because each is one route.
    """

    async def held_plugins(self) -> list[str]:
        """Return a line for each plugin that is not called for now, with the reason; needs no admin's token."""
        reply = await self._http.ask("GET", "/readyz?verbose")
        # A service that is not ready sends the same data beside its error.
        data = json.loads(reply.body)["data"] if reply.status == 503 else reply.data()
        held = [each for each in data["plugins"] if each["state"] == "held"]
        return [f"{each['kind']} {each['name']}: {each['reason']}" for each in held]

    def _listed(self, path: str, limit: int | None, **params: str | None) -> AsyncIterator[dict[str, Any]]:
        return self._http.listed(path, limit, {name: value for name, value in params.items() if value})

    def failed_jobs(self, limit: int | None = None, *, queue: str = QUEUE) -> AsyncIterator[dict[str, Any]]:
        """Yield dead letters, newest first. limit: at most so many; None: all."""
        return self._listed("/api/queue/failed", limit, queue=queue)

    def audit(
        self, limit: int | None = None, *, who: str | None = None, action: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield operators' changes, newest first.

        limit: at most so many; None: all.
        who: only the changes of this operator.
        action: only this action, named as in the entries.
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
        """Yield the deliveries of durable notifiers, newest first.

        limit: at most so many; None: all.
        state: waiting, delivered or failed.
        """
        return self._listed("/api/queue/deliveries", limit, asset=asset_id, state=state, notifier=notifier)

    async def send_again(self, delivery_id: str) -> dict[str, Any]:
        """Deliver an event again, also one that was delivered."""
        return await self._http.request("POST", f"/api/queue/deliveries/{segment(delivery_id)}/retry")

    async def charts(self, window: str = "1h") -> dict[str, Any]:
        """Return the numbers of jobs over the last hour, day or week. window: 1h, 24h or 7d."""
        return await self._http.request("GET", "/api/queue/charts", params={"window": window})

    async def busiest_users(self) -> dict[str, Any]:
        """Return the ten users with the most unfinished jobs."""
        return await self._http.request("GET", "/api/queue/users")

    async def retry_failed(self, job_id: str) -> dict[str, Any]:
        """Run a dead letter again; return {"assetId", "jobId", "status", "message"} of its new job."""
        return await self._http.request("POST", f"/api/queue/failed/{segment(job_id)}/retry")

    async def retry_all_failed(self, *, queue: str = QUEUE) -> dict[str, int]:
        """Run all present dead letters again; return the numbers {"retried", "skipped"}."""
        counts = {"retried": 0, "skipped": 0}
        params = {"queue": queue}
        while True:
            reply = await self._http.request("POST", "/api/queue/failed/retry", params=params)
            counts = {name: count + reply[name] for name, count in counts.items()}
            if reply["nextCursor"] is None:
                return counts
            params["cursor"] = reply["nextCursor"]

    async def remove_failed(self, job_id: str) -> None:
        """Delete a dead letter."""
        await self._http.request("DELETE", f"/api/queue/failed/{segment(job_id)}")

    async def remove_all_failed(self, *, queue: str = QUEUE) -> int:
        """Delete all dead letters; return their number."""
        removed: int = 0
        while True:
            reply = await self._http.request("DELETE", "/api/queue/failed", params={"queue": queue})
            removed += reply["removed"]
            if not reply["remaining"]:
                return removed

    async def pause(self, *, queue: str = QUEUE) -> None:
        """Pause the queue: no process claims jobs."""
        await self._http.request("POST", "/api/queue/pause", params={"queue": queue})

    async def resume(self, *, queue: str = QUEUE) -> None:
        """Resume the queue: processes claim jobs again."""
        await self._http.request("POST", "/api/queue/resume", params={"queue": queue})

    async def overview(self) -> dict[str, Any]:
        """Return the state of the whole service: schema Overview of the contract. A reader's token suffices."""
        return await self._http.request("GET", "/api/queue/overview")

    async def processes(self) -> list[dict[str, Any]]:
        """Return the processes of the service, the oldest first. A reader's token suffices."""
        items: list[dict[str, Any]] = (await self._http.request("GET", "/api/processes"))["items"]
        return items

    async def plugins(self) -> list[dict[str, Any]]:
        """Return the plugins of the process that answers. A reader's token suffices."""
        items: list[dict[str, Any]] = (await self._http.request("GET", "/api/plugins"))["items"]
        return items

    async def drain_process(self, process_id: str) -> dict[str, Any]:
        """Let a process claim no more jobs; return its state, which it will have within seconds."""
        return await self._http.request("POST", f"/api/processes/{segment(process_id)}/drain")

    async def resume_process(self, process_id: str) -> dict[str, Any]:
        """Let a process claim jobs again; return its state, which it will have within seconds."""
        return await self._http.request("POST", f"/api/processes/{segment(process_id)}/resume")

    def assets_of(
        self,
        user_id: str | None = None,
        *,
        status: str | None = None,
        category: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield a user's assets, newest first.

        user_id: None for the token's user.
        limit: at most so many; None: all.
        """
        return self._listed("/api/assets", limit, user=user_id, status=status, category=category)

    async def user(self, user_id: str) -> dict[str, Any]:
        """Return the numbers of a user's assets, bytes, jobs and connections."""
        return await self._http.request("GET", f"/api/users/{segment(user_id)}")

    async def erase_user(self, user_id: str) -> dict[str, Any]:
        """Begin or continue to erase a user; return the progress, after half a minute at most.

        Its `state` is "done" at the end; while it is "running", call again.
        """
        return await self._http.request("DELETE", f"/api/users/{segment(user_id)}")
