"""A real MongoDB-compatible server for tests: ferretdb (see .ci/ferretdb) or mongod from PATH."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from types import TracebackType

from tests.parts import require
from tests.toxiproxy import free_port

START_SECONDS = 30.0


def wait_until_listening(process: subprocess.Popen[bytes], port: int, seconds: float) -> None:
    """Return when somebody listens on the port; OSError when the process ended instead, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class MongoServer:
    """A server on a port of its own that keeps its data over stop and start; `with` starts it and removes it all."""

    def __init__(self) -> None:
        # Asked before anything is made that a skipped test would leave behind.
        self._ferretdb, self._mongod = shutil.which("ferretdb"), shutil.which("mongod")
        require(bool(self._ferretdb or self._mongod), "needs ferretdb or mongod on PATH")
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
        """Return the address of a database; each test takes a name of its own."""
        return f"mongodb://127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it listens."""
        address, folder = f"127.0.0.1:{self.port}", self._folder.name
        if self._ferretdb:
            command = [self._ferretdb, "-listen-addr", address, "-folder", folder]
        else:
            command = [str(self._mongod), "--bind_ip", "127.0.0.1", "--port", str(self.port), "--dbpath", folder]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until_listening(self._process, self.port, START_SECONDS)

    @property
    def pid(self) -> int:
        """The process id, for signals."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9; its data stays for the next start."""
        assert self._process is not None
        self._process.kill()
        self.stop()

    def stop(self) -> None:
        """Stop the server; its data stays for the next start."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
