"""From the image part of an upload to the file that is stored: checked, and without metadata.

Blocking (parsing, disk): runs in the thread pool, but for a small image of few pieces, which is looked at sooner than a
thread has woken up. Knows no HTTP.
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

# How many parts and reads an image has that is looked at on the event loop: a photo has some dozens, and these take two
# milliseconds.
QUICK_PARTS, QUICK_READS = 500, 500
UNKNOWN_PARTS = "Its metadata cannot be removed, because the file is not built as its format says"


class TooSlowForLoop(BaseException):
    """The image has too many pieces to be looked at on the event loop. No Exception: parsers take those for a fault of
    the image.
    """


class _Quick(BytesIO):
    """An image in memory that may be read from QUICK_READS times."""

    _reads_left = QUICK_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise TooSlowForLoop
        return super().read(size)


@dataclass(frozen=True, slots=True)
class Intake:
    """What the border asks of an image.

    max_pixels, decode_memory_mb: see assets/image.py.
    keeps_metadata: the image is stored as it was sent.
    folder: where a large clean image lies until it is stored.
    """

    max_pixels: int
    decode_memory_mb: int
    keeps_metadata: bool
    folder: Path

    def accept(self, sent: BinaryIO) -> tuple[BinaryIO, ImageInfo, str]:
        """Return the file that is stored, what it holds, and its SHA-256, hex.

        It is the file that was sent when nothing had to be removed. The caller closes it. ValidationError: the image is
        refused. DependencyUnavailable: no room on the disk.
        """
        return self._take(sent, None)

    def accept_quickly(self, sent: BytesIO) -> tuple[BinaryIO, ImageInfo, str]:
        """The same on the event loop; TooSlowForLoop when that would keep it for long."""
        quick = _Quick(sent.getvalue())
        try:
            stored, info, sha256 = self._take(quick, QUICK_PARTS)
        except TooManyParts as error:
            raise TooSlowForLoop from error
        return sent if stored is quick else stored, info, sha256

    def _take(self, sent: BinaryIO, parts: int | None) -> tuple[BinaryIO, ImageInfo, str]:
        stored = sent if self.keeps_metadata else self._clean(sent, parts)
        try:
            # Of what is stored: metadata may have told its sides otherwise.
            return stored, self._inspect(stored), sha256_of_file(stored)
        except BaseException:
            if stored is not sent:
                close(stored)
            raise

    def _inspect(self, file: BinaryIO) -> ImageInfo:
        return inspect(file, self.max_pixels, self.decode_memory_mb)

    def _clean(self, sent: BinaryIO, parts: int | None) -> BinaryIO:
        """Return the clean file at its start; the sent one when it is clean, or no image at all."""
        sent.seek(0)
        content_type = image_type(sent.read(HEAD_BYTES))
        if not content_type:
            return sent
        with ExitStack() as left:
            try:
                if (copy := find_clean(sent, content_type, parts)) is None:
                    return sent
                # A large one has no name, like the upload's own, so that a storage can give it one instead of copying.
                file = BytesIO() if isinstance(sent, BytesIO) else nameless_file(self.folder)
                left.callback(close, file)
                write(copy, sent, file)
            except ValueError as error:
                if parts is not None and isinstance(error, TooManyParts):
                    raise
                self._inspect(sent)  # which may know a better reason
                raise ValidationError.of("image", UNKNOWN_PARTS, "Invalid image") from error
            except OSError as error:
                raise DependencyUnavailable(NO_ROOM) from error
            left.pop_all()
            return file


def close(file: BinaryIO) -> None:
    """Let go of a temporary file; may be called twice."""
    with suppress(OSError):  # a full disk: closing writes what is left in the file's buffer
        file.close()
