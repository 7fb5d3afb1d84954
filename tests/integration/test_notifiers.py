"""The notifiers `webhook` and `apprise` against a real receiver: what they send, what they refuse, what they hide."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.errors import PermanentJobError, RetryableJobError
from pipeline.hooks import Notifier
from pipeline.settings import Settings
from pipeline.testing import FAILURE_EVENT, SUCCESS_EVENT, NotifierSuite
from pipeline.texts import cause_of
from pipeline.plugins import notify_webhook
from pipeline.plugins.notify_webhook import WebhookNotifier
from tests.fake_receiver import FakeReceiver, Reply
from tests.integration.notifier_factories import (
    DELIVERY_ID,
    KEYS,
    SECRETS,
    failure,
    make_notification,
    make_webhook,
    webhook,
)
from tests.slowdown import slowdown

__all__ = ["webhook"]  # fixtures

# Apprise's mail service imports what Python 3.13 no longer has, and copes.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class TestWebhookSuite(NotifierSuite):
    """What every notifier must bear."""

    @pytest.fixture
    def notifier(self, receiver: FakeReceiver) -> Notifier:
        return make_webhook(receiver.url)


def verify(headers: Mapping[str, str], body: bytes, key: bytes) -> bool:
    """Do what a receiver does, written from the standard: some signature is right and the try is fresh."""
    assert abs(time.time() - int(headers["Webhook-Timestamp"])) < 60
    signed = b".".join([headers["Webhook-Id"].encode(), headers["Webhook-Timestamp"].encode(), body])
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    versions = [signature.split(",") for signature in headers["Webhook-Signature"].split(" ")]
    return any(version == "v1" and hmac.compare_digest(value, expected) for version, value in versions)


def test_signature_is_that_of_the_standards_own_example() -> None:
    """The value every implementation of Standard Webhooks tests itself with."""
    (key,) = notify_webhook.parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = notify_webhook.sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("event", [SUCCESS_EVENT, FAILURE_EVENT], ids=["success", "failure"])
@pytest.mark.gen_test
async def test_webhook_posts_the_signed_event(
    receiver: FakeReceiver, webhook: WebhookNotifier, event: dict[str, Any]
) -> None:
    """One POST with the event and its owner as `data`; the signature fits the bytes that arrived."""
    await webhook.notify(make_notification(event, trace_context=TRACEPARENT))
    (received,) = receiver.requests
    assert (received.method, received.path) == ("POST", "/hooks?token=t0ken")
    assert json.loads(received.body) == {
        "type": "asset_processed",
        "timestamp": event["timestamp"],
        "data": {**event, "userId": "user-1"},
    }
    expected = {
        "Content-Type": "application/json",
        "User-Agent": "ai-queue-pipeline",
        "Webhook-Id": DELIVERY_ID,
        "Traceparent": TRACEPARENT,
    }
    assert {name: received.headers[name] for name in expected} == expected
    assert verify(received.headers, received.body, KEYS[0])
    assert not verify(received.headers, received.body + b" ", KEYS[0])


@pytest.mark.gen_test
async def test_webhook_signs_with_every_secret(receiver: FakeReceiver) -> None:
    """While secrets change, receivers that know either of them can verify; nobody else can."""
    webhook = make_webhook(receiver.url, f" {SECRETS[0]} , {SECRETS[1]},")
    await webhook.notify(make_notification())
    (received,) = receiver.requests
    assert [verify(received.headers, received.body, key) for key in (*KEYS, b"x" * 24)] == [True, True, False]
    assert "Traceparent" not in received.headers
    await webhook.close()


@pytest.mark.gen_test
async def test_webhook_id_outlives_tries_and_the_timestamp_does_not(
    receiver: FakeReceiver, webhook: WebhookNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver drops repeats by the id and old recordings by the time of the try."""
    now = int(time.time())
    for instant in (now, now + 5):
        monkeypatch.setattr(notify_webhook, "utc_now", lambda instant=instant: datetime.fromtimestamp(instant, UTC))
        await webhook.notify(make_notification())
    first, second = receiver.requests
    assert first.headers["Webhook-Id"] == second.headers["Webhook-Id"]
    assert [each.headers["Webhook-Timestamp"] for each in (first, second)] == [str(now), str(now + 5)]
    assert first.body == second.body and verify(second.headers, second.body, KEYS[0])


@pytest.mark.parametrize(
    ("delivery_id", "webhook_id"),
    [
        ("", f"{SUCCESS_EVENT['assetId']}-2026-01-31T12:00:00_123Z"),  # (assetId, timestamp) tells repeats
        ("a.b", "a_b"),  # a full stop would move the borders of what is signed
        ("a\r\nCookie: b", "a__Cookie:_b"),
    ],
)
@pytest.mark.gen_test
async def test_webhook_id_has_no_full_stop(
    receiver: FakeReceiver, webhook: WebhookNotifier, delivery_id: str, webhook_id: str
) -> None:
    """Whatever names the delivery, the id can be signed and sent."""
    await webhook.notify(make_notification(delivery_id=delivery_id))
    (received,) = receiver.requests
    assert received.headers["Webhook-Id"] == webhook_id
    assert verify(received.headers, received.body, KEYS[0])


@pytest.mark.gen_test
async def test_webhook_calls_share_a_kept_connection(receiver: FakeReceiver, webhook: WebhookNotifier) -> None:
    """Events one after the other need one handshake, and no cookie is taken along."""
    receiver.script(Reply(headers={"Set-Cookie": "a=b"}))
    for _ in range(3):
        await webhook.notify(make_notification())
    assert receiver.connections == 1
    assert not any("Cookie" in received.headers for received in receiver.requests)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
@pytest.mark.gen_test
async def test_webhook_takes_2xx_for_delivered(receiver: FakeReceiver, webhook: WebhookNotifier, status: int) -> None:
    """Any of them will do."""
    receiver.script(Reply(status))
    await webhook.notify(make_notification())
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("retry_after", [None, "600"])
@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504])
@pytest.mark.gen_test
async def test_webhook_tries_other_answers_again(
    receiver: FakeReceiver, webhook: WebhookNotifier, status: int, retry_after: str | None
) -> None:
    """One request per call; who says when to come again costs no try. The log gets status and host, no path."""
    receiver.script(Reply(status, {"Retry-After": retry_after} if retry_after else {}))
    error = await failure(webhook)
    assert isinstance(error, RetryableJobError) and error.message == f"Webhook receiver answered HTTP {status}"
    assert (error.retry_after_seconds, error.spends_attempt) == ((600, False) if retry_after else (None, True))
    assert error.max_attempts is None
    assert cause_of(error) == f"Answer: HTTP {status} from {receiver.url.split('/')[2]}"
    assert len(receiver.requests) == 1


@pytest.mark.gen_test
async def test_webhook_gives_up_on_gone(receiver: FakeReceiver, webhook: WebhookNotifier) -> None:
    """410 is how a receiver says that it wants no more."""
    receiver.script(Reply(410))
    assert isinstance(await failure(webhook), PermanentJobError)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.gen_test
async def test_webhook_follows_no_redirect(receiver: FakeReceiver, webhook: WebhookNotifier, status: int) -> None:
    """A redirect could lead anywhere, so it is a failure and its target is not called."""
    receiver.script(Reply(status, {"Location": receiver.url + "/elsewhere"}))
    assert isinstance(await failure(webhook), RetryableJobError)
    assert [received.path for received in receiver.requests] == ["/hooks?token=t0ken"]


@pytest.mark.gen_test
async def test_webhook_uses_no_proxy_of_the_environment(
    receiver: FakeReceiver, webhook: WebhookNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would look up names on its own, past the check of addresses."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    await webhook.notify(make_notification())
    assert len(receiver.requests) == 1


@pytest.mark.gen_test
async def test_webhook_leaves_a_hanging_receiver_in_time(receiver: FakeReceiver) -> None:
    """A receiver that never answers costs the budget and may be tried again."""
    receiver.hold()
    webhook = make_webhook(receiver.url, budget_seconds=0.3)
    started = time.monotonic()
    error = await failure(webhook)
    assert 0.2 < time.monotonic() - started < 2 * slowdown()
    assert isinstance(error, RetryableJobError) and error.message == "Webhook receiver took too long"
    assert len(receiver.requests) == 1
    await webhook.close()


def test_webhook_budget_is_a_little_under_the_callers() -> None:
    """So the reason arrives before the caller's own timeout does."""
    variables = {"PLUGIN_WEBHOOK_URL": "https://hooks.example/", "PLUGIN_WEBHOOK_SECRET": SECRETS[0]}
    settings = Settings(notifier_timeout_seconds=10).with_plugin_variables(variables)
    ((name, build),) = notify_webhook.register_notifiers(settings)
    notifier: Any = build()
    assert (name, notifier.durable, notifier._budget.total) == ("webhook", True, 9)


@pytest.mark.gen_test
async def test_webhook_does_not_read_an_endless_answer(receiver: FakeReceiver, webhook: WebhookNotifier) -> None:
    """The status is the answer: the event is delivered and the connection dropped."""
    receiver.script(Reply(200, is_endless=True))
    await webhook.notify(make_notification())
    assert await asyncio.to_thread(receiver.hung_up.wait, 10)


@pytest.mark.parametrize("raw", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"])
@pytest.mark.gen_test
async def test_webhook_tries_again_after_no_http(
    receiver: FakeReceiver, webhook: WebhookNotifier, raw: bytes
) -> None:
    """A lost connection, nonsense and headers without end read as not reached; but the receiver was asked."""
    receiver.script(Reply(raw=raw))
    error = await failure(webhook)
    assert isinstance(error, RetryableJobError) and error.message.startswith("Webhook receiver cannot be reached")
    assert error.spends_attempt and receiver.url.split("/")[2] in cause_of(error)


@pytest.mark.gen_test
async def test_webhook_tries_again_when_nobody_listens() -> None:
    """A refused connection and a name nobody knows cost no try, and the log tells them apart."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        refused = f"127.0.0.1:{unheard.getsockname()[1]}"
        told = {f"http://{refused}": f"{refused} ssl:default", "https://receiver.invalid": "receiver.invalid:443"}
        for url, cause in told.items():
            webhook = make_webhook(url + "/t0ken")
            error = await failure(webhook)
            assert isinstance(error, RetryableJobError) and not error.spends_attempt
            assert cause in cause_of(error) and "t0ken" not in "".join(traceback.format_exception(error))
            await webhook.close()


@pytest.mark.gen_test
async def test_webhook_cancelled_drops_its_connection(receiver: FakeReceiver, webhook: WebhookNotifier) -> None:
    """Cancellation is never taken for an error, and the next event needs a new connection."""
    receiver.hold()
    call = asyncio.ensure_future(webhook.notify(make_notification()))
    await asyncio.to_thread(receiver.wait_for_requests, 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    receiver.release()
    await webhook.notify(make_notification())
    first, second = receiver.requests
    assert first.client_port != second.client_port
