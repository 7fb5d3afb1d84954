"""The notifier `webpush`: each event to the owner's browsers, also while no page of ours is open.

Web Push (RFC 8030) with VAPID (RFC 8292); the payload is encrypted for the browser (RFC 8291) by the package http-ece.
A browser subscribes through our routes; its subscription is kept in the plugin's store, so that every process has it
and it goes with its user. Several subscriptions are told at once; those that were told are left out when the event
comes again for the sake of another. Runs on the event loop.
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
SUBSCRIPTION, TOLD = "subscription ", "told "
# A person has a few browsers; those that were put first go, because nobody takes away the one of a lost phone.
SUBSCRIPTIONS_AT_MOST = 20
# Services take a token of at most 24 h; their clocks may differ from ours.
TOKEN_SECONDS = 12 * 3600
# How long a half-told event may have a next try.
KEEP_TOLD = timedelta(days=2)
# What a service that says nothing of it is left alone for. A delivery that says when it comes again waits by itself:
# the browser of one user must not hold those of all others.
AGAIN_SECONDS = 30.0
SUBSCRIPTION_ID = re.compile("[0-9a-f]{32}")


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Declare PLUGIN_WEBPUSH_*."""
    yield "webpush", WebpushSettings


@hookimpl
def register_notifiers(settings: Settings) -> Iterator[tuple[str, Callable[[], Notifier]]]:
    """Offer `webpush`."""
    # Under the caller's budget: a timeout would lose who was told, so that is still to be kept in time.
    budget_seconds = settings.notifier_timeout_seconds * 0.8
    yield "webpush", lambda: WebpushNotifier(settings.plugin("webpush", WebpushSettings), budget_seconds)


class Outcome(StrEnum):
    """What became of one subscription: told; gone, so that it is removed; refused for good; or again, later."""

    TOLD = "told"
    GONE = "gone"
    REFUSED = "refused"
    AGAIN = "again"


@dataclass(frozen=True, slots=True)
class Subscription:
    """Where one browser is reached, and what its events are encrypted with. key: under which it is kept."""

    key: str
    endpoint: URL
    public_key: bytes
    auth: bytes


class WebpushNotifier:
    """Tells the browsers of the owner. budget_seconds: the longest a try may take."""

    durable = True

    def __init__(self, settings: WebpushSettings, budget_seconds: float) -> None:
        try:
            # Here and not above: it is an extra.
            import http_ece
        except ImportError:
            raise ConfigurationError("the package is missing: pip install 'ai-queue-pipeline[webpush]'") from None
        self._encrypt = http_ece.encrypt
        self._settings = settings
        self._budget_seconds = budget_seconds

    async def start(self, context: Context) -> None:
        """Have the key that all processes sign with."""
        self._http, self._store, self._log = context.http, context.store, context.log
        text = self._settings.private_key.get_secret_value()
        if not text:
            # Whichever process is first: a browser takes events that are signed with one key only.
            text = await self._store.put_first(KEY_NAME, new_key())
        self._key = read_key(text)
        self._public_key = public_point(self._key)
        self._resolver = PublicResolver()

    # its routes

    def register_routes(self, routes: Routes) -> None:
        """Let pages subscribe."""
        routes.add("GET", "/key", self.show_key)
        routes.add("POST", "/subscriptions", self.subscribe, max_body_bytes=8192)
        routes.add("DELETE", "/subscriptions/{id}", self.unsubscribe)

    async def show_key(self, request: PluginRequest) -> PluginReply:
        """Return what a page hands to pushManager.subscribe as applicationServerKey."""
        return PluginReply(json={"key": self._public_key})

    async def subscribe(self, request: PluginRequest) -> PluginReply:
        """Keep the browser's subscription, in its own words: PushSubscription.toJSON()."""
        said = read_subscription(request.json(), self._settings.allow_private)
        await self._check_host(URL(said["endpoint"], encoded=True))
        # By its endpoint alone: a browser that another user has now tells its former one nothing more.
        subscription_id = hashlib.sha256(said["endpoint"].encode()).hexdigest()[:32]
        value = said | {"userId": request.user_id, "at": utc_now().isoformat()}
        await self._store.put(SUBSCRIPTION + subscription_id, value, user_id=request.user_id)
        kept = {key: value async for key, value in self._store.of_user(request.user_id)}
        ages = sorted((value["at"], key) for key, value in kept.items() if key.startswith(SUBSCRIPTION))
        await self._store.delete(*(key for _, key in ages[:-SUBSCRIPTIONS_AT_MOST]))
        return PluginReply(201, json={"id": subscription_id})

    async def unsubscribe(self, request: PluginRequest) -> None:
        """Forget a subscription of the caller; NotFound when there is none of that id."""
        key = SUBSCRIPTION + request.path_params["id"]
        found = await self._store.get(key) if SUBSCRIPTION_ID.fullmatch(request.path_params["id"]) else None
        if found is None or found["userId"] != request.user_id:
            raise NotFound("There is no subscription of that id")
        await self._store.delete(key)

    # its work

    async def notify(self, notification: Notification) -> str:
        """Return how many of the owner's browsers were told.

        RetryableJobError: some could not be, and are tried again alone. PermanentJobError: all refuse for good.
        """
        told_key = TOLD + notification.delivery_id
        kept = {key: value async for key, value in self._store.of_user(notification.user_id)}
        if over := _long_over(kept, told_key):
            await self._store.delete(*over)
        # Which subscriptions the event has reached already.
        told: Sequence[str] = kept[told_key]["told"] if told_key in kept else ()
        wanted = [key for key in kept if key.startswith(SUBSCRIPTION) and key not in told]
        missing = [_subscription(key, kept[key]) for key in wanted]
        payload = encode(notification)
        topic = str(notification.event["assetId"])
        results = await asyncio.gather(*(self._push(each, payload, topic) for each in missing))
        ended = dict(zip((each.key for each in missing), results, strict=True))
        keys = {outcome: [key for key, (found, _) in ended.items() if found is outcome] for outcome in Outcome}
        if keys[Outcome.GONE]:
            await self._store.delete(*keys[Outcome.GONE])
        if keys[Outcome.AGAIN]:
            done = [*told, *keys[Outcome.TOLD], *keys[Outcome.REFUSED]]
            value = {"told": done, "at": utc_now().isoformat()}
            await self._store.put(told_key, value, user_id=notification.user_id)
            wait = max(seconds for outcome, seconds in ended.values() if outcome is Outcome.AGAIN)
            text = f"{len(keys[Outcome.AGAIN])} of {len(missing)} browsers were not reached"
            raise RetryableJobError(text, retry_after_seconds=wait, spends_attempt=True)
        if told:
            await self._store.delete(told_key)
        counts = {outcome: len(found) for outcome, found in keys.items() if found}
        counts[Outcome.TOLD] = counts.get(Outcome.TOLD, 0) + len(told)
        if keys[Outcome.REFUSED] and not counts[Outcome.TOLD]:
            raise PermanentJobError(f"All {len(keys[Outcome.REFUSED])} push services refused the event")
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())

    async def _push(self, to: Subscription, payload: bytes, topic: str) -> tuple[Outcome, float]:
        """Return what became of it, and how long to wait before it is tried again."""
        try:
            async with asyncio.timeout(self._budget_seconds):
                await self._check_host(to.endpoint)
                status, wait = await self._post(to, payload, topic)
            outcome, cause = _judge(status), f"HTTP {status}"
        except ValidationError:
            outcome, wait, cause = Outcome.REFUSED, None, "its address is private"
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            outcome, wait, cause = Outcome.AGAIN, None, type(error).__name__
        if outcome is not Outcome.TOLD:
            # The host alone: who knows the endpoint may send to it.
            self._log.warning("webpush_not_taken", host=to.endpoint.host, outcome=outcome.value, cause=cause)
        return outcome, AGAIN_SECONDS if wait is None else wait

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
        # No redirects: they would lead past the check of addresses.
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
            # A browser that was off gets the newest event of each photo only.
            "Topic": topic,
        }

    async def _check_host(self, endpoint: URL) -> None:
        """ValidationError when the host has a private address.

        Between this and the connection the name may change; but then TLS finds another host's certificate.
        """
        if self._settings.allow_private:
            return
        try:
            await self._resolver.resolve(str(endpoint.host), endpoint.port or 443)
        except PermanentJobError:
            raise ValidationError.of("endpoint", "Must have a public address") from None
        except OSError:
            return  # whoever connects will see; behind a proxy names need not be known here


def _subscription(key: str, value: Any) -> Subscription:
    """Return the subscription that is kept so."""
    keys, endpoint = value["keys"], URL(value["endpoint"], encoded=True)
    return Subscription(key, endpoint, decode(keys["p256dh"]), decode(keys["auth"]))


def _long_over(kept: Mapping[str, Any], told_key: str) -> list[str]:
    """Return the keys of what is known of other events than this one, long ago."""
    others = [key for key in kept if key.startswith(TOLD) and key != told_key]
    return [key for key in others if datetime.fromisoformat(kept[key]["at"]) < utc_now() - KEEP_TOLD]


def _judge(status: int) -> Outcome:
    if 200 <= status < 300:
        return Outcome.TOLD
    if status in (404, 410):
        return Outcome.GONE
    return Outcome.AGAIN if status in (408, 429) or status >= 500 else Outcome.REFUSED
