"""Use case: operators see the processes of the service and their jobs, and drain one of them.

Each process writes an entry to Redis when it changes, and every few seconds, and reads there whether it has to drain.
An entry that is not renewed belongs to a lost process. A process that ends in order removes its entry. Runs on the
event loop.
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
from pipeline.queue.queue import JobQueue
from pipeline.queue.shared_state import KEEP_PROCESS_SECONDS
from pipeline.queue.worker import Worker
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
# An unchanged entry is written again after so long: an idle service rarely writes to the disk of its Redis.
RENEW_SECONDS = 6.0
# A process that has not written for so long counts as lost.
ALIVE_SECONDS = 15.0
# These members change all the time; their change alone is no reason to write.
RESTLESS = {"seenAt", "clockSkewMs", "memoryBytes"}
# At every so-many-th look a process removes entries that are older than an hour.
FORGET_EVERY = 150
# An entry has so many running jobs at most: it is read often.
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
        """workers: by the name of their queue, that of the photos first; none when this process runs no jobs
        concurrency: how many photos run at the same time
        sockets: returns how many clients are connected to this process
        running: returns the progress of a job that this process runs, see ProgressReports.running
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
        self._written: dict[str, Any] = {}
        self._written_at = float("-inf")

    async def run(self) -> None:
        """Write the entry, for ever."""
        is_written = True
        for number in count():
            try:
                await self._look()
                if number % FORGET_EVERY == 0:
                    await self.read()
                is_written = True
            except DependencyUnavailable as error:
                if is_written:
                    log.warning("process_entry_failed", error=cause_of(error))
                is_written = False
            await asyncio.sleep(LOOK_SECONDS)

    async def leave(self) -> None:
        """Remove the entry: this process ends."""
        with suppress(DependencyUnavailable):
            await self._queue.forget_processes(self.id)

    async def read(self) -> list[dict[str, Any]]:
        """Return all processes, the oldest first, as GET /api/processes shows them.

        DependencyUnavailable while Redis is away.
        """
        entries, now = await self._queue.processes(), utc_now()
        seen_at = {process_id: str(entry.get("seenAt", "")) for process_id, entry in entries.items()}
        # Instants of the same format sort as texts.
        oldest, alive_since = (
            str(to_timestamp(now - timedelta(seconds=seconds))) for seconds in (KEEP_PROCESS_SECONDS, ALIVE_SECONDS)
        )
        if old := [process_id for process_id, instant in seen_at.items() if instant < oldest]:
            await self._queue.forget_processes(*old)
        shown = [
            {"id": process_id, "isAlive": instant >= alive_since, "isThisOne": process_id == self.id}
            | {name: entries[process_id].get(name) for name in MEMBERS}
            for process_id, instant in seen_at.items()
            # The entry of a process of another version may lack members.
            if instant >= oldest and entries[process_id].keys() >= set(MEMBERS)
        ]
        return sorted(shown, key=lambda each: (str(each["startedAt"]), each["id"]))

    async def count(self) -> dict[tuple[str, str], int]:
        """Return the number of processes by role and state: see `by_state`."""
        return by_state(await self.read())

    async def drain(self, process_id: str, is_wanted: bool) -> dict[str, Any]:
        """Stop a process from claiming jobs, or let it claim jobs again; return it as `read` does.

        Another process follows within seconds, and is returned as it will be then.
        NotFound: there is no such process, or it is lost. Conflict: it runs no jobs.
        """
        process = {each["id"]: each for each in await self.read()}.get(process_id)
        if process is None or not process["isAlive"]:
            raise NotFound("No process of that id is alive")
        if process["role"] == "web":
            raise Conflict("This process runs no jobs")
        await self._queue.request_drain(process_id, is_wanted)
        if process_id == self.id:
            await self._look()
        return process | {"isDraining": is_wanted}

    async def _look(self) -> None:
        """Follow a drain request, and write the entry."""
        wants_drain = await self._queue.is_drain_requested(self.id)
        # None: Redis has lost the request, or there was none.
        if wants_drain is not None and wants_drain != self._is_drained:
            self._set_drained(wants_drain)
        entry, now = self._entry(), asyncio.get_running_loop().time()
        steady = {name: value for name, value in entry.items() if name not in RESTLESS}
        if steady != self._written or now - self._written_at >= RENEW_SECONDS:
            await self._queue.write_process(self.id, entry)
            self._written, self._written_at = steady, now

    def _set_drained(self, is_drained: bool) -> None:
        self._is_drained = is_drained
        log.info("process_drained" if is_drained else "process_resumed", process=self.id)
        for worker in self._workers.values():
            worker.suspend() if is_drained else worker.resume()

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
    """Return the number of used slots for photos, and of all slots, in the processes that are alive."""
    alive = [each for each in processes if each["isAlive"]]
    return {"used": sum(each["busy"] or 0 for each in alive), "all": sum(each["concurrency"] or 0 for each in alive)}


def by_state(processes: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    """Return the number of processes that are alive, and of those that are lost, by (role, "alive" or "lost").

    A process that ended in order is not counted. Nor is a lost process when another one of its role has started later
    and replaces it.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for role, group in _by_role(processes).items():
        started = sorted(str(each["startedAt"]) for each in group if each["isAlive"])
        counts[role, "alive"] = len(started)
        for seen_at in sorted(str(each["seenAt"]) for each in group if not each["isAlive"]):
            # The first process that started after that; instants of the same format sort as texts.
            later = bisect_right(started, seen_at)
            if later < len(started):
                del started[later]
            else:
                counts[role, "lost"] += 1
    return dict(counts)


def _by_role(processes: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for each in processes:
        groups.setdefault(str(each["role"]), []).append(each)
    return groups


def _memory_bytes() -> int | None:
    """Return the memory of this process, None when the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
