"""A checked upload, as the use cases get it from the border. Its file is read in threads of ours or of plugins."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from threading import Lock
from typing import Any, BinaryIO

import structlog

from pipeline.assets.asset import AssetStatus
from pipeline.assets.image import ImageInfo
from pipeline.assets.store import AssetStore, KeyRecord
from pipeline.clock import utc_now
from pipeline.errors import IdempotencyKeyReused
from pipeline.hooks import UploadFacts
from pipeline.hooks.extra import kept_extra

log = structlog.get_logger(__name__)

# Of the claims of a token that are stored with an asset.
MAX_CLAIMS_BYTES = 2048

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


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two uploads the same one. is_twin: it stands only as long as the first one is being processed."""

    key: str
    fingerprint: str
    is_twin: bool = False


class Identities:
    """What is known of uploads that came before."""

    def __init__(self, store: AssetStore, pool: Executor, *, dedupes: bool) -> None:
        """dedupes: uploads without a key are the same when their bytes are, while the first is being processed."""
        self._store = store
        self._pool = pool
        self._dedupes = dedupes

    async def identify(self, upload: Upload) -> Identity | None:
        """Return by what the upload is known when it comes again; None: each time it is another one."""
        if upload.idempotency_key is not None:
            fingerprint = _hash(upload.category, await upload.sent_sha256(self._pool))
            return Identity(_key(upload.user_id, upload.idempotency_key), fingerprint)
        if self._dedupes:
            sha256 = await upload.sent_sha256(self._pool)
            return Identity(_hash(upload.user_id, "same-bytes", upload.category, sha256), sha256, is_twin=True)
        return None

    async def is_known(self, user_id: str, idempotency_key: str | None) -> bool:
        """Return whether an upload of the user has come with that key."""
        return idempotency_key is not None and await self._store.find_key(_key(user_id, idempotency_key)) is not None

    async def find(self, identity: Identity | None) -> str | None:
        """Return the asset id that the upload has since it came before, None when it did not."""
        record = await self._store.find_key(identity.key) if identity else None
        return await self._standing(identity, record) if identity and record else None

    async def claim(self, identity: Identity | None, asset_id: str) -> str:
        """Return the asset id that the upload has: this one, or that of the same one if it was faster."""
        if identity is None:
            return asset_id
        claim = KeyRecord(asset_id, identity.fingerprint)
        record = await self._store.claim_key(identity.key, claim, utc_now())
        while (standing := await self._standing(identity, record)) is None:
            record = await self._store.claim_key(identity.key, claim, utc_now(), instead_of=record.asset_id)
        return standing

    async def _standing(self, identity: Identity, record: KeyRecord) -> str | None:
        """Return the asset id of a record, whether its request lived or died half-way; None when it stands for nothing
        any more. IdempotencyKeyReused when it is that of another upload.
        """
        if record.fingerprint != identity.fingerprint:
            detail = {"field": "Idempotency-Key", "message": "Was used with another image or category"}
            raise IdempotencyKeyReused("Idempotency-Key was used for another upload", details=[detail])
        if identity.is_twin:
            twin = await self._store.get(record.asset_id)
            # None: it is about to be created, or its request died before that, and then it is ours to create.
            if twin is not None and twin.status is not AssetStatus.PROCESSING:
                return None
        return record.asset_id


def _key(user_id: str, idempotency_key: str) -> str:
    return _hash(user_id, "analyze-queue", idempotency_key)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def storable_claims(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the claims that can be kept and have at most MAX_CLAIMS_BYTES together, the first ones first."""
    kept: dict[str, Any] = {}
    for name, value in claims.items():
        try:
            with_it = kept | kept_extra({name: value})
        except ValueError:
            with_it = kept
        if with_it is kept or len(json.dumps(with_it, ensure_ascii=False).encode()) > MAX_CLAIMS_BYTES:
            log.info("claim_left_out", claim=name)
        else:
            kept = with_it
    return kept
