"""The notifier `webhook` with a real receiver: what it sends, and how it reads the answers."""

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

# Apprise's mail service tries to import imghdr, which Python 3.13 does not have, and works without it.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class TestWebhookSuite(NotifierSuite):
    """`webhook` passes the tests that every notifier must pass."""

    @pytest.fixture
    def notifier(self, receiver: FakeReceiver) -> Notifier:
        return make_webhook(receiver.url)


def verify(headers: Mapping[str, str], body: bytes, key: bytes) -> bool:
    """Check a request as the standard asks of receivers: one signature is right and the timestamp is recent."""
    assert abs(time.time() - int(headers["Webhook-Timestamp"])) < 60
    signed = b".".join([headers["Webhook-Id"].encode(), headers["Webhook-Timestamp"].encode(), body])
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    versions = [signature.split(",") for signature in headers["Webhook-Signature"].split(" ")]
    return any(version == "v1" and hmac.compare_digest(value, expected) for version, value in versions)


def test_signature_of_the_standards_example_is_right() -> None:
    """Each implementation of Standard Webhooks is tested with this value."""
    (key,) = notify_webhook.parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = notify_webhook.sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("event", [SUCCESS_EVENT, FAILURE_EVENT], ids=["success", "failure"])
@pytest.mark.gen_test
async def test_webhook_posts_the_signed_event(
    receiver: FakeReceiver, webhook: WebhookNotifier, event: dict[str, Any]
) -> None:
    """One POST has the event and its owner as `data`. The signature is right for the received bytes."""
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
    """While a secret is replaced, a receiver with the old or the new secret can verify; any other secret fails."""
    webhook = make_webhook(receiver.url, f" {SECRETS[0]} , {SECRETS[1]},")
    await webhook.notify(make_notification())
    (received,) = receiver.requests
    assert [verify(received.headers, received.body, key) for key in (*KEYS, b"x" * 24)] == [True, True, False]
    assert "Traceparent" not in received.headers
    await webhook.close()


@pytest.mark.gen_test
async def test_webhook_id_is_the_same_for_each_attempt_and_the_timestamp_is_not(
    receiver: FakeReceiver, webhook: WebhookNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver drops repeated events by the id, and replayed requests by the timestamp of the attempt."""
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
        ("", f"{SUCCESS_EVENT['assetId']}-2026-01-31T12:00:00_123Z"),  # (assetId, timestamp) is the same in a repeat
        ("a.b", "a_b"),  # the signed text is separated by full stops
        ("a\r\nCookie: b", "a__Cookie:_b"),
    ],
)
@pytest.mark.gen_test
async def test_webhook_id_has_no_full_stop(
    receiver: FakeReceiver, webhook: WebhookNotifier, delivery_id: str, webhook_id: str
) -> None:
    """Each character that cannot be signed or sent is replaced in the id."""
    await webhook.notify(make_notification(delivery_id=delivery_id))
    (received,) = receiver.requests
    assert received.headers["Webhook-Id"] == webhook_id
    assert verify(received.headers, received.body, KEYS[0])


@pytest.mark.gen_test
async def test_webhook_calls_reuse_one_connection(receiver: FakeReceiver, webhook: WebhookNotifier) -> None:
    """Events one after the other need one handshake, and no cookie is sent back."""
    receiver.script(Reply(headers={"Set-Cookie": "a=b"}))
    for _ in range(3):
        await webhook.notify(make_notification())
    assert receiver.connections == 1
    assert not any("Cookie" in received.headers for received in receiver.requests)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
@pytest.mark.gen_test
async def test_webhook_accepts_any_2xx(receiver: FakeReceiver, webhook: WebhookNotifier, status: int) -> None:
    """Any status from 200 to 299 confirms the event."""
    receiver.script(Reply(status))
    await webhook.notify(make_notification())
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("retry_after", [None, "600"])
@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504])
@pytest.mark.gen_test
async def test_webhook_asks_for_a_retry_after_any_other_answer(
    receiver: FakeReceiver, webhook: WebhookNotifier, status: int, retry_after: str | None
) -> None:
    """One call sends one request. An answer with Retry-After costs no attempt. The log has status and host, no path."""
    receiver.script(Reply(status, {"Retry-After": retry_after} if retry_after else {}))
    error = await failure(webhook)
    assert isinstance(error, RetryableJobError) and error.message == f"Webhook receiver answered HTTP {status}"
    assert (error.retry_after_seconds, error.spends_attempt) == ((600, False) if retry_after else (None, True))
    assert error.max_attempts is None
    assert cause_of(error) == f"Answer: HTTP {status} from {receiver.url.split('/')[2]}"
    assert len(receiver.requests) == 1


@pytest.mark.gen_test
async def test_webhook_gives_up_on_gone(receiver: FakeReceiver, webhook: WebhookNotifier) -> None:
    """A receiver answers 410 when it wants no more events."""
    receiver.script(Reply(410))
    assert isinstance(await failure(webhook), PermanentJobError)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.gen_test
async def test_webhook_follows_no_redirect(receiver: FakeReceiver, webhook: WebhookNotifier, status: int) -> None:
    """A redirect could lead to any address, so it is a failure, and its target is not called."""
    receiver.script(Reply(status, {"Location": receiver.url + "/elsewhere"}))
    assert isinstance(await failure(webhook), RetryableJobError)
    assert [received.path for received in receiver.requests] == ["/hooks?token=t0ken"]


@pytest.mark.gen_test
async def test_webhook_uses_no_proxy_of_the_environment(
    receiver: FakeReceiver, webhook: WebhookNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would look up names itself, without the check of addresses."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    await webhook.notify(make_notification())
    assert len(receiver.requests) == 1


@pytest.mark.gen_test
async def test_webhook_gives_up_a_hanging_receiver_within_its_budget(receiver: FakeReceiver) -> None:
    """A receiver that never answers costs the budget, and the event is retried."""
    receiver.pause()
    webhook = make_webhook(receiver.url, budget_seconds=0.3)
    started = time.monotonic()
    error = await failure(webhook)
    assert 0.2 < time.monotonic() - started < 2 * slowdown()
    assert isinstance(error, RetryableJobError) and error.message == "Webhook receiver took too long"
    assert len(receiver.requests) == 1
    await webhook.close()


def test_webhook_budget_is_a_little_under_the_notifier_timeout() -> None:
    """The notifier reports the reason before its caller ends it."""
    variables = {"PLUGIN_WEBHOOK_URL": "https://hooks.example/", "PLUGIN_WEBHOOK_SECRET": SECRETS[0]}
    settings = Settings(notifier_timeout_seconds=10).with_plugin_variables(variables)
    ((name, build),) = notify_webhook.register_notifiers(settings)
    notifier: Any = build()
    assert (name, notifier.durable, notifier._budget.total) == ("webhook", True, 9)


@pytest.mark.gen_test
async def test_webhook_does_not_read_an_endless_answer(receiver: FakeReceiver, webhook: WebhookNotifier) -> None:
    """The status is enough: the event is delivered, and the notifier closes the connection."""
    receiver.script(Reply(200, is_endless=True))
    await webhook.notify(make_notification())
    assert await asyncio.to_thread(receiver.sender_closed.wait, 10)


@pytest.mark.parametrize("raw", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"])
@pytest.mark.gen_test
async def test_webhook_asks_for_a_retry_after_an_answer_that_is_no_http(
    receiver: FakeReceiver, webhook: WebhookNotifier, raw: bytes
) -> None:
    """A lost connection, invalid HTTP and endless headers are reported as not reached, and cost an attempt."""
    receiver.script(Reply(raw=raw))
    error = await failure(webhook)
    assert isinstance(error, RetryableJobError) and error.message.startswith("Webhook receiver cannot be reached")
    assert error.spends_attempt and receiver.url.split("/")[2] in cause_of(error)


@pytest.mark.gen_test
async def test_webhook_that_cannot_connect_costs_no_attempt() -> None:
    """A refused connection and an unknown host name cost no attempt. The log gives a different cause for each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        refused = f"127.0.0.1:{probe.getsockname()[1]}"
        causes = {f"http://{refused}": f"{refused} ssl:default", "https://receiver.invalid": "receiver.invalid:443"}
        for url, cause in causes.items():
            webhook = make_webhook(url + "/t0ken")
            error = await failure(webhook)
            assert isinstance(error, RetryableJobError) and not error.spends_attempt
            assert cause in cause_of(error) and "t0ken" not in "".join(traceback.format_exception(error))
            await webhook.close()


@pytest.mark.gen_test
async def test_cancelled_webhook_call_closes_its_connection(receiver: FakeReceiver, webhook: WebhookNotifier) -> None:
    """A cancellation is not turned into a job error, and the next event uses a new connection."""
    receiver.pause()
    call = asyncio.ensure_future(webhook.notify(make_notification()))
    await asyncio.to_thread(receiver.wait_for_requests, 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    receiver.resume()
    await webhook.notify(make_notification())
    first, second = receiver.requests
    assert first.client_port != second.client_port
