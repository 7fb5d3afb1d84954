"""The HTTP server: streams that support half-closed clients, a limit of connections, and the drain at shutdown.

Every connection is an open file. At the limit of open files a process cannot accept connections, which Tornado would
retry without a pause, nor connect to its store or Redis. So connections near the limit are closed at once.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from collections.abc import Awaitable
from time import monotonic
from typing import Any, cast

import structlog
import tornado.httpserver
from tornado.iostream import IOStream

from pipeline.handlers.http_head import READ_HEAD_BYTES, TLS_BEGINS, Parameters, ServerConnection
from pipeline.handlers.peer import Peer
from pipeline.logs import ThrottledLog
from pipeline.metrics import Metrics
from pipeline.proxies import TrustedProxies
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

# Tornado's expression for the end of a head.
HEAD_END = b"\r?\n\r?\n"
HEAD_OR_TLS = rb"\A" + TLS_BEGINS + b"|" + HEAD_END
# Open files reserved for Redis, the stores, temporary images and plugins.
RESERVED_FILES = 128
# During the drain a new connection may wait so long for its first request.
FIRST_REQUEST_SECONDS = 1.0
# The drain does not wait for a client that sends and reads nothing for so long.
QUIET_SECONDS = 3.0
CHECK_SECONDS = 0.02
# The most connections accepted after listening has ended, per address: the length of the backlog in tornado.netutil.
MAX_LAST_CONNECTIONS = 128
# The limit to set where the hard limit is "unlimited": macOS refuses more.
FILES_WANTED = 10_240


class ShortQueue(list[Any]):
    """Replaces a deque that is usually empty: an empty deque takes 600 bytes, and each stream has two."""

    def popleft(self) -> Any:
        return self.pop(0)


class Stream(IOStream):
    """A stream whose client may close its sending side and still read the answer, where a handler allows that.

    answers_half_closed: a handler sets it when its work must be done even if the client has disconnected. Otherwise
        the end of the client's data counts as a disconnect, as in Tornado: most of these clients are gone.
    opened_at: when the connection was accepted, `time.monotonic`.
    moved_at: when the last byte was read or written, `time.monotonic`.
    """

    answers_half_closed = False
    _has_ended = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._write_buffer._buffers = ShortQueue()  # type: ignore[assignment]
        self._write_futures = ShortQueue()  # type: ignore[assignment]
        self.opened_at = self.moved_at = monotonic()

    def take(self, size: int) -> bytes:
        """Return bytes that have arrived, at most `size`; b"" when the caller has to use a read of Tornado.

        A read of Tornado copies its result twice and makes a future.
        """
        if self._read_buffer_size or self.closed():
            return b""
        try:
            piece = self.socket.recv(size)
        except OSError:
            return b""
        self.moved_at = monotonic() if piece else self.moved_at
        return piece

    def write_to_fd(self, data: memoryview) -> int:
        count = super().write_to_fd(data)
        self.moved_at = monotonic() if count else self.moved_at
        return count

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        # A client that begins with TLS waits for an answer and never sends the end of a head.
        return super().read_until_regex(HEAD_OR_TLS if regex == HEAD_END else regex, max_bytes)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        count = super().read_from_fd(buf)
        self.moved_at = monotonic() if count else self.moved_at
        if count == 0 and self.answers_half_closed:
            self._has_ended = True
            # Not at once: a reader has to get the bytes before the end first.
            self.io_loop.add_callback(self._settle_end)
            return None
        return count

    def _add_io_state(self, state: int) -> None:
        if self._has_ended and state & self.io_loop.READ:
            if self.reading():
                self.io_loop.add_callback(self._settle_end)
            state &= ~self.io_loop.READ
            if not state:
                return
        super()._add_io_state(state)

    def _handle_events(self, fd: Any, events: int) -> None:
        super()._handle_events(fd, events)
        if self._has_ended:
            self._settle_end()

    def _settle_end(self) -> None:
        """Close if a reader waits for more data; else stop listening, because the end would be reported for ever."""
        if self.closed():
            return
        if self.reading():
            self.close()
        elif self._state is not None and self._state & self.io_loop.READ:
            self._state &= ~self.io_loop.READ
            self.io_loop.update_handler(self.fileno(), self._state)


class HttpServer(tornado.httpserver.HTTPServer):
    """Tornado's server with a limit of connections and a drain."""

    # Tornado's servers take their options here, not in __init__.
    def initialize(  # type: ignore[override]
        self, *arguments: Any, metrics: Metrics, proxies: TrustedProxies = TrustedProxies(), **options: Any
    ) -> None:
        options.setdefault("max_header_size", READ_HEAD_BYTES)
        super().initialize(*arguments, **options)
        self.conn_params = Parameters(self.conn_params)
        self._metrics = metrics
        self._proxies = proxies
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._last_file = sys.maxsize if soft == resource.RLIM_INFINITY else soft - RESERVED_FILES
        self._throttled_log = ThrottledLog()

    def disable_keep_alive(self) -> None:
        """Send `Connection: close` with each answer from now on."""
        self.conn_params.no_keep_alive = True

    def stop(self) -> None:
        """Stop listening, after accepting the clients in the backlog: closing the socket would reset them."""
        for listening in self._sockets.values():
            # Bounded by the backlog, in case clients connect faster than they are accepted.
            for _ in range(MAX_LAST_CONNECTIONS):
                try:
                    connection, address = listening.accept()
                except ConnectionAbortedError:
                    continue
                except OSError:
                    break
                self._handle_connection(connection, address)
        super().stop()

    async def drain(self, seconds: float) -> None:
        """Return when all requests are answered. Call it after stop().

        seconds: the longest wait.
        Unused connections are closed, so that their clients connect to other processes.
        """
        end = monotonic() + seconds
        while True:
            # First, so that requests that have arrived are read.
            await asyncio.sleep(CHECK_SECONDS)
            connections = cast(list[ServerConnection], list(self._connections))
            for connection in connections:
                if not _is_used(connection):
                    connection.stream.close()
            if monotonic() > end or not any(map(_is_waited_for, connections)):
                return

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        self.handle_stream(Stream(connection, max_buffer_size=self.max_buffer_size), address)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        # The system assigns the lowest free number, so it shows how many files are open.
        if stream.socket.fileno() > self._last_file:
            self._metrics.connections_refused.inc()
            reason, limit = "too many open files", self._last_file
            self._throttled_log.write(log.warning, "connections_refused", reason=reason, limit=limit)
            stream.close()
            return
        context = Peer(stream, address, self._proxies)
        connection = ServerConnection(stream, self.conn_params, context)
        self._connections.add(connection)
        connection.start_serving(self)


def _is_used(connection: ServerConnection) -> bool:
    """Return whether a request is running, or the first one may still arrive."""
    request, stream = connection.request, cast(Stream, connection.stream)
    if request is not None and request.has_begun:
        return True
    return not connection.answered and monotonic() - stream.opened_at < FIRST_REQUEST_SECONDS


def _is_waited_for(connection: ServerConnection) -> bool:
    """Return whether the drain waits for this connection: it is used, and its client is not quiet."""
    request, stream = connection.request, cast(Stream, connection.stream)
    if request is None or not request.has_begun:
        return _is_used(connection)
    return request.is_making_answer or monotonic() - stream.moved_at < QUIET_SECONDS


def raise_file_limit() -> None:
    """Raise the limit of open files to what the system allows: the usual 1,024 are too few for sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.warning("file_limit_not_raised", limit=soft, error=cause_of(error))
