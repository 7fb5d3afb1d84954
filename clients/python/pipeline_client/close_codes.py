"""What a client does after each close code of the service; contracts/close-codes.json has the meanings.

| word | what the client does |
|---|---|
| final | it does not come back before something was changed |
| token | it comes back at once with a fresh token, once; without another token it does not come back |
| reconnect | it comes back with a growing wait; also after a code that is not in the list |
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
# A client that sent too many frames waits so long, unless the service said how long.
TOO_MANY_SECONDS = (30.0, 60.0)


def is_final(code: int) -> bool:
    """Return whether a client must not come back without a change; a fresh token is one."""
    return CLOSE_CODES.get(code, "reconnect") != "reconnect"
