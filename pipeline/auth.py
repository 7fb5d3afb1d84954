"""Who is calling: turns a JSON Web Token into a Principal.

One algorithm family is pinned by the settings, never chosen by the token. Runs on the event loop.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import jwt
import structlog

from pipeline.clock import utc_now
from pipeline.errors import MAX_RETRY_AFTER_SECONDS, ConfigurationError, Unauthorized
from pipeline.keys import KeySet, PublicKey, read_public_keys
from pipeline.logs import ThrottledLog
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

USER_ID = re.compile(r"[A-Za-z0-9_.:@|-]{1,128}")
ADMIN_ROLE = "admin"
# May read everything that an admin may read, and change nothing.
READER_ROLE = "operator-read"
ROLES = (ADMIN_ROLE, READER_ROLE)
PAGE_CLAIM = "page"
# _check_times checks the times last: a client waits for `nbf` only if the token is good otherwise.
OPTIONS: Any = {"require": ["exp", "sub"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
LEEWAY_SECONDS = 5  # the clocks of issuer and service differ a little; applies to `exp` and `nbf`
# The cache of verified tokens: the most entries, and the longest token.
MAX_VERIFIED, MAX_VERIFIED_LENGTH = 1000, 4096


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller.

    role: one of ROLES, "" for a user.
    expires_at: when the token expires, in seconds since 1970.
    is_of_page: the token comes from a link to one of the service's pages, or from the session made from that link.
    claims: the claims of the token that USER_CLAIMS names.
    """

    user_id: str
    role: str
    expires_at: float
    is_of_page: bool = False
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def is_admin(self) -> bool:
        """True when this caller may change everything."""
        return self.role == ADMIN_ROLE

    @property
    def is_operator(self) -> bool:
        """True when this caller may read everything."""
        return self.role in ROLES


class NotYetValid(Unauthorized):
    """A good token whose `nbf` is in the future. Clients wait and send it again.

    retry_after_seconds: how long to wait.
    """

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__("Token not valid yet")
        self.retry_after_seconds = retry_after_seconds


class TokenExpired(Unauthorized):
    """A token that was good until its `exp`: not counted as an attempt to guess one."""

    def __init__(self) -> None:
        super().__init__("Invalid token")


class TokenVerifier:
    """Checks tokens with what the settings name: secrets, public keys or a key set.

    Raises ConfigurationError when the settings name none, or an unfit key.
    """

    def __init__(self, settings: Settings) -> None:
        self._audience = settings.jwt_audience or None
        self._issuer = settings.jwt_issuer or None
        self._wanted = settings.user_claims
        self._key_set: KeySet | None = None
        self._public_keys: tuple[PublicKey, ...] = ()
        self._secrets: tuple[str, ...] = ()
        self._throttled_log = ThrottledLog()
        # Token -> (claims, number of the old secret that signed it), the oldest first. A client sends the same token
        # many times, and secrets and public keys do not change while the process runs.
        self._verified: OrderedDict[str, tuple[dict[str, Any], int]] = OrderedDict()
        if settings.jwt_jwks_url:
            self._key_set = KeySet(settings.jwt_jwks_url)
        elif settings.jwt_public_key:
            self._public_keys = read_public_keys(settings.jwt_public_key)
        elif secret := settings.jwt_secret.get_secret_value():
            self._secrets = (secret, *settings.old_secrets)
        else:
            raise ConfigurationError("set JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL")

    async def verify(self, token: str, *, remembers: bool = True) -> Principal:
        """Return the caller that the token stands for.

        remembers: cache the result, because the client is likely to send the token again.
        Raises Unauthorized("Invalid token"), whatever is wrong with it; TokenExpired when only its `exp` is past;
        NotYetValid when only its `nbf` is ahead; DependencyUnavailable when the key set cannot be fetched.
        """
        try:
            claims, old_secret = self._verified.get(token) or await self._verify(token, remembers)
            principal = _principal(claims, self._wanted)
            _check_times(claims)
        # PyJWT also raises these built-in errors, for tokens made to confuse it.
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise Unauthorized("Invalid token") from error
        if old_secret:
            # Logged after the checks: an expired token is no reason to keep an old secret.
            self._throttled_log.write(log.info, "old_secret_used", str(old_secret), number=old_secret)
        return principal

    async def _verify(self, token: str, remembers: bool) -> tuple[dict[str, Any], int]:
        """Return the result of _claims, and cache it unless a key set may withdraw the key."""
        claims, old_secret = await self._claims(token)
        if remembers and self._key_set is None and len(token) <= MAX_VERIFIED_LENGTH:
            self._verified[token] = claims, old_secret
            if len(self._verified) > MAX_VERIFIED:
                self._verified.popitem(last=False)
        return claims, old_secret

    async def _claims(self, token: str) -> tuple[dict[str, Any], int]:
        """Return the claims of a token whose signature fits a key, and the number of that key among the old secrets.

        The number counts from 1; 0 is no old secret. jwt.PyJWTError when no key fits.
        """
        # The key decides on the algorithm, so that a public key is never used as the secret of an HMAC.
        if self._secrets:
            keys: list[tuple[Any, str]] = [(secret, "HS256") for secret in self._secrets]
        else:
            header = jwt.get_unverified_header(token)
            if self._key_set is not None:
                keys = [await self._key_set.find(header.get("kid"))]
            else:
                # A PEM has no key id: try every key of the token's algorithm.
                keys = [key for key in self._public_keys if key.algorithm == header.get("alg")]
        for number, (key, algorithm) in enumerate(keys):
            with suppress(jwt.InvalidSignatureError):
                return self._decode(token, key, algorithm), number if self._secrets else 0
        raise jwt.InvalidSignatureError("no key fits")

    def _decode(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self._audience,
            issuer=self._issuer,
            options=OPTIONS | {"verify_aud": self._audience is not None},
        )
        return claims


def bearer_token(header: str | None) -> str:
    """Return the token of an Authorization header; Unauthorized("Authentication required") when it carries none."""
    scheme, _, token = (header or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("Authentication required")
    return token.strip()


def make_token(
    settings: Settings, sub: str, role: str | None, expires_in: float, *, is_of_page: bool = False
) -> str:
    """Return a signed token for the command line, demos and the service's pages.

    expires_in: seconds.
    Raises ConfigurationError without JWT_SECRET: a public key cannot sign.
    """
    secret = settings.jwt_secret.get_secret_value()
    if not secret:
        raise ConfigurationError("making a token needs JWT_SECRET")
    if not USER_ID.fullmatch(sub):
        raise ConfigurationError(f"a user id has 1 to 128 characters of A-Z a-z 0-9 _ . : @ | -, not {sub!r}")
    now = int(utc_now().timestamp())
    optional = {"role": role, "aud": settings.jwt_audience, "iss": settings.jwt_issuer, PAGE_CLAIM: is_of_page}
    claims = {"sub": sub, "iat": now, "exp": now + int(expires_in)}
    return jwt.encode(claims | {name: value for name, value in optional.items() if value}, secret, algorithm="HS256")


def _check_times(claims: Mapping[str, Any]) -> None:
    """Check `exp` and `nbf`; `iat` is never a reason to refuse a token (RFC 7519, section 4.1.6)."""
    now = utc_now().timestamp()
    expires_at = _instant(claims["exp"])
    if expires_at <= now - LEEWAY_SECONDS:
        raise TokenExpired
    if "nbf" not in claims:
        return
    begins_at = _instant(claims["nbf"])
    if begins_at >= expires_at:
        raise Unauthorized("Invalid token")  # it will never be valid
    if (wait := begins_at - LEEWAY_SECONDS - now) > 0:
        raise NotYetValid(math.ceil(min(wait, MAX_RETRY_AFTER_SECONDS)))


def _instant(claim: Any) -> float:
    """Return a claim as seconds since 1970; ValueError or TypeError when it is no number."""
    seconds = float(claim)
    if not math.isfinite(seconds):
        raise ValueError("no instant")
    return seconds


def _principal(claims: Mapping[str, Any], wanted: Sequence[str]) -> Principal:
    if not USER_ID.fullmatch(claims["sub"]):
        raise Unauthorized("Invalid token")
    role = claims.get("role")
    is_of_page = claims.get(PAGE_CLAIM) is True
    of_user = {name: claims[name] for name in wanted if name in claims}
    return Principal(claims["sub"], role if role in ROLES else "", _instant(claims["exp"]), is_of_page, of_user)
