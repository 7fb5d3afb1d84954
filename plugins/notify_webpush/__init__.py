"""The notifier `webpush`: sends each event to the owner's browsers, also while no page of the service is open.

Web Push (RFC 8030) with VAPID (RFC 8292); the package http-ece encrypts the payload for the browser (RFC 8291). A
browser subscribes through the plugin's routes. Its subscription is in the plugin's store, so every process has it, and
it is deleted with its user. The event goes to all subscriptions at once; when it is retried because one failed, the
others are left out. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import aiohttp
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from yarl import URL

from pipeline.errors import ConfigurationError, NotFound, PermanentJobError, RetryableJobError, ValidationError
from pipeline.hooks import (
    Context,
    Notification,
    Notifier,
    PluginReply,
    PluginRequest,
    PluginSettings,
    Routes,
    hookimpl,
    retry_after_of,
    utc_now,
)
from ..notify_webhook import PublicResolver
from .keys import decode, new_key, public_point, read_key
from .payload import encode
from .settings import WebpushSettings
from .subscriptions import read_subscription

if TYPE_CHECKING:
    from pipeline.settings import Settings

EXTRA, PACKAGES = "webpush", ("http_ece",)
KEY_NAME = "vapid key"
SUBSCRIPTION, DELIVERED = "subscription ", "told "  # prefixes of keys in the store
# A user has a few browsers. The oldest subscriptions are deleted: that of a lost phone would stay for ever.
SUBSCRIPTIONS_AT_MOST = 20
# Push services accept a token of at most 24 h, and their clocks may differ from ours.
TOKEN_SECONDS = 12 * 3600
# An event that reached some of the browsers is retried for at most so long.
RETENTION = timedelta(days=2)
# The retry delay if the push service names none. With a delay in the error only this delivery waits: the browser of one
# user must not hold the deliveries of all others.
RETRY_SECONDS = 30.0
SUBSCRIPTION_ID = re.compile("[0-9a-f]{32}")


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Declare PLUGIN_WEBPUSH_*."""
    yield "webpush", WebpushSettings


@hookimpl
def register_notifiers(settings: Settings) -> Iterator[tuple[str, Callable[[], Notifier]]]:
    """Offer `webpush`."""
    # Less than the caller's budget: the plugin still has to store which browsers got the event.
    budget_seconds = settings.notifier_timeout_seconds * 0.8
    yield "webpush", lambda: WebpushNotifier(settings.plugin("webpush", WebpushSettings), budget_seconds)


class Outcome(StrEnum):
    """The result of one push.

    GONE: the subscription does not exist any more and is removed.
    REFUSED: for good.
    RETRY: try again later.
    """

    DELIVERED = "delivered"
    GONE = "gone"
    REFUSED = "refused"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Subscription:
    """The address of one browser, and the keys that encrypt its events.

    key: in the plugin's store.
    """

    key: str
    endpoint: URL
    public_key: bytes
    auth: bytes


class WebpushNotifier:
    """Sends events to the browsers of their owner.

    budget_seconds: the longest time of one try.
    """

    durable = True

    def __init__(self, settings: WebpushSettings, budget_seconds: float) -> None:
        try:
            # Not at the top: the package is optional.
            import http_ece
        except ImportError:
            raise ConfigurationError("the package is missing: pip install 'ai-queue-pipeline[webpush]'") from None
        self._encrypt = http_ece.encrypt
        self._settings = settings
        self._budget_seconds = budget_seconds

    async def start(self, context: Context) -> None:
        """Load the key with which all processes sign, or create it."""
        self._http, self._store, self._log = context.http, context.store, context.log
        text = self._settings.private_key.get_secret_value()
        if not text:
            # All processes get the key of the first one: a browser accepts events of one key only.
            text = await self._store.put_first(KEY_NAME, new_key())
        self._key = read_key(text)
        self._public_key = public_point(self._key)
        self._resolver = PublicResolver()

    # its routes

    def register_routes(self, routes: Routes) -> None:
        """Add the routes with which pages subscribe."""
        routes.add("GET", "/key", self.show_key)
        routes.add("POST", "/subscriptions", self.subscribe, max_body_bytes=8192)
        routes.add("DELETE", "/subscriptions/{id}", self.unsubscribe)

    async def show_key(self, request: PluginRequest) -> PluginReply:
        """Return the applicationServerKey for pushManager.subscribe in a page."""
        return PluginReply(json={"key": self._public_key})

    async def subscribe(self, request: PluginRequest) -> PluginReply:
        """Store the browser's subscription, as PushSubscription.toJSON() returns it."""
        subscription = read_subscription(request.json(), self._settings.allow_private)
        await self._check_host(URL(subscription["endpoint"], encoded=True))
        # An id of the endpoint alone: when another user subscribes with this browser, the former user's is replaced.
        subscription_id = hashlib.sha256(subscription["endpoint"].encode()).hexdigest()[:32]
        value = subscription | {"userId": request.user_id, "at": utc_now().isoformat()}
        await self._store.put(SUBSCRIPTION + subscription_id, value, user_id=request.user_id)
        stored = {key: value async for key, value in self._store.of_user(request.user_id)}
        ages = sorted((value["at"], key) for key, value in stored.items() if key.startswith(SUBSCRIPTION))
        await self._store.delete(*(key for _, key in ages[:-SUBSCRIPTIONS_AT_MOST]))
        return PluginReply(201, json={"id": subscription_id})

    async def unsubscribe(self, request: PluginRequest) -> None:
        """Delete a subscription of the caller; NotFound when there is none of that id."""
        key = SUBSCRIPTION + request.path_params["id"]
        subscription = await self._store.get(key) if SUBSCRIPTION_ID.fullmatch(request.path_params["id"]) else None
        if subscription is None or subscription["userId"] != request.user_id:
            raise NotFound("There is no subscription of that id")
        await self._store.delete(key)

    # its work

    async def notify(self, notification: Notification) -> str:
        """Return how many of the owner's browsers got the event.

        RetryableJobError: some failed, and only these are tried again. PermanentJobError: all refuse for good.
        """
        delivered_key = DELIVERED + notification.delivery_id
        stored = {key: value async for key, value in self._store.of_user(notification.user_id)}
        if expired := _expired(stored, delivered_key):
            await self._store.delete(*expired)
        # The subscriptions that the event has reached already.
        delivered: Sequence[str] = stored[delivered_key]["told"] if delivered_key in stored else ()
        wanted = [key for key in stored if key.startswith(SUBSCRIPTION) and key not in delivered]
        missing = [_subscription(key, stored[key]) for key in wanted]
        keys, retry_seconds = await self._push_all(missing, notification)
        if keys[Outcome.GONE]:
            await self._store.delete(*keys[Outcome.GONE])
        if keys[Outcome.RETRY]:
            done = [*delivered, *keys[Outcome.DELIVERED], *keys[Outcome.REFUSED]]
            value = {"told": done, "at": utc_now().isoformat()}
            await self._store.put(delivered_key, value, user_id=notification.user_id)
            text = f"{len(keys[Outcome.RETRY])} of {len(missing)} browsers were not reached"
            raise RetryableJobError(text, retry_after_seconds=retry_seconds, spends_attempt=True)
        if delivered:
            await self._store.delete(delivered_key)
        counts = {outcome: len(reached) for outcome, reached in keys.items() if reached}
        counts[Outcome.DELIVERED] = counts.get(Outcome.DELIVERED, 0) + len(delivered)
        if keys[Outcome.REFUSED] and not counts[Outcome.DELIVERED]:
            raise PermanentJobError(f"All {len(keys[Outcome.REFUSED])} push services refused the event")
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())

    async def _push_all(
        self, subscriptions: Sequence[Subscription], notification: Notification
    ) -> tuple[Mapping[Outcome, Sequence[str]], float]:
        """Return the keys of the subscriptions by outcome, and the longest retry delay."""
        payload, topic = encode(notification), str(notification.event["assetId"])
        results = await asyncio.gather(*(self._push(each, payload, topic) for each in subscriptions))
        keys: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
        for subscription, (outcome, _) in zip(subscriptions, results, strict=True):
            keys[outcome].append(subscription.key)
        return keys, max((seconds for outcome, seconds in results if outcome is Outcome.RETRY), default=0.0)

    async def _push(self, to: Subscription, payload: bytes, topic: str) -> tuple[Outcome, float]:
        """Return the outcome of one push, and the delay before a retry."""
        try:
            async with asyncio.timeout(self._budget_seconds):
                await self._check_host(to.endpoint)
                status, wait = await self._post(to, payload, topic)
            outcome, cause = _outcome_of(status), f"HTTP {status}"
        except ValidationError:
            outcome, wait, cause = Outcome.REFUSED, None, "its address is private"
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            outcome, wait, cause = Outcome.RETRY, None, type(error).__name__
        if outcome is not Outcome.DELIVERED:
            # Only the host: every client that knows the endpoint may send to it.
            self._log.warning("webpush_not_taken", host=to.endpoint.host, outcome=outcome.value, cause=cause)
        return outcome, RETRY_SECONDS if wait is None else wait

    async def _post(self, to: Subscription, payload: bytes, topic: str) -> tuple[int, float | None]:
        """Return the service's status, and how long it asks to wait."""
        body = self._encrypt(
            payload,
            salt=os.urandom(16),
            private_key=ec.generate_private_key(ec.SECP256R1()),
            dh=to.public_key,
            auth_secret=to.auth,
            version="aes128gcm",
        )
        headers = self._headers(to.endpoint, topic)
        # No redirects: they would avoid the check of addresses.
        async with self._http.post(to.endpoint, data=body, headers=headers, allow_redirects=False) as response:
            return response.status, retry_after_of(response.headers)

    def _headers(self, endpoint: URL, topic: str) -> dict[str, str]:
        now = int(utc_now().timestamp())
        claims = {"aud": str(endpoint.origin()), "exp": now + TOKEN_SECONDS, "sub": self._settings.subject}
        token = jwt.encode(claims, self._key, algorithm="ES256")
        return {
            "Authorization": f"vapid t={token}, k={self._public_key}",
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(self._settings.ttl_seconds),
            "Urgency": self._settings.urgency,
            # A browser that was off gets only the newest event of each photo.
            "Topic": topic,
        }

    async def _check_host(self, endpoint: URL) -> None:
        """Raise ValidationError when the host has a private address.

        The name may change between this check and the connection; but then TLS rejects the certificate.
        """
        if self._settings.allow_private:
            return
        try:
            await self._resolver.resolve(str(endpoint.host), endpoint.port or 443)
        except PermanentJobError:
            raise ValidationError.of("endpoint", "Must have a public address") from None
        except OSError:
            return  # the connection will fail too, or a proxy resolves the name


def _subscription(key: str, value: Any) -> Subscription:
    """Return the subscription in a stored value."""
    keys, endpoint = value["keys"], URL(value["endpoint"], encoded=True)
    return Subscription(key, endpoint, decode(keys["p256dh"]), decode(keys["auth"]))


def _expired(stored: Mapping[str, Any], delivered_key: str) -> list[str]:
    """Return the keys of old partial deliveries of other events."""
    others = [key for key in stored if key.startswith(DELIVERED) and key != delivered_key]
    return [key for key in others if datetime.fromisoformat(stored[key]["at"]) < utc_now() - RETENTION]


def _outcome_of(status: int) -> Outcome:
    if 200 <= status < 300:
        return Outcome.DELIVERED
    if status in (404, 410):
        return Outcome.GONE
    return Outcome.RETRY if status in (408, 429) or status >= 500 else Outcome.REFUSED
