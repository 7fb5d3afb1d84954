"""Checks the image of an upload and removes its metadata: the result is the file that is stored.

Blocks (parsing, disk): runs in the thread pool. A small image with few parts is checked on the event loop, which is
faster than waking a thread. Knows no HTTP.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pipeline.assets.hygiene import TooManyParts, find_clean, write
from pipeline.assets.image import ImageInfo, inspect
from pipeline.assets.kinds import HEAD_BYTES, image_type
from pipeline.errors import DependencyUnavailable, ValidationError
from pipeline.handlers.multipart import NO_ROOM, nameless_file
from pipeline.usecases.upload import sha256_of_file

# The most parts and reads of an image that is checked on the event loop. A photo has some dozens; so many take 2 ms.
QUICK_PARTS, QUICK_READS = 500, 500
UNKNOWN_PARTS = "Its metadata cannot be removed, because the file is not built as its format says"


class TooSlowForLoop(BaseException):
    """The image has too many parts to be checked on the event loop.

    No Exception: the parsers would report one as a fault of the image.
    """


class _Quick(BytesIO):
    """An image in memory that can be read QUICK_READS times."""

    _reads_left = QUICK_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise TooSlowForLoop
        return super().read(size)


@dataclass(frozen=True, slots=True)
class Intake:
    """The checks and the cleaning of one installation.

    max_pixels: see assets/image.py.
    decode_memory_mb: see assets/image.py.
    keeps_metadata: the image is stored as it was sent.
    folder: for the temporary file of a large cleaned image.
    """

    max_pixels: int
    decode_memory_mb: int
    keeps_metadata: bool
    folder: Path

    def accept(self, sent: BinaryIO) -> tuple[BinaryIO, ImageInfo, str]:
        """Return the file to store, the facts about its image, and its SHA-256 in hex.

        The file is `sent` itself when nothing had to be removed. The caller closes it.
        ValidationError: the image is refused. DependencyUnavailable: the disk is full.
        """
        return self._accept(sent, None)

    def accept_quickly(self, sent: BytesIO) -> tuple[BinaryIO, ImageInfo, str]:
        """Do the same on the event loop; TooSlowForLoop when that would block it for too long."""
        quick = _Quick(sent.getvalue())
        try:
            stored, info, sha256 = self._accept(quick, QUICK_PARTS)
        except TooManyParts as error:
            raise TooSlowForLoop from error
        return sent if stored is quick else stored, info, sha256

    def _accept(self, sent: BinaryIO, parts: int | None) -> tuple[BinaryIO, ImageInfo, str]:
        stored = sent if self.keeps_metadata else self._clean(sent, parts)
        try:
            # The stored file, not the sent one: metadata may have changed its width and height.
            return stored, self._inspect(stored), sha256_of_file(stored)
        except BaseException:
            if stored is not sent:
                close(stored)
            raise

    def _inspect(self, file: BinaryIO) -> ImageInfo:
        return inspect(file, self.max_pixels, self.decode_memory_mb)

    def _clean(self, sent: BinaryIO, parts: int | None) -> BinaryIO:
        """Return the file without metadata, at its start; `sent` itself when it has none or is no image."""
        sent.seek(0)
        content_type = image_type(sent.read(HEAD_BYTES))
        if not content_type:
            return sent
        with ExitStack() as opened:
            try:
                if (copy := find_clean(sent, content_type, parts)) is None:
                    return sent
                # A large file has no name yet, so that a storage can link it instead of copying it.
                file = BytesIO() if isinstance(sent, BytesIO) else nameless_file(self.folder)
                opened.callback(close, file)
                write(copy, sent, file)
            except ValueError as error:
                if parts is not None and isinstance(error, TooManyParts):
                    raise
                self._inspect(sent)  # may raise with a better reason
                raise ValidationError.of("image", UNKNOWN_PARTS, "Invalid image") from error
            except OSError as error:
                raise DependencyUnavailable(NO_ROOM) from error
            opened.pop_all()
            return file


def close(file: BinaryIO) -> None:
    """Close a temporary file; may be called twice."""
    with suppress(OSError):  # a full disk: closing writes the rest of the file's buffer
        file.close()
