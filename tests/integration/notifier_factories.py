"""The notifiers `webhook` and `apprise` with the settings of a test, and notifications for them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import JobError
from pipeline.hooks import Notification
from pipeline.settings import Settings
from pipeline.testing import SUCCESS_EVENT, RecordingRooms
from pipeline.plugins.notify_apprise import AppriseNotifier, AppriseSettings
from pipeline.plugins.notify_webhook import WebhookNotifier, WebhookSettings
from tests.fake_receiver import FakeReceiver
from tests.requirements import require

DELIVERY_ID = "notifications:0123456789abcdef01234567"
KEYS = [bytes(range(24)), bytes(range(100, 164))]
SECRETS = ["whsec_" + base64.b64encode(key).decode() for key in KEYS]
BUDGET_SECONDS = 5.0


@pytest.fixture
def webhook(io_loop: IOLoop, receiver: FakeReceiver) -> Iterator[WebhookNotifier]:
    """The notifier with the URL of the receiver; private addresses are allowed."""
    webhook = make_webhook(receiver.url + "/hooks?token=t0ken")
    yield webhook
    io_loop.run_sync(webhook.close)


def make_webhook(
    url: str, secret: str = SECRETS[0], *, allow_private: bool = True, budget_seconds: float = BUDGET_SECONDS
) -> WebhookNotifier:
    variables = {"PLUGIN_WEBHOOK_URL": url, "PLUGIN_WEBHOOK_SECRET": secret}
    if allow_private:
        variables["PLUGIN_WEBHOOK_ALLOW_PRIVATE"] = "true"
    settings = Settings().with_plugin_variables(variables)
    return WebhookNotifier(settings.plugin("webhook", WebhookSettings), budget_seconds)


def make_apprise(urls: str, budget_seconds: float = BUDGET_SECONDS) -> AppriseNotifier:
    require(find_spec("apprise") is not None, "needs the extra `apprise`")
    settings = Settings().with_plugin_variables({"PLUGIN_APPRISE_URLS": urls})
    return AppriseNotifier(settings.plugin("apprise", AppriseSettings), budget_seconds)


def make_notification(
    event: Mapping[str, Any] = SUCCESS_EVENT, delivery_id: str = DELIVERY_ID, trace_context: str = ""
) -> Notification:
    return Notification(event, "user-1", RecordingRooms(), delivery_id, trace_context)


async def failure(webhook: WebhookNotifier) -> JobError:
    with pytest.raises(JobError) as caught:
        await webhook.notify(make_notification())
    return caught.value
