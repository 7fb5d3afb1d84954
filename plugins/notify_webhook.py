"""The notifier `webhook`: each event as one signed POST to PLUGIN_WEBHOOK_URL, as Standard Webhooks 1.0.0 has it.

Runs on the event loop. One try per call: the queue of a durable notifier does the retries. Signing takes three lines of
hmac, so the package `standardwebhooks` (with httpx, attrs and more) is not needed; receivers may use it, or any other
library of https://www.standardwebhooks.com, to verify.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from yarl import URL

from pipeline.errors import PermanentJobError, RetryableJobError, is_unreachable
from pipeline.hooks import Notification, Notifier, PluginSettings, hookimpl, retry_after_of, utc_now
from .ai_http import Answer

if TYPE_CHECKING:
    from pipeline.settings import Settings

SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
# The signed text joins the id and other parts with full stops, so the id must not contain one.
NOT_IN_ID = re.compile(r"[^\w:-]", re.ASCII)
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class WebhookSettings(PluginSettings):
    """The receiver, and the key that both sides know."""

    # Before `url`, because the check of `url` needs it.
    allow_private: bool = Field(
        default=False, description="Allows http:// and private addresses, for a receiver in your own network."
    )
    url: SecretStr = Field(
        description="https:// address that gets the events; a secret because it may contain a password or a token. "
        "Only one: a retry because of one receiver would repeat the event to all others."
    )
    secret: SecretStr = Field(
        description="whsec_ and base64 of 24 to 64 random bytes. With several, comma-separated, each event has several "
        "signatures, while a receiver changes from one secret to the next."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        try:
            url = URL(value.get_secret_value())
            host = url.raw_host
        except ValueError:
            host = None
        if not host or url.scheme not in ("https", "http"):
            raise ValueError("must be an https:// address")
        if not info.data.get("allow_private"):
            if url.scheme != "https":
                raise ValueError("must be an https:// address, unless PLUGIN_WEBHOOK_ALLOW_PRIVATE is set")
            if not all(is_public(address) for address in literal_addresses(host)):
                raise ValueError("is a private address, which PLUGIN_WEBHOOK_ALLOW_PRIVATE would allow")
        return value

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: SecretStr) -> SecretStr:
        parse_secrets(value.get_secret_value())
        return value


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Declare PLUGIN_WEBHOOK_*."""
    yield "webhook", WebhookSettings


@hookimpl
def register_notifiers(settings: Settings) -> Iterator[tuple[str, Callable[[], Notifier]]]:
    """Offer `webhook`."""
    # A little under the caller's budget, so that the reason arrives rather than a timeout.
    budget_seconds = settings.notifier_timeout_seconds * 0.9
    yield "webhook", lambda: WebhookNotifier(settings.plugin("webhook", WebhookSettings), budget_seconds)


class WebhookNotifier:
    """Posts {"type", "timestamp", "data"}; any 2xx means delivered.

    budget_seconds: the longest time of one try.
    """

    durable = True

    def __init__(self, settings: WebhookSettings, budget_seconds: float) -> None:
        self._url = URL(settings.url.get_secret_value())
        self._host = f"{self._url.raw_host}:{self._url.port}"
        self._secrets = parse_secrets(settings.secret.get_secret_value())
        self._allow_private = settings.allow_private
        self._budget = aiohttp.ClientTimeout(total=budget_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def notify(self, notification: Notification) -> str:
        """Return the receiver's answer if it is 2xx.

        PermanentJobError: 410, or an address that is not allowed.
        RetryableJobError: every other answer, or none; 4xx too, as the standard asks, because the receiver's operator
        may need time to repair it. No attempt is used up when it cannot be reached or asks to wait.
        """
        body = encode(notification)
        # No redirects: they would avoid the check of addresses, and a redirected POST may lose its body.
        request = self._connect().post(
            self._url,
            data=body,
            headers=self._headers(notification, body),
            timeout=self._budget,
            allow_redirects=False,
        )
        try:
            # The body is not read, so a receiver that sends for ever costs only the 64 kB that aiohttp reads ahead.
            async with request as response:
                status = response.status
                retry_after = retry_after_of(response.headers)
        except TimeoutError as error:
            raise RetryableJobError("Webhook receiver took too long") from self._cause(error)
        except aiohttp.ClientError as error:
            text = f"Webhook receiver cannot be reached ({type(error).__name__})"
            raise RetryableJobError(text, spends_attempt=not is_unreachable(error)) from self._cause(error)
        if status == 410:
            raise PermanentJobError("Webhook receiver wants no more events (HTTP 410)") from Answer(status, self._host)
        if not 200 <= status < 300:
            text = f"Webhook receiver answered HTTP {status}"
            raise RetryableJobError(text, retry_after_seconds=retry_after) from Answer(status, self._host)
        return f"HTTP {status}"

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _cause(self, error: Exception) -> Exception:
        """Return the error for the log, with the host but without the URL, which the error's own text may quote."""
        if isinstance(error, aiohttp.ClientConnectorError):
            return ConnectionError(str(error))  # names only the host
        return ConnectionError(f"{type(error).__name__}, asked {self._host}")

    def _headers(self, notification: Notification, body: bytes) -> dict[str, str]:
        event = notification.event
        delivery_id = notification.delivery_id or f"{event['assetId']}-{event['timestamp']}"
        webhook_id, timestamp = NOT_IN_ID.sub("_", delivery_id), str(int(utc_now().timestamp()))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(self._secrets, webhook_id, timestamp, body),
        }
        if notification.trace_context:
            headers["traceparent"] = notification.trace_context
        return headers

    def _connect(self) -> aiohttp.ClientSession:
        # Made at the first call because a session belongs to the loop it is made on. No limit of connections: the
        # queue's slots are the limit. Names are resolved for each connection: a public address may become private.
        # No decompression: aiohttp would do it before the body is read, and a small reply may decompress to any size.
        if self._session is None:
            resolver = ThreadedResolver() if self._allow_private else PublicResolver()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, resolver=resolver, use_dns_cache=False),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "ai-queue-pipeline", "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._session


class PublicResolver(ThreadedResolver):
    """Resolves only names whose addresses are all public.

    aiohttp connects to exactly these addresses, so the name cannot change in between.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses; PermanentJobError when one is private."""
        addresses = await super().resolve(host, port, family)
        if not all(is_public(address["host"]) for address in addresses):
            # Permanent: twelve tries would help an attacker, and a wrong setting stays wrong.
            raise PermanentJobError("Webhook receiver has a private address (PLUGIN_WEBHOOK_ALLOW_PRIVATE)")
        return addresses


def is_public(address: str) -> bool:
    """True for an address on the public internet, also when it is an IPv4 address inside an IPv6 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    embedded = ip.ipv4_mapped or ip.sixtofour
    if ip in NAT64:
        embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if embedded is not None:
        return is_public(str(embedded))
    # is_global alone accepts multicast, site-local and IPv4-compatible addresses.
    return ip.is_global and ip in GLOBAL_UNICAST


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Return the keys in comma-separated whsec_ secrets; the text of a ValueError contains none of them."""
    secrets = []
    for number, secret in enumerate(filter(None, map(str.strip, text.split(","))), 1):
        try:
            key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except ValueError:
            key = b""
        if not secret.startswith(SECRET_PREFIX) or not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
            raise ValueError(f"secret {number} is not whsec_ followed by the base64 of 24 to 64 bytes")
        secrets.append(key)
    if not secrets:
        raise ValueError("names no secret")
    return tuple(secrets)


def encode(notification: Notification) -> bytes:
    """Return the body in the shape of the standard; `timestamp` is the time of the event, not of the request."""
    event = notification.event
    data = {**event, "userId": notification.user_id}
    payload = {"type": event["event"], "timestamp": event["timestamp"], "data": data}
    return json.dumps(payload, separators=(",", ":")).encode()


def sign(secrets: Sequence[bytes], webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return the webhook-signature header: one signature for each secret."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digests = [hmac.digest(secret, signed, hashlib.sha256) for secret in secrets]
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


def literal_addresses(host: str) -> list[str]:
    """Return the address if the host is one, an empty list for a name: aiohttp does not pass addresses to its resolver.

    The C library parses it, as for the connection, because it accepts forms like 127.1 and 0x7f000001.
    """
    try:
        found = socket.getaddrinfo(host.partition("%")[0].rstrip("."), None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]
