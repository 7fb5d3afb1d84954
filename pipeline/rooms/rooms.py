"""Who is listening: room name -> connections, each with a bounded outbox and one write in flight.

Knows no Tornado and no Redis. Everything runs on the event loop and nothing here waits: a frame is handed over or the
connection is cut off, so that a client that stops reading costs its own outbox and delays nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from pipeline.metrics import Metrics

OVERFLOW = 4503  # the close code of a client that reads too slowly; the table is in handlers/socket.py


class Connection:
    """One socket's outbox.

    write: starts writing a frame and returns a future that is done when it has left for the network. close: ends the
    socket.
    """

    def __init__(
        self,
        write: Callable[[str], asyncio.Future[None]],
        close: Callable[[int, str], None],
        metrics: Metrics,
        *,
        max_frames: int,
        max_bytes: int,
    ) -> None:
        self._write = write
        self._close = close
        self._metrics = metrics
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._outbox: deque[str] = deque()
        self._bytes = 0
        self._writing = ""  # the frame in flight
        self._ending: tuple[int, str] | None = None
        self._is_closed = False

    def send(self, frame: str) -> None:
        """Put a frame into the outbox; when it overflows the connection is closed and everything in it dropped."""
        if self._is_closed or self._ending is not None:
            return
        self._outbox.append(frame)
        self._bytes += len(frame)
        if len(self._outbox) > self._max_frames or self._bytes > self._max_bytes:
            self.close(OVERFLOW, "Reading too slowly")
        else:
            self._pump()

    def finish(self, frame: str, code: int, reason: str) -> None:
        """Send a last frame, then close."""
        self.send(frame)
        self._ending = (code, reason)
        self._pump()

    def close(self, code: int, reason: str) -> None:
        """Close now, whatever is still to be written."""
        if not self._is_closed:
            self._is_closed = True
            self._outbox.clear()
            self._close(code, reason)

    def _pump(self) -> None:
        while not self._writing and not self._is_closed:
            if not self._outbox:
                if self._ending is not None:
                    self.close(*self._ending)
                return
            self._writing = self._outbox.popleft()
            future = self._write(self._writing)
            if not future.done():
                future.add_done_callback(self._written)
                return
            self._settle(future)

    def _written(self, future: asyncio.Future[None]) -> None:
        self._settle(future)
        self._pump()

    def _settle(self, future: asyncio.Future[None]) -> None:
        self._bytes -= len(self._writing)
        self._writing = ""
        if future.cancelled() or future.exception() is not None:
            self._is_closed = True  # the socket is gone; its handler hears of that by itself
        else:
            self._metrics.socket_frames_sent.inc()


class Rooms:
    """The rooms of this process. A room is there while a connection is in it."""

    def __init__(self) -> None:
        self._rooms: dict[str, set[Connection]] = {}

    def __iter__(self) -> Iterator[Connection]:
        """All connections, in no order."""
        return iter([connection for connections in self._rooms.values() for connection in connections])

    def __len__(self) -> int:
        """How many connections there are."""
        return sum(map(len, self._rooms.values()))

    def join(self, room: str, connection: Connection) -> None:
        """Add the connection to the room."""
        self._rooms.setdefault(room, set()).add(connection)

    def leave(self, room: str, connection: Connection) -> None:
        """Take the connection out of the room, if it is there."""
        connections = self._rooms.get(room, set())
        connections.discard(connection)
        if not connections:
            self._rooms.pop(room, None)

    def deliver(self, room: str, frame: str) -> int:
        """Hand the frame to every connection in the room; return how many there were."""
        connections = list(self._rooms.get(room, ()))
        for connection in connections:
            connection.send(frame)
        return len(connections)
