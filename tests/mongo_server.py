"""A real server that speaks MongoDB's protocol, for tests.

In CI it is DocumentDB behind FerretDB 2 (.ci/documentdb). On your machine it is the server that TEST_MONGODB_URI names,
else `documentdb` or `mongod` from PATH; a test that stops or kills its server needs one of the latter.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import pymongo

from tests.requirements import find_program, require
from tests.toxiproxy import free_port

START_SECONDS = 30.0


def wait_until_listening(process: subprocess.Popen[bytes], port: int, seconds: float) -> None:
    """Return when the process listens on the port; raises OSError when it has ended, or after that many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextmanager
def own_database(start: Callable[[], MongoServer]) -> Iterator[str]:
    """Yield the address of a new database.

    It is on the server of TEST_MONGODB_URI, and dropped afterwards, or else on the server that `start` returns.
    """
    name = f"test_{secrets.token_hex(6)}"
    given = os.environ.get("TEST_MONGODB_URI")
    if not given:
        yield start().uri(name)
        return
    uri = urlsplit(given)._replace(path=f"/{name}").geturl()
    try:
        yield uri
    finally:
        with pymongo.MongoClient[dict[str, Any]](uri) as client:
            client.drop_database(name)


class MongoServer:
    """A server on its own port whose data survive stop and start; `with` starts it, ends it and removes the data."""

    def __init__(self) -> None:
        # Checked first, so that a skipped test leaves nothing behind.
        self._documentdb, self._mongod = find_program("documentdb"), find_program("mongod")
        missing = "needs documentdb (.ci/documentdb/install) or mongod on PATH, for a server of its own"
        require(bool(self._documentdb or self._mongod), missing)
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MongoServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()

    def uri(self, database: str) -> str:
        """Return the address of a database; each test uses another name."""
        return f"mongodb://127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it listens."""
        address, folder = f"127.0.0.1:{self.port}", self._folder.name
        if self._documentdb:
            command = [self._documentdb, "-listen-addr", address, "-folder", folder]
        else:
            command = [str(self._mongod), "--bind_ip", "127.0.0.1", "--port", str(self.port), "--dbpath", folder]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until_listening(self._process, self.port, START_SECONDS)

    @property
    def pid(self) -> int:
        """The id of the process that clients connect to, for signals."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9 of the server and all its processes; its data stays for the next start."""
        for pid in [self.pid, *_descendants(self.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """Stop the server; its data stays for the next start."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError):  # no /proc, or it has ended
        for task in (Path("/proc") / str(pid) / "task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [*children, *(each for child in children for each in _descendants(child))]
