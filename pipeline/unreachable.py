"""Whether an error means that the other side was never reached, so that the work was not tried. Pure."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

# Errors that occur before a request is sent.
UNREACHABLE = (ConnectionRefusedError, socket.gaierror, ssl.SSLError)
# TLS that ends early: before the request or during the answer, which cannot be distinguished.
NOT_UNREACHABLE = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
# The last three mean that this process cannot open a connection.
UNREACHABLE_NUMBERS = {
    *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ECONNREFUSED),
    *(errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE),
}
# The classes of aiohttp, httpx, requests, urllib3 and botocore for a connection that was not made, even for a timeout.
UNREACHABLE_NAMES = {
    *("ClientConnectorError", "ConnectionTimeoutError", "ConnectError", "ConnectTimeout", "ConnectTimeoutError"),
    *("NewConnectionError", "NameResolutionError", "EndpointConnectionError"),
}
# The beginning of asyncio's message when each address of a host has failed.
AT_EACH_ADDRESS = "Multiple exceptions: "
MAX_DEPTH = 3
# How many errors of a chain are read, as in texts.py.
MAX_CHAIN = 12


def is_unreachable(error: BaseException, depth: int = MAX_DEPTH) -> bool:
    """True when the error, or an error that it came from, means that the other side was not reached.

    depth: how many nested exception groups are read. Every error of a group has to mean it.
    """
    return any(_is_unreachable(each, depth) for each in _chain(error))


def _is_unreachable(error: BaseException, depth: int) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return depth > 0 and all(is_unreachable(each, depth - 1) for each in error.exceptions)
    if isinstance(error, NOT_UNREACHABLE):
        return False
    if isinstance(error, UNREACHABLE) or any(each.__name__ in UNREACHABLE_NAMES for each in type(error).__mro__):
        return True
    return isinstance(error, OSError) and (
        error.errno in UNREACHABLE_NUMBERS or (error.errno is None and str(error).startswith(AT_EACH_ADDRESS))
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and the errors that it came from, at most MAX_CHAIN."""
    following: BaseException | None = error
    for _ in range(MAX_CHAIN):
        if following is None:
            return
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
