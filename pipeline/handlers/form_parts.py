"""Splits a multipart body into its parts, piece by piece (RFC 2046, section 5.1). Pure: knows no form and no HTTP.

It accepts what mail gateways and old clients send and python-multipart refuses: text before the first boundary, blanks
after a boundary line, folded headers, lines that end in LF alone, no line end after the last boundary. Between two
pieces it stores at most one line: MAX_LINE_BYTES.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from pipeline.errors import ValidationError

MAX_LINE_BYTES = 4096
MAX_HEADERS = 16
MAX_PARTS = 20
# Blanks that a mail gateway may add to a boundary line. RFC 2046 names no limit.
LINE_END = rb"[ \t]{0,64}\r?\n"
# The end of a piece that may become a boundary line with the next piece.
UNFINISHED_END = re.compile(rb"-|[ \t]{0,64}\r?")
# The next position in the data, and whether parsing can continue there: False when it needs the next piece.
Step = tuple[int, bool]


class PartReceiver(Protocol):
    """Receives the parts: for each part one begin, any number of data, one end."""

    def begin(self, headers: dict[str, str]) -> None:
        """A part begins.

        headers: by lower-case name; of two with the same name the first one.
        """

    def data(self, piece: bytes) -> None:
        """The next bytes of the part."""

    def end(self) -> None:
        """The part is complete."""


class MultipartSplitter:
    """Feed it the body; it calls the receiver. ValidationError says why a body is no multipart."""

    def __init__(self, boundary: bytes, receiver: PartReceiver) -> None:
        self._receiver = receiver
        self._mark = b"--" + boundary
        self._rest = b"\n"  # of the last piece; at first the line end that a boundary needs before it
        self._step: Callable[[bytes, int], Step] = self._find_first
        self._number = 0
        self._headers: list[str] = []
        self._is_over = False
        self._skipped = 0  # bytes of the empty line after the headers, which do not belong to the part's data
        self._set_line_end(b"\n")

    @property
    def is_complete(self) -> bool:
        """True when the last boundary has come."""
        return self._is_over

    @property
    def has_begun(self) -> bool:
        """True when the first boundary has come."""
        return self._number > 0 or self._is_over

    def feed(self, piece: bytes) -> None:
        """Parse the next piece of the body, of any length."""
        data, position, can_continue = self._rest + piece, 0, True
        while can_continue and not self._is_over:
            position, can_continue = self._step(data, position)
        self._rest = b"" if self._is_over else data[position:]  # bytes after the last boundary are ignored

    def _set_line_end(self, line_end: bytes) -> None:
        self._delimiter = line_end + self._mark
        self._boundary_line = re.compile(re.escape(self._delimiter) + rb"(?:(--)|" + LINE_END + rb")")

    def _find_first(self, data: bytes, position: int) -> Step:
        found = self._search(data, position)
        if found is None:
            return self._unfinished(data, position), False
        # The line end of the first boundary line is that of the whole body.
        self._set_line_end(b"\r\n" if found[0].endswith(b"\r\n") else b"\n")
        return self._pass_boundary(found)

    def _read_headers(self, data: bytes, position: int) -> Step:
        end = data.find(b"\n", position, position + MAX_LINE_BYTES)
        if end < 0:
            if len(data) - position >= MAX_LINE_BYTES:
                raise malformed(f"A header of part {self._number} has more than {MAX_LINE_BYTES} bytes")
            return position, False
        line = data[position:end].removesuffix(b"\r").decode("utf-8", "surrogateescape")
        if not line:
            self._receiver.begin(self._parsed_headers())
            # Do not pass the empty line: its end may belong to the next boundary, if the part is empty.
            self._skipped = end + 1 - position
            self._step = self._read_data
            return position, True
        if line[0] in " \t" and self._headers:
            self._headers[-1] += " " + line.strip()
            if len(self._headers[-1]) > MAX_LINE_BYTES:
                raise malformed(f"A header of part {self._number} has more than {MAX_LINE_BYTES} bytes")
        else:
            self._headers.append(line)
        if len(self._headers) > MAX_HEADERS:
            raise malformed(f"Part {self._number} has more than {MAX_HEADERS} headers")
        return end + 1, True

    def _parsed_headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for line in self._headers:
            name, colon, value = line.partition(":")
            if not colon or not name.strip():
                raise malformed(f"Part {self._number} has a header line without a name and a colon")
            headers.setdefault(name.strip().lower(), value.strip())
        return headers

    def _read_data(self, data: bytes, position: int) -> Step:
        found = self._search(data, position)
        if found is not None:
            self._send_data(data, position, found.start())
            self._receiver.end()
            return self._pass_boundary(found)
        end = self._unfinished(data, position)
        self._send_data(data, position, end)
        return end, False

    def _send_data(self, data: bytes, start: int, end: int) -> None:
        skipped = min(self._skipped, end - start)
        self._skipped -= skipped
        if start + skipped < end:
            self._receiver.data(data[start + skipped : end])

    def _search(self, data: bytes, position: int) -> re.Match[bytes] | None:
        # find() first: it is several times as fast as the expression, and most pieces contain no boundary.
        at = data.find(self._delimiter, position)
        return None if at < 0 else self._boundary_line.search(data, at)

    def _unfinished(self, data: bytes, position: int) -> int:
        """Return the start of bytes that may become a boundary line, else the end of the data."""
        delimiter = self._delimiter
        at = data.rfind(delimiter, max(position, len(data) - len(delimiter) - 66))
        if at >= 0 and UNFINISHED_END.fullmatch(data, at + len(delimiter)):
            return at
        at = data.rfind(delimiter[:1], max(position, len(data) - len(delimiter) + 1))
        return at if at >= 0 and delimiter.startswith(data[at:]) else len(data)

    def _pass_boundary(self, found: re.Match[bytes]) -> Step:
        """Return the position after a boundary line and expect headers there, unless it was the last boundary."""
        self._skipped = 0
        if found[1]:
            self._is_over = True
            return found.end(), True
        self._number += 1
        if self._number > MAX_PARTS:
            raise ValidationError(f"The multipart body has more than {MAX_PARTS} parts")
        self._headers = []
        self._step = self._read_headers
        return found.end(), True


def malformed(reason: str) -> ValidationError:
    """Return the error for a body that cannot be split into parts."""
    return ValidationError("The multipart body is malformed", details=[{"field": "body", "message": reason}])
