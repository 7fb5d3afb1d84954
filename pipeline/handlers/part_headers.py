"""What a part says about itself: names and types in its headers, and the codings its bytes may come in. Pure.

Header parameters follow RFC 2183, 5987 and 7578: quoted or not, in any case, `filename*` alone. Codings are those of
mail (RFC 2045), which RFC 7578 forbids in forms and some clients send all the same.
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
# Of a text field. Those that clients use; Python's own list has some that unpack.
CHARSETS = {
    **{"utf-8": "utf-8", "utf8": "utf-8", "us-ascii": "utf-8", "ascii": "utf-8", "utf-16": "utf-16"},
    **{"utf-16le": "utf-16-le", "utf-16be": "utf-16-be", "iso-8859-1": "latin-1", "latin1": "latin-1"},
    **{"latin-1": "latin-1", "iso-8859-15": "iso8859-15", "windows-1252": "cp1252", "cp1252": "cp1252"},
}
MAX_CODED_LINE_BYTES = 64 * 1024  # RFC 2045 allows 76; a line has to be whole to be decoded


def parse_options(value: str) -> tuple[str, dict[str, str]]:
    """Return the value before the first semicolon in lower case, and the parameters by lower-case name."""
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
    # RFC 7578 forbids the extended form and gives the plain one precedence.
    return kind.strip().lower(), extended | options


def _decoded_parameter(text: str) -> str:
    """Return what `UTF-8''na%C3%AFve.jpg` means; an unlawful one stays as it is."""
    charset, _, rest = text.partition("'")
    _, quote, value = rest.partition("'")
    codec = CHARSETS.get(charset.lower())
    return unquote_to_bytes(value).decode(codec, "replace") if quote and codec else text


def decode_text(name: str, raw: bytes, content_type: str) -> str:
    """Return a text field as text, without the line end that files and templates leave behind it.

    A JSON string is taken for its value: Retrofit's converters send texts as `"lego"` with application/json.
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
        self._is_over = False  # the padding has come

    def decode(self, piece: bytes) -> bytes:
        text = self._rest + piece.translate(None, b" \t\r\n")
        whole = len(text) - len(text) % 4
        self._rest = text[whole:]
        return self._decoded(text[:whole])

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
    """Return what undoes the part's coding; ValidationError for one that is not known."""
    given = headers.get("content-transfer-encoding", "binary").strip().lower()
    if given in ("base64", "quoted-printable"):
        return Base64() if given == "base64" else QuotedPrintable()
    if given in ("7bit", "8bit", "binary", ""):
        return Plain()
    raise malformed(f"A part has a Content-Transfer-Encoding that is not known: {clean(given)[:40]}")
