"""The P-256 key that signs requests (VAPID), and the encoding of keys: base64url without padding."""

from __future__ import annotations

import base64

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

KEY_BYTES = 32


def new_key() -> str:
    """Return a new private key."""
    number = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value
    return encode(number.to_bytes(KEY_BYTES, "big"))


def read_key(text: str) -> ec.EllipticCurvePrivateKey:
    """Return the private key in a text; the text of a ValueError contains nothing of it."""
    try:
        if "-----BEGIN" in text:
            key = serialization.load_pem_private_key(text.encode(), password=None)
            if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
                return key
        elif len(secret := decode(text)) == KEY_BYTES:
            return ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass
    raise ValueError("is not a P-256 private key, PEM or base64url of its 32 bytes")


def public_point(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the public key in the form for browsers."""
    form = serialization.PublicFormat.UncompressedPoint
    return encode(key.public_key().public_bytes(serialization.Encoding.X962, form))


def encode(data: bytes) -> str:
    """Return the bytes as text."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode(text: str) -> bytes:
    """Return the bytes in a text; ValueError when it is no base64url."""
    bare = text.rstrip("=")
    return base64.b64decode(bare + "=" * (-len(bare) % 4), altchars="-_", validate=True)
