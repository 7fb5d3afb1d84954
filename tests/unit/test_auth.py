"""Tokens: which user a token names, for each way that the settings configure keys, and which tokens are refused."""

from __future__ import annotations

import asyncio
import base64
import time
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pipeline import auth
from pipeline.auth import NotYetValid, Principal, TokenExpired, TokenVerifier, bearer_token
from pipeline.errors import ConfigurationError, Unauthorized
from pipeline.settings import Settings
from tests.factories import SECRET, make_token

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def sign(key: Any, algorithm: str, kid: str | None = None, **claims: Any) -> str:
    payload = {"sub": "user-1", "exp": int(time.time()) + 60} | claims
    return jwt.encode(payload, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def raw_token(header: bytes, payload: bytes, signature: bytes = b"x") -> str:
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (header, payload, signature))


def verify(settings: Settings, token: str) -> Principal:
    return asyncio.run(TokenVerifier(settings).verify(token))


def test_verify_good_token_gives_principal() -> None:
    """A valid token gives the user id, the role and the instant of its expiry."""
    expires_at = int(time.time()) + 60

    principal = verify(Settings(jwt_secret=SECRET), make_token("a.b:c@d|e-F_9", role="admin", exp=expires_at))

    assert principal == Principal("a.b:c@d|e-F_9", "admin", float(expires_at))


@pytest.mark.parametrize("role", [None, "user", "Admin", "administrator"])
def test_verify_other_roles_are_not_admin(role: str | None) -> None:
    """Only the exact role `admin` makes an admin."""
    assert not verify(Settings(jwt_secret=SECRET), make_token(role=role)).is_admin


BAD_TOKENS = {
    "empty": "",
    "no dots": "abc",
    "other secret": make_token(secret="another secret of thirty-two bytes or more"),
    "expired": make_token(expires_in=-60),
    "no exp": jwt.encode({"sub": "user-1"}, SECRET, algorithm="HS256"),
    "no sub": jwt.encode({"exp": 4102444800}, SECRET, algorithm="HS256"),
    "numeric sub": jwt.encode({"sub": "1", "exp": 4102444800} | {"sub": 7}, SECRET, algorithm="HS256"),
    "empty sub": make_token(""),
    "long sub": make_token("a" * 129),
    "sub with a slash": make_token("a/b"),
    "sub with a newline at its end": make_token("user-1\n"),
    "valid only after its expiry": make_token(nbf=int(time.time()) + 7200),
    "textual nbf": make_token(nbf="soon"),
    "nbf that is no number": make_token(nbf=float("nan")),
    "not yet valid, and signed with another secret": make_token(nbf=time.time() + 60, secret=SECRET + "x"),
    "not yet valid, and an invalid user id": make_token("a/b", nbf=time.time() + 60),
    "infinite exp": make_token(exp=float("inf")),
    "textual exp": make_token(exp="soon"),
    "algorithm none": raw_token(b'{"alg":"none"}', b'{"sub":"user-1","exp":4102444800}', b""),
    "stronger algorithm of the same family": jwt.encode({"sub": "u", "exp": 4102444800}, SECRET * 2, algorithm="HS512"),
    "nested header": raw_token(b"[" * 20000, b"{}"),
    "header is a list": raw_token(b"[]", b"{}"),
    "numeric kid": raw_token(b'{"alg":"HS256","kid":1}', b"{}"),
    "not ascii": "ä.ö.ü",
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
def test_verify_bad_token_is_invalid(token: str) -> None:
    """Every fault of a token has the same answer: Invalid token."""
    with pytest.raises(Unauthorized, match="^Invalid token$"):
        verify(Settings(jwt_secret=SECRET), token)


def test_verify_clock_leeway_is_a_few_seconds() -> None:
    """A token that expired two seconds ago is accepted, because clocks differ."""
    assert verify(Settings(jwt_secret=SECRET), make_token(expires_in=-2)).user_id == "user-1"


@pytest.mark.fault("R9")
@pytest.mark.parametrize(
    "iat",
    [time.time() + 8, time.time() + 1e9, 1e300, -1, float("inf"), float("nan"), "soon", None, []],
    ids=["a little ahead", "years ahead", "1e300", "-1", "inf", "nan", "a word", "null", "a list"],
)
def test_verify_ignores_iat(iat: Any) -> None:
    """No value of the claim iat, the time of issue, makes a token invalid."""
    assert verify(Settings(jwt_secret=SECRET), make_token(iat=iat)).user_id == "user-1"


@pytest.mark.fault("R9")
@pytest.mark.parametrize(
    ("seconds", "retry_seconds"), [(-1, None), (4, None), (65, 60), (7200.5, 7196), (10 * 86_400, 86_400)]
)
def test_verify_token_before_nbf_says_when_to_retry(seconds: float, retry_seconds: int | None) -> None:
    """A token before its nbf has its own error, with the wait; a few seconds before nbf it is accepted."""
    now = time.time()
    token = make_token(nbf=now + seconds, exp=now + 20 * 86_400)
    if retry_seconds is None:
        assert verify(Settings(jwt_secret=SECRET), token).user_id == "user-1"
        return
    with pytest.raises(NotYetValid, match="^Token not valid yet$") as caught:
        verify(Settings(jwt_secret=SECRET), token)
    assert retry_seconds - 5 <= caught.value.retry_after_seconds <= retry_seconds


@pytest.mark.parametrize(
    ("claims", "is_good"),
    [
        ({"aud": "photos", "iss": "house"}, True),
        ({"aud": ["x", "photos"], "iss": "house"}, True),
        ({"aud": "other", "iss": "house"}, False),
        ({"aud": "photos", "iss": "other"}, False),
        ({"iss": "house"}, False),
        ({"aud": "photos"}, False),
    ],
)
def test_verify_audience_and_issuer_are_checked_when_set(claims: dict[str, Any], is_good: bool) -> None:
    """With JWT_AUDIENCE and JWT_ISSUER set a token must carry both."""
    settings = Settings(jwt_secret=SECRET, jwt_audience="photos", jwt_issuer="house")
    if is_good:
        assert verify(settings, make_token(**claims)).user_id == "user-1"
    else:
        with pytest.raises(Unauthorized):
            verify(settings, make_token(**claims))


def test_verify_audience_is_ignored_when_not_set() -> None:
    """A token with an audience is accepted if the settings require none."""
    assert verify(Settings(jwt_secret=SECRET), make_token(aud="anything")).user_id == "user-1"


@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS256"), (EC_KEY, "ES256")])
def test_verify_public_key_pins_its_family(key: Any, algorithm: str) -> None:
    """A public key, also one with escaped line breaks, accepts its own algorithm and no other."""
    settings = Settings(jwt_public_key=pem(key).replace("\n", "\\n"))
    other, other_algorithm = (EC_KEY, "ES256") if key is RSA_KEY else (RSA_KEY, "RS256")

    assert verify(settings, sign(key, algorithm)).user_id == "user-1"
    with pytest.raises(Unauthorized):
        verify(settings, sign(other, other_algorithm))


def test_verify_public_key_is_no_hmac_secret() -> None:
    """A token signed with the text of the public key as an HMAC secret is refused."""
    header, payload = b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"user-1","exp":4102444800}'
    unsigned = raw_token(header, payload, b"").rstrip(".")
    signature = jwt.get_algorithm_by_name("HS256").sign(unsigned.encode(), pem(RSA_KEY).encode())
    token = unsigned + "." + base64.urlsafe_b64encode(signature).decode().rstrip("=")

    with pytest.raises(Unauthorized):
        verify(Settings(jwt_public_key=pem(RSA_KEY)), token)


@pytest.mark.parametrize("key", ["no key", pem(ec.generate_private_key(ec.SECP384R1()))])
def test_verifier_refuses_unusable_public_key(key: str) -> None:
    """A key that is neither RSA nor EC P-256 stops the start."""
    with pytest.raises(ConfigurationError):
        TokenVerifier(Settings(jwt_public_key=key))


def test_verifier_without_any_key_is_refused() -> None:
    """Without a secret, a public key or a key set the verifier raises an error."""
    with pytest.raises(ConfigurationError):
        TokenVerifier(Settings(host="127.0.0.1"))


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "abc"])
def test_bearer_token_missing_requires_authentication(header: str | None) -> None:
    """A header without a bearer token has the same answer as a missing token."""
    with pytest.raises(Unauthorized, match="^Authentication required$"):
        bearer_token(header)


@pytest.mark.parametrize("header", ["Bearer abc", "bearer abc", "BEARER  abc "])
def test_bearer_token_scheme_has_no_case(header: str) -> None:
    """The scheme may have capital or small letters and any number of spaces after it."""
    assert bearer_token(header) == "abc"


def test_make_token_is_accepted_by_the_verifier() -> None:
    """The verifier accepts a token that the command line signed, with audience and issuer."""
    settings = Settings(jwt_secret=SECRET, jwt_audience="photos", jwt_issuer="house")

    principal = verify(settings, auth.make_token(settings, "ann", "admin", 60))

    assert (principal.user_id, principal.is_admin) == ("ann", True)


@pytest.mark.parametrize(
    ("settings", "sub"), [(Settings(jwt_public_key=pem(RSA_KEY)), "ann"), (Settings(jwt_secret=SECRET), "a b")]
)
def test_make_token_refuses_what_cannot_work(settings: Settings, sub: str) -> None:
    """Without a secret, or for a user id that no verifier accepts, making a token raises an error."""
    with pytest.raises(ConfigurationError):
        auth.make_token(settings, sub, None, 60)


def test_verified_token_is_decoded_once_and_its_times_are_checked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier decodes a token once and remembers it; it refuses the remembered token after its expiry."""
    verifier, token = TokenVerifier(Settings(jwt_secret=SECRET)), make_token(exp=int(time.time()) + 60)
    decoded: list[str] = []
    decode = verifier._decode
    monkeypatch.setattr(verifier, "_decode", lambda token, *key: decoded.append(token) or decode(token, *key))
    for _ in range(3):
        assert asyncio.run(verifier.verify(token)).user_id == "user-1"
    assert decoded == [token]
    later = auth.utc_now() + timedelta(seconds=66)
    monkeypatch.setattr(auth, "utc_now", lambda: later)
    with pytest.raises(TokenExpired):
        asyncio.run(verifier.verify(token))
    assert decoded == [token]


def test_bad_variant_of_a_remembered_token_is_refused() -> None:
    """The claims of a remembered token with another signature are refused, at the first and at the second call."""
    verifier, token = TokenVerifier(Settings(jwt_secret=SECRET)), make_token(exp=int(time.time()) + 60)
    assert asyncio.run(verifier.verify(token)).user_id == "user-1"
    head, claims, signature = token.split(".")
    other = base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")
    for bad in (f"{head}.{claims}.{other}", f"{head}.{claims}.", f"{token} ", token[:-8] + other[-8:]):
        for _ in range(2):
            with pytest.raises(Unauthorized, match="^Invalid token$"):
                asyncio.run(verifier.verify(bad))


def test_remembered_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier forgets the oldest token; it remembers no very long token and none with remembers=False."""
    monkeypatch.setattr(auth, "MAX_VERIFIED", 2)
    verifier = TokenVerifier(Settings(jwt_secret=SECRET))
    tokens = [make_token(f"user-{number}") for number in range(3)]
    long = make_token(note="x" * auth.MAX_VERIFIED_LENGTH)
    for token in (*tokens, long):
        asyncio.run(verifier.verify(token))
    asyncio.run(verifier.verify(make_token("user-4"), remembers=False))
    assert [*verifier._verified] == tokens[1:]
