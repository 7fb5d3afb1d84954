"""Rooms and outboxes; the test finishes each write to a client itself."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.metrics import Metrics
from pipeline.rooms.rooms import FRAME_BYTES, PROGRESS_AT_MOST, Connection, Rooms


class Wire:
    """The client's end of a connection: it records frames and close codes; `finish_write` ends a write."""

    def __init__(self, rooms: Rooms) -> None:
        self.written: list[bytes] = []
        self.codes: list[int] = []
        self.writes: list[asyncio.Future[None]] = []
        self.connection = rooms.open(self._write, self.codes.append, lambda: rooms.end(self.connection, 4503))

    def _write(self, frame: bytes) -> asyncio.Future[None]:
        self.written.append(frame)
        self.writes.append(asyncio.get_running_loop().create_future())
        return self.writes[-1]

    async def finish_write(self, error: Exception | None = None) -> None:
        """End the write in progress."""
        if error:
            self.writes[-1].set_exception(error)
        else:
            self.writes[-1].set_result(None)
        await asyncio.sleep(0)  # the connection gets the result in the next step of the loop


def make_rooms(max_frames: int = 3, max_bytes: int = 1000) -> tuple[Rooms, Metrics]:
    """Return rooms with these limits of an outbox, and their metrics."""
    metrics = Metrics()
    return Rooms(max_frames=max_frames, max_bytes=max_bytes, metrics=metrics), metrics


async def joined(rooms: Rooms, room: str = "user:1", first: bytes = b"connected") -> Wire:
    """Return a wire that has joined the room and whose first frame is written."""
    wire = Wire(rooms)
    await rooms.join(room, wire.connection)
    wire.connection.start([first])
    await wire.finish_write()
    wire.written.clear()
    return wire


@pytest.mark.gen_test
async def test_deliver_reaches_only_the_connections_in_the_room() -> None:
    """deliver returns the number of connections that it reached."""
    rooms, _ = make_rooms()
    one, two, other = await joined(rooms), await joined(rooms), await joined(rooms, "user:2")
    assert rooms.deliver("user:1", b"event") == 2
    assert rooms.deliver("user:3", b"event") == 0
    assert (one.written, two.written, other.written) == ([b"event"], [b"event"], [])


@pytest.mark.gen_test
async def test_connection_has_one_write_in_progress() -> None:
    """The next frame is written when the write of the frame before has ended, in order."""
    rooms, _ = make_rooms()
    wire = await joined(rooms)
    for frame in (b"1", b"2", b"3"):
        rooms.deliver("user:1", frame)
    assert wire.written == [b"1"]
    await wire.finish_write()
    assert wire.written == [b"1", b"2"]
    await wire.finish_write()
    assert wire.written == [b"1", b"2", b"3"]


@pytest.mark.gen_test
async def test_connection_gets_early_events_after_it_starts() -> None:
    """Events that are delivered while the connection joins are written after its first frame."""
    rooms, _ = make_rooms()
    wire = Wire(rooms)
    await rooms.join("user:1", wire.connection)
    rooms.deliver("user:1", b"early")
    assert wire.written == []
    wire.connection.start([b"connected"])
    await wire.finish_write()
    assert wire.written == [b"connected", b"early"]


@pytest.mark.parametrize(
    ("frames", "is_closed", "remark"),
    [
        ([b"x"] * 4, False, "one is being written, three wait: full"),
        ([b"x"] * 5, True, "a fourth waits: one frame too many"),
        ([b"x" * 250] * 4, True, "each frame counts with more than its bytes"),
        ([b"x" * 900, b"x" * 100], False, "one is being written, one waits: full"),
        ([b"x" * 900, b"x" * 101], True, "one byte too many"),
        ([b"x", b"x" * 500, b"x" * 500], True, "two wait, one byte too many"),
        ([b"x" * 5000], False, "a frame that is written at once does not wait"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.gen_test
async def test_outbox_is_bounded(frames: list[bytes], is_closed: bool, remark: str) -> None:
    """Three frames, or max_bytes with the frame being written, may wait; then only this connection is closed."""
    rooms, _ = make_rooms(max_bytes=1000 + 2 * FRAME_BYTES)
    slow, quick = await joined(rooms), await joined(rooms)
    for frame in frames:
        rooms.deliver("user:1", frame)
        await quick.finish_write()
    assert slow.codes == ([4503] if is_closed else [])
    assert slow.written == frames[:1], "waiting frames were dropped, not written"
    assert quick.written == frames and quick.codes == []


@pytest.mark.gen_test
async def test_outbox_bytes_are_released() -> None:
    """A client that reads fast enough is never disconnected, for any number of frames."""
    rooms, _ = make_rooms()
    wire = await joined(rooms)
    for _ in range(100):
        rooms.deliver("user:1", b"x" * 400)
        rooms.deliver("user:1", b"x" * 400)
        await wire.finish_write()
        await wire.finish_write()
    assert len(wire.written) == 200 and wire.codes == []


@pytest.mark.gen_test
async def test_connection_that_never_starts_is_bounded_too() -> None:
    """A client that joins during many deliveries is disconnected like any other, and gets no frame."""
    rooms, _ = make_rooms()
    wire = Wire(rooms)
    await rooms.join("user:1", wire.connection)
    for _ in range(4):
        rooms.deliver("user:1", b"x")
    wire.connection.start([b"connected"])
    assert (wire.codes, wire.written) == ([4503], [])


@pytest.mark.gen_test
async def test_end_writes_waiting_frames_and_the_last_frame_and_closes_once() -> None:
    """An orderly end loses no frame; a second end has no effect; no frame is sent after the end."""
    rooms, _ = make_rooms()
    wire = await joined(rooms)
    for frame in (b"1", b"2"):
        rooms.deliver("user:1", frame)
    rooms.end(wire.connection, 1012, b"last")
    rooms.end(wire.connection, 4419, b"too late")
    wire.connection.send(b"late")
    assert (wire.written, wire.codes) == ([b"1", b"2", b"last"], [1012])
    assert "user:1" not in rooms


@pytest.mark.gen_test
async def test_end_before_the_start_writes_only_the_reason() -> None:
    """A connection that has not started gets no events when it ends."""
    rooms, _ = make_rooms()
    wire = Wire(rooms)
    await rooms.join("user:1", wire.connection)
    rooms.deliver("user:1", b"event")
    rooms.end(wire.connection, 4403, b"error")
    assert (wire.written, wire.codes) == ([b"error"], [4403])


@pytest.mark.gen_test
async def test_failed_write_does_not_affect_other_connections() -> None:
    """No further frame is written to a broken socket, until its handler removes it."""
    rooms, _ = make_rooms()
    broken, other = await joined(rooms), await joined(rooms)
    rooms.deliver("user:1", b"1")
    await broken.finish_write(OSError("gone"))
    await other.finish_write()
    assert rooms.deliver("user:1", b"2") == 2
    assert (broken.written, other.written) == ([b"1"], [b"1", b"2"])


@pytest.mark.gen_test
async def test_rooms_report_when_a_room_is_occupied_and_vacated() -> None:
    """A joining connection waits until the other processes know the room; the last one that leaves vacates the room."""
    rooms, metrics = make_rooms()
    reported: list[str] = []
    may_continue = asyncio.Event()

    async def occupied(room: str) -> None:
        reported.append(f"occupied {room}")
        await may_continue.wait()

    rooms.on_occupied, rooms.on_vacated = occupied, lambda room: reported.append(f"vacated {room}")
    one, two = Wire(rooms), Wire(rooms)
    joining = [asyncio.ensure_future(rooms.join("user:1", wire.connection)) for wire in (one, two)]
    _, pending = await asyncio.wait(joining, timeout=0)
    assert len(pending) == 2
    may_continue.set()
    await asyncio.gather(*joining)
    assert metrics.registry.get_sample_value("pipeline_sockets_open", {"transport": "socket"}) == 2
    rooms.forget(one.connection)
    assert reported == ["occupied user:1", "occupied user:1"]
    rooms.end(two.connection, 1012)
    rooms.forget(two.connection)
    assert reported[2:] == ["vacated user:1"]
    assert metrics.registry.get_sample_value("pipeline_sockets_open", {"transport": "socket"}) == 0
    assert (rooms.names(), rooms.connections) == ([], set())


@pytest.mark.gen_test
async def test_forget_completes_the_close() -> None:
    """`closed` is done when the connection is forgotten, not when the close is sent; it may be forgotten twice."""
    rooms, _ = make_rooms()
    wire = await joined(rooms)
    connection: Connection = wire.connection
    rooms.end(connection, 1012)
    assert not connection.closed.done() and rooms.connections == {connection}
    rooms.forget(connection)
    rooms.forget(connection)
    assert connection.closed.done()


@pytest.mark.gen_test
async def test_progress_reaches_only_connections_that_request_it() -> None:
    """In a room with two sockets only the requesting one gets progress; an ended connection gets no more."""
    rooms, _ = make_rooms()
    asked: list[str] = []
    rooms.on_progress_wanted = asked.append
    rooms.on_progress_unwanted = lambda room: asked.append(f"not {room}")
    one, silent, other = await joined(rooms), await joined(rooms), await joined(rooms, "user:2")
    rooms.want_progress(one.connection)
    rooms.want_progress(one.connection)
    rooms.want_progress(other.connection)
    rooms.offer("user:1", b"progress")
    assert (one.written, silent.written, other.written) == ([b"progress"], [], [])
    rooms.end(one.connection, 1012)
    rooms.offer("user:1", b"progress")
    assert one.written == [b"progress"]
    assert asked == ["user:1", "user:2", "not user:1"]


@pytest.mark.gen_test
async def test_progress_replaces_no_event_in_an_outbox() -> None:
    """Only a few progress frames wait for a client that does not read; a paused connection gets none."""
    rooms, _ = make_rooms(max_frames=100, max_bytes=100_000)
    wire = await joined(rooms)
    rooms.want_progress(wire.connection)
    for _ in range(1000):
        rooms.offer("user:1", b"progress")
    for _ in range(100 - PROGRESS_AT_MOST):
        rooms.deliver("user:1", b"event")
    assert wire.codes == []
    wire.connection.pause()
    rooms.offer("user:1", b"late progress")
    wire.connection.start()
    while not wire.writes[-1].done():
        await wire.finish_write()
    assert wire.written.count(b"progress") == 1 + PROGRESS_AT_MOST
    assert wire.written.count(b"event") == 100 - PROGRESS_AT_MOST and b"late progress" not in wire.written
