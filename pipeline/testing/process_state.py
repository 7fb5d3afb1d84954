"""The state and resources of the whole process, which a plugin must not change and not leak.

A process runs many plugins. A plugin that changes shared state (signal handlers, environment variables, logging)
affects the others. Threads, sockets and tasks that it leaves behind fill the process.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGPIPE")
# Clients that must be closed: package, class, and the attribute that says whether it is closed.
CLIENTS = (
    ("aiohttp", "ClientSession", "closed"),
    ("httpx", "AsyncClient", "is_closed"),
    ("httpx", "Client", "is_closed"),
)
# Set by pytest for each test.
NOT_THEIRS = {"PYTEST_CURRENT_TEST"}
# Prefixes of the threads of the suites and of the event loop.
OUR_THREADS = ("suite", "loop-", "asyncio_")
# There is no public name for the certificates that urllib trusts.
DEFAULT_CONTEXT = "_create_default_https_context"
LIBRARIES_OF_LOGGING = ("structlog", "logging", "rich")


@dataclass(frozen=True)
class ProcessState:
    """The settings of the whole process."""

    environ: dict[str, str]
    handlers: dict[str, Any]
    policy: type
    logging: tuple[Any, ...]
    folder: str
    excepthook: Any
    switches: dict[str, tuple[Any, str]]

    @classmethod
    def now(cls) -> ProcessState:
        """Return the present state."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.14 and later warn of the policy
            policy = type(asyncio.get_event_loop_policy())
        return cls(
            {name: value for name, value in os.environ.items() if name not in NOT_THEIRS},
            {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)},
            policy,
            _logging(),
            os.getcwd(),
            sys.excepthook,
            dict(_switches()),
        )

    def changes(self, before: ProcessState) -> Iterator[str]:
        """Yield a line for each change since `before`, with the cure."""
        names = sorted(name for name in self.environ.keys() | before.environ.keys() if self._differs(before, name))
        if names:
            yield f"it changes environment variables ({', '.join(names[:5])}), which all share: use PluginSettings"
        signals = sorted(name for name in self.handlers if self.handlers[name] != before.handlers.get(name))
        if signals:
            yield f"it handles {', '.join(signals)}, with which the service shuts down: end its work in close()"
        if self.policy is not before.policy:
            yield "it sets the event loop policy, which is the service's: leave it out"
        if self.logging != before.logging:
            yield "it configures logging for the whole process: leave that to the service, and log through context.log"
        if self.folder != before.folder:
            yield "it changes the working directory of the process: use absolute paths, such as context.data_dir"
        if self.excepthook is not before.excepthook:
            yield "it sets sys.excepthook, which is the service's: leave it out"
        for name, (value, cure) in self.switches.items():
            if value != before.switches.get(name, (value,))[0]:
                yield f"it sets {name} for the whole process: {cure}"

    def _differs(self, before: ProcessState, name: str) -> bool:
        return self.environ.get(name) != before.environ.get(name)


@dataclass(frozen=True)
class OpenResources:
    """The open resources of the process: threads, files and sockets, children, clients."""

    threads: frozenset[threading.Thread]
    files: frozenset[tuple[int, str]]
    children: frozenset[int]
    clients: frozenset[int]
    names: dict[int, str]

    @classmethod
    def now(cls) -> OpenResources:
        """Return the resources that are open now."""
        open_clients = dict(_open_clients())
        files = frozenset(_open_files())
        threads = frozenset(their_threads())
        return cls(threads, files, frozenset(_children()), frozenset(open_clients), open_clients)

    def leaks_since(self, before: OpenResources, at_once: int = 1) -> dict[str, str]:
        """Return the resources opened since `before`: kind of resource -> a line about it, with the cure.

        at_once: how many calls ran at once. A pool may have an open connection for each of them until its owner is
        deleted, and the server that answers in a test may run in this process.
        """
        lines = {}
        if threads := [each.name for each in self.threads - before.threads if each.is_alive()]:
            # A library's thread pool grows with the calls at once, and no further.
            kind = "many threads" if len(threads) > 2 * at_once + 1 else "threads"
            lines[kind] = f"threads go on after close ({', '.join(sorted(threads)[:3])}): end and join them in close()"
        opened = [what for _, what in self.files - before.files]
        files = sorted({each for each in opened if each.startswith("/") and not each.startswith(("/dev/", "/proc/"))})
        if files:
            lines["files"] = f"files stay open after close ({', '.join(files[:3])}): close each where it is opened"
        if (sockets := sum(what.startswith("socket:") for what in opened)) > 2 * at_once + 1:
            lines["sockets"] = f"{sockets} sockets stay open after close: close each after use, or use context.http"
        if self.children - before.children:
            lines["children"] = "child processes go on after close: end them in close() and wait, or use the sandbox"
        if clients := {self.names[each] for each in self.clients - before.clients}:
            lines["clients"] = f"a {', '.join(sorted(clients))} is not closed: close it in close(), or use context.http"
        return lines


class PrintedText:
    """Replaces sys.stdout and records the prints of a plugin, without the output of loggers."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.text = ""

    def write(self, text: str) -> int:
        """Write the text and record it."""
        if not _is_of_a_logger(sys._getframe(1)):
            self.text += text[: 200 - len(self.text)]
        return int(self.stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def their_threads() -> set[threading.Thread]:
    """Return the running threads, without those of the suites and the loop."""
    return {each for each in threading.enumerate() if not each.name.startswith(OUR_THREADS)}


def _is_of_a_logger(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in LIBRARIES_OF_LOGGING:
            return True
        frame = frame.f_back
    return False


def _switches() -> Iterator[tuple[str, tuple[Any, str]]]:
    """Yield global switches of libraries: the name, its present value, and what to do instead."""
    yield "socket.setdefaulttimeout", (socket.getdefaulttimeout(), "give each client its own timeout")
    yield "the recursion limit", (sys.getrecursionlimit(), "leave it out")
    yield "gc.disable", (gc.isenabled(), "leave it out")
    context = getattr(ssl, DEFAULT_CONTEXT, None)
    yield "which certificates are trusted", (context, "set SSL_CERT_FILE, or use context.http")
    all_ignored = any(each[0] == "ignore" and each[1] is each[3] is None and each[2] is Warning for each in _filters())
    yield "that warnings are ignored", (all_ignored, "leave it out, or use warnings.catch_warnings")
    # Not Image.MAX_IMAGE_PIXELS, because the service sets it too.
    if file := sys.modules.get("PIL.ImageFile"):
        yield "ImageFile.LOAD_TRUNCATED_IMAGES", (file.LOAD_TRUNCATED_IMAGES, "catch OSError of the image at hand")


def _filters() -> list[Any]:
    return list(warnings.filters)


def _logging() -> tuple[Any, ...]:
    root = logging.getLogger()
    # Without the handlers that pytest adds for each part of a test.
    handlers = [each for each in root.handlers if not type(each).__module__.startswith("_pytest")]
    return tuple(handlers), root.level if not _has_pytest(root) else None, root.manager.disable


def _has_pytest(root: logging.Logger) -> bool:
    """True while pytest may have set the level: `--log-level` does."""
    return any(type(each).__module__.startswith("_pytest") and each.level for each in root.handlers)


def _open_files() -> Iterator[tuple[int, str]]:
    """Yield (number, target) of each open file; nothing on a system that does not list them."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return
    for entry in os.listdir(folder):
        try:
            yield int(entry), os.readlink(folder / entry)
        except OSError:
            continue  # the file of the listing itself


def _children() -> Iterator[int]:
    try:
        for task in os.listdir("/proc/self/task"):
            yield from map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
    except OSError:
        return


def _open_clients() -> Iterator[tuple[int, str]]:
    kinds = {
        getattr(sys.modules[package], name): (f"{package}.{name}", attribute)
        for package, name, attribute in CLIENTS
        if hasattr(sys.modules.get(package), name)
    }
    if not kinds:
        return
    for each in gc.get_objects():
        for kind in type(each).__mro__:
            if kind in kinds:
                name, attribute = kinds[kind]
                if not getattr(each, attribute, True):
                    yield id(each), name
