"""Notifiers with `notify_many`: which events one call tells, and what each of its answers means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.errors import JobError, PermanentJobError, RetryableJobError
from pipeline.hooks import Notification
from pipeline.hooks.batches import batch_limits
from pipeline.hooks.calls import BoundPlugin
from pipeline.hooks.notifiers import EventContext, Notifiers
from pipeline.metrics import Metrics
from pipeline.testing import SUCCESS_EVENT, RecordingRooms
from pipeline.tracing import OFF
from tests.fake_plugins import count

Tell = Callable[[Sequence[Notification]], Any]


class Many:
    """A notifier that gives the answers of the function."""

    durable = True
    batch_seconds = 0.02
    batch_size = 10

    def __init__(self, tell: Tell = lambda batch: None) -> None:
        self.sizes: list[int] = []
        self._tell = tell

    async def notify_many(self, batch: Sequence[Notification]) -> Any:
        self.sizes.append(len(batch))
        return self._tell(batch)


class Single:
    """One that is told one by one."""

    durable = True

    def __init__(self) -> None:
        self.at_once = self.most = 0

    async def notify(self, notification: Notification) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1


def make_notifiers(
    *plugins: Any, metrics: Metrics | None = None, seconds: float = 5, slots: int = 5
) -> tuple[Notifiers, list[BoundPlugin]]:
    bound = []
    for plugin in plugins:
        names = [name for name in ("notify", "notify_many") if hasattr(plugin, name)]
        methods = {name: getattr(plugin, name) for name in names}
        name = type(plugin).__name__.lower()
        bound.append(BoundPlugin("notifier", name, plugin, methods, threads=2, metrics=metrics or Metrics()))
    return Notifiers(bound, RecordingRooms(), seconds, OFF, slots), bound


async def deliver(notifiers: Notifiers, number: int, name: str = "many") -> Any:
    """Return what a delivery ends with, an exception too."""
    try:
        return await notifiers.deliver(name, SUCCESS_EVENT, f"user-{number}", f"delivery-{number}")
    except JobError as error:
        return error


async def deliver_all(notifiers: Notifiers, total: int) -> list[Any]:
    return await asyncio.gather(*(deliver(notifiers, number) for number in range(total)))


@pytest.mark.gen_test
async def test_events_that_wait_are_told_in_one_call() -> None:
    """Full batches at once, the rest after batch_seconds; each has its own answer; one that goes away is left out."""
    plugin = Many(lambda batch: [each.user_id for each in batch])
    notifiers, _ = make_notifiers(plugin)
    assert notifiers.slots == 5 + 10
    assert await deliver_all(notifiers, 25) == [f"user-{number}" for number in range(25)]
    assert plugin.sizes == [10, 10, 5]
    gone = asyncio.create_task(deliver(notifiers, 0))
    stays = asyncio.create_task(deliver(notifiers, 1))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == "user-1"
    assert plugin.sizes[3:] == [1]


@pytest.mark.gen_test
async def test_an_answer_is_about_its_own_event() -> None:
    """Its job waits as long as it says, by itself: neither the notifier nor the others are held."""
    answers = {
        0: None,
        1: "HTTP 200",
        2: PermanentJobError("Gone"),
        3: RetryableJobError("Slow down", retry_after_seconds=30),
        4: ConnectionRefusedError("nobody listens"),
        5: ValueError("odd"),
    }
    metrics = Metrics()
    notifiers, (bound,) = make_notifiers(Many(lambda batch: list(answers.values())), metrics=metrics)
    with capture_logs() as logs:
        ended = await deliver_all(notifiers, 6)
    assert ended[:3] == [None, "HTTP 200", answers[2]]
    told = [(str(each), each.spends_attempt, each.retry_after_seconds, each.provider) for each in ended[3:]]
    assert told == [
        ("Slow down", False, 30, ""),
        ("Receiver unavailable", False, None, ""),
        ("Receiver failed", True, None, ""),
    ]
    assert ended[4].__cause__ is answers[4]
    assert not bound.breaker("notify_many").is_held
    (line,) = logs
    assert (line["event"], line["failed"], line["batch"]) == ("notifier_failed", 4, 6)


@pytest.mark.gen_test
async def test_what_is_raised_is_about_the_whole_batch() -> None:
    """It counts once, however many events there are; a notifier that cannot be reached holds them all."""
    errors: list[Exception] = [ValueError("odd"), ConnectionRefusedError("nobody listens")]

    def fail(batch: Sequence[Notification]) -> None:
        raise errors.pop(0)

    notifiers, (bound,) = make_notifiers(Many(fail))
    with capture_logs():
        ended = await deliver_all(notifiers, 10)
    assert {(str(each), each.spends_attempt) for each in ended} == {("Receiver failed", True)}
    assert not bound.breaker("notify_many").is_held
    with capture_logs():
        ended = await deliver_all(notifiers, 10)
    assert {(str(each), each.provider) for each in ended} == {("Receiver unavailable", "many")}
    assert [report.provider for report in notifiers.holds.reports()] == ["many"]
    held = await deliver(notifiers, 0)
    assert (held.spends_attempt, held.provider) == (False, "many")


@pytest.mark.parametrize(
    ("answers", "fault"),
    [([], "0 answers for 2"), ("ok", "str"), ([1, None], "a int among"), ({"a": 1, "b": 2}, "dict")],
)
@pytest.mark.gen_test
async def test_a_wrong_answer_is_the_notifiers_own_error(answers: Any, fault: str) -> None:
    """Nobody knows who was told: all are told again, and it is counted."""
    metrics = Metrics()
    notifiers, _ = make_notifiers(Many(lambda batch: answers), metrics=metrics)
    with capture_logs() as logs:
        ended = await deliver_all(notifiers, 2)
    assert [str(each) for each in ended] == ["Receiver failed"] * 2
    assert fault in logs[0]["cause"]
    assert count(metrics, "pipeline_plugin_errors_total", "notifier", "many") == 1


@pytest.mark.gen_test
async def test_a_batch_takes_no_slot_of_the_others() -> None:
    """One that is told one by one has the slots as before, and gives way when none comes free in its time."""
    single = Single()
    notifiers, _ = make_notifiers(Many(), single, slots=2)
    ended = await asyncio.gather(*(deliver(notifiers, number, "single") for number in range(12)))
    assert (ended, single.most) == ([None] * 12, 2)
    plugin = Stuck()
    stuck, _ = make_notifiers(Many(), plugin, slots=1, seconds=0.05)
    with capture_logs():
        busy = asyncio.create_task(deliver(stuck, 0, "stuck"))
        await plugin.begun.wait()
        late = await deliver(stuck, 1, "stuck")
        plugin.released.set()
        assert str(await busy) == "Receiver timed out"
    assert str(late) == "Receiver is busy"
    assert (late.spends_attempt, late.provider) == (False, "")


@pytest.mark.gen_test
async def test_a_delivery_that_says_when_it_comes_again_holds_no_other() -> None:
    """One user's receiver that wants to be left alone is no reason to leave all others alone."""
    seconds = RetryableJobError("Slow down", retry_after_seconds=30, spends_attempt=True)
    notifiers, (bound,) = make_notifiers(Picky(seconds))
    with capture_logs():
        for number in range(10):
            assert await deliver(notifiers, number, "picky") is seconds
    assert not bound.breaker("notify").is_held


class Picky:
    """One that refuses everything in the same way."""

    durable = True

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def notify(self, notification: Notification) -> None:
        raise self._error


class Stuck:
    """One that answers when it is let go, though it is cancelled once."""

    durable = True

    def __init__(self) -> None:
        self.begun, self.released = asyncio.Event(), asyncio.Event()

    async def notify(self, notification: Notification) -> None:
        self.begun.set()
        with suppress(asyncio.CancelledError):
            await self.released.wait()
        await self.released.wait()


@pytest.mark.gen_test
async def test_a_plain_notifier_is_told_in_batches_too() -> None:
    """What fails is logged and harms nobody; what is known of the photo comes along, and no repr has the claims."""
    seen: list[Notification] = []

    def tell(batch: Sequence[Notification]) -> list[Any]:
        seen.extend(batch)
        return [None, OSError("away")]

    plugin = Many(tell)
    plugin.durable = False
    notifiers, _ = make_notifiers(plugin)
    about = EventContext("lego", "ai-processing:1", {"email": "a@b.c"})
    with capture_logs() as logs:
        await asyncio.gather(*(notifiers.notify(SUCCESS_EVENT, f"user-{n}", about) for n in range(2)))
    assert (plugin.sizes, notifiers.slots) == ([2], 5)
    known = [(each.category, each.job_id, each.claims) for each in seen]
    assert known == [("lego", "ai-processing:1", about.claims)] * 2
    assert [(line["event"], line["log_level"]) for line in logs] == [("notifier_failed", "error")]
    assert "a@b.c" not in repr(about) + repr(seen)


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("batch_size", True), ("batch_size", "9"), ("batch_seconds", -1)]
)
def test_what_cannot_be_a_batch_is_refused(name: str, value: Any) -> None:
    """At load, in words for its author."""
    plugin = Many()
    setattr(plugin, name, value)
    with pytest.raises(ValueError, match=f"its {name} is"):
        batch_limits(plugin)
