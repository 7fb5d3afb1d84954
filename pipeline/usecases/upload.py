"""A checked upload, as the use cases get it from the border. Its file is read in threads of ours or of plugins."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from threading import Lock
from typing import Any, BinaryIO

from pipeline.assets.image import ImageInfo
from pipeline.hooks import UploadFacts

# Each piece gives the interpreter's lock away and has to get it back, which costs more than its hash when it is small.
HASHED_AT_ONCE = 2 * 1024 * 1024
# One large image after the other: hashing holds a core and not the interpreter's lock, so that many at once would take
# all cores from the event loop. The memory is theirs in turn.
_hashing = Lock()
_piece = memoryview(bytearray(HASHED_AT_ONCE))


@dataclass(frozen=True, slots=True)
class Upload:
    """A checked upload.

    file: the image as it is stored.
    image: what that file holds.
    sha256: its hash, hex.
    sent: the image as the client sent it, where that is another file.
    claims: what the token says of the user, those that may be kept.
    """

    user_id: str
    category: str
    file: BinaryIO
    image: ImageInfo
    sha256: str
    request_id: str
    idempotency_key: str | None = None
    sent: BinaryIO | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)

    async def sent_sha256(self, pool: Executor) -> str:
        """Return the hash of what the client sent, hex: by this an upload is known when it comes again."""
        if self.sent is None or self.sent is self.file:
            return self.sha256
        # In a thread: of ten megabytes it takes longer than the loop may wait.
        return await asyncio.get_running_loop().run_in_executor(pool, sha256_of_file, self.sent)

    @contextmanager
    def facts(self) -> Iterator[UploadFacts]:
        """What filters are shown. Its `read` has a file of its own, so that a filter that is left behind in its thread
        moves nothing under whoever stores the image, and reads nothing once the upload is over.
        """
        with _again(self.file) as image:
            yield UploadFacts(
                user_id=self.user_id,
                category=self.category,
                content_type=self.image.content_type,
                size_bytes=self.image.bytes,
                width=self.image.width,
                height=self.image.height,
                read=partial(_whole, image, self.image.bytes),
            )


def sha256_of_file(file: BinaryIO) -> str:
    """Return the hash of the whole file, hex, and leave it at its start. Blocking."""
    digest = hashlib.sha256()
    file.seek(0)
    if isinstance(file, BytesIO):
        digest.update(file.getbuffer())
    else:
        with _hashing:
            while count := file.readinto(_piece):  # type: ignore[attr-defined]  # of BinaryIO; all real files have it
                digest.update(_piece[:count])
    file.seek(0)
    return digest.hexdigest()


def _again(file: BinaryIO) -> BinaryIO:
    return BytesIO(file.getvalue()) if isinstance(file, BytesIO) else os.fdopen(os.dup(file.fileno()), "rb")


def _whole(file: BinaryIO, size: int) -> bytes:
    return file.getvalue() if isinstance(file, BytesIO) else os.pread(file.fileno(), size, 0)
