"""Network links that a test can cut, stop and slow down: a real toxiproxy-server from PATH."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from contextlib import suppress
from types import TracebackType

import httpx

from tests.requirements import program

START_SECONDS = 20.0
# Parallel tests use different ports. No port is returned twice, because a restarted server may need its old port.
WORKERS = 8
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
RETURNED: set[int] = set()


def free_port() -> int:
    """Return a free port.

    It is below the ephemeral ports of the kernel. Another process could get one of those before the server of this test
    listens.
    """
    while True:
        port = random.randrange(10_000 + WORKER, 32_768, WORKERS)
        if port in RETURNED:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            RETURNED.add(port)
            return port


class Link:
    """One network link, from `port` to the upstream address."""

    def __init__(self, http: httpx.Client, name: str, port: int) -> None:
        self.port = port
        self._http, self._path = http, f"/proxies/{name}"

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._http.post(self._path, json={"enabled": False}).raise_for_status()

    def stall(self) -> None:
        """Delay all data to the upstream until `heal`: a write that is under way arrives late."""
        self._add("latency", {"latency": 60_000})

    def slow(self, milliseconds: int) -> None:
        """Delay all data to the upstream."""
        self._add("latency", {"latency": milliseconds})

    def reset(self) -> None:
        """Reset every connection when it sends data."""
        self._add("reset_peer", {"timeout": 0})

    def heal(self) -> None:
        """Remove all faults; the delayed data are delivered."""
        self._http.post(self._path, json={"enabled": True}).raise_for_status()
        for toxic in self._http.get(f"{self._path}/toxics").json():
            self._http.delete(f"{self._path}/toxics/{toxic['name']}").raise_for_status()

    def _add(self, kind: str, attributes: dict[str, int]) -> None:
        toxic = {"type": kind, "stream": "upstream", "attributes": attributes}
        self._http.post(f"{self._path}/toxics", json=toxic).raise_for_status()


class Toxiproxy:
    """The server; `with` starts and ends it."""

    def __enter__(self) -> Toxiproxy:
        server = program("toxiproxy-server")
        port = free_port()
        self._process = subprocess.Popen(
            [server, "-host", "127.0.0.1", "-port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._http.get("/version")
                return self
            except httpx.TransportError:
                assert time.monotonic() < deadline, "toxiproxy-server does not start"
                time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()

    def link(self, name: str, upstream_port: int) -> Link:
        """Return a new link to a port of this machine."""
        port = free_port()
        proxy = {"name": name, "listen": f"127.0.0.1:{port}", "upstream": f"127.0.0.1:{upstream_port}", "enabled": True}
        self._http.post("/proxies", json=proxy).raise_for_status()
        return Link(self._http, name, port)
