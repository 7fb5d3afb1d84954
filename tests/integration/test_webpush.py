"""The notifier `webpush` with a fake push service that decrypts events: which browsers get them, and subscriptions."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.errors import ConfigurationError, NotFound, PermanentJobError, RetryableJobError, ValidationError
from pipeline.hooks import Notification, Notifier, PluginRequest
from pipeline.hooks.context import ContextFactory
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.testing import FAILURE_EVENT, SUCCESS_EVENT, NotifierSuite, RecordingRooms
from pipeline.usecases.plugin_values import PluginValues
from pipeline.plugins.notify_webpush import SUBSCRIPTIONS_AT_MOST, WebpushNotifier, WebpushSettings
from pipeline.plugins.notify_webpush.keys import new_key, public_point, read_key
from pipeline.plugins.notify_webpush.payload import encode
from tests.fake_push_service import Browser, check_sender
from tests.fake_receiver import FakeReceiver, Reply
from tests.requirements import require
from tests.service import AiService, Service

DELIVERY_ID = "notifications:0123456789abcdef01234567"
SUBJECT = "mailto:ops@example.com"
LARGE = "processedImageUrl"
ALLOWED = {"PLUGIN_WEBPUSH_SUBJECT": SUBJECT, "PLUGIN_WEBPUSH_ALLOW_PRIVATE": "true"}
Make = Callable[..., Awaitable[WebpushNotifier]]


@pytest.fixture
def make(io_loop: IOLoop, store: SqliteAssetStore) -> Iterator[Make]:
    """A function that starts a notifier; each is as in a process of its own, and all share one asset store."""
    require(find_spec("http_ece") is not None, "needs the extra `webpush`")
    factories: list[ContextFactory] = []

    async def started(**own: str) -> WebpushNotifier:
        settings = Settings().with_plugin_variables(ALLOWED | own)
        factories.append(ContextFactory(settings, Metrics(), lambda name: PluginValues(store, name)))
        notifier = WebpushNotifier(settings.plugin("webpush", WebpushSettings), 5)
        await notifier.start(factories[-1].for_plugin("webpush"))
        return notifier

    yield started
    for contexts in factories:
        io_loop.run_sync(contexts.close)


class TestWebpushSuite(NotifierSuite):
    """The suite that every notifier must pass."""

    @pytest.fixture
    def notifier(self, make: Make, io_loop: IOLoop) -> Notifier:
        """A notifier without subscriptions."""
        notifier: Notifier = io_loop.run_sync(make)
        return notifier


async def subscribe(notifier: WebpushNotifier, subscription: Browser | Any, user_id: str = "user-1") -> str:
    """Subscribe, and return the id of the subscription."""
    body = json.dumps(subscription.subscription if isinstance(subscription, Browser) else subscription).encode()
    reply = await notifier.subscribe(PluginRequest("POST", body=body, user_id=user_id))
    assert reply.status == 201
    return str(reply.json["id"])


def make_notification(event: Mapping[str, Any] = SUCCESS_EVENT, user_id: str = "user-1") -> Notification:
    return Notification(event, user_id, RecordingRooms(), DELIVERY_ID, category="lego")


def paths(receiver: FakeReceiver) -> list[str]:
    """Return the paths of the requests, which name the browsers, in order of the names."""
    return sorted(request.path for request in receiver.requests)


async def key_of(notifier: WebpushNotifier) -> str:
    """Return the public key that pages get."""
    return str((await notifier.show_key(PluginRequest("GET"))).json["key"])


@pytest.mark.gen_test
async def test_each_browser_of_the_owner_reads_the_event(make: Make, receiver: FakeReceiver) -> None:
    """The event is encrypted for each browser and signed with the key of all processes; the topic is the photo."""
    first, second = await make(), await make()
    assert await key_of(first) == await key_of(second)
    browsers = {f"/{name}": Browser(f"{receiver.url}/{name}") for name in ("phone", "laptop", "foreign")}
    for path, browser in browsers.items():
        await subscribe(first, browser, "user-2" if path == "/foreign" else "user-1")
    assert await second.notify(make_notification()) == "2 delivered"
    assert paths(receiver) == ["/laptop", "/phone"]
    for request in receiver.requests:
        assert browsers[request.path].read(request) == {**SUCCESS_EVENT, "category": "lego"}
        claims = check_sender(request, receiver.url, await key_of(first))
        assert claims["sub"] == SUBJECT and 0 < claims["exp"] - time.time() < 24 * 3600
        headers = [request.headers[name] for name in ("Ttl", "Urgency", "Topic")]
        assert headers == ["86400", "normal", SUCCESS_EVENT["assetId"]]
    assert await first.notify(make_notification(user_id="user-3")) == "0 delivered"
    # A browser belongs to the user who subscribed last: it gets no event of the former user.
    await subscribe(first, browsers["/phone"], "user-2")
    assert await first.notify(make_notification()) == "1 delivered"


@pytest.mark.gen_test
async def test_retry_sends_only_to_browsers_that_were_not_reached(make: Make, receiver: FakeReceiver) -> None:
    """A retry in any process sends to the remaining browsers, after the longest Retry-After of their services."""
    notifier, other = await make(), await make()
    for name in ("a", "b", "c"):
        await subscribe(notifier, Browser(f"{receiver.url}/{name}"))
    receiver.script(Reply(429, {"Retry-After": "77"}, path="/a"), Reply(503, path="/b"))
    with pytest.raises(RetryableJobError, match="2 of 3 browsers were not reached") as caught:
        await notifier.notify(make_notification())
    assert (caught.value.retry_after_seconds, caught.value.spends_attempt) == (77, True)
    receiver.script(Reply(500, path="/b"))
    with pytest.raises(RetryableJobError, match="1 of 2"):
        await other.notify(make_notification())
    assert await notifier.notify(make_notification()) == "3 delivered"
    assert paths(receiver) == ["/a"] * 2 + ["/b"] * 3 + ["/c"]
    # The records of this delivery are removed: if it is repeated, as after a crash, all browsers get it.
    assert await notifier.notify(make_notification()) == "3 delivered"
    assert len(receiver.requests) == 9


@pytest.mark.gen_test
async def test_subscription_that_has_ended_is_removed(make: Make, receiver: FakeReceiver) -> None:
    """After a 404 or a 410 the subscription is removed; after a 403 it stays, and an unreachable service is retried."""
    notifier = await make()
    for name in ("a", "b", "c"):
        await subscribe(notifier, Browser(f"{receiver.url}/{name}"))
    receiver.script(Reply(410, path="/a"), Reply(404, path="/b"), Reply(403, path="/c"))
    with capture_logs() as logs, pytest.raises(PermanentJobError, match="All 1 push services refused"):
        await notifier.notify(make_notification())
    logged = sorted((line["outcome"], line["cause"]) for line in logs)
    assert logged == [("gone", "HTTP 404"), ("gone", "HTTP 410"), ("refused", "HTTP 403")]
    # The complete address permits to send to that browser, so the log has the host only.
    assert all(line["host"] == "127.0.0.1" and receiver.url not in str(line) for line in logs)
    assert await notifier.notify(make_notification()) == "1 delivered"
    assert paths(receiver) == ["/a", "/b", "/c", "/c"]
    await subscribe(notifier, Browser("http://127.0.0.1:9/d"))
    with pytest.raises(RetryableJobError, match="1 of 2 browsers"):
        await notifier.notify(make_notification())


@pytest.mark.gen_test
async def test_subscriptions_of_a_user_are_limited(make: Make, store: SqliteAssetStore) -> None:
    """The oldest subscriptions are removed; a repeated one is the same; only its user can remove a subscription."""
    notifier = await make()
    browsers = [Browser(f"https://push.example/{number}") for number in range(SUBSCRIPTIONS_AT_MOST + 2)]
    ids = [await subscribe(notifier, browser) for browser in browsers]
    assert await subscribe(notifier, browsers[-1]) == ids[-1]
    values = PluginValues(store, "webpush")
    found = {key.split()[-1] async for key, _ in values.of_user("user-1")}
    assert found == set(ids[2:])

    async def unsubscribe(id: str, user_id: str) -> None:
        await notifier.unsubscribe(PluginRequest("DELETE", {"id": id}, user_id=user_id))

    for id, user_id in ((ids[5], "user-2"), (ids[0], "user-1"), ("vapid key", "user-1"), ("x" * 999, "user-1")):
        with pytest.raises(NotFound):
            await unsubscribe(id, user_id)
    await unsubscribe(ids[5], "user-1")
    assert len([key async for key, _ in values.of_user("user-1")]) == SUBSCRIPTIONS_AT_MOST - 1


GOOD = Browser("https://push.example/a").subscription
BAD_ENDPOINTS = [
    *("http://push.example/a", "https://", "push.example/a", "https://u:p@push.example/a", "https://push.example/a#b"),
    *("https://push.example/ä", "https://push.example/" + "a" * 2000, "https://push.example:99999/", None, 7),
    *("https://127.0.0.1/a", "https://127.1/a", "https://0x7f000001/", "https://[::1]/a", "https://10.0.0.1:8443/a"),
    *("https://169.254.169.254/latest", "https://[::ffff:10.0.0.1]/", "https://localhost/a", "ftp://push.example/"),
]


@pytest.mark.parametrize(
    ("subscription", "fields"),
    [
        *((GOOD | {"endpoint": endpoint}, ["endpoint"]) for endpoint in BAD_ENDPOINTS),
        (GOOD | {"keys": GOOD["keys"] | {"p256dh": "A" * 87}}, ["keys.p256dh"]),
        (GOOD | {"keys": {"p256dh": GOOD["keys"]["p256dh"], "auth": "AAAA"}}, ["keys.auth"]),
        (GOOD | {"keys": None}, ["keys.p256dh", "keys.auth"]),
        ([], ["endpoint", "keys.p256dh", "keys.auth"]),
        (None, ["endpoint", "keys.p256dh", "keys.auth"]),
    ],
)
@pytest.mark.gen_test
async def test_malformed_subscription_is_refused(make: Make, subscription: Any, fields: list[str]) -> None:
    """Every faulty field is named; an address of the service's own network is refused."""
    notifier = await make(PLUGIN_WEBPUSH_ALLOW_PRIVATE="false")
    with pytest.raises(ValidationError) as caught:
        await subscribe(notifier, subscription)
    assert [each["field"] for each in caught.value.details or ()] == fields


@pytest.mark.gen_test
async def test_private_address_is_not_requested(make: Make, receiver: FakeReceiver) -> None:
    """A subscription with a private address, from a time when that was allowed, gets no request."""
    await subscribe(await make(), Browser(receiver.url.replace("127.0.0.1", "localhost") + "/a"))
    notifier = await make(PLUGIN_WEBPUSH_ALLOW_PRIVATE="false")
    with pytest.raises(PermanentJobError):
        await notifier.notify(make_notification())
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("event", "left"),
    [
        (SUCCESS_EVENT | {"processedImageUrl": "https://x/" + "u" * 3000}, SUCCESS_EVENT.keys() - {LARGE}),
        (
            SUCCESS_EVENT | {"aiMetadata": {"brand": {"value": "ü" * 1000, "confidence": 1}} | {"model": "x" * 2000}},
            SUCCESS_EVENT.keys() - {"aiMetadata", LARGE},
        ),
        (FAILURE_EVENT | {"error": "ü" * 5000}, FAILURE_EVENT.keys()),
    ],
    ids=["url", "texts", "error"],
)
def test_large_members_of_an_event_are_left_out(event: dict[str, Any], left: set[str]) -> None:
    """The remaining members have at most 3000 bytes, which every push service accepts."""
    text = encode(make_notification(event))
    assert len(text) <= 3000
    assert json.loads(text).keys() == {*left, "category"}


def test_settings_are_checked() -> None:
    """A wrong setting is refused at the start, and the error does not show the key."""
    pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    table = [
        {"PLUGIN_WEBPUSH_SUBJECT": "ops@example.com"},
        {"PLUGIN_WEBPUSH_URGENCY": "now"},
        *({"PLUGIN_WEBPUSH_PRIVATE_KEY": text} for text in (pem.decode(), "A" * 43, "secret", "A" * 44)),
    ]
    for own in table:
        settings = Settings().with_plugin_variables(ALLOWED | own)
        with pytest.raises(ConfigurationError) as caught:
            settings.plugin("webpush", WebpushSettings)
        assert own.get("PLUGIN_WEBPUSH_PRIVATE_KEY", "no key") not in str(caught.value)
    given = ec.generate_private_key(ec.SECP256R1())
    as_pem = given.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert public_point(read_key(as_pem.decode())) == public_point(given)
    assert len(public_point(read_key(new_key()))) == 87


def test_page_subscribes_and_gets_an_event(tmp_path: Path, ai_service: AiService, receiver: FakeReceiver) -> None:
    """A page subscribes by the routes; after a restart the key is the same; an erased user has no subscription."""
    require(find_spec("http_ece") is not None, "needs the extra `webpush`")
    with Service(tmp_path, ai_service.url, NOTIFIERS="websocket,webpush", **ALLOWED) as service:
        key = service.get("/plugins/webpush/key").json()["key"]
        browser = Browser(f"{receiver.url}/phone")
        where, headers = f"{service.url}/plugins/webpush/subscriptions", service.headers()
        assert httpx.post(where, json=browser.subscription).status_code == 401
        assert httpx.post(where, json={}, headers=headers).json()["error"]["code"] == "VALIDATION_ERROR"
        subscribed = httpx.post(where, json=browser.subscription, headers=headers)
        assert subscribed.status_code == 201
    with service:
        assert service.get("/plugins/webpush/key").json()["key"] == key
        asset_id = service.upload().json()["data"]["assetId"]
        receiver.wait_for_requests(1)
        service.wait_log("job_completed", notifier="webpush")
        assert browser.read(receiver.requests[0])["assetId"] == asset_id
        assert check_sender(receiver.requests[0], receiver.url, key)["sub"] == SUBJECT
        assert receiver.requests[0].headers["User-Agent"].startswith("ai-queue-pipeline")
        where, admin = f"{service.url}/plugins/webpush/subscriptions", service.headers("boss", role="admin")
        erased = httpx.delete(f"{service.url}/api/users/user-1", headers=admin, timeout=30)
        assert erased.status_code == 200, erased.text
        removal = httpx.delete(f"{where}/{subscribed.json()['id']}", headers=service.headers())
        assert (removal.status_code, removal.json()["error"]["code"]) == (404, "NOT_FOUND")
