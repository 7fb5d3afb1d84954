"""The client's reaction to each close code of the service; contracts/close-codes.json has the meanings.

| word | reaction |
|---|---|
| final | do not reconnect until something has been changed |
| token | reconnect once, at once, with a fresh token; without another token do not reconnect |
| reconnect | reconnect with a growing retry delay; also after a code that is not in the list |
"""

from __future__ import annotations

CLOSE_CODES = {
    1002: "final",
    1007: "final",
    1009: "final",
    1011: "reconnect",
    1012: "reconnect",
    1013: "reconnect",
    4400: "final",
    4401: "token",
    4403: "token",
    4419: "token",
    4429: "reconnect",
    4503: "reconnect",
    4504: "reconnect",
}
MALFORMED, BAD_TOKEN, TOO_MANY = 4400, 4403, 4429
# Retry delay after too many frames, unless the service names one: a random time in this range.
TOO_MANY_SECONDS = (30.0, 60.0)


def is_final(code: int) -> bool:
    """Return whether a client must not reconnect without a change; a fresh token is a change."""
    return CLOSE_CODES.get(code, "reconnect") != "reconnect"
