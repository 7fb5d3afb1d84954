"""The rooms of this process: each has connections, and each connection has a bounded outbox.

This module does not know the transports: handlers/member.py and handlers/polling.py pass functions. It does not know
that other processes have the same rooms: gaps.py sets `on_occupied`, `on_vacated` and `is_confirmed`. Frames are bytes
as WebSockets get them (frames.py). Runs on the event loop; nothing here blocks.

Long because rooms and their connections are read together, whether an event is delivered or missed.
Many methods because Rooms delivers events, progress and the overview to the same connections.
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
# Frames that may wait for one slow client: 256, or one for each 4096 bytes of its limit. An event has about 1 kB.
OUTBOX_FRAMES, OUTBOX_BYTES_PER_FRAME = 256, 4096
# The memory that Python needs for a frame in addition to its bytes.
FRAME_BYTES = 96
# A progress frame is dropped when so many frames wait: it must not make the outbox overflow.
PROGRESS_AT_MOST = 8


class Connection:
    """One client: frames wait in its outbox while one write is in flight. Made by Rooms.open.

    room: the room it is in, or None
    transport: one of TRANSPORTS
    probe: pings the client, and ends the connection when no answer comes soon
    joined_at: since when it misses nothing
    is_started: the first frames were sent
    is_ended: nothing is sent to it any more
    closed: done when the socket is gone
    wants_progress: it gets progress frames too
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
        "_is_paused",
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
        self._is_paused = True
        self._write = write
        self._close = close
        self._overflow = overflow
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        # A list: it is empty nearly always, and an empty deque needs ten times the memory.
        self._outbox: list[bytes] = []
        # Bytes of the outbox and of the frame that is being written.
        self._unsent_bytes = 0
        self._writing_bytes = 0

    @property
    def is_writing(self) -> bool:
        """Whether a frame is being written."""
        return self._writing_bytes > 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be sent, and the connection is not paused."""
        return not (self._is_paused or self._writing_bytes or self._outbox)

    def start(self, first: Sequence[bytes] = ()) -> None:
        """Send `first`, then the frames that came since it joined or was paused, then the rest as it comes."""
        if not self.is_ended:
            self._outbox[:0] = first
            self._unsent_bytes += sum(map(_size, first))
            self.is_started = True
            self._is_paused = False
            self._write_on()

    def pause(self) -> None:
        """Let frames wait in the outbox until the next `start`."""
        self._is_paused = True

    def send(self, frame: bytes) -> None:
        """Write the frame, or put it in the outbox; a client whose outbox overflows is disconnected."""
        if self.is_ended:
            return
        self._unsent_bytes += _size(frame)
        if not (self._is_paused or self._writing_bytes):
            self._put(frame)
            return
        self._outbox.append(frame)
        if len(self._outbox) > self._max_frames or self._unsent_bytes > self._max_bytes:
            # The client did not read in time; it gets these events when it connects again.
            self._outbox.clear()
            self._overflow()

    def offer(self, frames: bytes) -> None:
        """Send progress frames, unless too many frames wait already."""
        if not self._is_paused and len(self._outbox) < PROGRESS_AT_MOST:
            self.send(frames)

    def end(self, code: int, last: bytes | None = None) -> None:
        """Write all waiting frames, then `last`, then close with the code. Only the first call has an effect."""
        if self.is_ended:
            return
        self.is_ended = True
        frames = [] if self._is_paused else self._outbox
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
        # After a failed write the socket is gone: the connection stays "writing" until its owner notices.
        if not _has_failed(write):
            self._unsent_bytes -= self._writing_bytes
            self._writing_bytes = 0
            self._write_on()

    def _write_on(self) -> None:
        while self._outbox and not (self._is_paused or self._writing_bytes):
            self._put(self._outbox.pop(0))


class Rooms:
    """All connections of this process and the rooms they are in.

    on_occupied: awaited when a connection joins; returns when events of other processes reach the room, or cannot
    on_vacated: called when the last connection has left a room
    is_confirmed: returns whether events of other processes reach the room now
    on_progress_wanted: called with a room whenever a connection in it wants progress frames
    on_progress_unwanted: called when the last such connection has left the room
    on_event: called with a room that has such connections, and each event that is delivered there
    operators: connections of operators that get the overview of the service
    on_operator: called when such a connection is added
    """

    def __init__(self, *, max_frames: int | None = None, max_bytes: int, metrics: Metrics) -> None:
        """max_frames, max_bytes: bounds of one outbox; default of max_frames: what max_bytes allows"""
        self.connections: set[Connection] = set()
        self.on_occupied: Callable[[str], Awaitable[None]] | None = None
        self.on_vacated: Callable[[str], None] | None = None
        self.is_confirmed: Callable[[str], bool] = lambda room: True
        self.on_progress_wanted: Callable[[str], None] = lambda room: None
        self.on_progress_unwanted: Callable[[str], None] = lambda room: None
        self.on_event: Callable[[str, bytes], None] = lambda room, frame: None
        self.operators: set[Connection] = set()
        self.on_operator: Callable[[], None] = lambda: None
        # Connections of each room, in the order in which they joined.
        self._members: dict[str, dict[Connection, None]] = {}
        # Connections that want progress frames, by room.
        self._progress_wanted: dict[str, set[Connection]] = {}
        self._joined = 0
        self._max_frames = max_frames or max(OUTBOX_FRAMES, max_bytes // OUTBOX_BYTES_PER_FRAME)
        self._max_bytes = max_bytes
        self._open = {transport: metrics.sockets_open.labels(transport) for transport in TRANSPORTS}
        metrics.outbox_bytes.set_function(lambda: self.outbox_bytes)

    def __contains__(self, room: object) -> bool:
        return room in self._members

    def names(self) -> list[str]:
        """Return the rooms that have connections."""
        return list(self._members)

    def members(self, room: str) -> tuple[Connection, ...]:
        """Return a copy of the room's connections, the oldest first: sending a frame may end a connection."""
        return tuple(self._members.get(room, ()))

    @property
    def unauthenticated(self) -> int:
        """How many connections are in no room: not authenticated yet, or ending."""
        return len(self.connections) - self._joined

    @property
    def outbox_bytes(self) -> int:
        """How many bytes wait in all outboxes."""
        return sum(connection._unsent_bytes for connection in self.connections)

    def open(self, write: Write, close: Close, overflow: Callable[[], None], **options: Any) -> Connection:
        """Return the connection for a new client, in no room yet.

        write: sends a frame, never raises; returns None when the frame is sent, else a future that is done then
        close: closes with a code
        overflow: called once when the outbox is full; must `end` the connection
        options: transport and probe, see Connection
        """
        connection = Connection(write, close, overflow, self._max_frames, self._max_bytes, **options)
        self.connections.add(connection)
        return connection

    async def join(self, room: str, connection: Connection) -> None:
        """Put the connection in the room. From now on it misses nothing; it gets nothing before its `start`."""
        connection.room = room
        connection.joined_at = utc_now()
        self._members.setdefault(room, {})[connection] = None
        self._joined += 1
        self._open[connection.transport].inc()
        if self.on_occupied:
            await self.on_occupied(room)

    def deliver(self, room: str, frame: bytes) -> int:
        """Send the frame to every connection in the room; return how many there are."""
        members = self.members(room)
        for connection in members:
            connection.send(frame)
        if room in self._progress_wanted:
            self.on_event(room, frame)
        return len(members)

    def want_progress(self, connection: Connection) -> None:
        """Send progress frames to a connection that is in a room from now on."""
        if connection.room is not None and not connection.wants_progress:
            connection.wants_progress = True
            self._progress_wanted.setdefault(connection.room, set()).add(connection)
            self.on_progress_wanted(connection.room)

    def offer(self, room: str, frames: bytes) -> None:
        """Send progress frames to the connections in the room that want them and whose outbox is short."""
        for connection in tuple(self._progress_wanted.get(room, ())):
            connection.offer(frames)

    def set_operator(self, connection: Connection, is_operator: bool) -> None:
        """Add a connection that is in a room to the operators, or remove it."""
        if not is_operator:
            self.operators.discard(connection)
        elif connection.room is not None and connection not in self.operators:
            self.operators.add(connection)
            self.on_operator()

    def offer_operators(self, frame: bytes) -> None:
        """Send an overview frame to the operators whose outbox is short."""
        for connection in tuple(self.operators):
            connection.offer(frame)

    def end(self, connection: Connection, code: int, last: bytes | None = None) -> None:
        """Take the connection out of its room and close it with the code, after a last frame if one is given."""
        self._leave(connection)
        connection.end(code, last)

    def forget(self, connection: Connection) -> None:
        """Remove a connection whose socket is gone."""
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
            self._progress_wanted[room].discard(connection)
            if not self._progress_wanted[room]:
                del self._progress_wanted[room]
                self.on_progress_unwanted(room)
        del self._members[room][connection]
        if not self._members[room]:
            del self._members[room]
            if self.on_vacated:
                self.on_vacated(room)


def _size(frame: bytes) -> int:
    return len(frame) + FRAME_BYTES


def _has_failed(write: asyncio.Future[None]) -> bool:
    return write.cancelled() or write.exception() is not None
