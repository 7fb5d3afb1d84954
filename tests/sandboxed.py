"""The functions that tests run in a child of the sandbox, which needs functions at the top level of a module."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import PermanentJobError, RetryableJobError
from pipeline.sandbox.limits import allow
from pipeline.sandbox.wire import PREFIX


def echo(*values: Any) -> list[Any]:
    """Return the arguments."""
    return list(values)


def pid() -> int:
    """Return the process id of the child."""
    return os.getpid()


def environment() -> dict[str, Any]:
    """Return what a child inherits: variables, open files, and whether it may gain privileges."""
    files = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"variables": dict(os.environ), "files": files, "NoNewPrivs": status["NoNewPrivs"].strip()}


def wait_for_fifo(fifo: str, value: int = 0) -> int:
    """Wait until the test has opened and closed the other end of the FIFO; return the value."""
    Path(fifo).read_bytes()
    return value


def spin() -> None:
    """Use the CPU for ever, in C code that cannot be interrupted."""
    sum(iter(int, 1))


def spin_within(cpu_seconds: float) -> None:
    """Use the CPU for ever, with a limit that the call sets."""
    allow(cpu_seconds)
    spin()


def allocate(megabytes: int) -> int:
    """Allocate memory and return its size in bytes."""
    return len(bytes(megabytes * 1024 * 1024))


def crash(*args: Any) -> None:
    """Abort the process, as broken C code does."""
    os.abort()


def exit_process() -> None:
    """End the process."""
    os._exit(3)


def write_file(path: str) -> None:
    """Write a file."""
    Path(path).write_text("something")


def fail_permanently() -> None:
    """Raise a permanent error."""
    raise PermanentJobError("The photo is a drawing")


def fail_for_now() -> None:
    """Raise a retryable error."""
    raise RetryableJobError("The photo is not there yet")


def fail_unexpectedly() -> None:
    """Raise an unknown error, as a bug does."""
    raise KeyError("no such thing")


def unsendable() -> set[int]:
    """Return a value that JSON cannot encode."""
    return {1}


class Attack:
    """An object that ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (66,)


def write_hostile_reply(kind: str) -> None:
    """Write an invalid message to the service, as a child could when a hostile photo controls it."""
    deep = b"[]\n" + b"[" * 500_000
    messages = {
        "pickle": pickle.dumps(Attack()),
        "pickled header": PREFIX.pack(len(pickle.dumps(Attack())), 0) + pickle.dumps(Attack()),
        "huge header": PREFIX.pack(2**32 - 1, 0),
        "huge reply": PREFIX.pack(2, 2**32 - 1),
        "nested": PREFIX.pack(len(deep), 0) + deep,
        "no object": PREFIX.pack(5, 0) + b"[]\n17",
        "bytes that are not there": PREFIX.pack(7, 0) + b"[7]\nnul",
        "reply and more": _message({"result": 1}) + b"more",
    }
    connection = int(sys.argv[1])
    os.write(connection, messages[kind])
    os._exit(0)


def _message(value: Any) -> bytes:
    header = f"[]\n{json.dumps(value)}".encode()
    return PREFIX.pack(len(header), 0) + header


def needs_a_package() -> None:
    """A setup that needs a package that is not installed."""
    import a_package_that_is_missing  # type: ignore[import-not-found]  # noqa: F401


STARTED = False


def start() -> None:
    """A setup that succeeds."""
    global STARTED
    STARTED = True


def is_started() -> bool:
    """Return whether the setup was called in this child."""
    return STARTED


def require_file(path: str) -> None:
    """Raise FileNotFoundError when that file does not exist."""
    Path(path).read_bytes()


def start_when_ready() -> None:
    """A setup that fails until the home folder has the file `ready`."""
    require_file(os.path.expanduser("~/ready"))
