"""Child: one child process, as the service starts, asks and ends it. Its program is child.py. Runs on the event loop.

The service trusts nothing in its replies but checked sizes and types: a hostile photo may have taken the child over.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

from pipeline.sandbox.wire import MAX_HEADER_BYTES, MAX_REPLY_BYTES, PREFIX, unpack

# A child gets only these environment variables: none of them holds a secret of the service.
PASSED = {"PATH", "HOME", "LANG", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"}
PASSED_PREFIXES = ("LC_", "OMP_", "OPENBLAS_", "MALLOC_")
# Each arena and each thread counts with its whole address space, and the small matrices of a photo need neither.
OWN = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
EXIT_SECONDS = 1.0


class ChildGone(Exception):
    """The child has ended, or has sent a malformed reply."""


class Child:
    """A process that is starting, idle or busy with one call."""

    def __init__(self, memory_mb: int, setup: str) -> None:
        """Start the process; OSError when that fails. On the main thread: PDEATHSIG is sent at the end of that thread.

        setup: the name of a function that it calls first, or "".
        """
        self._connection, theirs = socket.socketpair()
        try:
            self._connection.setblocking(False)
            # Until child.py ignores them: a signal to all processes of the service must not end a child that starts.
            with theirs, blocked(signal.SIGTERM, signal.SIGINT):
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-P", "-B", "-m", "pipeline.sandbox.child"),
                        *(str(theirs.fileno()), str(os.getpid()), str(memory_mb), *([setup] if setup else [])),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=child_environment(os.environ),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except BaseException:
            self._connection.close()
            raise
        self._exit: Future[int] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """True for an idle child that can run a call: it lives and has sent nothing."""
        if self._process.poll() is not None:
            return False
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def ask(self, message: list[bytes]) -> dict[str, Any]:
        """Send a call and return the reply; ChildGone when there is none."""
        loop = asyncio.get_running_loop()
        try:
            for part in message:
                await loop.sock_sendall(self._connection, part)
        except OSError as error:
            raise ChildGone from error
        return await self.reply()

    async def reply(self) -> dict[str, Any]:
        """Return the next reply; ChildGone when there is none."""
        try:
            header, content = PREFIX.unpack(await self._read(PREFIX.size))
            if header > MAX_HEADER_BYTES or content > MAX_REPLY_BYTES:
                raise ValueError("a reply larger than any")
            reply = unpack(bytes(await self._read(header)), await self._read(content))
            if not isinstance(reply, dict) or not isinstance(reply.get("error", {}), dict):
                raise TypeError("no reply of ours")
        except (OSError, EOFError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise ChildGone from error
        return reply

    async def exit_code(self) -> int | None:
        """Return the exit code, or minus the signal, of a process that ends by itself; None when it does not end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_SECONDS):
                return await asyncio.wrap_future(self._waited())
        return None

    def end(self) -> Future[int]:
        """Kill the process if it still lives; return the future that is done when it is gone.

        Not waited for on the loop: for the system to take back a gigabyte takes 100 ms.
        """
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        return self._waited()

    def close(self) -> None:
        """Close the connection; not while something is read from it."""
        self._connection.close()

    async def _read(self, size: int) -> bytearray:
        loop = asyncio.get_running_loop()
        content = bytearray(size)
        view, filled = memoryview(content), 0
        while filled < size:
            count = await loop.sock_recv_into(self._connection, view[filled:])
            if not count:
                raise EOFError
            filled += count
        return content

    def _waited(self) -> Future[int]:
        if self._exit is None:
            self._exit = Future()
            Thread(target=self._wait, args=(self._exit,), name="sandbox-end", daemon=True).start()
        return self._exit

    def _wait(self, exit_code: Future[int]) -> None:
        exit_code.set_result(self._process.wait())


@contextmanager
def blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block these signals for processes that start in here; signals to this process are delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: only what programs and libraries need, and the paths of our packages."""
    passed = {n: v for n, v in environment.items() if n in PASSED or n.startswith(PASSED_PREFIXES)}
    return OWN | passed | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
