"""The HTTP server: streams that bear a half-closed client, and files kept back from the network.

Every connection is an open file. A process that has none left cannot accept, and Tornado would try again without a
pause; it could not reach its store or Redis either. So what comes too near to the limit is closed at once.
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

# As Tornado looks for the end of a head.
HEAD_END = b"\r?\n\r?\n"
HEAD_OR_TLS = rb"\A" + TLS_BEGINS + b"|" + HEAD_END
# For Redis, the stores, images on their way and what plugins open.
FILES_KEPT_BACK = 128
# A connection that has just been made may wait so long for its first request when the process goes away: its client has
# been let in.
FIRST_REQUEST_SECONDS = 1.0
# A client that sends or takes nothing for so long makes the end of the process wait no longer.
QUIET_SECONDS = 3.0
LOOK_SECONDS = 0.02
# What is let in at the end of listening, for each address: the longest queue there is, as tornado.netutil asks for.
ACCEPTED_AT_MOST = 128
# What is asked for where the hard limit is "unlimited": macOS refuses more.
FILES_WANTED = 10_240


class ShortQueue(list[Any]):
    """Stands in for a deque that seldom holds anything: an empty one takes 600 bytes, and each stream has two."""

    def popleft(self) -> Any:
        return self.pop(0)


class Stream(IOStream):
    """A stream whose client may end its own sending side and still read the answer, where a handler allows it.

    opened_at, moved_at: when it was accepted, and when it last brought or took a byte; `time.monotonic`.

    Tornado takes the end of what a client sends for the end of the client. Most clients that end are gone indeed, so
    `answers_half_closed` is set only by handlers that would do their work all the same.
    """

    answers_half_closed = False
    _has_ended = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._write_buffer._buffers = ShortQueue()  # type: ignore[assignment]
        self._write_futures = ShortQueue()  # type: ignore[assignment]
        self.opened_at = self.moved_at = monotonic()

    def take(self, size: int) -> bytes:
        """Return what has come, at most so many bytes; nothing when a read has to tell why there is nothing.

        A read of Tornado's copies what it returns twice, and makes a future.
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
        # A client that speaks TLS waits for an answer and never sends the end of a head.
        return super().read_until_regex(HEAD_OR_TLS if regex == HEAD_END else regex, max_bytes)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        count = super().read_from_fd(buf)
        self.moved_at = monotonic() if count else self.moved_at
        if count == 0 and self.answers_half_closed:
            self._has_ended = True
            # Not at once: what came before the end is still to be handed to its reader.
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
        """Close when more is wanted than will ever come; else listen no more, for an end is read again and again."""
        if self.closed():
            return
        if self.reading():
            self.close()
        elif self._state is not None and self._state & self.io_loop.READ:
            self._state &= ~self.io_loop.READ
            self.io_loop.update_handler(self.fileno(), self._state)


class HttpServer(tornado.httpserver.HTTPServer):
    """Tornado's server with an end to how many connections it takes."""

    # Not __init__: Tornado's servers take their options there.
    def initialize(  # type: ignore[override]
        self, *arguments: Any, metrics: Metrics, proxies: TrustedProxies = TrustedProxies(), **options: Any
    ) -> None:
        options.setdefault("max_header_size", READ_HEAD_BYTES)
        super().initialize(*arguments, **options)
        self.conn_params = Parameters(self.conn_params)
        self._metrics = metrics
        self._proxies = proxies
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._last_file = sys.maxsize if soft == resource.RLIM_INFINITY else soft - FILES_KEPT_BACK
        self._throttled_log = ThrottledLog()

    def disable_keep_alive(self) -> None:
        """Ask clients, with each answer, to send what comes next on another connection."""
        self.conn_params.no_keep_alive = True

    def stop(self) -> None:
        """Listen no more; let in who has connected already and waits for that: closing would cut those off."""
        for listening in self._sockets.values():
            # Not a connection more than a queue may have, should they come faster than they are accepted.
            for _ in range(ACCEPTED_AT_MOST):
                try:
                    connection, address = listening.accept()
                except ConnectionAbortedError:
                    continue
                except OSError:
                    break
                self._handle_connection(connection, address)
        super().stop()

    async def drain(self, seconds: float) -> None:
        """Once it has stopped: return when all requests are answered, at the latest after so many seconds.

        Connections that nobody uses are closed, so that their clients open new ones, to other processes.
        """
        end = monotonic() + seconds
        while True:
            # First what has come already is read.
            await asyncio.sleep(LOOK_SECONDS)
            connections = cast(list[ServerConnection], list(self._connections))
            for connection in connections:
                if not _is_used(connection):
                    connection.stream.close()
            if monotonic() > end or not any(map(_is_waited_for, connections)):
                return

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        self.handle_stream(Stream(connection, max_buffer_size=self.max_buffer_size), address)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        # The system hands out the lowest number that is free, so this one tells how many files there are.
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
    """Return whether a request is under way, or the first one may be."""
    request, stream = connection.request, cast(Stream, connection.stream)
    if request is not None and request.has_begun:
        return True
    return not connection.answered and monotonic() - stream.opened_at < FIRST_REQUEST_SECONDS


def _is_waited_for(connection: ServerConnection) -> bool:
    """Return whether it is used, and not by a client that has fallen silent."""
    request, stream = connection.request, cast(Stream, connection.stream)
    if request is None or not request.has_begun:
        return _is_used(connection)
    return request.is_making_answer or monotonic() - stream.moved_at < QUIET_SECONDS


def raise_file_limit() -> None:
    """Let the process open as many files as the system allows it: the usual 1,024 are soon sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.warning("file_limit_not_raised", limit=soft, error=cause_of(error))
