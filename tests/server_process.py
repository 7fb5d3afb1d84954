"""A server of another program in its own process."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Self

from tests.toxiproxy import free_port


class ServerProcess:
    """A server on its own port whose data survive stop and start; `with` starts it, ends it and removes the data."""

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """The id of the process that clients connect to, for signals."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it accepts clients."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop the server; its data stay for the next start."""
        raise NotImplementedError


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
