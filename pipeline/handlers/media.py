"""GET /media/{path}: images of storages with a local folder, and redirects to images that have moved.

No token is needed: the URL is enough, for ever, or with MEDIA_URL_SECONDS until its signature expires. Files are read
in threads. A client that reads too slowly is disconnected, so that it does not occupy a file and a connection. Runs on
the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from tornado.httputil import format_timestamp
from tornado.iostream import StreamClosedError

from pipeline.assets.asset_ids import ASSET_ID
from pipeline.assets.kinds import HEAD_BYTES, image_type
from pipeline.assets.store import AssetStore
from pipeline.errors import DependencyUnavailable, Forbidden, NotFound
from pipeline.handlers.base import SEND_SECONDS, BaseHandler
from pipeline.hooks.storages import MediaFolder
from pipeline.usecases.image_urls import ImageUrls

log = structlog.get_logger(__name__)

YEAR_SECONDS = 31_536_000
MEDIA_PATH = re.compile(r"([a-z0-9-]+(?:/[a-z0-9-]+)*)(\.[a-z0-9]{1,5})?")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
# A number with more digits is larger than any file.
MAX_DIGITS = 18
EXTENSIONS = {
    **{"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif"},
    **{"image/avif": "avif", "image/heic": "heic"},
}
# The possible endings of a file, when the URL has no extension.
ENDINGS = ("", *(f".{extension}" for extension in EXTENSIONS.values()), ".heif", ".bin")
# The errors of the system for a name without a file.
MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
PIECE_BYTES = 64 * 1024
# The time limit for one piece: 2 kB/s.
PIECE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Image:
    file: BinaryIO
    content_type: str
    size: int
    modified_at: datetime
    etag: str


class MediaHandler(BaseHandler):
    """One image. A file that is no image gets 404.

    A name is never used for another image, so clients may cache it.
    """

    route = "/media/{path}"

    def initialize(  # type: ignore[override]
        self,
        *,
        folders: Callable[[], Awaitable[Sequence[MediaFolder]]],
        store: AssetStore,
        urls: ImageUrls,
        **common: Any,
    ) -> None:
        """folders: returns the folders of the local storages.

        store: knows the storage of an image that is in no folder.
        urls: makes its URL.
        """
        super().initialize(**common)
        self.folders = folders
        self.store = store
        self.urls = urls

    async def get(self, path: str) -> None:
        matched = MEDIA_PATH.fullmatch(path)
        if matched is None:
            raise NotFound("Image not found")
        public_id, extension = matched[1], matched[2] or ""
        is_allowed, max_age = False, YEAR_SECONDS
        folders = await self.folders()
        for folder in folders:
            seconds_left = folder.seconds_left(public_id, self._signature())
            if seconds_left == 0:
                continue
            is_allowed = True
            max_age = min(YEAR_SECONDS, YEAR_SECONDS if seconds_left is None else seconds_left)
            image = await _in_thread(_open, folder.root, public_id, extension)
            if image is not None:
                try:
                    await self._show(image, public_id, max_age, is_permanent=seconds_left is None)
                finally:
                    await asyncio.to_thread(image.file.close)
                return
        if folders and not is_allowed:
            raise Forbidden("The URL of this image is invalid or has expired")
        await self._redirect(public_id, here={folder.backend for folder in folders})

    head = get

    def _signature(self) -> Mapping[str, str]:
        return {name: self.get_query_argument(name, "") for name in ("expires", "signature")}

    async def _redirect(self, public_id: str, *, here: Set[str]) -> None:
        """Redirect to the image's URL in a storage without a local folder; NotFound when no asset names it.

        here: the storages with a folder.
        """
        asset_id = public_id.partition("/")[0]
        asset = await self.store.get(asset_id) if ASSET_ID.fullmatch(asset_id) else None
        moved = [
            image
            for image in (asset.images if asset else ())
            if image.public_id == public_id and image.backend not in here
        ]
        url = await self.urls.of_image(moved[0]) if moved else None
        if url is None:
            raise NotFound("Image not found")
        self.redirect(url, status=302)

    async def _show(self, image: _Image, public_id: str, max_age: int, *, is_permanent: bool) -> None:
        self.clear_header("Content-Type")
        self.set_header("ETag", image.etag)
        self.set_header("Last-Modified", format_timestamp(image.modified_at))
        self.set_header("Cache-Control", f"private, max-age={max_age}{', immutable' if is_permanent else ''}")
        self.set_header("Content-Security-Policy", "default-src 'none'")
        if self._is_cached(image):
            self.set_status(304)
            self.finish()
            return
        self.set_header("Accept-Ranges", "bytes")
        start, end = 0, image.size
        if (wanted := self._range(image)) is not None:
            start, end = wanted
            if start >= end:
                self._refuse_range(image.size)
                return
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{end - 1}/{image.size}")
        self.set_header("Content-Type", image.content_type)
        self.set_header("Content-Length", str(end - start))
        is_download = self.get_query_argument("download", None) is not None
        name = f"{public_id.rpartition('/')[2]}.{EXTENSIONS[image.content_type]}"
        self.set_header("Content-Disposition", f'{"attachment" if is_download else "inline"}; filename="{name}"')
        if self.request.method == "HEAD":
            self.finish()
            return
        await self._send(image.file, start, end)

    def _is_cached(self, image: _Image) -> bool:
        """Return whether the client has the image in its cache (RFC 9110, 13.1)."""
        headers = self.request.headers
        if (log_fields := headers.get("If-None-Match")) is not None:
            tags = [tag.strip().removeprefix("W/") for tag in log_fields.split(",")]
            return "*" in tags or image.etag in tags
        since = _instant(headers.get("If-Modified-Since", ""))
        return since is not None and image.modified_at <= since

    def _range(self, image: _Image) -> tuple[int, int] | None:
        """Return the requested range of bytes, None for the whole file; an empty range cannot be satisfied."""
        headers = self.request.headers
        matched = RANGE.fullmatch(headers.get("Range", "").replace(" ", ""))
        if self.request.method == "HEAD" or matched is None or not any(matched.groups()):
            return None
        if (condition := headers.get("If-Range")) is not None:
            if condition.strip() != image.etag and _instant(condition) != image.modified_at:
                return None
        first, last = matched.groups()
        if max(len(first), len(last)) > MAX_DIGITS:
            return image.size, image.size
        if not first:
            return max(0, image.size - int(last)), image.size
        if last and int(last) < int(first):
            return None  # RFC 9110, 14.1.1: an invalid header is ignored
        return int(first), min(int(last) + 1, image.size) if last else image.size

    def _refuse_range(self, size: int) -> None:
        self.clear()
        self.set_common_headers()
        self.set_status(416)
        self.set_header("Content-Range", f"bytes */{size}")
        self.finish({"success": False, "error": {"code": "VALIDATION_ERROR", "message": "There is no such range"}})

    async def _send(self, file: BinaryIO, start: int, end: int) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await asyncio.to_thread(file.seek, start)
                while start < end:
                    piece = await asyncio.to_thread(file.read, min(PIECE_BYTES, end - start))
                    if not piece:
                        raise TimeoutError("the file has become shorter")
                    start += len(piece)
                    self.write(piece)
                    async with asyncio.timeout(PIECE_SECONDS):
                        await self.flush()
        except StreamClosedError:
            return
        except TimeoutError:
            log.info("media_cut_off", requestId=self.request_id, leftBytes=end - start)
            self.connection.close()
            return
        self.finish()


async def _in_thread(work: Callable[..., _Image | None], *args: Any) -> _Image | None:
    try:
        return await asyncio.to_thread(work, *args)
    except OSError as error:
        raise DependencyUnavailable("Image storage unavailable") from error


def _open(root: Path, public_id: str, extension: str) -> _Image | None:
    """Return the image, open; None when there is none."""
    # Try each ending instead of listing the folder: the folder has an entry per asset, and no token is needed.
    for ending in (extension,) if extension else ENDINGS:
        path = root / f"{public_id}{ending}"
        try:
            file = path.open("rb")
        except OSError as error:
            if error.errno in MISSING:
                continue
            raise
        image = None
        try:
            if os.path.realpath(path) == os.path.join(os.path.realpath(root), path.relative_to(root)):
                image = _described(file)
        finally:
            if image is None:  # a link that leads elsewhere, or no image
                file.close()
        return image
    return None


def _described(file: BinaryIO) -> _Image | None:
    facts = os.fstat(file.fileno())
    content_type = image_type(file.read(HEAD_BYTES))
    if content_type is None:
        return None
    # In whole seconds, as in the header.
    modified_at = datetime.fromtimestamp(int(facts.st_mtime), UTC)
    etag = f'"{facts.st_size:x}-{facts.st_mtime_ns:x}"'
    return _Image(file, content_type, facts.st_size, modified_at, etag)


def _instant(text: str) -> datetime | None:
    try:
        instant = parsedate_to_datetime(text)
        return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
