"""What a run consists of: service processes, Redis, a store, two AI services, and the links between them.

Photos of the category POISON the first AI service always answers with 500; those of LIMITED are for the second, which
takes few calls a second and says so; those of DECODED go through the sandbox before the first AI service is asked.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pymongo
from bson import ObjectId

from tests.mongo_server import MongoServer
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.toxiproxy import Link, Toxiproxy, free_port

LEASE_SECONDS = 2
POISON, LIMITED, DECODED = "lego", "camera", "other"
LIMITED_PER_SECOND = 3
PACKAGES = Path(__file__).parent / "packages"
# Short, so that a run sees many leases end; the relations are those of the defaults.
SETTINGS = {
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "RENEW_SECONDS": "0.5",
    "RECONCILE_SECONDS": "2",
    "RECONCILE_AGE_SECONDS": "2",
    "BACKOFF_MS": "100",
    "JOB_TIMEOUT_SECONDS": "10",
    "PROVIDER_TIMEOUT_SECONDS": "4",
    "STORAGE_TIMEOUT_SECONDS": "5",
    "SHUTDOWN_SECONDS": "2",
    "BREAKER_PROBE_SECONDS": "2",
}


class ChaosService(Service):
    """A service whose log is kept over all its lives."""

    def __init__(self, *arguments: Any, **environment: str) -> None:
        super().__init__(*arguments, **environment)
        self.earlier: list[dict[str, Any]] = []

    def start(self) -> None:
        self.earlier += self.lines
        super().start()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every line so far, those of killed processes included."""
        return self.earlier + self.lines


class World:
    """Everything of one run; `with` starts and ends it all."""

    def __init__(self, *, processes: int = 3, store: str = "mongo", mutant: str = "", ai_delay_ms: float = 20) -> None:
        """store: mongo or sqlite. mutant: see mutant.py."""
        self.processes, self.store, self.mutant, self.ai_delay_ms = processes, store, mutant, ai_delay_ms
        self.provider_calls: dict[str, int] = {}

    def __enter__(self) -> World:
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            self.redis = stack.enter_context(RedisServer())
            self.ai = stack.enter_context(AiService(numbered=True, delay_ms=self.ai_delay_ms, poison=POISON))
            self.limited_ai = stack.enter_context(AiService(numbered=True, per_second=LIMITED_PER_SECOND))
            self.mongo = stack.enter_context(MongoServer()) if self.store == "mongo" else None
            self.network = stack.enter_context(Toxiproxy())
            self.links: dict[str, Link] = {}
            self.services = [self._service(number) for number in range(self.processes)]
            for service in self.services:
                stack.callback(self._end, service)
                service.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _service(self, number: int) -> ChaosService:
        redis = self._link(f"{number}-redis", self.redis.port)
        ai = self._link(f"{number}-ai", int(self.ai.url.rpartition(":")[2]))
        settings = SETTINGS | {"PORT": str(free_port()), "REDIS_URL": f"redis://127.0.0.1:{redis.port}/0"}
        settings |= {"AI_PROVIDER_BY_CATEGORY": f"{LIMITED}=limited,{DECODED}=decoding"}
        settings |= {"PLUGIN_LIMITED_URL": self.limited_ai.url, "PLUGIN_DECODING_URL": f"http://127.0.0.1:{ai.port}"}
        settings |= {"PYTHONPATH": str(PACKAGES)}
        if self.mongo is not None:
            settings["MONGODB_URI"] = f"mongodb://127.0.0.1:{self._link(f'{number}-store', self.mongo.port).port}/chaos"
        service = ChaosService(self.folder, f"http://127.0.0.1:{ai.port}", **settings)
        if self.mutant:
            service.command = ("-m", "tests.faults.chaos.mutant", self.mutant)
        return service

    def _link(self, name: str, port: int) -> Link:
        self.links[name] = self.network.link(name, port)
        return self.links[name]

    @staticmethod
    def _end(service: ChaosService) -> None:
        if service.is_running:
            service.kill()

    async def count_provider_calls(self) -> None:
        """Add up what the AI service has counted; to be called before it is killed and at the end."""
        for asset_id, calls in (await asyncio.to_thread(self.ai.calls)).items():
            self.provider_calls[asset_id] = self.provider_calls.get(asset_id, 0) + calls

    async def limited_calls(self) -> tuple[int, int]:
        """Return how many calls the limited service has had, and how many of these it told to wait."""
        state = await asyncio.to_thread(self.limited_ai.state)
        return state["calls"], state["limited"]

    def count_unfinished(self) -> int:
        """Return how many assets are `processing`, straight from the store."""
        if self.mongo is None:
            with closing(sqlite3.connect(self.folder / "assets.sqlite")) as connection:
                found: int = connection.execute("SELECT count(*) FROM assets WHERE status = 'processing'").fetchone()[0]
                return found
        with pymongo.MongoClient[dict[str, Any]](self.mongo.uri("chaos")) as client:
            return client["chaos"]["assets"].count_documents({"status": "processing"})

    def kill_children(self, process: int) -> None:
        """Kill -9 the sandbox's children of a service, as the kernel does when memory is short."""
        for pid in children_of(self.services[process].pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def lock_store(self, seconds: float) -> None:
        """Let nobody write to the SQLite file for that long."""
        with closing(sqlite3.connect(self.folder / "assets.sqlite", timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")

    def documents(self) -> dict[str, dict[str, Any]]:
        """Return {asset id: {"userId", "category", "status", "fence", "excused"}} straight from the store."""
        if self.mongo is None:
            with closing(sqlite3.connect(self.folder / "assets.sqlite")) as connection:
                names = ("userId", "category", "status", "fence", "excused")
                rows = connection.execute(f"SELECT id, {', '.join(names)} FROM assets").fetchall()
            return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}
        with pymongo.MongoClient[dict[str, Any]](self.mongo.uri("chaos")) as client:
            return {str(ObjectId(found["_id"])): found for found in client["chaos"]["assets"].find()}


def children_of(pid: int) -> list[int]:
    """Return the process ids of the sandbox's children of a service; none where /proc is missing or it has ended."""
    try:
        children = (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()
        return [int(each) for each in children if b"sandbox" in (Path("/proc") / each / "cmdline").read_bytes()]
    except OSError:
        return []


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process; 0 where /proc is missing."""
    try:
        fields = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in fields if line.startswith("VmRSS:")), 0)
