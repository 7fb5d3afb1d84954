"""Notifiers: each gets the event, and one that fails is held without delaying the others."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import RetryableJobError
from pipeline.hooks import Notification
from pipeline.testing import SUCCESS_EVENT
from tests.constants import BREAKER_FAILURES
from tests.unit.plugin_managers import ManagerFactory, manager_factory


@pytest.fixture
def factory(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """A factory of managers, closed after the test."""
    with manager_factory(io_loop) as factory:
        yield factory


@pytest.mark.gen_test(timeout=30)
async def test_each_notifier_gets_the_event_independent_of_the_others(factory: ManagerFactory) -> None:
    """The last notifier gets the unchanged event at once, though others raise an error, hang or change the event."""
    received = asyncio.Event()
    seen: list[Notification] = []
    loop = asyncio.get_running_loop()

    def change(notification: Notification) -> None:
        notification.event["aiMetadata"]["brand"]["value"] = "changed"

    def fail(notification: Notification) -> None:
        raise OSError("smtp is down")

    def record(notification: Notification) -> None:
        seen.append(notification)
        loop.call_soon_threadsafe(received.set)

    notifiers = {"change": change, "fail": fail, "hang": factory.hang, "record": record}
    manager = factory.open(notifiers=notifiers, notifier_timeout_seconds=0.5)
    with capture_logs() as logs:
        task = asyncio.ensure_future(manager.notifiers.notify(copy.deepcopy(SUCCESS_EVENT), "user-1"))
        await received.wait()
        assert not task.done(), "the hanging notifier delayed the last one"
        await task
    (notification,) = seen
    assert (notification.event, notification.user_id, notification.rooms) == (SUCCESS_EVENT, "user-1", factory.rooms)
    failed = sorted(entry["plugin"] for entry in logs if entry["event"] == "notifier_failed")
    assert failed == ["fail", "hang"]
    errors = [factory.count("pipeline_plugin_errors_total", "notifier", name) for name in notifiers]
    assert errors == [0, 1, 1, 0]


@pytest.mark.gen_test(timeout=30)
async def test_durable_notifier_that_fails_repeatedly_is_held(
    factory: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A held notifier is not called and uses no slot; its deliveries spend no attempt and report why it is held."""
    calls = []

    def refuse(notification: Notification) -> None:
        calls.append(notification.delivery_id)
        raise RetryableJobError("No room left")

    notifiers = {"far": refuse, "near": lambda notification: None}
    monkeypatch.setattr(BREAKER_FAILURES, 2)
    manager = factory.open(notifiers=notifiers, is_durable=True)
    assert manager.notifiers.durable == ("far", "near")
    spent = []
    for number in range(4):
        with pytest.raises(RetryableJobError, match="No room left") as caught:
            await manager.notifiers.deliver("far", SUCCESS_EVENT, "user-1", f"delivery-{number}")
        spent.append((caught.value.spends_attempt, caught.value.provider))
        await manager.notifiers.deliver("near", SUCCESS_EVENT, "user-1", "delivery")
    assert calls == ["delivery-0", "delivery-1"]
    assert spent == [(True, ""), (True, ""), (False, "far"), (False, "far")]
    assert factory.count("pipeline_plugin_skipped_total", "notifier", "far") == 2
    assert factory.count("pipeline_plugin_held", "notifier", "far") == 1
    assert factory.count("pipeline_plugin_held", "notifier", "near") == 0
    with pytest.raises(RetryableJobError):
        await manager.notifiers.deliver("far", SUCCESS_EVENT, "user-1", "chosen by Redis", tries="far")
    assert calls[2:] == ["chosen by Redis"]


@pytest.mark.fault("E7")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RetryableJobError("Slow down", retry_after_seconds=30), "Slow down"),
        (ConnectionRefusedError("no listener"), "Receiver unavailable"),
    ],
    ids=["asks to wait", "cannot be reached"],
)
@pytest.mark.gen_test(timeout=30)
async def test_unavailable_durable_notifier_is_held_at_its_first_failure(
    factory: ManagerFactory, error: Exception, message: str
) -> None:
    """Only this notifier is held; the failure is logged with plugin, cause and trace, and sent to other processes."""

    def refuse(notification: Notification) -> None:
        raise error

    manager = factory.open(notifiers={"far": refuse, "near": lambda notification: None}, is_durable=True)
    with capture_logs() as logs, pytest.raises(RetryableJobError) as caught:
        await manager.notifiers.deliver("far", SUCCESS_EVENT, "user-1", "delivery")
    assert (caught.value.message, caught.value.spends_attempt, caught.value.provider) == (message, False, "far")
    assert [line["event"] for line in logs] == ["notifier_failed", "plugin_held"]
    assert (logs[0]["plugin"], logs[0]["cause"]) == ("far", f"{type(error).__name__}: {error}")
    assert logs[0]["exc_info"]
    assert [report.provider for report in manager.notifiers.holds.reports()] == ["far"]
    assert manager.notifiers.holds.avoid().lanes == ["far"]
    await manager.notifiers.deliver("near", SUCCESS_EVENT, "user-1", "delivery")


@pytest.mark.gen_test(timeout=30)
async def test_plain_notifier_that_fails_repeatedly_is_held(
    factory: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing receiver is called BREAKER_FAILURES times, then it is skipped; the other notifier gets every event."""
    called: list[str] = []

    def fail(notification: Notification) -> None:
        called.append("far")
        raise ValueError("smtp is down")

    notifiers = {"far": fail, "near": lambda notification: called.append("near")}
    monkeypatch.setattr(BREAKER_FAILURES, 2)
    manager = factory.open(notifiers=notifiers)
    for _ in range(4):
        await manager.notifiers.notify(copy.deepcopy(SUCCESS_EVENT), "user-1")
    assert (called.count("far"), called.count("near")) == (2, 4)
    assert factory.count("pipeline_plugin_skipped_total", "notifier", "far") == 2
    assert manager.notifiers.holds.reports() == ()
