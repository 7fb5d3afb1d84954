"""A real server that speaks MongoDB's protocol, for tests.

In CI it is DocumentDB behind FerretDB 2 (.ci/documentdb). On your machine it is the server that TEST_MONGODB_URI names,
else `documentdb` or `mongod` from PATH. A test that stops or kills its server needs one of these two programs.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymongo

from tests.requirements import find_program, require
from tests.server_process import ServerProcess, wait_until_listening

START_SECONDS = 30.0


@contextmanager
def own_database(start: Callable[[], MongoServer]) -> Iterator[str]:
    """Yield the address of a new database.

    With TEST_MONGODB_URI it is on that server and is dropped afterwards; else it is on the server that `start` returns.
    """
    name = f"test_{secrets.token_hex(6)}"
    address = os.environ.get("TEST_MONGODB_URI")
    if not address:
        yield start().uri(name)
        return
    uri = urlsplit(address)._replace(path=f"/{name}").geturl()
    try:
        yield uri
    finally:
        with pymongo.MongoClient[dict[str, Any]](uri) as client:
            client.drop_database(name)


class MongoServer(ServerProcess):
    """DocumentDB or mongod."""

    def __init__(self) -> None:
        # Checked first, so that a skipped test leaves no folder.
        self._documentdb, self._mongod = find_program("documentdb"), find_program("mongod")
        missing = "needs documentdb (.ci/documentdb/install) or mongod on PATH, for its own server"
        require(bool(self._documentdb or self._mongod), missing)
        super().__init__()

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

    def kill(self) -> None:
        """Kill the server and all its processes with -9; its data stay for the next start."""
        for pid in [self.pid, *_descendants(self.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """Stop the server; its data stay for the next start."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError):  # there is no /proc, or the process has ended
        for task in (Path("/proc") / str(pid) / "task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [*children, *(each for child in children for each in _descendants(child))]
