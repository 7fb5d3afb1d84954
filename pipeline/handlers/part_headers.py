"""Reads the headers of a form's part: names, types and transfer encodings. Pure.

Header parameters follow RFC 2183, 5987 and 7578: quoted or not, in any case, `filename*` alone. The transfer encodings
are those of mail (RFC 2045): RFC 7578 forbids them in forms, but some clients send them.
"""

from __future__ import annotations

import binascii
import json
import re
from typing import Protocol
from urllib.parse import unquote_to_bytes

from pipeline.errors import ValidationError
from pipeline.handlers.form_parts import malformed
from pipeline.texts import clean

PARAMETER = re.compile(r';\s*([^=;"\s]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
# The charsets that clients use for text fields. Python knows more, among them some that decompress.
CHARSETS = {
    **{"utf-8": "utf-8", "utf8": "utf-8", "us-ascii": "utf-8", "ascii": "utf-8", "utf-16": "utf-16"},
    **{"utf-16le": "utf-16-le", "utf-16be": "utf-16-be", "iso-8859-1": "latin-1", "latin1": "latin-1"},
    **{"latin-1": "latin-1", "iso-8859-15": "iso8859-15", "windows-1252": "cp1252", "cp1252": "cp1252"},
}
MAX_CODED_LINE_BYTES = 64 * 1024  # RFC 2045 allows 76; only complete lines can be decoded


def parse_options(value: str) -> tuple[str, dict[str, str]]:
    """Return a header's value before the first semicolon, in lower case, and its parameters by lower-case name."""
    kind, _, _ = value.partition(";")
    options: dict[str, str] = {}
    extended: dict[str, str] = {}
    for name, text in PARAMETER.findall(value[len(kind) :]):
        name, text = name.lower(), text.strip()
        if len(text) >= 2 and text[0] == text[-1] == '"':
            text = re.sub(r'\\(["\\])', r"\1", text[1:-1])
        if name.endswith("*"):
            extended.setdefault(name[:-1], _decoded_parameter(text))
        else:
            options.setdefault(name, text)
    # RFC 7578 forbids the extended form and prefers the plain one.
    return kind.strip().lower(), extended | options


def _decoded_parameter(text: str) -> str:
    """Decode a parameter like `UTF-8''na%C3%AFve.jpg`; return a malformed one unchanged."""
    charset, _, rest = text.partition("'")
    _, quote, value = rest.partition("'")
    codec = CHARSETS.get(charset.lower())
    return unquote_to_bytes(value).decode(codec, "replace") if quote and codec else text


def decode_text(name: str, raw: bytes, content_type: str) -> str:
    """Return the value of a text field, without blanks and line ends around it.

    A JSON string is decoded: converters of Retrofit send `"lego"` as application/json.
    """
    kind, options = parse_options(content_type)
    charset = options.get("charset", "utf-8").strip()
    codec = CHARSETS.get(charset.lower())
    if codec is None:
        raise ValidationError.of(name, f"Its charset is not known: {clean(charset)[:40]}; send UTF-8")
    text = raw.decode(codec, "replace").removeprefix("\ufeff").strip()
    if kind == "application/json" and text.startswith('"'):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value if isinstance(value, str) else text
    return text


class Coding(Protocol):
    """Undoes a Content-Transfer-Encoding."""

    def decode(self, piece: bytes) -> bytes:
        """Return what can be decoded so far."""

    def finish(self) -> bytes:
        """Return the rest."""


class Plain:
    """7bit, 8bit and binary: the bytes themselves."""

    def decode(self, piece: bytes) -> bytes:
        return piece

    def finish(self) -> bytes:
        return b""


class Base64:
    """base64 in lines of any length."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_over = False  # True after the padding

    def decode(self, piece: bytes) -> bytes:
        text = self._rest + piece.translate(None, b" \t\r\n")
        end = len(text) - len(text) % 4
        self._rest = text[end:]
        return self._decoded(text[:end])

    def finish(self) -> bytes:
        return self._decoded(self._rest + b"=" * (-len(self._rest) % 4))

    def _decoded(self, text: bytes) -> bytes:
        try:
            if text and self._is_over:
                raise binascii.Error("there is more after the padding")
            self._is_over |= text.endswith(b"=")
            return binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error as error:
            raise malformed("A part says that it is base64, and is not") from error


class QuotedPrintable:
    """quoted-printable: decoded line by line."""

    def __init__(self) -> None:
        self._rest = b""

    def decode(self, piece: bytes) -> bytes:
        lines, line_end, self._rest = (self._rest + piece).rpartition(b"\n")
        if len(self._rest) > MAX_CODED_LINE_BYTES:
            raise malformed(f"A line of a quoted-printable part has more than {MAX_CODED_LINE_BYTES} bytes")
        return binascii.a2b_qp(lines + line_end)

    def finish(self) -> bytes:
        return binascii.a2b_qp(self._rest)


def coding_of(headers: dict[str, str]) -> Coding:
    """Return the decoder for the part's transfer encoding; ValidationError for an unknown one."""
    given = headers.get("content-transfer-encoding", "binary").strip().lower()
    if given in ("base64", "quoted-printable"):
        return Base64() if given == "base64" else QuotedPrintable()
    if given in ("7bit", "8bit", "binary", ""):
        return Plain()
    raise malformed(f"A part has a Content-Transfer-Encoding that is not known: {clean(given)[:40]}")
