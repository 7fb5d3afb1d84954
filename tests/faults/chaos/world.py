"""The parts of a run: service processes, Redis, a store, two AI services, a receiver of webhooks, the links between
them, and a second installation that shares Redis, AI services and receiver.

The first AI service answers photos of the category POISON always with 500. Photos of LIMITED are for the second AI
service, which takes few calls a second and asks the others to wait. Photos of DECODED are decoded in the sandbox before
the first AI service is asked.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from redis import Redis

from tests.constants import (
    BREAKER_PROBE_SECONDS,
    NOTIFIER_BACKOFF_MS,
    RECONCILE_AGE_SECONDS,
    RECONCILE_SECONDS,
    RENEWALS_PER_LEASE,
)
from tests.fake_receiver import running_in_thread
from tests.faults.chaos.installation import ChaosService, Installation
from tests.mongo_server import MongoServer
from tests.redis_server import RedisServer
from tests.service import AiService
from tests.toxiproxy import Link, Toxiproxy, free_port

# LEASE_SECONDS of each process, and how often it renews a lease in that time.
LEASES = ((2, 4), (5, 4), (12, 3))
POISON, LIMITED, DECODED = "lego", "camera", "other"
LIMITED_PER_SECOND = 3
PACKAGES = Path(__file__).parent / "packages"
# Short, so that a run sees many leases end; the relations are those of the defaults.
SETTINGS = {
    RECONCILE_SECONDS: "2",
    RECONCILE_AGE_SECONDS: "2",
    "BACKOFF_MS": "100",
    "JOB_TIMEOUT_SECONDS": "10",
    "PROVIDER_TIMEOUT_SECONDS": "4",
    # Without the metadata, the ENDLESS photos of the users would be decoded at once.
    "KEEP_METADATA": "true",
    "STORAGE_TIMEOUT_SECONDS": "5",
    "SHUTDOWN_SECONDS": "2",
    BREAKER_PROBE_SECONDS: "2",
    "NOTIFIERS": "websocket,webhook",
    NOTIFIER_BACKOFF_MS: "50",
    "PLUGIN_WEBHOOK_SECRET": f"whsec_{base64.b64encode(b'k' * 32).decode()}",
    "PLUGIN_WEBHOOK_ALLOW_PRIVATE": "true",
}
FIRST, SECOND = "pipeline", "second"


class World:
    """All parts of one run; `with` starts them and ends them."""

    def __init__(
        self,
        *,
        processes: int = 3,
        store: str = "mongo",
        mutant: str = "",
        ai_delay_ms: float = 20,
        is_embedded: bool = False,
        is_shared: bool = False,
    ) -> None:
        """Describe the run.

        store: mongo or sqlite.
        mutant: see mutant.py.
        is_embedded: the only process uses the Redis that it starts.
        is_shared: a second installation uses the same Redis.
        """
        assert not is_embedded or processes == 1 and not is_shared
        self.processes, self.store, self.mutant, self.ai_delay_ms = processes, store, mutant, ai_delay_ms
        self.is_embedded, self.is_shared = is_embedded, is_shared
        self.provider_calls: dict[str, int] = {}

    def __enter__(self) -> World:
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            self.redis = None if self.is_embedded else stack.enter_context(RedisServer())
            self.ai = stack.enter_context(AiService(numbered=True, delay_ms=self.ai_delay_ms, poison=POISON))
            self.limited_ai = stack.enter_context(AiService(numbered=True, per_second=LIMITED_PER_SECOND))
            self.receiver = stack.enter_context(running_in_thread())
            self.mongo = stack.enter_context(MongoServer()) if self.store == "mongo" else None
            self.network = stack.enter_context(Toxiproxy())
            self.links: dict[str, Link] = {}
            names = {FIRST: range(self.processes)} | ({SECOND: range(1)} if self.is_shared else {})
            self.installations = [
                Installation(
                    prefix, self.folder / prefix, self.mongo, [self._service(prefix, number) for number in numbers]
                )
                for prefix, numbers in names.items()
            ]
            for service in (service for each in self.installations for service in each.services):
                stack.callback(self._end, service)
                service.start()
            self._stack = stack.pop_all()
        return self

    @property
    def first(self) -> Installation:
        """The installation that gets the faults."""
        return self.installations[0]

    @property
    def services(self) -> list[ChaosService]:
        """Its processes."""
        return self.first.services

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _service(self, prefix: str, number: int) -> ChaosService:
        name = f"{number}" if prefix == FIRST else f"{prefix}-{number}"
        ai = self._link(f"{name}-ai", int(self.ai.url.rpartition(":")[2]))
        lease_seconds, renewals = LEASES[number % len(LEASES)]
        settings = SETTINGS | {"PORT": str(free_port()), "QUEUE_PREFIX": prefix, "PYTHONPATH": str(PACKAGES)}
        settings |= {"LEASE_SECONDS": str(lease_seconds), RENEWALS_PER_LEASE: str(renewals)}
        settings |= {"AI_PROVIDER_BY_CATEGORY": f"{LIMITED}=limited,{DECODED}=decoding"}
        settings |= {"PLUGIN_LIMITED_URL": self.limited_ai.url, "PLUGIN_DECODING_URL": f"http://127.0.0.1:{ai.port}"}
        settings |= {"PLUGIN_WEBHOOK_URL": f"{self.receiver.url}/{prefix}"}
        if self.redis is not None:
            settings["REDIS_URL"] = f"redis://127.0.0.1:{self._link(f'{name}-redis', self.redis.port).port}/0"
        if self.mongo is not None:
            store = self._link(f"{name}-store", self.mongo.port)
            settings["MONGODB_URI"] = f"mongodb://127.0.0.1:{store.port}/{prefix}"
        folder = self.folder / prefix
        service = ChaosService(folder, f"http://127.0.0.1:{ai.port}", lease_seconds=lease_seconds, **settings)
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
        """Add the counts of the AI service; called before each kill of that service and at the end."""
        for asset_id, calls in (await asyncio.to_thread(self.ai.calls)).items():
            self.provider_calls[asset_id] = self.provider_calls.get(asset_id, 0) + calls

    async def limited_calls(self) -> tuple[int, int]:
        """Return how many calls the limited service has had, and how many of these it asked to wait."""
        state = await asyncio.to_thread(self.limited_ai.state)
        return state["calls"], state["limited"]

    def kill_children(self, process: int) -> None:
        """Kill -9 the sandbox's children of a service, as the kernel does when memory is short."""
        for pid in sandboxes_of(self.services[process].pid):
            signal_to(pid, signal.SIGKILL)

    def terminate_group(self, process: int) -> None:
        """SIGTERM to a service and all its children, as a supervisor sends it."""
        service = self.services[process]
        for pid in [service.pid, *children_of(service.pid)]:
            signal_to(pid, signal.SIGTERM)
        service.wait_for_end()

    def own_redis_of(self, process: int) -> int:
        """Return the process id of the embedded Redis of a service, once it runs."""
        pid = self.services[process].pid
        deadline = time.monotonic() + 30
        while not (found := set(children_of(pid)) - set(sandboxes_of(pid))):
            assert time.monotonic() < deadline, "the service has no Redis any more"
            time.sleep(0.02)
        return found.pop()

    def lock_store(self, seconds: float) -> None:
        """Keep all processes from writing to the SQLite file for that long."""
        path = self.first.folder / "assets.sqlite"
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")

    @contextmanager
    def redis_at_rest(self) -> Iterator[Redis]:
        """Yield a client of Redis to read all keys. An embedded Redis is ended first, and its files are read."""
        if self.redis is not None:
            yield self.redis.client()
            return
        self.services[0].signal(signal.SIGTERM)
        self.services[0].wait_for_end()
        with RedisServer("--dir", str(self.first.folder / "redis")) as server:
            yield server.client()


def signal_to(pid: int, number: signal.Signals) -> None:
    """Send the signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def children_of(pid: int) -> list[int]:
    """Return the process ids of the children of a service; none where /proc is missing or the service has ended."""
    try:
        return [int(each) for each in (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()]
    except OSError:
        return []


def sandboxes_of(pid: int) -> list[int]:
    """Return the process ids of the children that decode photos."""
    found = []
    for each in children_of(pid):
        with suppress(OSError):
            if b"sandbox" in (Path("/proc") / str(each) / "cmdline").read_bytes():
                found.append(each)
    return found


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process; 0 where /proc is missing."""
    try:
        fields = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in fields if line.startswith("VmRSS:")), 0)
