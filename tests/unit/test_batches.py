"""Notifiers with `notify_many`: which events one call has, and what each of its answers means."""

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
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.notifiers import EventContext, Notifiers
from pipeline.metrics import Metrics
from pipeline.testing import SUCCESS_EVENT, RecordingRooms
from pipeline.tracing import OFF
from tests.fake_plugins import count

Answer = Callable[[Sequence[Notification]], Any]


class Many:
    """A notifier with `notify_many` that returns what the function returns for the batch."""

    durable = True
    batch_seconds = 0.02
    batch_size = 10

    def __init__(self, answer: Answer = lambda batch: None) -> None:
        self.sizes: list[int] = []
        self._answer = answer

    async def notify_many(self, batch: Sequence[Notification]) -> Any:
        self.sizes.append(len(batch))
        return self._answer(batch)


class Single:
    """A notifier that gets one event with each call. most: the largest number of calls at the same time."""

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
    """Return the result or the error of one delivery."""
    try:
        return await notifiers.deliver(name, SUCCESS_EVENT, f"user-{number}", f"delivery-{number}")
    except JobError as error:
        return error


async def deliver_all(notifiers: Notifiers, total: int) -> list[Any]:
    return await asyncio.gather(*(deliver(notifiers, number) for number in range(total)))


@pytest.mark.gen_test(timeout=30)
async def test_waiting_events_are_sent_in_one_call() -> None:
    """Full batches are sent at once, the rest after batch_seconds; each event gets its own answer.

    A cancelled delivery is left out of its batch.
    """
    plugin = Many(lambda batch: [each.user_id for each in batch])
    notifiers, _ = make_notifiers(plugin)
    assert notifiers.slots == 5 + 10
    assert await deliver_all(notifiers, 25) == [f"user-{number}" for number in range(25)]
    assert plugin.sizes == [10, 10, 5]
    cancelled = asyncio.create_task(deliver(notifiers, 0))
    other = asyncio.create_task(deliver(notifiers, 1))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert await other == "user-1"
    assert plugin.sizes[3:] == [1]


@pytest.mark.gen_test(timeout=30)
async def test_an_answer_is_about_its_own_event() -> None:
    """An answer affects its own job only, for example its retry delay; it does not hold the notifier."""
    answers = {
        0: None,
        1: "HTTP 200",
        2: PermanentJobError("Gone"),
        3: RetryableJobError("Slow down", retry_after_seconds=30),
        4: ConnectionRefusedError("not listening"),
        5: ValueError("odd"),
    }
    metrics = Metrics()
    notifiers, (bound,) = make_notifiers(Many(lambda batch: list(answers.values())), metrics=metrics)
    with capture_logs() as logs:
        ended = await deliver_all(notifiers, 6)
    assert ended[:3] == [None, "HTTP 200", answers[2]]
    errors = [(str(each), each.spends_attempt, each.retry_after_seconds, each.provider) for each in ended[3:]]
    assert errors == [
        ("Slow down", False, 30, ""),
        ("Receiver unavailable", False, None, ""),
        ("Receiver failed", True, None, ""),
    ]
    assert ended[4].__cause__ is answers[4]
    assert not bound.breaker("notify_many").is_held
    (line,) = logs
    assert (line["event"], line["failed"], line["batch"]) == ("notifier_failed", 4, 6)


@pytest.mark.gen_test(timeout=30)
async def test_exception_is_the_answer_for_each_event_of_the_batch() -> None:
    """An exception counts once for all events of a batch; a notifier that cannot be reached is held."""
    errors: list[Exception] = [ValueError("odd"), ConnectionRefusedError("not listening")]

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
@pytest.mark.gen_test(timeout=30)
async def test_an_invalid_answer_is_an_error_of_the_notifier(answers: Any, fault: str) -> None:
    """With an invalid answer all deliveries of the batch fail, because which of them arrived is unknown."""
    metrics = Metrics()
    notifiers, _ = make_notifiers(Many(lambda batch: answers), metrics=metrics)
    with capture_logs() as logs:
        ended = await deliver_all(notifiers, 2)
    assert [str(each) for each in ended] == ["Receiver failed"] * 2
    assert fault in logs[0]["cause"]
    assert count(metrics, "pipeline_plugin_errors_total", "notifier", "many") == 1


@pytest.mark.gen_test(timeout=30)
async def test_a_batch_uses_no_slot_of_other_notifiers() -> None:
    """A notifier without batches uses all slots; its delivery fails as busy if no slot becomes free in time."""
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


@pytest.mark.gen_test(timeout=30)
async def test_a_delivery_with_a_retry_delay_holds_no_other() -> None:
    """The retry delay of one user's receiver does not hold the notifier for other users."""
    error = RetryableJobError("Slow down", retry_after_seconds=30, spends_attempt=True)
    notifiers, (bound,) = make_notifiers(Refusing(error))
    with capture_logs():
        for number in range(10):
            assert await deliver(notifiers, number, "refusing") is error
    assert not bound.breaker("notify").is_held


class Refusing:
    """A notifier that raises the same error for each event."""

    durable = True

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def notify(self, notification: Notification) -> None:
        raise self._error


class Stuck:
    """A notifier that survives one cancellation and ends when it is released."""

    durable = True

    def __init__(self) -> None:
        self.begun, self.released = asyncio.Event(), asyncio.Event()

    async def notify(self, notification: Notification) -> None:
        self.begun.set()
        with suppress(asyncio.CancelledError):
            await self.released.wait()
        await self.released.wait()


@pytest.mark.gen_test(timeout=30)
async def test_a_notifier_that_is_not_durable_gets_batches_too() -> None:
    """A failure is logged and fails no other event; a notification has the context of its photo.

    No repr shows the claims of the user's token.
    """
    seen: list[Notification] = []

    def answer(batch: Sequence[Notification]) -> list[Any]:
        seen.extend(batch)
        return [None, OSError("away")]

    plugin = Many(answer)
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
def test_invalid_batch_attribute_is_refused(name: str, value: Any) -> None:
    """An invalid size or time of a batch is refused when the plugin is loaded; the message names the attribute."""
    plugin = Many()
    setattr(plugin, name, value)
    with pytest.raises(ValueError, match=f"its {name} is"):
        batch_limits(plugin)
