"""JobHandler: the work that a worker does for each job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pipeline.queue.job import Job


class AlreadyOver(Exception):
    """A job that is to be given up has ended otherwise: it becomes no dead letter."""


class JobHandler(Protocol):
    """The work of a job. Every method may be called again after a crash."""

    async def process(self, job: Job) -> object | None:
        """Do the work and return its result, or None when there was nothing to do.

        The table in attempt.py says what an exception costs.
        """

    async def commit(self, job: Job, result: Any) -> None:
        """Store the result, however long that takes; only the loss of the lease ends this."""

    async def give_up(self, job: Job, message: str) -> None:
        """Record that the job failed for good, and why; AlreadyOver when it did not."""

    async def refund_attempt(self, job: Job) -> None:
        """Record that the job was started in vain through no fault of its own."""

    def describe(self, job: Job) -> Mapping[str, str]:
        """Return the fields of every log line about the job, e.g. {"assetId": ...}."""
