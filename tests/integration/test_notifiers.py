"""The notifiers `webhook` and `apprise` against a real receiver: what they send, what they refuse, what they hide."""

from __future__ import annotations

import asyncio
import base64
import builtins
import hashlib
import hmac
import json
import logging
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

import pytest
from tornado.ioloop import IOLoop
from tornado.testing import AsyncHTTPSTestCase

from pipeline.errors import ConfigurationError, JobError, PermanentJobError, RetryableJobError
from pipeline.hooks import Notification, Notifier
from pipeline.settings import Settings
from pipeline.testing import FAILURE_EVENT, SUCCESS_EVENT, NotifierSuite, RecordingRooms
from pipeline.texts import cause_of
from pipeline.plugins import notify_apprise, notify_webhook
from pipeline.plugins.notify_apprise import AppriseNotifier, AppriseSettings, describe
from pipeline.plugins.notify_webhook import WebhookNotifier, WebhookSettings, is_public
from tests.fake_receiver import FakeReceiver, Reply, running_in_thread
from tests.requirements import require
from tests.slowdown import slowdown

# Apprise's mail service imports what Python 3.13 no longer has, and copes.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

DELIVERY_ID = "notifications:0123456789abcdef01234567"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
KEYS = [bytes(range(24)), bytes(range(100, 164))]
SECRETS = ["whsec_" + base64.b64encode(key).decode() for key in KEYS]
BUDGET_SECONDS = 5.0
# Globally routable as far as anybody can tell, but not given to anyone, so nobody answers there.
UNASSIGNED = "2000::1"


@pytest.fixture
def webhook(io_loop: IOLoop, receiver: FakeReceiver) -> Iterator[WebhookNotifier]:
    """The notifier, pointed at it and allowed to call it."""
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


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let the test's loop find these addresses, one answer per look-up; return the names it is asked for."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        found: list[Any] = []
        for address in answers[len(asked) - 1]:
            found += socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


class TestWebhookSuite(NotifierSuite):
    """What every notifier must bear."""

    @pytest.fixture
    def notifier(self, receiver: FakeReceiver) -> Notifier:
        return make_webhook(receiver.url)


class TestAppriseSuite(NotifierSuite):
    """What every notifier must bear."""

    @pytest.fixture
    def notifier(self, receiver: FakeReceiver) -> Notifier:
        return make_apprise(f"json://127.0.0.1:{receiver.port}/")


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


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),  # how an IPv6-only network reaches 8.8.8.8
        ("2002:808:808::1", True),
        ("0.0.0.0", False),
        ("0.1.2.3", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),  # a provider's own network
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("169.254.169.254", False),  # where clouds keep credentials
        ("172.16.0.1", False),
        ("192.0.2.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),  # is_global says True
        ("239.255.255.250", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),  # is_global says True
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),  # 169.254.169.254
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::1", False),
        ("100::1", False),
        ("2001::1", False),
        ("2001:db8::1", False),
        ("2002:7f00:1::", False),  # 127.0.0.1
        ("2002:a00:1::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),  # the cloud's credentials again
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),  # is_global says True
        ("ff02::1", False),
        ("ff0e::1", False),  # is_global says True
    ],
)
@pytest.mark.gen_test
async def test_webhook_reaches_public_addresses_only(
    receiver: FakeReceiver, monkeypatch: pytest.MonkeyPatch, address: str, is_allowed: bool
) -> None:
    """Written out it is a fault of the settings; found behind a name it ends the try before anything is sent."""
    assert is_public(address) is is_allowed
    host = f"[{address}]" if ":" in address else address
    if is_allowed:
        make_webhook(f"https://{host}/", allow_private=False)
        return
    with pytest.raises(ConfigurationError, match="PLUGIN_WEBHOOK_URL: is a private address"):
        make_webhook(f"https://{host}:{receiver.port}/", allow_private=False)
    if "%" not in address:
        resolve_to(monkeypatch, [address])
        webhook = make_webhook(f"https://receiver.example:{receiver.port}/", allow_private=False)
        assert isinstance(await failure(webhook), PermanentJobError)
        await webhook.close()
    assert receiver.connections == 0


@pytest.mark.parametrize(
    "host",
    ["127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "１２７.0.0.1", "[::ffff:7f00:1]", "0"],
)
def test_webhook_knows_odd_spellings_of_an_address(host: str) -> None:
    """The C library would connect to all of them, without asking any resolver."""
    with pytest.raises(ConfigurationError, match="PLUGIN_WEBHOOK_URL: is a private address"):
        make_webhook(f"https://{host}/", allow_private=False)


@pytest.mark.gen_test
async def test_webhook_refuses_localhost(receiver: FakeReceiver) -> None:
    """A name from the machine's own table is checked like any other."""
    webhook = make_webhook(f"https://localhost:{receiver.port}/", allow_private=False)
    error = await failure(webhook)
    assert isinstance(error, PermanentJobError) and "PLUGIN_WEBHOOK_ALLOW_PRIVATE" in error.message
    assert receiver.connections == 0
    await webhook.close()


@pytest.mark.parametrize("answer", [[UNASSIGNED, "127.0.0.1"], ["127.0.0.1", UNASSIGNED]])
@pytest.mark.gen_test
async def test_webhook_refuses_a_name_with_one_private_address(
    receiver: FakeReceiver, monkeypatch: pytest.MonkeyPatch, answer: list[str]
) -> None:
    """A public address beside it does not help: when that one fails, the private one would be next."""
    resolve_to(monkeypatch, answer)
    webhook = make_webhook(f"https://receiver.example:{receiver.port}/", allow_private=False)
    assert isinstance(await failure(webhook), PermanentJobError)
    assert receiver.connections == 0
    await webhook.close()


@pytest.mark.gen_test
async def test_webhook_is_not_fooled_by_a_name_that_changes(
    receiver: FakeReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection looks the name up once and goes to what was checked; the next one checks again."""
    asked = resolve_to(monkeypatch, [UNASSIGNED], ["127.0.0.1"])
    webhook = make_webhook(f"https://receiver.example:{receiver.port}/", allow_private=False, budget_seconds=0.5)
    assert isinstance(await failure(webhook), RetryableJobError)
    assert asked == ["receiver.example"]
    assert isinstance(await failure(webhook), PermanentJobError)
    assert (len(asked), receiver.connections) == (2, 0)
    await webhook.close()


@pytest.mark.gen_test
async def test_webhook_reaches_private_names_when_allowed(receiver: FakeReceiver) -> None:
    """A receiver in one's own network, over http."""
    webhook = make_webhook(f"http://localhost:{receiver.port}/")
    await webhook.notify(make_notification())
    assert len(receiver.requests) == 1
    await webhook.close()


@pytest.mark.gen_test
async def test_webhook_checks_the_certificate() -> None:
    """A receiver that nobody vouches for is told nothing, also in one's own network."""
    with running_in_thread(AsyncHTTPSTestCase.default_ssl_options()) as receiver:
        webhook = make_webhook(f"https://localhost:{receiver.port}/")
        error = await failure(webhook)
        assert isinstance(error, RetryableJobError) and "ClientConnectorCertificateError" in error.message
        assert receiver.connections and not receiver.requests
        await webhook.close()


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"URL": ""}, "PLUGIN_WEBHOOK_URL: Field required"),
        ({"SECRET": ""}, "PLUGIN_WEBHOOK_SECRET: Field required"),
        ({"URL": "hooks.example/s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address"),
        ({"URL": "ftp://hooks.example/s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address"),
        ({"URL": "https:///s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address"),
        ({"URL": "https://[::1/s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address"),
        ({"URL": "https://hooks.example:99999/s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address"),
        ({"URL": "http://hooks.example/s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address, unless"),
        ({"SECRET": ","}, "PLUGIN_WEBHOOK_SECRET: names no secret"),
        ({"SECRET": "s3cret"}, "PLUGIN_WEBHOOK_SECRET: secret 1 is not whsec_"),
        ({"SECRET": SECRETS[0].removeprefix("whsec_")}, "PLUGIN_WEBHOOK_SECRET: secret 1 is not whsec_"),
        ({"SECRET": f"{SECRETS[0]},whsec_s3cret!"}, "PLUGIN_WEBHOOK_SECRET: secret 2 is not whsec_"),
        ({"SECRET": "whsec_" + base64.b64encode(b"x" * 23).decode()}, "base64 of 24 to 64 bytes"),
        ({"SECRET": "whsec_" + base64.b64encode(b"x" * 65).decode()}, "base64 of 24 to 64 bytes"),
        ({"ALLOW_PRIVATE": "s3cret"}, "PLUGIN_WEBHOOK_ALLOW_PRIVATE: "),
    ],
)
def test_webhook_names_the_setting_at_fault(variables: dict[str, str], fault: str) -> None:
    """The operator reads which variable to mend, and none of its value."""
    given = {"URL": "https://hooks.example/", "SECRET": SECRETS[0]} | variables
    settings = Settings().with_plugin_variables({f"PLUGIN_WEBHOOK_{name}": value for name, value in given.items()})
    ((_, build),) = notify_webhook.register_notifiers(settings)
    with pytest.raises(ConfigurationError) as caught:
        build()
    assert fault in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("reply", [Reply(500), Reply(410), Reply(raw=b""), Reply(raw=b"nonsense\r\n\r\n"), None])
@pytest.mark.gen_test
async def test_webhook_shows_no_secret(
    receiver: FakeReceiver, caplog: pytest.LogCaptureFixture, reply: Reply | None
) -> None:
    """Password, token and key go to the receiver alone: not to errors, their traces, reprs or logs."""
    caplog.set_level(logging.DEBUG)
    url = f"http://user:passw0rd@127.0.0.1:{receiver.port}/hooks?token=t0ken"
    if reply is None:
        receiver.hold()
    else:
        receiver.script(reply)
    webhook = make_webhook(url, budget_seconds=0.5)
    error = await failure(webhook)
    settings = Settings().with_plugin_variables({"PLUGIN_WEBHOOK_URL": url, "PLUGIN_WEBHOOK_SECRET": SECRETS[0]})
    shown = "\n".join([*traceback.format_exception(error), repr(webhook), repr(settings), caplog.text])
    assert not any(secret in shown for secret in ("passw0rd", "t0ken", SECRETS[0], repr(KEYS[0])))
    basic = base64.b64encode(b"user:passw0rd").decode()
    assert receiver.requests[0].headers["Authorization"] == f"Basic {basic}"
    await webhook.close()


def test_apprise_tells_people_in_a_line(receiver: FakeReceiver) -> None:
    """The message says what was found; its kind says how it went."""
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
def test_apprise_tries_again_when_a_service_was_not_told(receiver: FakeReceiver, reply: Reply) -> None:
    """Apprise does not say why, so every failure may pass."""
    receiver.script(reply)
    apprise = make_apprise(f"json://127.0.0.1:{receiver.port}/")
    with pytest.raises(RetryableJobError, match="1 of 1 Apprise services did not get the event") as caught:
        apprise.notify(make_notification())
    assert (caught.value.retry_after_seconds, len(receiver.requests)) == (None, 1)
    apprise.notify(make_notification())


def test_apprise_repeats_an_event_only_to_services_that_missed_it(receiver: FakeReceiver) -> None:
    """Of three services one fails: the retry is for it alone; the next event and one without an id go to all."""
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


def test_apprise_leaves_a_hanging_service_in_time(receiver: FakeReceiver) -> None:
    """A service that never answers costs the budget, not more."""
    receiver.hold()
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
    """The operator reads which address to mend, but not the address, because it may hold a token."""
    require(find_spec("apprise") is not None, "needs the extra `apprise`")
    settings = Settings().with_plugin_variables({"PLUGIN_APPRISE_URLS": urls})
    ((name, build),) = notify_apprise.register_notifiers(settings)
    with pytest.raises(ConfigurationError, match=fault) as caught:
        build()
    assert name == "apprise" and not logging.getLogger("apprise").disabled
    assert "t0ken" not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_apprise_shows_no_secret(receiver: FakeReceiver, caplog: pytest.LogCaptureFixture) -> None:
    """Tokens and passwords go to the service alone: not to errors, their traces, reprs or the log."""
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


def test_apprise_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra; without it the fault names the command."""
    original = builtins.__import__

    def without_apprise(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "apprise":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_apprise)
    with pytest.raises(ConfigurationError, match=r"pip install 'ai-queue-pipeline\[apprise\]'"):
        make_apprise("json://localhost/")
