"""The program of a child: `python -m pipeline.sandbox.child SOCKET PARENT MEMORY_MB [SETUP]`, started by pool.py.

Calls one function after another, by name, each within limits on memory and CPU time; the parent limits the wall clock.
SOCKET: the file descriptor of calls and results.
PARENT: the process id of the service; the child ends with it.
SETUP: `module:function`, called once before the first call.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipeline.errors import PermanentJobError, RetryableJobError
from pipeline.sandbox.limits import Limits
from pipeline.sandbox.wire import PREFIX, pack, unpack

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38
# The texts of OpenCV, onnxruntime and C++.
OUT_OF_MEMORY = re.compile("insufficient memory|bad_alloc|bad allocation|failed to allocate", re.IGNORECASE)


def main() -> None:
    """Serve calls until the parent closes the socket or ends."""
    descriptor, parent, memory_mb, *setup = sys.argv[1:]
    restrict(int(parent))
    with socket.socket(fileno=int(descriptor)) as connection:
        try:
            for name in setup:
                find(name)()
        except Exception as error:
            send(connection, pack({"error": described(error)}))
            return
        limits = Limits(int(memory_mb))
        send(connection, pack({"result": None}))
        while (request := receive(connection)) is not None:
            send(connection, answer(request, limits))
            give_back_memory()


def give_back_memory() -> None:
    """Return memory that the last call has freed to the system; glibc would keep a hundred megabytes."""
    with suppress(AttributeError):  # other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def restrict(parent: int) -> None:
    """Drop rights that no call needs, and end with the parent, also while busy and after kill -9 of the parent."""
    # A signal to the whole process group of the service must not end the current call.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(kind, (0, 0))


def answer(request: dict[str, Any], limits: Limits) -> list[bytes]:
    """Return the reply to a call: its result, or its exception."""
    try:
        function = find(request["function"])
        limits.begin(request["cpuSeconds"])
        try:
            return pack({"result": function(*request["args"])})
        finally:
            limits.end()
    except Exception as error:
        return pack({"error": described(error)})


def find(name: str) -> Callable[..., Any]:
    """Return the function of that name, `module:function`."""
    module, _, function = name.partition(":")
    imported: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return imported


def described(error: Exception) -> dict[str, Any]:
    """Return the exception as JSON; pool.py turns it into an exception."""
    fields: dict[str, Any] = {"kind": "other", "type": type(error).__name__, "message": str(error)[:1000]}
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(fields["message"]):
        return fields | {"kind": "memory"}
    if isinstance(error, PermanentJobError):
        return fields | {"kind": "permanent"}
    if isinstance(error, RetryableJobError):
        return fields | {"kind": "retryable"}
    return fields


def receive(connection: socket.socket) -> Any:
    """Return the next call, None when the parent has closed the socket."""
    prefix = read(connection, PREFIX.size)
    if not prefix:
        return None
    header, content = PREFIX.unpack(prefix)
    return unpack(bytes(read(connection, header)), read(connection, content))


def read(connection: socket.socket, size: int) -> bytearray:
    """Return that many bytes, fewer at the end of the connection."""
    content = bytearray(size)
    view, filled = memoryview(content), 0
    while filled < size and (count := connection.recv_into(view[filled:])):
        filled += count
    return content[:filled] if filled < size else content


def send(connection: socket.socket, message: list[bytes]) -> None:
    """Send a message."""
    for part in message:
        connection.sendall(part)


if __name__ == "__main__":
    main()
