"""The receiving side of Web Push: a browser that subscribes and reads the messages that its push service received.

It decrypts as RFC 8291 says and checks the sender as RFC 8292 says, with `cryptography` and not with the library of the
notifier.
"""

from __future__ import annotations

import base64
import json
import os
import re
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.fake_receiver import Received


def encode(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode(text: str) -> bytes:
    """Return the bytes of base64url."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Browser:
    """One browser with a subscription at an endpoint."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._auth = os.urandom(16)
        self._point = _point(self._key.public_key())

    @property
    def subscription(self) -> dict[str, Any]:
        """The value of PushSubscription.toJSON()."""
        keys = {"p256dh": encode(self._point), "auth": encode(self._auth)}
        return {"endpoint": self.endpoint, "expirationTime": None, "keys": keys}

    def read(self, received: Received) -> dict[str, Any]:
        """Return the message as the service worker gets it."""
        assert received.headers["Content-Encoding"] == "aes128gcm"
        body = received.body
        assert len(body) <= 4096, "a push service may refuse a longer message"
        salt, record_size, length = body[:16], int.from_bytes(body[16:20], "big"), body[20]
        sender, record = body[21 : 21 + length], body[21 + length :]
        assert len(record) <= record_size
        secret = self._key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender))
        info = b"WebPush: info\0" + self._point + sender
        key_material = _hkdf(self._auth, info, 32, secret)
        key = _hkdf(salt, b"Content-Encoding: aes128gcm\0", 16, key_material)
        nonce = _hkdf(salt, b"Content-Encoding: nonce\0", 12, key_material)
        text = AESGCM(key).decrypt(nonce, record, None).rstrip(b"\0")
        assert text.endswith(b"\x02"), "the message is one record, which is marked as the last one"
        message: dict[str, Any] = json.loads(text[:-1])
        return message


def check_sender(received: Received, origin: str, server_key: str) -> dict[str, Any]:
    """Check that the sender's token is signed with that key for that origin, and return its claims."""
    match = re.fullmatch(r"vapid t=(\S+), k=(\S+)", received.headers["Authorization"])
    assert match is not None and match[2] == server_key
    public_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), decode(server_key))
    claims: dict[str, Any] = jwt.decode(match[1], public_key, algorithms=["ES256"], audience=origin)
    return claims


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def _hkdf(salt: bytes, info: bytes, length: int, secret: bytes) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)
