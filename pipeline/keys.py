"""The public keys that tokens are checked with: those of a setting, and the set that an issuer publishes.

Knows no token. Runs on the event loop. A key set is the reply of another service: its time, its size and the number of
its keys are bounded, and it is fetched in a task of its own, so that a token of a known key never waits for it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from contextvars import Context
from typing import Any, NamedTuple

import aiohttp
import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from pipeline.errors import ConfigurationError, DependencyUnavailable, Unauthorized
from pipeline.texts import cause_of
from pipeline.weak_secrets import KEYS_AT_MOST

log = structlog.get_logger(__name__)

LEAST_RSA_BITS = 2048  # RFC 7518, section 3.3
KEY_SET_SECONDS = 300  # a key withdrawn by the issuer is refused after this
KEY_SET_RETRY_SECONDS = 10  # tokens with invented key ids must not cause a flood of downloads
KEY_SET_TIMEOUT_SECONDS = 5
PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?-----END [A-Z0-9 ]+-----", re.DOTALL)
# Real sets have a few kilobytes and a handful of keys.
KEY_SET_BYTES = 256 * 1024
KEY_SET_KEYS = 100


class PublicKey(NamedTuple):
    """A key and its one algorithm: RS256 or ES256."""

    key: RSAPublicKey | EllipticCurvePublicKey
    algorithm: str


def read_public_keys(text: str) -> tuple[PublicKey, ...]:
    """Return the keys of JWT_PUBLIC_KEY, one PEM after the other; ConfigurationError when a key is not fit."""
    # An environment variable often carries the line breaks as the two characters \n.
    text = text.replace("\\n", "\n")
    blocks = PEM.findall(text)
    if len(blocks) > KEYS_AT_MOST:
        raise ConfigurationError(f"JWT_PUBLIC_KEY has {len(blocks)} keys: a token is tried with {KEYS_AT_MOST} at most")
    if blocks and len(blocks) != text.count("-----BEGIN "):
        raise ConfigurationError("JWT_PUBLIC_KEY has a key without its end")
    return tuple(map(_read_public_key, blocks or [text]))


def _read_public_key(pem: str) -> PublicKey:
    """Return the key; ConfigurationError when tokens cannot or should not be checked with it."""
    if "BEGIN CERTIFICATE" in pem:
        raise ConfigurationError("JWT_PUBLIC_KEY is a certificate: set its public key (openssl x509 -pubkey -noout)")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError("JWT_PUBLIC_KEY is not a PEM public key") from None
    if fault := _key_fault(key):
        raise ConfigurationError(f"JWT_PUBLIC_KEY {fault}")
    return _with_algorithm(key)


class KeySet:
    """The issuer's published keys, by key id. The last good set stays in use while the issuer cannot be reached."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, PublicKey] = {}
        self._tried_at = float("-inf")
        self._error: Exception | None = None  # of the last fetch
        self._fetching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def find(self, key_id: Any) -> PublicKey:
        """Return the key of that id; Unauthorized when there is none, DependencyUnavailable when the set is not known.

        Waits for a fetch only when the id is not known.
        """
        if not isinstance(key_id, str):
            raise Unauthorized("Invalid token")
        if key_id not in self._keys:
            self._fetch_soon()
            if self._fetching is not None:
                await asyncio.shield(self._fetching)
        if key_id in self._keys:
            return self._keys[key_id]
        if self._error is not None:
            raise DependencyUnavailable("The token issuer's keys cannot be read") from self._error
        raise Unauthorized("Invalid token")

    def _fetch_soon(self) -> None:
        """Start a fetch, unless one runs or the last one is too recent."""
        if self._fetching is None and time.monotonic() - self._tried_at >= KEY_SET_RETRY_SECONDS:
            self._tried_at = time.monotonic()
            # A context of its own: the fetch is not the work of the request that happens to be first.
            self._fetching = asyncio.create_task(self._refresh(), context=Context())

    async def _refresh(self) -> None:
        had_error = self._error is not None
        try:
            self._keys = await _fetch(self._url)
            self._error = None
            if had_error:
                log.info("key_set_readable")
        except Exception as error:  # a reply that breaks its parser does not replace the set in use
            self._error = error
            if not had_error:
                log.warning("key_set_unreadable", error=cause_of(error))
        finally:
            self._fetching = None
            # Also while no token comes: a key withdrawn meanwhile must not be valid for the next token.
            wait = KEY_SET_SECONDS if self._error is None else KEY_SET_RETRY_SECONDS
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(wait, self._fetch_soon)


async def _fetch(url: str) -> dict[str, PublicKey]:
    """Return the usable signing keys at that address; an error when there is none."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=KEY_SET_TIMEOUT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        auto_decompress=False,  # a small reply may decompress to any size
        trust_env=True,
    ) as session:
        # A redirect could lead to plain http or into our own network.
        async with session.get(url, allow_redirects=False) as reply:
            if reply.status != 200:
                raise ValueError(f"the key set's address answers {reply.status}")
            if reply.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError("the key set is compressed though that was not asked for")
            body = b""
            async for chunk in reply.content.iter_any():
                body += chunk
                if len(body) > KEY_SET_BYTES:
                    raise ValueError(f"the key set is larger than {KEY_SET_BYTES} bytes")
    if not (keys := _usable_keys(json.loads(body))):
        raise ValueError("the key set has no key for RS256 or ES256")
    return keys


def _usable_keys(key_set: Any) -> dict[str, PublicKey]:
    keys = {}
    listed = key_set.get("keys") if isinstance(key_set, dict) else None
    for each in (listed if isinstance(listed, list) else [])[:KEY_SET_KEYS]:
        if key := _usable_key(each):
            keys[each["kid"]] = key
    return keys


def _usable_key(jwk: Any) -> PublicKey | None:
    """Return the key when it is for signatures, has an id and is strong enough."""
    if not isinstance(jwk, Mapping) or not isinstance(jwk.get("kid"), str) or jwk.get("use", "sig") != "sig":
        return None
    # Only these two: with a secret key, everyone who reads the set could make tokens.
    if jwk.get("kty") not in ("RSA", "EC") or "d" in jwk:
        return None
    try:
        key = jwt.PyJWK(dict(jwk)).key
    except (jwt.PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return None if _key_fault(key) else _with_algorithm(key)


def _key_fault(key: object) -> str:
    """Return why tokens are not checked with this key, "" when they may be."""
    if isinstance(key, RSAPublicKey):
        return "" if key.key_size >= LEAST_RSA_BITS else f"has {key.key_size} bits: RSA needs {LEAST_RSA_BITS} or more"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return ""
    return "must be an RSA or an EC P-256 key"


def _with_algorithm(key: Any) -> PublicKey:
    return PublicKey(key, "RS256" if isinstance(key, RSAPublicKey) else "ES256")
