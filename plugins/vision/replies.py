"""Reads the error in the reply of an endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def error_in(body: bytes) -> Mapping[str, Any]:
    """Return the object `error` of a reply, an empty one if there is none."""
    try:
        reply = json.loads(body)
        # Gemini's OpenAI-compatible endpoint sends a list.
        error = (reply[0] if isinstance(reply, list) else reply)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}


def message_in(error: Mapping[str, Any], body: bytes) -> str:
    """Return the message of an error, the complete body if it has none.

    Not shortened here: half of our key in it would not be recognized as ours.
    """
    message = error.get("message")
    return message if isinstance(message, str) else body.decode(errors="replace")
