"""Checks the head of a request and the chunks of a body by RFC 9112, before Tornado sees them. Pure.

A body whose end is not certain is refused: otherwise two servers may split the same bytes into different requests.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from tornado.httputil import HTTPHeaders, HTTPInputError, RequestStartLine

ABSOLUTE = re.compile(r"https?://", re.IGNORECASE)
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")


class ProtocolFault(Exception):
    """The request breaks the protocol.

    status: of the answer.
    """

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class EmptyHead(Exception):
    """Only line ends where a request should begin."""


def in_origin_form(start: RequestStartLine, headers: HTTPHeaders) -> RequestStartLine:
    """Return the start line with a path in place of an absolute address, whose host replaces the Host header."""
    if not ABSOLUTE.match(start.path):
        return start
    try:
        address = urlsplit(start.path)
        host = address.netloc.rpartition("@")[2]
    except ValueError as error:
        raise HTTPInputError("Malformed HTTP request line") from error
    if not host:
        raise HTTPInputError("Malformed HTTP request line: an address without a host")
    headers["Host"] = host
    path = (address.path or "/") + (f"?{address.query}" if address.query else "")
    return start._replace(path=path)


def check_framing(start: RequestStartLine, headers: HTTPHeaders) -> None:
    """Raise HTTPInputError when the end of the body is not certain; normalize Content-Length."""
    encoding, length = headers.get("Transfer-Encoding"), headers.get("Content-Length")
    if encoding is not None and length is not None:
        raise HTTPInputError("Message with both Transfer-Encoding and Content-Length")
    if encoding is not None and start.version == "HTTP/1.0":
        # An old proxy knows no chunks, and would read them as the next request.
        raise HTTPInputError("HTTP/1.0 has no Transfer-Encoding")
    if encoding is not None and encoding.lower() != "chunked":
        raise HTTPInputError(f"Unsupported Transfer-Encoding {encoding}")
    if length is not None:
        values = {value.strip() for value in length.split(",")}
        if len(values) > 1:
            raise HTTPInputError("Multiple unequal Content-Lengths")
        # Python refuses to convert thousands of digits; 15 digits are a petabyte.
        if not re.fullmatch(r"0*[0-9]{1,15}", value := values.pop()):
            raise HTTPInputError(f"Only integer Content-Length is allowed: {value}")
        headers["Content-Length"] = value.lstrip("0") or "0"


def normalize_expectation(start: RequestStartLine, headers: HTTPHeaders) -> None:
    """Write the Expect header as Tornado compares it; drop it for HTTP/1.0."""
    if (expectation := headers.get("Expect")) is None:
        return
    if start.version == "HTTP/1.0" or not expectation.strip():
        del headers["Expect"]
    elif expectation.strip().lower() == "100-continue":
        headers["Expect"] = "100-continue"


def chunk_size(line: bytes) -> int:
    """Return the size in the first line of a chunk; extensions are ignored."""
    matched = CHUNK_SIZE.fullmatch(line)
    if matched is None:
        raise ProtocolFault("The size of a chunk of the body is malformed")
    return int(matched[1], 16)
