"""Who is calling: turns a JSON Web Token into a Principal.

One algorithm family is pinned by the settings, never chosen by the token. Runs on the event loop; only the download of
a key set (JWKS) runs in a thread.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, DependencyUnavailable, Unauthorized
from pipeline.settings import Settings

USER_ID = re.compile(r"[A-Za-z0-9_.:@|-]{1,128}")
ADMIN_ROLE = "admin"
LEEWAY_SECONDS = 5  # clocks of issuer and server differ a little
KEY_SET_SECONDS = 300  # a key withdrawn by the issuer is refused after this
KEY_SET_RETRY_SECONDS = 30  # tokens with made-up key ids must not become a flood of downloads
KEY_SET_TIMEOUT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller. expires_at: when the token ends, in seconds since 1970."""

    user_id: str
    is_admin: bool
    expires_at: float


class TokenVerifier:
    """Checks tokens by the one way the settings name: a secret, a public key or a key set.

    Raises ConfigurationError when built without any of them, or with a key that is neither RSA nor EC P-256.
    """

    def __init__(self, settings: Settings) -> None:
        self._audience = settings.jwt_audience or None
        self._issuer = settings.jwt_issuer or None
        self._keys: KeySet | None = None
        self._key: Any = None
        self._algorithm = ""
        if settings.jwt_jwks_url:
            self._keys = KeySet(settings.jwt_jwks_url)
        elif settings.jwt_public_key:
            # An environment variable often carries the line breaks as the two characters \n.
            self._key, self._algorithm = _public_key(settings.jwt_public_key.replace("\\n", "\n"))
        elif secret := settings.jwt_secret.get_secret_value():
            self._key, self._algorithm = secret, "HS256"
        else:
            raise ConfigurationError("set JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL")

    async def verify(self, token: str) -> Principal:
        """Return who the token stands for.

        Raises Unauthorized("Invalid token"), whatever is wrong with it, or DependencyUnavailable when the key set
        cannot be had.
        """
        try:
            key, algorithm = self._key, self._algorithm
            if self._keys is not None:
                jwk = await self._keys.find(jwt.get_unverified_header(token).get("kid"))
                # The key decides, so that a public key never serves as the secret of an HMAC.
                key, algorithm = jwk.key, {"RSA": "RS256", "EC": "ES256"}.get(jwk.key_type or "", "")
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                options={
                    "require": ["exp", "sub"],
                    "verify_aud": self._audience is not None,
                    # PyJWT would go by the machine's own clock; _principal goes by the service's.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
            return _principal(claims)
        # Beside its own errors PyJWT lets these escape for tokens made to confuse it.
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise Unauthorized("Invalid token") from error


class KeySet:
    """The issuer's published keys, by key id. The last good set stays in use while the issuer cannot be reached."""

    def __init__(self, url: str) -> None:
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=KEY_SET_TIMEOUT_SECONDS)
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._is_reachable = False
        self._lock = asyncio.Lock()

    async def find(self, key_id: Any) -> jwt.PyJWK:
        """Return the key of that id; Unauthorized when there is none, DependencyUnavailable when we cannot know."""
        if not isinstance(key_id, str):
            raise Unauthorized("Invalid token")
        if not self._is_current(key_id):
            async with self._lock:
                if not self._is_current(key_id) and time.monotonic() - self._tried_at >= KEY_SET_RETRY_SECONDS:
                    await self._refresh()
        if key_id in self._keys:
            return self._keys[key_id]
        if not self._is_reachable:
            raise DependencyUnavailable("The token issuer's keys cannot be read")
        raise Unauthorized("Invalid token")

    def _is_current(self, key_id: str) -> bool:
        return key_id in self._keys and time.monotonic() - self._fetched_at < KEY_SET_SECONDS

    async def _refresh(self) -> None:
        self._tried_at = time.monotonic()
        try:
            keys = await asyncio.to_thread(self._client.get_signing_keys)
        # PyJWT raises its own errors for an unreachable issuer, ValueError for a reply that is no JSON.
        except (jwt.PyJWTError, ValueError, OSError):
            self._is_reachable = False
            return
        self._keys = {key.key_id: key for key in keys if key.key_id}
        self._is_reachable = True
        self._fetched_at = time.monotonic()


def bearer_token(header: str | None) -> str:
    """Return the token of an Authorization header; Unauthorized("Authentication required") when it carries none."""
    scheme, _, token = (header or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("Authentication required")
    return token.strip()


def make_token(settings: Settings, sub: str, role: str | None, expires_in: float) -> str:
    """Return a signed token for the command line and demos. expires_in: seconds.

    Raises ConfigurationError when the settings hold no secret: who checks with a public key cannot sign.
    """
    secret = settings.jwt_secret.get_secret_value()
    if not secret:
        raise ConfigurationError("tokens can be made only with JWT_SECRET")
    if not USER_ID.fullmatch(sub):
        raise ConfigurationError(f"a user id is 1 to 128 of A-Z a-z 0-9 _ . : @ | -, not {sub!r}")
    now = int(utc_now().timestamp())
    optional = {"role": role, "aud": settings.jwt_audience, "iss": settings.jwt_issuer}
    claims = {"sub": sub, "iat": now, "exp": now + int(expires_in)}
    return jwt.encode(claims | {name: value for name, value in optional.items() if value}, secret, algorithm="HS256")


def _public_key(pem: str) -> tuple[RSAPublicKey | EllipticCurvePublicKey, str]:
    try:
        key = load_pem_public_key(pem.encode())
    except ValueError as error:
        raise ConfigurationError("JWT_PUBLIC_KEY is not a PEM public key") from error
    if isinstance(key, RSAPublicKey):
        return key, "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key, "ES256"
    raise ConfigurationError("JWT_PUBLIC_KEY must be an RSA or an EC P-256 key")


def _principal(claims: Mapping[str, Any]) -> Principal:
    if not USER_ID.fullmatch(claims["sub"]):
        raise Unauthorized("Invalid token")
    now = utc_now().timestamp()
    if int(claims["exp"]) <= now - LEEWAY_SECONDS or int(claims.get("nbf", 0)) > now + LEEWAY_SECONDS:
        raise Unauthorized("Invalid token")
    return Principal(claims["sub"], claims.get("role") == ADMIN_ROLE, float(claims["exp"]))
