"""What an operator may do with jobs: find them, look at one, and do one thing with all that a filter finds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from .client import Client
from .http import PAGE, segment

JSON = {"Content-Type": "application/json"}


class JobsClient(Client):
    """Jobs by filter: state, user, category, provider, failure, q, from, to, as `GET /api/queue/jobs` has them."""

    async def jobs(self, where: Mapping[str, str] = {}, limit: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield jobs, newest first: so many, or all."""
        left, params = limit, {**where}
        while left is None or left > 0:
            params["limit"] = str(min(left or PAGE, PAGE))
            page = await self._http.request("GET", "/api/queue/jobs", params=params)
            for job in page["items"]:
                yield job
            if page["nextCursor"] is None:
                return
            params["cursor"] = page["nextCursor"]
            left = None if left is None else left - len(page["items"])

    async def count_jobs(self, where: Mapping[str, str] = {}) -> dict[str, Any]:
        """Return {"count", "isExact"}; not exact: at least so many."""
        return await self._http.request("GET", "/api/queue/jobs/count", params={**where})

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return all that is known of a job. job_id: its id, or its asset's."""
        return await self._http.request("GET", f"/api/queue/jobs/{segment(job_id)}")

    async def retry_job(self, job_id: str) -> dict[str, Any]:
        """Run a job's asset again; return {"assetId", "jobId", "status", "message"} of the new job."""
        return await self._http.request("POST", f"/api/queue/jobs/{segment(job_id)}/retry")

    async def cancel_job(self, job_id: str) -> dict[str, Any]:
        """End a job that has not ended; return it."""
        return await self._http.request("POST", f"/api/queue/jobs/{segment(job_id)}/cancel")

    async def failures(self, where: Mapping[str, str] = {}) -> list[dict[str, Any]]:
        """Return failed jobs by kind. where: from, to."""
        reply = await self._http.request("GET", "/api/queue/failures", params={**where})
        found: list[dict[str, Any]] = reply["items"]
        return found

    async def preview_jobs(
        self, action: str, where: Mapping[str, str], *, is_all: bool = False, provider: str | None = None
    ) -> dict[str, Any]:
        """Return how many jobs an action is for and some of them: {"count", "isExact", "sample", "until"}.

        action: retry, cancel, postpone, resume, delete, reanalyze or keep (which takes reanalyze back).
        is_all: an empty filter is meant. provider: which one is to reanalyze; None: those of each category.
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
        """Do it with all jobs that the filter finds; yield {"done", "skipped", "refused"} of each chunk.

        until: that of the preview. seconds: for how long to postpone. provider: as in preview_jobs. replace: a new
        result counts also when it tells less. limit: with so many at most; None: all.
        """
        body: dict[str, Any] = {"action": action, "filter": {**where}, "all": is_all, "until": until, "cursor": None}
        given = {"seconds": seconds, "provider": provider, "replace": replace, "limit": limit}
        body |= {name: value for name, value in given.items() if value is not None}
        while True:
            chunk = await self._change(body)
            yield chunk
            if limit is not None:
                # Those that had moved on are not among them.
                body["limit"] -= chunk["done"]
            if (cursor := chunk["nextCursor"]) is None or limit is not None and body["limit"] < 1:
                return
            body["cursor"] = cursor

    async def _change(self, body: Mapping[str, Any]) -> dict[str, Any]:
        text = json.dumps(body).encode()
        return await self._http.request("POST", "/api/queue/jobs/bulk", body=lambda: text, headers=JSON)
