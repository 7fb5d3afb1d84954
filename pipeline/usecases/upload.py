"""A checked upload, and its identity: by its Idempotency-Key or, with DEDUPE_UPLOADS, by its bytes.

Runs on the event loop; images are hashed in the pool.
"""

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
from pipeline.hooks.extra import clean_extra

log = structlog.get_logger(__name__)

# How long an Idempotency-Key stands for its first answer: a day of client retries.
IDEMPOTENCY_SECONDS = 86_400
# Of the claims of a token that are stored with an asset.
MAX_CLAIMS_BYTES = 2048

# Hashing a piece releases the interpreter's lock, which costs more than the hash when the piece is small.
HASHED_AT_ONCE = 2 * 1024 * 1024
# Large images are hashed one after the other, because several at once would take all cores from the event loop. So they
# can share one buffer.
_hashing = Lock()
_piece = memoryview(bytearray(HASHED_AT_ONCE))


@dataclass(frozen=True, slots=True)
class Upload:
    """A checked upload.

    file: the image as it is stored
    image: type and size of the image
    sha256: hash of the file, hex
    sent: the image as the client sent it, if that is another file
    claims: the claims of the user's token that may be stored
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
        """Return the hash, hex, of the image that the client sent: it identifies an upload that comes again."""
        if self.sent is None or self.sent is self.file:
            return self.sha256
        # In a thread: ten megabytes would block the event loop for too long.
        return await asyncio.get_running_loop().run_in_executor(pool, sha256_of_file, self.sent)

    @contextmanager
    def facts(self) -> Iterator[UploadFacts]:
        """Yield the facts for upload filters.

        Their `read` has its own file: a filter that still runs after its timeout must neither move the position of the
        stored file nor read after the upload has ended.
        """
        with _duplicate(self.file) as image:
            yield UploadFacts(
                user_id=self.user_id,
                category=self.category,
                content_type=self.image.content_type,
                size_bytes=self.image.bytes,
                width=self.image.width,
                height=self.image.height,
                read=partial(_content, image, self.image.bytes),
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


def _duplicate(file: BinaryIO) -> BinaryIO:
    return BytesIO(file.getvalue()) if isinstance(file, BytesIO) else os.fdopen(os.dup(file.fileno()), "rb")


def _content(file: BinaryIO, size: int) -> bytes:
    return file.getvalue() if isinstance(file, BytesIO) else os.pread(file.fileno(), size, 0)


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of an upload: two uploads with the same identity are the same.

    is_twin: only while the first upload is being processed
    """

    key: str
    fingerprint: str
    is_twin: bool = False


class Identities:
    """The identities of earlier uploads."""

    def __init__(self, store: AssetStore, pool: Executor, *, dedupes: bool) -> None:
        """dedupes: uploads without a key but with the same bytes are the same, while the first is being processed"""
        self._store = store
        self._pool = pool
        self._dedupes = dedupes

    async def identify(self, upload: Upload) -> Identity | None:
        """Return the identity of the upload, None when it has none: then it is always a new one."""
        if upload.idempotency_key is not None:
            fingerprint = _hash(upload.category, await upload.sent_sha256(self._pool))
            return Identity(_key(upload.user_id, upload.idempotency_key), fingerprint)
        if self._dedupes:
            sha256 = await upload.sent_sha256(self._pool)
            return Identity(_hash(upload.user_id, "same-bytes", upload.category, sha256), sha256, is_twin=True)
        return None

    async def is_known(self, user_id: str, idempotency_key: str | None) -> bool:
        """Return whether the user has sent an upload with that key."""
        return idempotency_key is not None and await self._store.find_key(_key(user_id, idempotency_key)) is not None

    async def find(self, identity: Identity | None) -> str | None:
        """Return the asset id of an earlier upload with this identity, None when there is none."""
        record = await self._store.find_key(identity.key) if identity else None
        return await self._asset_id_of(identity, record) if identity and record else None

    async def claim(self, identity: Identity | None, asset_id: str) -> str:
        """Claim the identity; return the asset id of the upload, or that of the same upload if it was faster."""
        if identity is None:
            return asset_id
        claim = KeyRecord(asset_id, identity.fingerprint)
        record = await self._store.claim_key(identity.key, claim, utc_now())
        while (asset_id_of_first := await self._asset_id_of(identity, record)) is None:
            record = await self._store.claim_key(identity.key, claim, utc_now(), instead_of=record.asset_id)
        return asset_id_of_first

    async def _asset_id_of(self, identity: Identity, record: KeyRecord) -> str | None:
        """Return the asset id of a record, also if its request died half-way; None when the record has expired.

        IdempotencyKeyReused when the record belongs to another upload.
        """
        if record.fingerprint != identity.fingerprint:
            detail = {"field": "Idempotency-Key", "message": "Was used with another image or category"}
            raise IdempotencyKeyReused("Idempotency-Key was used for another upload", details=[detail])
        if identity.is_twin:
            twin = await self._store.get(record.asset_id)
            # None: the asset is being inserted, or its request died before that; then this request inserts it.
            if twin is not None and twin.status is not AssetStatus.PROCESSING:
                return None
        return record.asset_id


def _key(user_id: str, idempotency_key: str) -> str:
    return _hash(user_id, "analyze-queue", idempotency_key)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def storable_claims(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims that can be stored, MAX_CLAIMS_BYTES at most together; the first claims have priority.

    Claims are personal data for notifiers only: no answer, event, webhook or log line has them, and they are deleted
    with their asset.
    """
    stored: dict[str, Any] = {}
    for name, value in claims.items():
        try:
            with_claim = stored | clean_extra({name: value})
        except ValueError:
            with_claim = stored
        if with_claim is stored or len(json.dumps(with_claim, ensure_ascii=False).encode()) > MAX_CLAIMS_BYTES:
            log.info("claim_left_out", claim=name)
        else:
            stored = with_claim
    return stored
