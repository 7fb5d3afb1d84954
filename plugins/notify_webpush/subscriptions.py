"""Checks the subscription that a browser sends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from yarl import URL

from pipeline.errors import ValidationError
from ..notify_webhook import is_public, literal_addresses
from .keys import decode

MAX_ENDPOINT_LENGTH, MAX_KEY_LENGTH = 2000, 200
PUBLIC_KEY_BYTES, AUTH_BYTES = 65, 16


def read_subscription(body: object, allow_private: bool) -> dict[str, Any]:
    """Return the fields of the subscription that are stored; ValidationError names every fault."""
    faults: list[dict[str, str]] = []
    given = body if isinstance(body, Mapping) else {}
    keys = given.get("keys")
    keys = keys if isinstance(keys, Mapping) else {}
    if fault := _endpoint_fault(given.get("endpoint"), allow_private):
        faults.append({"field": "endpoint", "message": fault})
    if not _is_point(_read(keys.get("p256dh"))):
        faults.append({"field": "keys.p256dh", "message": "Must be base64url of a P-256 public key"})
    if len(_read(keys.get("auth"))) != AUTH_BYTES:
        faults.append({"field": "keys.auth", "message": f"Must be base64url of {AUTH_BYTES} bytes"})
    if faults:
        raise ValidationError("Invalid subscription", details=faults)
    return {"endpoint": given["endpoint"], "keys": {"p256dh": keys["p256dh"], "auth": keys["auth"]}}


def _endpoint_fault(endpoint: object, allow_private: bool) -> str:
    if not isinstance(endpoint, str) or not re.fullmatch(rf"[\x21-\x7e]{{1,{MAX_ENDPOINT_LENGTH}}}", endpoint):
        return "Must be the https:// address of a push service"
    try:
        url = URL(endpoint, encoded=True)
        is_usable = bool(url.host and url.port) and not (url.user or url.password or url.fragment)
    except ValueError:
        is_usable = False
    if not is_usable or url.scheme not in (("https", "http") if allow_private else ("https",)):
        return "Must be the https:// address of a push service"
    if not allow_private and not all(is_public(address) for address in literal_addresses(str(url.host))):
        return "Must have a public address"
    return ""


def _is_point(text: bytes) -> bool:
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), text)
    except (ValueError, UnsupportedAlgorithm):
        return False
    return len(text) == PUBLIC_KEY_BYTES


def _read(text: object) -> bytes:
    try:
        return decode(text) if isinstance(text, str) and len(text) <= MAX_KEY_LENGTH else b""
    except ValueError:
        return b""
