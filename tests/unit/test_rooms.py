"""Rooms and outboxes with clients whose every write the test finishes itself."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.metrics import Metrics
from pipeline.rooms.rooms import FRAME_BYTES, PROGRESS_AT_MOST, Connection, Rooms


class Wire:
    """The far end of a connection: remembers what was written and closed, finishes writes when told."""

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
        """Let the write in flight end."""
        if error:
            self.writes[-1].set_exception(error)
        else:
            self.writes[-1].set_result(None)
        await asyncio.sleep(0)  # the connection hears of it in the loop's next round


def make_rooms(max_frames: int = 3, max_bytes: int = 1000) -> tuple[Rooms, Metrics]:
    metrics = Metrics()
    return Rooms(max_frames=max_frames, max_bytes=max_bytes, metrics=metrics), metrics


async def joined(rooms: Rooms, room: str = "user:1", first: bytes = b"connected") -> Wire:
    """Return a wire in the room whose first frame has gone out."""
    wire = Wire(rooms)
    await rooms.join(room, wire.connection)
    wire.connection.start([first])
    await wire.finish_write()
    wire.written.clear()
    return wire


@pytest.mark.gen_test
async def test_deliver_reaches_everyone_in_the_room_and_nobody_else() -> None:
    """The number returned is how many it reached."""
    rooms, _ = make_rooms()
    one, two, other = await joined(rooms), await joined(rooms), await joined(rooms, "user:2")
    assert rooms.deliver("user:1", b"event") == 2
    assert rooms.deliver("user:3", b"event") == 0
    assert (one.written, two.written, other.written) == ([b"event"], [b"event"], [])


@pytest.mark.gen_test
async def test_connection_has_one_write_in_flight() -> None:
    """The next frame is written when the one before has gone out, in order."""
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
async def test_connection_gets_nothing_before_it_starts_and_misses_nothing() -> None:
    """What is delivered while it joins follows its first frame."""
    rooms, _ = make_rooms()
    wire = Wire(rooms)
    await rooms.join("user:1", wire.connection)
    rooms.deliver("user:1", b"early")
    assert wire.written == []
    wire.connection.start([b"connected"])
    await wire.finish_write()
    assert wire.written == [b"connected", b"early"]


@pytest.mark.parametrize(
    ("frames", "is_cut_off", "remark"),
    [
        ([b"x"] * 4, False, "one in flight, three wait: full"),
        ([b"x"] * 5, True, "a fourth waits: over by one"),
        ([b"x" * 250] * 4, True, "each takes more than its bytes"),
        ([b"x" * 900, b"x" * 100], False, "one in flight, one waits: full"),
        ([b"x" * 900, b"x" * 101], True, "over by one byte"),
        ([b"x", b"x" * 500, b"x" * 500], True, "two wait, over by one byte"),
        ([b"x" * 5000], False, "a frame that goes out at once waits for nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.gen_test
async def test_outbox_bound(frames: list[bytes], is_cut_off: bool, remark: str) -> None:
    """Three frames, or so many bytes with the one in flight, may wait; then one is closed, and the others go on."""
    rooms, _ = make_rooms(max_bytes=1000 + 2 * FRAME_BYTES)
    slow, quick = await joined(rooms), await joined(rooms)
    for frame in frames:
        rooms.deliver("user:1", frame)
        await quick.finish_write()
    assert slow.codes == ([4503] if is_cut_off else [])
    assert slow.written == frames[:1], "what waited was dropped, not written in one go"
    assert quick.written == frames and quick.codes == []


@pytest.mark.gen_test
async def test_outbox_bytes_are_given_back() -> None:
    """A client that keeps up is never cut off, however much it is sent."""
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
    """A client that joins while much is delivered is cut off like any other, and sees none of it."""
    rooms, _ = make_rooms()
    wire = Wire(rooms)
    await rooms.join("user:1", wire.connection)
    for _ in range(4):
        rooms.deliver("user:1", b"x")
    wire.connection.start([b"connected"])
    assert (wire.codes, wire.written) == ([4503], [])


@pytest.mark.gen_test
async def test_end_writes_what_waits_then_the_last_frame_then_closes_once() -> None:
    """An orderly end loses nothing; a second end changes nothing; nothing is sent after."""
    rooms, _ = make_rooms()
    wire = await joined(rooms)
    for frame in (b"1", b"2"):
        rooms.deliver("user:1", frame)
    rooms.end(wire.connection, 1012, b"goodbye")
    rooms.end(wire.connection, 4419, b"too late")
    wire.connection.send(b"late")
    assert (wire.written, wire.codes) == ([b"1", b"2", b"goodbye"], [1012])
    assert "user:1" not in rooms


@pytest.mark.gen_test
async def test_end_before_the_start_says_only_why() -> None:
    """Who was never told it is connected gets no events on the way out."""
    rooms, _ = make_rooms()
    wire = Wire(rooms)
    await rooms.join("user:1", wire.connection)
    rooms.deliver("user:1", b"event")
    rooms.end(wire.connection, 4403, b"error")
    assert (wire.written, wire.codes) == ([b"error"], [4403])


@pytest.mark.gen_test
async def test_failed_write_harms_nobody() -> None:
    """A socket that broke is written to no more until its owner notices."""
    rooms, _ = make_rooms()
    broken, other = await joined(rooms), await joined(rooms)
    rooms.deliver("user:1", b"1")
    await broken.finish_write(OSError("gone"))
    await other.finish_write()
    assert rooms.deliver("user:1", b"2") == 2
    assert (broken.written, other.written) == ([b"1"], [b"1", b"2"])


@pytest.mark.gen_test
async def test_rooms_tell_when_a_room_is_occupied_and_vacated() -> None:
    """Whoever joins waits for the room to be heard elsewhere; only the last one out vacates it."""
    rooms, metrics = make_rooms()
    told: list[str] = []
    may_go_on = asyncio.Event()

    async def occupied(room: str) -> None:
        told.append(f"occupied {room}")
        await may_go_on.wait()

    rooms.on_occupied, rooms.on_vacated = occupied, lambda room: told.append(f"vacated {room}")
    one, two = Wire(rooms), Wire(rooms)
    joining = [asyncio.ensure_future(rooms.join("user:1", wire.connection)) for wire in (one, two)]
    _, pending = await asyncio.wait(joining, timeout=0)
    assert len(pending) == 2
    may_go_on.set()
    await asyncio.gather(*joining)
    assert metrics.registry.get_sample_value("pipeline_sockets_open", {"transport": "socket"}) == 2
    rooms.forget(one.connection)
    assert told == ["occupied user:1", "occupied user:1"]
    rooms.end(two.connection, 1012)
    rooms.forget(two.connection)
    assert told[2:] == ["vacated user:1"]
    assert metrics.registry.get_sample_value("pipeline_sockets_open", {"transport": "socket"}) == 0
    assert (rooms.names(), rooms.connections) == ([], set())


@pytest.mark.gen_test
async def test_forget_tells_who_waits_for_the_close() -> None:
    """`closed` is done when the socket is gone, not when the close was sent; forgetting twice is fine."""
    rooms, _ = make_rooms()
    wire = await joined(rooms)
    connection: Connection = wire.connection
    rooms.end(connection, 1012)
    assert not connection.closed.done() and rooms.connections == {connection}
    rooms.forget(connection)
    rooms.forget(connection)
    assert connection.closed.done()


@pytest.mark.gen_test
async def test_progress_reaches_those_who_ask_and_nobody_else() -> None:
    """Of a room with two sockets one asks, another room's asks too; who leaves or has ended gets no more."""
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
async def test_progress_pushes_no_event_out_of_an_outbox() -> None:
    """To a client that does not read only few progress frames wait; one that is being let in gets none."""
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
