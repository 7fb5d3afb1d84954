"""Reads a multipart/form-data body piece by piece: one image to a spooled file, a few short text fields to memory.

A body of any size costs at most SPOOL_BYTES of memory. Pure apart from the temporary file: knows no HTTP server.
form_parts.py splits the body, part_headers.py reads the headers of a part; this file decides which parts are used, and
refuses parts that are too large, missing or sent twice.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from pipeline.assets.kinds import HEAD_BYTES, image_type
from pipeline.errors import DependencyUnavailable, ValidationError
from pipeline.handlers.form_parts import MultipartSplitter, malformed
from pipeline.handlers.part_headers import Coding, Plain, coding_of, decode_text, parse_options
from pipeline.texts import clean

# A small photo needs no file; a hundred at once are 13 MB.
SPOOL_BYTES = 128 * 1024
MAX_FIELD_BYTES = 8 * 1024
MAX_BOUNDARY_BYTES = 70  # RFC 2046, section 5.1.1
MAX_SHOWN_NAME = 40
OVERHEAD_BYTES = 1024 * 1024  # what a body may contain beside the image: headers, fields, unknown parts
BASE64_GROWTH = 1.4  # four characters for three bytes, and a line end after each 76
FORM_WANTED = "Must be multipart/form-data with a boundary"
NO_ROOM = "Uploads cannot be stored at the moment"


@dataclass(frozen=True, slots=True)
class Form:
    """A parsed body.

    image: the file, at its start, or None.
    size: of the image, in bytes.
    fields: name -> text.
    came: the names of all parts, in order.
    as_files: names of wanted text fields that were sent as files.
    image_fault: why a part named `image` is no image, or "".
    """

    image: BinaryIO | None
    size: int
    fields: dict[str, str]
    came: tuple[str, ...] = ()
    as_files: tuple[str, ...] = ()
    image_fault: str = ""


@dataclass(slots=True)
class _Field:
    """A text field that is being read."""

    content_type: str
    text: bytearray = field(default_factory=bytearray)


class MultipartReader:
    """Feed it the body, then call finish() for the form. The owner always calls close().

    content_type: the request's header.
    wanted: names of the text fields to return; others are dropped.
    max_image_bytes: the limit of the image part.
    folder: for the temporary file of a large image.
    Every fault of the body is a ValidationError; a disk that cannot be written is DependencyUnavailable.
    """

    def __init__(self, content_type: str, *, wanted: tuple[str, ...], max_image_bytes: int, folder: Path) -> None:
        self._splitter = MultipartSplitter(_boundary(content_type), self)
        self._wanted = wanted
        self._max_image_bytes = max_image_bytes
        self._folder = folder
        self._file: BinaryIO = BytesIO()
        self._total = self._image_bytes = 0
        self._image_fault = ""
        self._fields: dict[str, _Field] = {}
        self._came: list[str] = []
        self._as_files: list[str] = []
        self._target: str | None = None  # of the current part's data: "image", a wanted field, or None to drop it
        self._coding: Coding = Plain()
        self._is_file = True  # False for an image part declared as text, until its first bytes are those of an image
        self._head = b""  # the first bytes of such a part

    @property
    def is_spooled(self) -> bool:
        """True when the image is in a file."""
        return not isinstance(self._file, BytesIO)

    def feed(self, chunk: bytes) -> None:
        """Parse the next piece of the body, of any length."""
        self._total += len(chunk)
        longest = max_body_bytes(self._max_image_bytes)
        if self._total > longest:
            # The image alone is within its limit, or it would have been refused before.
            raise ValidationError.of("body", f"Must have at most {longest / 1024 / 1024:g}MB", "Request body too large")
        try:
            self._splitter.feed(chunk)
        except OSError as error:
            raise DependencyUnavailable(NO_ROOM) from error

    def finish(self) -> Form:
        """Return the form; the body must have ended with its final boundary."""
        if not self._total:
            raise image_required("body", "it is empty")
        if not self._splitter.has_begun:
            raise malformed("No line of it is the boundary that Content-Type names")
        if not self._splitter.is_complete or self._file.closed:
            raise ValidationError("The multipart body is truncated")
        try:
            self._file.seek(0)  # writes the rest of the file's buffer
        except OSError as error:
            raise DependencyUnavailable(NO_ROOM) from error
        return Form(
            image=self._file if self._image_bytes else None,
            size=self._image_bytes,
            fields={
                name: decode_text(name, bytes(each.text), each.content_type) for name, each in self._fields.items()
            },
            came=tuple(self._came),
            as_files=tuple(self._as_files),
            image_fault=self._image_fault,
        )

    def close(self) -> None:
        """Close the temporary file; may be called at any time, and twice."""
        with suppress(OSError):  # a full disk: closing writes the rest of the file's buffer
            self._file.close()

    def begin(self, headers: dict[str, str]) -> None:
        """Choose the target of the part's data."""
        _, options = parse_options(headers.get("content-disposition", ""))
        name, filename = options.get("name", ""), options.get("filename")
        content_type = headers.get("content-type", "text/plain")
        self._came.append(clean(name)[:MAX_SHOWN_NAME])
        self._target = None
        if name == "image":
            # Browsers send a filename; some programs send only a Content-Type, or neither.
            self._is_file = filename is not None or not parse_options(content_type)[0].startswith("text/plain")
            self._head = b""
            if self._image_bytes and self._is_file:
                raise ValidationError.of("image", "Must be sent once")
            self._target = None if self._image_bytes else name
        elif name in self._wanted and filename:
            self._as_files.append(name)
        elif name in self._wanted:
            if name in self._fields:
                raise ValidationError.of(name, "Must be sent once")
            self._fields[name] = _Field(content_type)
            self._target = name
        self._coding = coding_of(headers) if self._target else Plain()

    def data(self, piece: bytes) -> None:
        """Store the next bytes of the part."""
        if self._target is not None:
            self._store(self._coding.decode(piece))

    def end(self) -> None:
        """Store the rest of the part; drop an image that is a text."""
        if self._target is not None:
            self._store(self._coding.finish())
        if self._target == "image":
            if not self._is_file and self._head:
                self._drop_text()
            elif not self._image_bytes:
                self._image_fault = "image came without a byte"
        self._target = None

    def _store(self, piece: bytes) -> None:
        if self._target != "image":
            assert self._target is not None
            text = self._fields[self._target].text
            if len(text) + len(piece) > MAX_FIELD_BYTES:
                raise ValidationError.of(self._target, f"Must have at most {MAX_FIELD_BYTES} bytes")
            text += piece
            return
        if not self._is_file:
            self._head += piece[: HEAD_BYTES - len(self._head)]
            if image_type(self._head):
                self._is_file = True
        self._image_bytes += len(piece)
        if self._image_bytes > self._max_image_bytes:
            raise too_large(self._max_image_bytes)
        if self._image_bytes > SPOOL_BYTES and isinstance(self._file, BytesIO):
            begun = self._file.getvalue()
            self._file = nameless_file(self._folder)
            self._file.write(begun)
        self._file.write(piece)

    def _drop_text(self) -> None:
        self._image_fault = "image came as a text, without a filename"
        self._file.seek(0)
        self._file.truncate()
        self._image_bytes = 0


def _boundary(content_type: str) -> bytes:
    """Return the boundary of a form's Content-Type; ValidationError says what was sent instead."""
    kind, options = parse_options(content_type)
    boundary = options.get("boundary", "").encode("latin-1", "replace")
    if kind != "multipart/form-data":
        raise image_required("Content-Type", f"{FORM_WANTED}, not {clean(kind)[:MAX_SHOWN_NAME] or 'empty'}")
    if not boundary:
        raise image_required("Content-Type", f"{FORM_WANTED}: leave this header to the library that makes the form")
    if len(boundary) > MAX_BOUNDARY_BYTES:
        raise image_required("Content-Type", f"{FORM_WANTED} of at most {MAX_BOUNDARY_BYTES} bytes")
    return boundary


def nameless_file(folder: Path) -> BinaryIO:
    """Return a temporary file without a name; a storage on the same filesystem can link it under one."""
    if hasattr(os, "O_TMPFILE"):
        try:
            # As in tempfile, but without O_EXCL, which forbids linking. The umask decides on the permissions, see
            # data_dir.py.
            return open(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "w+b")
        except OSError:
            pass  # not every filesystem supports this
    return TemporaryFile(dir=folder)


def max_body_bytes(max_image_bytes: int) -> int:
    """Return the longest body: the image may come as base64."""
    return int(max_image_bytes * BASE64_GROWTH) + OVERHEAD_BYTES


def too_large(max_image_bytes: int) -> ValidationError:
    """Return the contract's error for an image over the limit."""
    return ValidationError.of("image", f"Maximum file size is {max_image_bytes / 1024 / 1024:g}MB", "File too large")


def image_required(field: str = "", detail: str = "") -> ValidationError:
    """Return the contract's error for a missing image.

    field: of a second fault that explains it.
    detail: of that fault, "" for none.
    """
    return ValidationError.of("image", "Image file is required").also(field, detail)
