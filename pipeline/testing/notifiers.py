"""The suite of notifiers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.errors import NotReady, PermanentJobError
from pipeline.hooks import Notification, Notifier
from pipeline.hooks.context import PluginContext
from pipeline.testing.batches import BatchTests, notification
from pipeline.testing.check_tests import CheckTests
from pipeline.testing.findings import IN_VARIABLES, describe, expect, fail_test, not_ready
from pipeline.testing.routes import RouteTests
from pipeline.testing.samples import FAILURE_EVENT, SUCCESS_EVENT, RecordingRooms
from pipeline.testing.suite import Call

REACHED = "nothing was delivered; can the receiver be reached?"
UNREACHED = "as no event is delivered"


class NotifierSuite(BatchTests, RouteTests, CheckTests):
    """Give it a fixture `notifier`; the fixture `rooms` records what it publishes."""

    @pytest.fixture
    def notifier(self) -> Notifier:
        """The notifier under test, new for each test."""
        raise NotImplementedError("define a fixture `notifier`")

    @pytest.fixture
    def rooms(self) -> RecordingRooms:
        """The rooms the notifier may publish to."""
        return RecordingRooms()

    @pytest.fixture(autouse=True)
    def _in_use(
        self, _watched: None, loop: Any, context: PluginContext, notifier: Notifier, rooms: RecordingRooms, call: Call
    ) -> Iterator[None]:
        yield from self.while_started(notifier, call, context, loop)
        expect(rooms.asked <= len(rooms.published), "publish is not awaited: write `await` before the call")

    @pytest.mark.parametrize("event", [SUCCESS_EVENT, FAILURE_EVENT], ids=["success", "failure"])
    def test_notify_accepts_repetition_and_does_not_change_the_event(
        self, notifier: Notifier, rooms: RecordingRooms, call: Call, event: dict[str, Any]
    ) -> None:
        """After a crash the same event comes again. Its content never changes and stays JSON."""
        shown = copy.deepcopy(event)
        for when in ("", " when the same event came again: accept that"):
            answer, _ = self._deliver_one(call, notifier, notification(shown, "user-1", rooms), when)
            expect(answer is None or isinstance(answer, str), f"notify returns {answer!r}: return nothing, or a text")
        is_same = json.dumps(shown, default=repr) == json.dumps(event)
        expect(is_same, "notify changes the event, which others get too: copy it first")

    def test_notify_publishes_to_the_owner_only(self, notifier: Notifier, rooms: RecordingRooms, call: Call) -> None:
        """Events are published to the owner's room only, and before `notify` returns."""
        durable = getattr(notifier, "durable", False)
        expect(isinstance(durable, bool), f"durable is {durable!r}, and the text 'false' is true: say True or False")
        running: set[object] = set()
        before = rooms.asked
        for _ in range(2):  # the first call may start tasks that an HTTP client keeps running
            running = self._deliver_one(call, notifier, notification(SUCCESS_EVENT, "user-1", rooms))[1]
        others = {room for room, _ in rooms.published} - {"user:user-1"}
        expect(not others, f"notify publishes to {', '.join(sorted(others))}: to user:<user_id> only")
        expect(rooms.asked == before or rooms.published, "publish is not awaited: no room got the event")
        if durable:
            expect(
                not running,
                "notify returns before the event is delivered, so a durable notifier loses it in a crash: "
                "await the tasks it creates",
            )

    def test_notify_delivers_many_calls_at_once(
        self, notifier: Notifier, rooms: RecordingRooms, call: Call, call_together: Call
    ) -> None:
        """Twenty events of twenty users at the same time are all delivered."""
        if self.class_state.get(UNREACHED):
            pytest.skip(UNREACHED)
        sent = [notification(SUCCESS_EVENT, f"user-{n}", rooms) for n in range(20)]
        try:
            call_together(*((notifier.notify, each) for each in sent))
        except Exception as error:
            if self.fails_alone(call, notifier.notify, sent[0]):
                fail_test(f"notify raised {describe(error)}: {REACHED}")
            raised = f"notify raised {describe(error)} when twenty calls ran at once"
            fail_test(f"{raised}: {IN_VARIABLES}")
        users = [room.removeprefix("user:") for room, _ in rooms.published]
        is_complete = not users or len(set(users)) == len(sent)
        expect(is_complete, f"notify mixes up calls that run at once: {IN_VARIABLES}")

    def _deliver_one(self, call: Call, notifier: Notifier, shown: Notification, when: str = "") -> Any:
        try:
            answer = call(self._with_running(notifier.notify), shown)
        except NotReady as error:
            self._remember_failure(shown)
            fail_test(not_ready(error))
        except PermanentJobError as error:
            self._remember_failure(shown)
            fail_test(f"notify raised {describe(error)}{when}: the suite's events can be delivered; is it set up?")
        except Exception as error:
            self._remember_failure(shown)
            fail_test(f"notify raised {describe(error)}{when}: {REACHED}")
        self.class_state["delivered"] = True
        return answer

    def _remember_failure(self, shown: Notification) -> None:
        """Remember if not even the very first event is delivered."""
        if shown.event == SUCCESS_EVENT and "delivered" not in self.class_state:
            self.class_state[UNREACHED] = True
