"""Who is listening: rooms by name, each with its connections, each of those with a bounded outbox.

Knows neither what is behind the connections (handlers/member.py and handlers/polling.py bring functions) nor that
other processes have the same rooms (fanout.py sets `on_occupied`, `on_vacated` and `is_confirmed`). Frames are bytes as
WebSockets get them (frames.py). Runs on the event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pipeline.clock import utc_now
from pipeline.metrics import Metrics

Write = Callable[[bytes], "asyncio.Future[None] | None"]
Close = Callable[[int], None]
TRANSPORTS = ("socket", "sse", "poll")
# Frames that may wait for one slow client: 256, or one for each 4096 bytes that may. An event has about 1 kB.
OUTBOX_FRAMES, OUTBOX_BYTES_PER_FRAME = 256, 4096
# What Python takes for a frame beside its bytes: a bound that left it out would be passed by some per cent.
FRAME_BYTES = 96
# A progress frame that finds so many frames waiting is dropped: it must not push an event out of the outbox.
PROGRESS_AT_MOST = 8


class Connection:
    """One client: frames wait in its outbox while one write is in flight. Made by Rooms.open.

    room: where it is in, or None. transport: one of TRANSPORTS. probe: asks the client for a sign of life and ends the
    connection when none comes soon. joined_at: since when it misses nothing. is_started: it has been told that.
    is_ended: nothing is sent to it any more. closed: done when the socket is gone. wants_progress: it gets progress
    frames too.
    """

    __slots__ = (
        "room",
        "transport",
        "probe",
        "joined_at",
        "is_started",
        "is_ended",
        "closed",
        "wants_progress",
        "_is_held",
        "_write",
        "_close",
        "_overflow",
        "_max_frames",
        "_max_bytes",
        "_outbox",
        "_unsent_bytes",
        "_writing_bytes",
    )

    def __init__(
        self,
        write: Write,
        close: Close,
        overflow: Callable[[], None],
        max_frames: int,
        max_bytes: int,
        *,
        transport: str = "socket",
        probe: Callable[[], None] = lambda: None,
    ) -> None:
        self.room: str | None = None
        self.transport = transport
        self.probe = probe
        self.joined_at = utc_now()
        self.is_started = False
        self.is_ended = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wants_progress = False
        self._is_held = True
        self._write = write
        self._close = close
        self._overflow = overflow
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        # A list, as it is empty nearly always and a deque takes ten times the memory then.
        self._outbox: list[bytes] = []
        # Of the outbox and of the frame that is being written.
        self._unsent_bytes = 0
        self._writing_bytes = 0

    @property
    def is_writing(self) -> bool:
        """Whether the client has yet to take the frame that is being written."""
        return self._writing_bytes > 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for the client, and nothing for the store."""
        return not (self._is_held or self._writing_bytes or self._outbox)

    def start(self, first: Sequence[bytes] = ()) -> None:
        """Send `first`, then what has been sent since it joined or was held, then the rest as it comes."""
        if not self.is_ended:
            self._outbox[:0] = first
            self._unsent_bytes += sum(map(_size, first))
            self.is_started = True
            self._is_held = False
            self._write_on()

    def hold(self) -> None:
        """Let what is sent from now on wait for the next `start`."""
        self._is_held = True

    def send(self, frame: bytes) -> None:
        """Write the frame, or put it in the outbox; a client whose outbox overflows is cut off."""
        if self.is_ended:
            return
        self._unsent_bytes += _size(frame)
        if not (self._is_held or self._writing_bytes):
            self._put(frame)
            return
        self._outbox.append(frame)
        if len(self._outbox) > self._max_frames or self._unsent_bytes > self._max_bytes:
            # What it did not read in time it would not read now; it asks for it again when it comes back.
            self._outbox.clear()
            self._overflow()

    def offer(self, frames: bytes) -> None:
        """Send progress frames unless other frames wait already."""
        if not self._is_held and len(self._outbox) < PROGRESS_AT_MOST:
            self.send(frames)

    def end(self, code: int, last: bytes | None = None) -> None:
        """Hand everything that waits to the socket, then `last`, then the close code. Only the first call counts."""
        if self.is_ended:
            return
        self.is_ended = True
        frames = [] if self._is_held else self._outbox
        self._outbox = []
        for frame in frames + ([last] if last is not None else []):
            if write := self._write(frame):
                write.add_done_callback(_has_failed)
        self._close(code)

    def _put(self, frame: bytes) -> None:
        write = self._write(frame)
        if write is None:
            self._unsent_bytes -= _size(frame)
        else:
            self._writing_bytes = _size(frame)
            write.add_done_callback(self._written)

    def _written(self, write: asyncio.Future[None]) -> None:
        # After a failed write the socket is gone: it stays "writing" until its owner notices.
        if not _has_failed(write):
            self._unsent_bytes -= self._writing_bytes
            self._writing_bytes = 0
            self._write_on()

    def _write_on(self) -> None:
        while self._outbox and not (self._is_held or self._writing_bytes):
            self._put(self._outbox.pop(0))


class Rooms:
    """All connections of this process and the rooms they are in.

    on_occupied: awaited by whoever joins; returns when events of other processes reach the room too, or cannot.
    on_vacated: called when the last connection has left a room.
    is_confirmed: tells whether events of other processes reach the room just now.
    on_asked: called with a room whenever a connection in it wants progress frames. on_unasked: when the last one left.
    on_event: called with a room that has such connections and each event they are sent.
    operators: connections of operators that want to hear of the service itself. on_operator: called when one comes.
    """

    def __init__(self, *, max_frames: int | None = None, max_bytes: int, metrics: Metrics) -> None:
        """max_frames, max_bytes: what may wait for one connection. Default of max_frames: what suits max_bytes."""
        self.connections: set[Connection] = set()
        self.on_occupied: Callable[[str], Awaitable[None]] | None = None
        self.on_vacated: Callable[[str], None] | None = None
        self.is_confirmed: Callable[[str], bool] = lambda room: True
        self.on_asked: Callable[[str], None] = lambda room: None
        self.on_unasked: Callable[[str], None] = lambda room: None
        self.on_event: Callable[[str, bytes], None] = lambda room, frame: None
        self.operators: set[Connection] = set()
        self.on_operator: Callable[[], None] = lambda: None
        # Each room's in the order they came.
        self._members: dict[str, dict[Connection, None]] = {}
        # Those that want progress frames, by room.
        self._askers: dict[str, set[Connection]] = {}
        self._joined = 0
        self._max_frames = max_frames or max(OUTBOX_FRAMES, max_bytes // OUTBOX_BYTES_PER_FRAME)
        self._max_bytes = max_bytes
        self._open = {transport: metrics.sockets_open.labels(transport) for transport in TRANSPORTS}
        metrics.outbox_bytes.set_function(lambda: self.outbox_bytes)

    def __contains__(self, room: object) -> bool:
        return room in self._members

    def names(self) -> list[str]:
        """Return the rooms somebody is in."""
        return list(self._members)

    def members(self, room: str) -> tuple[Connection, ...]:
        """Return the connections in the room, the oldest first, as of now: what is sent to one may end it."""
        return tuple(self._members.get(room, ()))

    @property
    def unauthenticated(self) -> int:
        """How many connections are in no room: not in yet, or ending."""
        return len(self.connections) - self._joined

    @property
    def outbox_bytes(self) -> int:
        """How many bytes wait for clients to read."""
        return sum(connection._unsent_bytes for connection in self.connections)

    def open(self, write: Write, close: Close, overflow: Callable[[], None], **options: Any) -> Connection:
        """Return the connection for a new client, in no room yet.

        write: sends a frame, never raises; returns None when the frame has gone out, else a future that is done then.
        close: closes with a code. overflow: called once when the outbox is full; must `end` the connection.
        options: transport and probe, see Connection.
        """
        connection = Connection(write, close, overflow, self._max_frames, self._max_bytes, **options)
        self.connections.add(connection)
        return connection

    async def join(self, room: str, connection: Connection) -> None:
        """Put the connection in the room. It gets nothing before its `start`, and misses nothing from now on."""
        connection.room = room
        connection.joined_at = utc_now()
        self._members.setdefault(room, {})[connection] = None
        self._joined += 1
        self._open[connection.transport].inc()
        if self.on_occupied:
            await self.on_occupied(room)

    def deliver(self, room: str, frame: bytes) -> int:
        """Send the frame to everyone in the room; return to how many."""
        members = self.members(room)
        for connection in members:
            connection.send(frame)
        if room in self._askers:
            self.on_event(room, frame)
        return len(members)

    def ask(self, connection: Connection) -> None:
        """Let a connection that is in a room get progress frames from now on."""
        if connection.room is not None and not connection.wants_progress:
            connection.wants_progress = True
            self._askers.setdefault(connection.room, set()).add(connection)
            self.on_asked(connection.room)

    def offer(self, room: str, frames: bytes) -> None:
        """Send progress frames to those in the room that want them and read what they are sent."""
        for connection in tuple(self._askers.get(room, ())):
            connection.offer(frames)

    def set_operator(self, connection: Connection, is_operator: bool) -> None:
        """Let a connection that is in a room hear of the service itself from now on, or no longer."""
        if not is_operator:
            self.operators.discard(connection)
        elif connection.room is not None and connection not in self.operators:
            self.operators.add(connection)
            self.on_operator()

    def offer_operators(self, frame: bytes) -> None:
        """Send a frame about the service to the operators that read what they are sent."""
        for connection in tuple(self.operators):
            connection.offer(frame)

    def end(self, connection: Connection, code: int, last: bytes | None = None) -> None:
        """Take the connection out of its room and close it with the code, after a last frame if one is given."""
        self._leave(connection)
        connection.end(code, last)

    def forget(self, connection: Connection) -> None:
        """The socket is gone."""
        self._leave(connection)
        connection.is_ended = True
        self.connections.discard(connection)
        if not connection.closed.done():
            connection.closed.set_result(None)

    def _leave(self, connection: Connection) -> None:
        room, connection.room = connection.room, None
        if room is None:
            return
        self._joined -= 1
        self.operators.discard(connection)
        self._open[connection.transport].dec()
        if connection.wants_progress:
            self._askers[room].discard(connection)
            if not self._askers[room]:
                del self._askers[room]
                self.on_unasked(room)
        del self._members[room][connection]
        if not self._members[room]:
            del self._members[room]
            if self.on_vacated:
                self.on_vacated(room)


def _size(frame: bytes) -> int:
    return len(frame) + FRAME_BYTES


def _has_failed(write: asyncio.Future[None]) -> bool:
    return write.cancelled() or write.exception() is not None
