"""An operator's calls for jobs: find jobs, read one, and do one action with all jobs that a filter finds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from .client import Client
from .http import segment

JSON = {"Content-Type": "application/json"}


class JobsClient(Client):
    """Jobs by filter: state, user, category, provider, failure, q, from, to, as in `GET /api/queue/jobs`."""

    def jobs(self, where: Mapping[str, str] = {}, limit: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield jobs, newest first. limit: at most so many; None: all."""
        return self._http.listed("/api/queue/jobs", limit, where)

    async def count_jobs(self, where: Mapping[str, str] = {}) -> dict[str, Any]:
        """Return {"count", "isExact"}; when it is not exact, there are at least so many."""
        return await self._http.request("GET", "/api/queue/jobs/count", params={**where})

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return a job with all its details. job_id: its id, or its asset's."""
        return await self._http.request("GET", f"/api/queue/jobs/{segment(job_id)}")

    async def retry_job(self, job_id: str) -> dict[str, Any]:
        """Run a job's asset again; return {"assetId", "jobId", "status", "message"} of the new job."""
        return await self._http.request("POST", f"/api/queue/jobs/{segment(job_id)}/retry")

    async def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancel an unfinished job; return it."""
        return await self._http.request("POST", f"/api/queue/jobs/{segment(job_id)}/cancel")

    async def failures(self, where: Mapping[str, str] = {}) -> list[dict[str, Any]]:
        """Return failed jobs grouped by kind of failure. where: from, to."""
        reply = await self._http.request("GET", "/api/queue/failures", params={**where})
        groups: list[dict[str, Any]] = reply["items"]
        return groups

    async def preview_jobs(
        self, action: str, where: Mapping[str, str], *, is_all: bool = False, provider: str | None = None
    ) -> dict[str, Any]:
        """Return {"count", "isExact", "sample", "until"}: how many jobs the action would change, and some.

        action: retry, cancel, postpone, resume, delete, reanalyze or keep (which cancels reanalyze).
        is_all: allows an empty filter.
        provider: for reanalyze; None: those of each category.
        """
        body = {"action": action, "filter": {**where}, "all": is_all, "dryRun": True}
        return await self._change(body | ({"provider": provider} if provider else {}))

    async def change_jobs(
        self,
        action: str,
        where: Mapping[str, str],
        *,
        until: str,
        is_all: bool = False,
        seconds: int | None = None,
        provider: str | None = None,
        replace: bool | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Do the action with all jobs that the filter finds; yield {"done", "skipped", "refused"} of each chunk.

        action, is_all, provider: as in preview_jobs.
        until: from the preview.
        seconds: for postpone.
        replace: for reanalyze: store a new result even if it has fewer values.
        limit: at most so many; None: all.
        """
        body: dict[str, Any] = {"action": action, "filter": {**where}, "all": is_all, "until": until, "cursor": None}
        given = {"seconds": seconds, "provider": provider, "replace": replace, "limit": limit}
        body |= {name: value for name, value in given.items() if value is not None}
        while True:
            chunk = await self._change(body)
            yield chunk
            if limit is not None:
                # Skipped jobs do not count.
                body["limit"] -= chunk["done"]
            if (cursor := chunk["nextCursor"]) is None or limit is not None and body["limit"] < 1:
                return
            body["cursor"] = cursor

    async def _change(self, body: Mapping[str, Any]) -> dict[str, Any]:
        text = json.dumps(body).encode()
        return await self._http.request("POST", "/api/queue/jobs/bulk", body=lambda: text, headers=JSON)
