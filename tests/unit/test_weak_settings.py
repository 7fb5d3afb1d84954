"""Secrets and keys that are too weak to check tokens are refused before the service starts."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import ValidationError

from pipeline.auth import TokenVerifier
from pipeline.errors import ConfigurationError
from pipeline.keys import read_public_keys
from pipeline.settings import Settings
from pipeline.weak_secrets import secret_fault
from tests.factories import SECRET

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def pem(key: Any) -> str:
    """Return the public key as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(key: Any, format: PrivateFormat = PrivateFormat.PKCS8) -> str:
    """Return the private key as PEM."""
    return key.private_bytes(Encoding.PEM, format, NoEncryption()).decode()


WEAK_SECRETS = {
    "short": "s3cr3t",
    "31 bytes": "k7Jw0qpXz2VfLr9TnB4cYd8HsGm1eUa",
    "40 blanks": " " * 40,
    "tabs and blanks": "\t " * 20,
    "blanks around": " " * 20 + "k7Jw0qpXz2Vf" + " " * 20,
    "one character": "x" * 64,
    "two characters": "ab" * 32,
    "a repeated word": "changeme" * 5,
    "a repeated word, cut off": "secret" * 6 + "sec",
    "a line twice": "your-256-bit-secret" * 2,
    "rising digits": "0123456789" * 4,
    "rising letters": "abcdefghijklmnopqrstuvwxyz0123456789",
    "falling letters": "ZYXWVUTSRQPONMLKJIHGFEDCBA9876543210",
    "doubled": "".join(letter * 5 for letter in "qwertyuiop"),
    "few characters": "1221112122112121212211221211221212112",
    "a line end of `echo`": SECRET + "\n",
    "two secrets": f"{SECRET}\r\n{SECRET[::-1]}",
    "a private key": private_pem(EC_KEY),
    "a public key": pem(RSA_KEY),
}


@pytest.mark.fault("R17")
@pytest.mark.parametrize("secret", WEAK_SECRETS.values(), ids=WEAK_SECRETS.keys())
def test_weak_secret_is_refused(secret: str) -> None:
    """A weak secret is refused with an error that does not contain it."""
    with pytest.raises(ValidationError) as caught:
        Settings(jwt_secret=secret)
    text = caught.value.errors(include_input=False)[0]["msg"]
    assert "JWT_SECRET " in text and (not secret.strip() or secret not in text)


def test_random_secrets_are_accepted() -> None:
    """Random secrets are accepted in each encoding; a long sentence is accepted too, though it may be well known."""
    for _ in range(300):
        for size in (16, 24, 32, 64):
            assert secret_fault(secrets.token_hex(size)) == secret_fault(secrets.token_urlsafe(size + 8)) == ""
    assert secret_fault(SECRET) == secret_fault("Rotkäppchen und der böse Wolf im Wald") == ""


@pytest.mark.fault("R17")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("no key", "is not a PEM public key"),
        ("", "is not a PEM public key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "is not a PEM public key"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "is a certificate"),
        (pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "has 1024 bits: RSA needs 2048 or more"),
        (pem(rsa.generate_private_key(public_exponent=65537, key_size=2047)), "has 2047 bits: RSA needs 2048 or more"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "must be an RSA or an EC P-256 key"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "must be an RSA or an EC P-256 key"),
        (pem(ec.generate_private_key(ec.SECP192R1())), "must be an RSA or an EC P-256 key"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "must be an RSA or an EC P-256 key"),
        (pem(dsa.generate_private_key(1024)), "must be an RSA or an EC P-256 key"),
    ],
)
def test_unsuitable_public_key_is_refused(key: str, reason: str) -> None:
    """A key of the wrong type or size is refused with an error that names the reason."""
    with pytest.raises(ConfigurationError) as caught:
        read_public_keys(key)
    assert caught.value.message.startswith(f"JWT_PUBLIC_KEY {reason}")


@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS256"), (EC_KEY, "ES256")])
def test_strong_public_key_is_accepted(key: Any, algorithm: str) -> None:
    """RSA keys of 2048 bits and EC P-256 keys are accepted."""
    assert [each.algorithm for each in read_public_keys(pem(key))] == [algorithm]
    TokenVerifier(Settings(jwt_public_key=pem(key)))


@pytest.mark.fault("R17")
@pytest.mark.parametrize(
    "key",
    [
        private_pem(RSA_KEY),
        private_pem(RSA_KEY, PrivateFormat.TraditionalOpenSSL).replace("\n", "\\n"),
        private_pem(EC_KEY, PrivateFormat.TraditionalOpenSSL),
        private_pem(ed25519.Ed25519PrivateKey.generate(), PrivateFormat.OpenSSH),
        private_pem(EC_KEY) + pem(EC_KEY),
    ],
)
def test_private_key_instead_of_the_public_one_is_refused(key: str) -> None:
    """A private key is refused with an error that does not show it."""
    with pytest.raises(ValidationError) as caught:
        Settings(jwt_public_key=key)
    text = caught.value.errors(include_input=False)[0]["msg"]
    assert "JWT_PUBLIC_KEY is a private key" in text and "BEGIN" not in text


@pytest.mark.fault("R16")
@pytest.mark.parametrize(
    ("url", "is_safe"),
    [
        ("https://issuer.example/jwks.json", True),
        ("http://127.0.0.1:8080/jwks.json", True),
        ("http://[::1]/jwks.json", True),
        ("http://localhost/jwks.json", True),
        ("http://issuer.example/jwks.json", False),
        ("http://10.0.0.1/jwks.json", False),
        ("http://127.0.0.1@issuer.example/jwks.json", False),
        ("http://localhost.issuer.example/jwks.json", False),
        ("HTTP://issuer.example/", False),
        ("http://0.0.0.0/", False),
        ("file:///etc/passwd", False),
        ("data:application/json,{}", False),
        ("ftp://issuer.example/", False),
    ],
)
def test_key_set_comes_over_https_or_from_this_machine(url: str, is_safe: bool) -> None:
    """Another URL is refused, because a changed key set would allow an attacker to make tokens."""
    if is_safe:
        assert Settings(jwt_jwks_url=url).jwt_jwks_url == url
        return
    with pytest.raises(ValidationError, match="JWT_JWKS_URL: must be"):
        Settings(jwt_jwks_url=url)
