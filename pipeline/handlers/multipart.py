"""Reads a multipart/form-data body piece by piece: one image to a spooled file, a few short text fields to memory.

A body of any size costs at most SPOOL_BYTES of memory. Pure apart from the temporary file: knows no HTTP server.
Parsing is python-multipart's; this file says what is too much, too little or twice.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pipeline.errors import DependencyUnavailable, ValidationError

# A small photo needs no file; a hundred at once are 13 MB.
SPOOL_BYTES = 128 * 1024
MAX_PARTS = 20
MAX_HEADERS = 16
MAX_HEADER_BYTES = 4096
MAX_FIELD_BYTES = 8 * 1024
MAX_BOUNDARY_BYTES = 70  # RFC 2046, section 5.1.1
OVERHEAD_BYTES = 1024 * 1024  # what a body may carry beside the image: headers, fields, parts nobody asked for
NO_ROOM = "Uploads cannot be kept at the moment"

# It warns about every malformed body; those are the client's, and the client is told.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Form:
    """A whole body. image: the file at its start, or None; size: in bytes; fields: name -> text."""

    image: BinaryIO | None
    size: int
    fields: dict[str, str]


class MultipartReader:
    """Feed it the body, then take the form. The owner always calls close().

    Every fault of the body is a ValidationError; a disk that takes no file is DependencyUnavailable.
    content_type: the request's header. wanted: names of the text fields to keep; others are dropped. max_image_bytes:
    of the image part. folder: where a large image lies meanwhile.
    """

    def __init__(self, content_type: str, *, wanted: tuple[str, ...], max_image_bytes: int, folder: Path) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
            raise image_required("Content-Type", "Must be multipart/form-data with a boundary")
        self._wanted = wanted
        self._max_image_bytes = max_image_bytes
        self._folder = folder
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begun,
                "on_header_begin": self._header_begun,
                "on_header_field": self._header_named,
                "on_header_value": self._header_valued,
                "on_header_end": self._header_ended,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_ended,
                "on_end": self._ended,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
        self._file: BinaryIO = BytesIO()
        self._total = self._parts = self._image_bytes = 0
        self._images = 0
        self._fields: dict[str, bytearray] = {}
        self._headers: dict[bytes, bytes] = {}
        self._header_name = self._header_value = b""
        self._target: str | None = None  # where the data of the current part goes: "image", a wanted field, or nowhere
        self._is_complete = False

    @property
    def is_spooled(self) -> bool:
        """True when the image is in a file."""
        return not isinstance(self._file, BytesIO)

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the body, of any length."""
        self._total += len(chunk)
        if self._total > self._max_image_bytes + OVERHEAD_BYTES:
            raise too_large(self._max_image_bytes)
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise ValidationError("The multipart body is malformed") from error
        except OSError as error:
            raise DependencyUnavailable(NO_ROOM) from error

    def finish(self) -> Form:
        """Return the form; the body must have ended with its final boundary."""
        if not self._is_complete or self._file.closed:
            raise ValidationError("The multipart body is truncated")
        try:
            self._file.seek(0)  # writes what is left in the file's buffer
        except OSError as error:
            raise DependencyUnavailable(NO_ROOM) from error
        return Form(
            image=self._file if self._image_bytes else None,
            size=self._image_bytes,
            fields={name: bytes(text).decode("utf-8", "replace") for name, text in self._fields.items()},
        )

    def close(self) -> None:
        """Let go of the temporary file; may be called at any time, and twice."""
        with suppress(OSError):  # a full disk: closing writes what is left in the file's buffer
            self._file.close()

    def _part_begun(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ValidationError(f"The multipart body has more than {MAX_PARTS} parts")
        self._headers = {}

    def _header_begun(self) -> None:
        self._header_name = self._header_value = b""

    def _header_named(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_valued(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_ended(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        content_type = self._headers.get(b"content-type", b"text/plain").lower()
        # Browsers name every file; some programs leave the name out but say what the part is.
        is_file = b"filename" in options or not content_type.startswith(b"text/plain")
        self._target = None
        if name == "image" and is_file:
            self._images += 1
            if self._images > 1:
                raise ValidationError.of("image", "Must be sent once")
            self._target = name
        elif name in self._wanted and not is_file:
            if name in self._fields:
                raise ValidationError.of(name, "Must be sent once")
            self._fields[name] = bytearray()
            self._target = name

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._target is None:
            return
        if self._target != "image":
            text = self._fields[self._target]
            if len(text) + end - start > MAX_FIELD_BYTES:
                raise ValidationError.of(self._target, f"Must have at most {MAX_FIELD_BYTES} bytes")
            text += data[start:end]
            return
        self._image_bytes += end - start
        if self._image_bytes > self._max_image_bytes:
            raise too_large(self._max_image_bytes)
        if self._image_bytes > SPOOL_BYTES and isinstance(self._file, BytesIO):
            begun = self._file.getvalue()
            self._file = nameless_file(self._folder)
            self._file.write(begun)
        self._file.write(memoryview(data)[start:end])

    def _part_ended(self) -> None:
        self._target = None

    def _ended(self) -> None:
        self._is_complete = True


def nameless_file(folder: Path) -> BinaryIO:
    """Return a new file that goes with the process; a storage on the same filesystem can give it a name."""
    if hasattr(os, "O_TMPFILE"):
        try:
            # As tempfile does it, less O_EXCL, with which it could never have a name. The umask of the process says
            # who may read it: see data_dir.py.
            return open(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "w+b")
        except OSError:
            pass  # not every filesystem knows this
    return TemporaryFile(dir=folder)


def too_large(max_image_bytes: int) -> ValidationError:
    """Return the contract's error for an image over the limit."""
    return ValidationError.of("image", f"Maximum file size is {max_image_bytes / 1024 / 1024:g}MB", "File too large")


def image_required(field: str = "", detail: str = "") -> ValidationError:
    """Return the contract's error for a missing image; field and detail: what else is known to be wrong."""
    error = ValidationError.of("image", "Image file is required")
    if field and error.details:
        error.details.append({"field": field, "message": detail})
    return error
