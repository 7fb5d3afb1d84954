"""Which uploads are one and the same: by their Idempotency-Key or, where DEDUPE_UPLOADS is set, by their bytes.

Runs on the event loop; images are hashed in the pool.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor
from dataclasses import dataclass

from pipeline.assets.asset import AssetStatus
from pipeline.assets.store import AssetStore, KeyRecord
from pipeline.clock import utc_now
from pipeline.errors import IdempotencyKeyReused
from pipeline.usecases.upload import Upload

# How long an Idempotency-Key stands for its first answer: a day of client retries.
IDEMPOTENCY_SECONDS = 86_400


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
