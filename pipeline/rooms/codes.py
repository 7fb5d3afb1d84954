"""The codes that close a connection, and the messages that clients get before. Pure.

The meaning of each code, and the reaction of a client: contracts/close-codes.json, and the table in handlers/socket.py.
"""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """The close codes of this service."""

    PROTOCOL_ERROR = 1002
    INVALID_TEXT = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    DRAIN = 1012
    TRY_LATER = 1013
    MALFORMED = 4400
    NO_TOKEN = 4401
    BAD_TOKEN = 4403
    TOKEN_EXPIRED = 4419
    TOO_MANY = 4429
    OUTBOX_FULL = 4503
    PING_TIMEOUT = 4504


# Browsers hide many close codes and reasons from the page, so the error is sent in a frame before.
MESSAGES = {
    CloseCode.MALFORMED: "Malformed frame",
    CloseCode.NO_TOKEN: "Authentication required",
    CloseCode.BAD_TOKEN: "Invalid token",
    CloseCode.TOKEN_EXPIRED: "Token expired",
    CloseCode.TOO_MANY: "Too many frames",
}
# In metrics: the connection ended without a code.
GONE = 1006
MALFORMED_SINCE = "Malformed since"
NOT_YET_VALID = "Token not valid yet"
TOO_MANY_CONNECTIONS = "Too many connections"
