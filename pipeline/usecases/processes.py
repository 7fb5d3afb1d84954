"""Use case: which processes of the service there are, what each of them runs, and that one of them runs no more jobs.

Each process writes an entry to Redis, when it has changed and every few seconds, and hears there whether it is to
drain. An entry that is not renewed is that of a process that was lost. A process that ends in order removes its own.
Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import structlog

from pipeline import __version__
from pipeline.assets.asset import to_timestamp
from pipeline.clock import CLOCK, utc_now
from pipeline.errors import Conflict, DependencyUnavailable, NotFound
from pipeline.instants import instant_of
from pipeline.queue.queue import KEEP_PROCESS_SECONDS, JobQueue
from pipeline.queue.worker import Worker
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
# An entry that has not changed is written again after so long: an idle service leaves the disk of its Redis alone.
RENEW_SECONDS = 6.0
# A process that has not written for so long is taken for lost.
ALIVE_SECONDS = 15.0
# They change all the time.
RESTLESS = {"seenAt", "clockSkewMs", "memoryBytes"}
# With each so-many-th look the process removes those that are older than an hour.
FORGET_EVERY = 150
# Of the jobs that run here so many are told: an entry is read often.
SLOTS_AT_MOST = 100
MEMBERS = (
    *("host", "pid", "version", "role", "startedAt", "seenAt", "isDraining", "concurrency", "busy", "slots"),
    *("sockets", "clockSkewMs", "memoryBytes"),
)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Processes:
    """This process among all that share its queue."""

    def __init__(
        self,
        queue: JobQueue,
        workers: Mapping[str, Worker],
        *,
        role: str,
        concurrency: int,
        sockets: Callable[[], int],
        running: Callable[[str], Mapping[str, Any] | None],
    ) -> None:
        """workers: by the name of their queue, the one of the photos first; none where no jobs run.

        concurrency: how many photos at once. sockets: how many clients are connected here. running: returns what is
        known of a job that runs here, see Reports.running.
        """
        self.id = secrets.token_hex(8)
        self._queue = queue
        self._workers = workers
        self._role = role
        self._concurrency = concurrency
        self._sockets = sockets
        self._running = running
        self._started_at = utc_now()
        self._is_drained = False
        self._told: dict[str, Any] = {}
        self._told_at = float("-inf")

    async def run(self) -> None:
        """Write the entry, for ever."""
        is_told = True
        for number in count():
            try:
                await self._look()
                if number % FORGET_EVERY == 0:
                    await self.read()
                is_told = True
            except DependencyUnavailable as error:
                if is_told:
                    log.warning("process_not_told", error=cause_of(error))
                is_told = False
            await asyncio.sleep(LOOK_SECONDS)

    async def leave(self) -> None:
        """Remove the entry: this process ends."""
        with suppress(DependencyUnavailable):
            await self._queue.forget_processes(self.id)

    async def read(self) -> list[dict[str, Any]]:
        """Return all processes, the oldest first, as GET /api/processes shows them; DependencyUnavailable while Redis
        is away.
        """
        entries, now = await self._queue.processes(), utc_now()
        seen_at = {process_id: str(entry.get("seenAt", "")) for process_id, entry in entries.items()}
        # Instants of one spelling sort as texts.
        oldest, alive_since = (
            str(to_timestamp(now - timedelta(seconds=seconds))) for seconds in (KEEP_PROCESS_SECONDS, ALIVE_SECONDS)
        )
        if old := [process_id for process_id, instant in seen_at.items() if instant < oldest]:
            await self._queue.forget_processes(*old)
        shown = [
            {"id": process_id, "isAlive": instant >= alive_since, "isThisOne": process_id == self.id}
            | {name: entries[process_id].get(name) for name in MEMBERS}
            for process_id, instant in seen_at.items()
            # A process of another version may say less.
            if instant >= oldest and entries[process_id].keys() >= set(MEMBERS)
        ]
        return sorted(shown, key=lambda each: (str(each["startedAt"]), each["id"]))

    async def count(self) -> dict[tuple[str, str], int]:
        """Return how many processes there are by role and state: see `by_state`."""
        return by_state(await self.read())

    async def drain(self, process_id: str, is_wanted: bool) -> dict[str, Any]:
        """Let that process claim no jobs, or claim them again; return it as `read` does.

        Another process hears of it within seconds, and is returned as it will be then. NotFound when there is no such
        process, or it was lost; Conflict when it runs no jobs.
        """
        found = {each["id"]: each for each in await self.read()}.get(process_id)
        if found is None or not found["isAlive"]:
            raise NotFound("No process of that id is alive")
        if found["role"] == "web":
            raise Conflict("This process runs no jobs")
        await self._queue.request_drain(process_id, is_wanted)
        if process_id == self.id:
            await self._look()
        return found | {"isDraining": is_wanted}

    async def _look(self) -> None:
        """Do what this process is asked to, and write what it does."""
        wish = await self._queue.is_drain_requested(self.id)
        # None: Redis has lost it, or nobody has asked.
        if wish is not None and wish != self._is_drained:
            self._follow(wish)
        entry, now = self._entry(), asyncio.get_running_loop().time()
        steady = {name: value for name, value in entry.items() if name not in RESTLESS}
        if steady != self._told or now - self._told_at >= RENEW_SECONDS:
            await self._queue.write_process(self.id, entry)
            self._told, self._told_at = steady, now

    def _follow(self, wish: bool) -> None:
        self._is_drained = wish
        log.info("process_drained" if wish else "process_resumed", process=self.id)
        for worker in self._workers.values():
            worker.suspend() if wish else worker.resume()

    def _entry(self) -> dict[str, Any]:
        workers = list(self._workers.values())
        slots = [slot for name, worker in self._workers.items() for slot in self._slots(name, worker)]
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "role": self._role,
            "startedAt": to_timestamp(self._started_at),
            "seenAt": to_timestamp(utc_now()),
            "isDraining": any(not worker.is_claiming for worker in workers),
            "concurrency": self._concurrency,
            "busy": len(workers[0].running) if workers else 0,
            "slots": slots[:SLOTS_AT_MOST],
            "sockets": self._sockets(),
            "clockSkewMs": round(CLOCK.skew_seconds * 1000),
            "memoryBytes": _memory_bytes(),
        }

    def _slots(self, queue_name: str, worker: Worker) -> Iterable[dict[str, Any]]:
        for job in worker.running:
            asset_id, notifier = job.data.get("assetId"), job.data.get("notifier")
            yield {
                "jobId": job.id,
                "assetId": asset_id if isinstance(asset_id, str) else None,
                "queue": queue_name,
                "provider": (self._running(job.id) or {}).get("provider") or notifier,
                "attempt": job.attempt,
                "since": to_timestamp(instant_of(job.claimed_at_ms)),
            }


def busy_and_all(processes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many slots for photos are used, and how many there are, in the processes that are alive."""
    alive = [each for each in processes if each["isAlive"]]
    return {"used": sum(each["busy"] or 0 for each in alive), "all": sum(each["concurrency"] or 0 for each in alive)}


def by_state(processes: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    """Return how many processes are alive, and how many were lost and not replaced, by (role, "alive" or "lost").

    A process that ended in order is not among them. Any one of the same role that started later replaces a lost one.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for role, group in _by_role(processes).items():
        started = sorted(str(each["startedAt"]) for each in group if each["isAlive"])
        counts[role, "alive"] = len(started)
        for seen_at in sorted(str(each["seenAt"]) for each in group if not each["isAlive"]):
            # The first one that started after that; instants of one spelling sort as texts.
            later = bisect_right(started, seen_at)
            if later < len(started):
                del started[later]
            else:
                counts[role, "lost"] += 1
    return dict(counts)


def _by_role(processes: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in processes:
        found.setdefault(str(each["role"]), []).append(each)
    return found


def _memory_bytes() -> int | None:
    """Return how much memory this process has, None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
