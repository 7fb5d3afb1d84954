"""The notifier `apprise` with a real receiver: what it sends, what it refuses, what it hides."""

from __future__ import annotations

import builtins
import json
import logging
import time
import traceback
from importlib.util import find_spec
from typing import Any

import pytest

from pipeline.errors import ConfigurationError, RetryableJobError
from pipeline.hooks import Notifier
from pipeline.settings import Settings
from pipeline.testing import FAILURE_EVENT, SUCCESS_EVENT, NotifierSuite
from pipeline.plugins import notify_apprise
from pipeline.plugins.notify_apprise import AppriseSettings, describe
from tests.fake_receiver import FakeReceiver, Reply
from tests.integration.notifier_factories import make_apprise, make_notification
from tests.requirements import require
from tests.slowdown import slowdown

# Apprise's mail service tries to import imghdr, which Python 3.13 does not have, and works without it.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


class TestAppriseSuite(NotifierSuite):
    """`apprise` passes the tests that every notifier must pass."""

    @pytest.fixture
    def notifier(self, receiver: FakeReceiver) -> Notifier:
        return make_apprise(f"json://127.0.0.1:{receiver.port}/")


def test_apprise_sends_one_line_about_the_photo(receiver: FakeReceiver) -> None:
    """The message gives the result, and its type is success or failure."""
    apprise = make_apprise(f"json://127.0.0.1:{receiver.port}/")
    for event in (SUCCESS_EVENT, FAILURE_EVENT):
        apprise.notify(make_notification(event))
    bodies = [json.loads(received.body) for received in receiver.requests]
    assert [(body["title"], body["message"], body["type"]) for body in bodies] == [
        ("Photo analysed", "Nike Air Max 90 recognised (88%)\nAsset 65f0c0ffee65f0c0ffee65f0", "success"),
        (
            "Photo analysed",
            "Photo failed: AI service unavailable after 3 attempts\nAsset 65f0c0ffee65f0c0ffee65f1",
            "failure",
        ),
    ]


@pytest.mark.parametrize(
    ("brand", "model", "line"),
    [
        (("Nike", 0.93), ("Air Max 90", 0.97), "Nike Air Max 90 recognised (93%)"),
        (("Nike", 0.93), ("", 0), "Nike partly recognised (93%)"),
        (("", 0), ("Air Max 90", 0.5), "Air Max 90 partly recognised (50%)"),
        (("", 0), ("", 0), "Photo not recognised"),
    ],
)
def test_apprise_describes_what_is_known(brand: tuple[str, float], model: tuple[str, float], line: str) -> None:
    """The confidence is the lower of the two: both must be right."""
    found = {"brand": dict(zip(("value", "confidence"), brand)), "model": dict(zip(("value", "confidence"), model))}
    event = {**SUCCESS_EVENT, "status": "active" if brand[0] and model[0] else "partial", "aiMetadata": found}
    assert describe(event) == f"{line}\nAsset {SUCCESS_EVENT['assetId']}"


@pytest.mark.parametrize("reply", [Reply(400), Reply(401), Reply(404), Reply(429), Reply(500), Reply(raw=b"")])
def test_apprise_asks_for_a_retry_when_a_service_did_not_get_the_event(receiver: FakeReceiver, reply: Reply) -> None:
    """Apprise gives no reason, so every failure may be temporary."""
    receiver.script(reply)
    apprise = make_apprise(f"json://127.0.0.1:{receiver.port}/")
    with pytest.raises(RetryableJobError, match="1 of 1 Apprise services did not get the event") as caught:
        apprise.notify(make_notification())
    assert (caught.value.retry_after_seconds, len(receiver.requests)) == (None, 1)
    apprise.notify(make_notification())


def test_apprise_repeats_an_event_only_to_services_that_missed_it(receiver: FakeReceiver) -> None:
    """One of three services fails: the retry calls it alone. The next event, and an event without an id, go to all."""
    receiver.script(Reply(500, path="/b"))
    base = f"json://127.0.0.1:{receiver.port}"
    apprise = make_apprise(f"{base}/a, {base}/b\n{base}/c ")
    with pytest.raises(RetryableJobError, match="1 of 3 Apprise services did not get the event"):
        apprise.notify(make_notification())
    apprise.notify(make_notification())
    assert sorted(received.path for received in receiver.requests) == ["/a", "/b", "/b", "/c"]
    apprise.notify(make_notification(delivery_id="notifications:next"))
    assert len(receiver.requests) == 7
    receiver.script(Reply(500, path="/b"))
    with pytest.raises(RetryableJobError):
        apprise.notify(make_notification(delivery_id=""))
    apprise.notify(make_notification(delivery_id=""))
    assert len(receiver.requests) == 13


def test_apprise_gives_up_a_hanging_service_within_its_budget(receiver: FakeReceiver) -> None:
    """A service that never answers costs the budget, not more."""
    receiver.pause()
    apprise = make_apprise(f"json://127.0.0.1:{receiver.port}/", budget_seconds=0.3)
    started = time.monotonic()
    with pytest.raises(RetryableJobError):
        apprise.notify(make_notification())
    assert 0.2 < time.monotonic() - started < 2 * slowdown()


@pytest.mark.parametrize(
    ("urls", "fault"),
    [
        ("", "PLUGIN_APPRISE_URLS: Field required"),
        (" , ", "PLUGIN_APPRISE_URLS: names no address"),
        ("t0ken", "PLUGIN_APPRISE_URLS: Apprise does not understand address 1"),
        ("json://localhost/t0ken nosuch://t0ken", "PLUGIN_APPRISE_URLS: Apprise does not understand address 2"),
        ("slack://t0ken", "PLUGIN_APPRISE_URLS: Apprise does not understand address 1"),
    ],
)
def test_apprise_names_the_setting_at_fault(caplog: pytest.LogCaptureFixture, urls: str, fault: str) -> None:
    """The message gives the number of the wrong address, but not the address: it may contain a token."""
    require(find_spec("apprise") is not None, "needs the extra `apprise`")
    settings = Settings().with_plugin_variables({"PLUGIN_APPRISE_URLS": urls})
    ((name, build),) = notify_apprise.register_notifiers(settings)
    with pytest.raises(ConfigurationError, match=fault) as caught:
        build()
    assert name == "apprise" and not logging.getLogger("apprise").disabled
    assert "t0ken" not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_apprise_shows_no_secret(receiver: FakeReceiver, caplog: pytest.LogCaptureFixture) -> None:
    """Tokens and passwords are sent to the service only: no error, traceback, repr or log shows them."""
    caplog.set_level(logging.INFO)
    receiver.script(Reply(500))
    urls = f"json://user:passw0rd@127.0.0.1:{receiver.port}/t0ken"
    apprise = make_apprise(urls)
    with pytest.raises(RetryableJobError) as caught:
        apprise.notify(make_notification())
    settings = Settings().with_plugin_variables({"PLUGIN_APPRISE_URLS": urls})
    fields = settings.plugin("apprise", AppriseSettings)
    shown = "\n".join([*traceback.format_exception(caught.value), repr(apprise), repr(fields), caplog.text])
    assert not any(secret in shown for secret in ("passw0rd", "t0ken"))
    assert receiver.requests[0].path == "/t0ken"


def test_missing_apprise_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra: without it the error names the command."""
    original = builtins.__import__

    def without_apprise(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "apprise":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_apprise)
    with pytest.raises(ConfigurationError, match=r"pip install 'ai-queue-pipeline\[apprise\]'"):
        make_apprise("json://localhost/")
