"""The tests of `notify_many`, of notifiers that take many events at once."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.hooks import Notification, Notifier
from pipeline.hooks.batches import BatchLimits, batch_limits, checked_answers
from pipeline.testing.findings import IN_VARIABLES, describe, expect, fail_test
from pipeline.testing.samples import FAILURE_EVENT, JOB_ID, SUCCESS_EVENT, RecordingRooms
from pipeline.testing.suite import Call, PluginSuite, api_version_of
from pipeline.testing.process_state import their_threads

# User ids as identity providers create them.
USERS = ("user-1", "auth0|65f2:a@suite.example", "user-3")
# The suite tests batches up to this size, because each event is really delivered.
LARGEST = 50
RETURN = "return None, or for each in order None, a text or an exception"


class BatchTests(PluginSuite):
    """Part of NotifierSuite. There is no test with an empty batch: the service never sends one."""

    def test_notify_many_answers_for_each(self, notifier: Notifier, rooms: RecordingRooms, call: Call) -> None:
        """Several users, one event twice, then all of them again: an answer for each, and no event is changed."""
        limits = self._batches(notifier)
        events = [SUCCESS_EVENT, FAILURE_EVENT, SUCCESS_EVENT]
        batch = [notification(copy.deepcopy(event), user, rooms) for event, user in zip(events, USERS, strict=True)]
        batch = [*batch, batch[0]][: limits.size]
        for when in ("", " when the same events came again: accept that"):
            running = self._deliver(call, notifier, batch, rooms, when)
            changed = [each for each, event in zip(batch, events, strict=False) if _text(each.event) != _text(event)]
            expect(not changed, "notify_many changes an event, which others get too: copy it first")
        if getattr(notifier, "durable", False) is True:
            expect(
                not running,
                "notify_many returns before the events are delivered, so a durable notifier loses them in a crash: "
                "await the tasks it creates",
            )

    def test_notify_many_delivers_full_batches_at_once(
        self, notifier: Notifier, rooms: RecordingRooms, call: Call, call_together: Call
    ) -> None:
        """One event, a full batch, and two batches at the same time: each event reaches its own user."""
        size = min(self._batches(notifier).size, LARGEST)
        users = [f"user-{number}" for number in range(size)]
        for names in (users[:1], users, users[:1]):
            self._deliver(call, notifier, [notification(SUCCESS_EVENT, name, rooms) for name in names], rooms)
        halves = [[f"user-{half}{number}" for number in range(min(size, 5))] for half in "ab"]
        batches = [tuple(notification(SUCCESS_EVENT, name, rooms) for name in names) for names in halves]
        before = len(rooms.published)
        try:
            answers = call_together(*((_many(notifier), batch) for batch in batches))
        except Exception as error:
            alone = self.fails_alone(call, _many(notifier), batches[0])
            cure = "can the receiver be reached?" if alone else IN_VARIABLES
            fail_test(f"notify_many raised {describe(error)}{'' if alone else ' when two calls ran at once'}: {cure}")
        for batch, answer in zip(batches, answers, strict=True):
            self._check_answers(answer, len(batch))
        self._check_rooms(rooms, before, [*halves[0], *halves[1]], " when two calls run at once")

    def _batches(self, notifier: Notifier) -> BatchLimits:
        if api_version_of(notifier) < 2 or not callable(getattr(notifier, "notify_many", None)):
            pytest.skip("the notifier has no notify_many, which is optional")
        try:
            return batch_limits(notifier)
        except ValueError as error:
            fail_test(str(error))

    def _deliver(
        self, call: Call, notifier: Notifier, batch: Sequence[Notification], rooms: RecordingRooms, when: str = ""
    ) -> set[object]:
        """Deliver the batch, check the answers, and return the tasks and threads that still run after it."""
        before = len(rooms.published)
        try:
            answers, running = call(self._with_running(_many(notifier)), tuple(batch))
        except Exception as error:
            raised = f"notify_many raised {describe(error)}{when}"
            fail_test(f"{raised}, which concerns all of them: return it for the event it concerns")
        self._check_answers(answers, len(batch), when)
        self._check_rooms(rooms, before, [each.user_id for each in batch], when)
        return {*running}

    def _with_running(self, method: Call) -> Call:
        """Return the method; it then returns its result and the tasks and threads that still run after it."""

        async def called(*args: Any) -> tuple[Any, set[object]]:
            tasks, threads = asyncio.all_tasks(), their_threads()
            result = await self.make_call(method, *args)
            running = {each for each in asyncio.all_tasks() - tasks if not _serves_receiver(each)}
            return result, {*running, *(their_threads() - threads)}

        called.__name__ = method.__name__
        called.is_of_the_suite = True  # type: ignore[attr-defined]
        return called

    def _check_answers(self, answers: object, count: int, when: str = "") -> None:
        try:
            checked = checked_answers(answers, count)
        except TypeError as error:
            fail_test(f"{error}{when}: {RETURN}")
        refused = next((each for each in checked if isinstance(each, Exception)), None)
        if refused is not None:
            answer = f"notify_many answers {describe(refused)}{when}"
            fail_test(f"{answer}: the suite's events can be delivered; is it set up?")

    def _check_rooms(self, rooms: RecordingRooms, before: int, users: Sequence[str], when: str = "") -> None:
        """A notifier that publishes does so for each user of the batch, and for no other."""
        published = {room for room, _ in rooms.published[before:]}
        wanted = {f"user:{user}" for user in users}
        others = ", ".join(sorted(published - wanted)[:3])
        expect(not others, f"notify_many publishes to {others}{when}, which has no event in the batch")
        missing = len(wanted - published) if published else 0
        expect(not missing, f"notify_many leaves out {missing} of {len(wanted)} users{when}: deliver each event")


def notification(event: Any, user_id: str, rooms: RecordingRooms) -> Notification:
    """Return a notification as the service makes it."""
    return Notification(event, user_id, rooms, f"delivery-{user_id}", category="sneaker", job_id=JOB_ID)


def _many(notifier: Any) -> Call:
    method: Call = notifier.notify_many
    return method


def _text(event: object) -> str:
    return json.dumps(event, default=repr)


def _serves_receiver(task: asyncio.Task[Any]) -> bool:
    """True for a task of the receiver that the test runs on the same loop."""
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and "/aiohttp/web" in code.co_filename
