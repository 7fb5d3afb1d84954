"""The storage `object`: images in S3 and compatible services, in Google Cloud Storage or in Azure, through obstore.

`async def` methods: obstore works, and reads the file, in threads of its own. It has no time limit for all attempts
together, and its errors quote complete replies and URLs, also signed ones. So here each call has one time budget, and
each error is reduced to a text without secrets.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pipeline.errors import ConfigurationError, DependencyUnavailable
from pipeline.hooks import PluginSettings, StorageBackend, StoredImage, hookimpl
from pipeline.hooks.storage_protocol import READ_AT_MOST_BYTES

from .settings import ObjectSettings

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    from pipeline.settings import Settings

EXTRA, PACKAGES = "object", ("obstore",)
PUBLIC_ID = re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)*")
ATTEMPTS = 3
CONNECT_SECONDS = 3.0
# The contract's 10 MB go in one request, so that an upload cut off on the way leaves no parts behind to be paid for.
PART_BYTES = 16 * 1024 * 1024
PARTS_AT_ONCE = 4
# Half of the most that S3 returns in one reply: a step of the caller never needs a second reply.
LISTED_AT_ONCE = 500
# A key beside those of the images: nothing is ever stored there.
PROBE_KEY = ".check"
UNAVAILABLE = "Image storage unavailable"
# In a 404: the image is missing, not its bucket. S3 and GCS send the first code; Azure sends the second one, and the
# sentence in reply to a delete.
GONE = re.compile(r"<Code>(NoSuchKey|BlobNotFound)</Code>|The specified blob does not exist")
# In errors of the clouds: too many requests, and a wrong time in a signature.
BUSY = re.compile(r"\b429\b|SlowDown|TooManyRequests|ServerBusy|RequestLimitExceeded|Throttling")
SKEWED = re.compile(r"<Code>(RequestTimeTooSkewed|RequestExpired)</Code>|Request date header too old")
CLOCK_IS_WRONG = "the clock of this machine differs from the storage's"
# The retry delay for clients after BUSY, and after other errors.
BUSY_SECONDS, AWAY_SECONDS = 30, 5
# Between two attempts: a busy storage counts them too.
BACKOFF = {"init_backoff": timedelta(seconds=0.6), "max_backoff": timedelta(seconds=5), "base": 2}
Answer = TypeVar("Answer")


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Offer the settings of `object`."""
    yield "object", ObjectSettings


@hookimpl
def register_storage_backends(settings: Settings) -> Iterator[tuple[str, Callable[[], StorageBackend]]]:
    """Offer `object`."""
    # A little under the caller's budget, so that the reason arrives rather than a timeout.
    budget_seconds = settings.storage_timeout_seconds * 0.9
    yield "object", lambda: ObjectStorage(settings.plugin("object", ObjectSettings), budget_seconds)


class ObjectStorage:
    """Stores each image as the object PREFIX/<public_id>.

    budget_seconds: the longest time of one method.
    """

    def __init__(self, own: ObjectSettings, budget_seconds: float) -> None:
        try:
            import obstore
            import obstore.exceptions
        except ImportError as error:
            raise ConfigurationError("object needs obstore: pip install 'ai-queue-pipeline[object]'") from error
        self._sdk = obstore
        self._budget_seconds = budget_seconds
        self._prefix = own.location[2]
        self._public_url = own.public_url.rstrip("/")
        self._url_lasts = timedelta(seconds=own.url_seconds)
        try:
            self._store = _build_store(own, budget_seconds)
            return
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            reason = _reason(error)
        # Outside of the except block: an exception that is raised there would have obstore's error as its context.
        raise ConfigurationError(f"PLUGIN_OBJECT_URL: {reason}")

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        """Store the file with its content type; return its public URL, or one signed now."""
        key = self._key(public_id)
        file.seek(0)
        return await self._bounded(self._upload(key, file, content_type))

    async def open(self, public_id: str) -> BinaryIO:
        """Return the stored image; FileNotFoundError when there is none, DependencyUnavailable without a bucket."""
        return io.BytesIO(await self._bounded(self._download(self._key(public_id))))

    async def url(self, public_id: str, seconds: int) -> str:
        """Return the public URL, or one signed now; with the credentials of a role, signing may have to fetch them."""
        return await self._bounded(self._make_url(self._key(public_id), timedelta(seconds=seconds)))

    async def delete(self, public_id: str) -> None:
        """Remove the image; a missing one is an error to GCS and Azure, but not here."""
        with suppress(FileNotFoundError):
            await self._bounded(self._sdk.delete_async(self._store, self._key(public_id)))

    async def list(self, prefix: str) -> AsyncIterator[StoredImage]:
        """Yield the images whose public_id begins with the prefix; one step has the time of one call."""
        # obstore treats a prefix as a folder: the folder of "65f0/orig" is "65f0".
        folder = self._prefix + prefix[: prefix.rfind("/") + 1]
        listing = self._sdk.list(self._store, folder or None, chunk_size=LISTED_AT_ONCE)
        while entries := await self._bounded(anext(listing, None)):
            for entry in entries:
                public_id = entry["path"].removeprefix(self._prefix)
                if public_id.startswith(prefix) and PUBLIC_ID.fullmatch(public_id):
                    yield StoredImage(public_id, entry["last_modified"].astimezone(UTC))

    async def check(self) -> None:
        """Return when we may list the bucket; without that right S3 does not tell "missing" from "forbidden"."""
        await self._bounded(self._sdk.list(self._store, self._prefix + PROBE_KEY).collect_async())

    async def _upload(self, key: str, file: BinaryIO, content_type: str) -> str:
        # The URL first: if it cannot be made, no unknown image is left behind.
        url = await self._make_url(key, self._url_lasts)
        await self._sdk.put_async(
            self._store,
            key,
            file,
            attributes={"Content-Type": content_type},
            chunk_size=PART_BYTES,
            max_concurrency=PARTS_AT_ONCE,
        )
        return url

    async def _make_url(self, key: str, lasts: timedelta) -> str:
        if self._public_url:
            return f"{self._public_url}/{key}"
        return str(await self._sdk.sign_async(self._store, "GET", key, min(lasts, self._url_lasts)))

    async def _download(self, key: str) -> bytes:
        reply = await self._sdk.get_async(self._store, key)
        if (size := reply.meta["size"]) > READ_AT_MOST_BYTES:
            raise OSError(f"the object has {size} bytes, more than {READ_AT_MOST_BYTES}")
        return bytes(await reply.bytes_async())

    def _key(self, public_id: str) -> str:
        if not PUBLIC_ID.fullmatch(public_id):
            raise ValueError(f"not a public_id: {public_id!r}")
        return self._prefix + public_id

    async def _bounded(self, work: Awaitable[Answer]) -> Answer:
        """Return the result of the work; FileNotFoundError or DependencyUnavailable, without obstore's own error."""
        try:
            async with asyncio.timeout(self._budget_seconds):
                return await work
        except (self._sdk.exceptions.BaseError, OSError) as error:
            is_gone = isinstance(error, FileNotFoundError) and bool(GONE.search(str(error)))
            reason = _reason(error)
        if is_gone:
            raise FileNotFoundError(reason)
        seconds = BUSY_SECONDS if BUSY.search(reason) else AWAY_SECONDS
        raise DependencyUnavailable(UNAVAILABLE, retry_after_seconds=seconds) from OSError(reason)


def _build_store(own: ObjectSettings, budget_seconds: float) -> S3Store | GCSStore | AzureStore:
    from obstore.store import AzureStore, GCSStore, S3Store

    scheme, bucket, _ = own.location
    budget = timedelta(seconds=budget_seconds)
    options: dict[str, Any] = {
        "client_options": {
            "timeout": budget,
            "connect_timeout": min(timedelta(seconds=CONNECT_SECONDS), budget),
        },
        "retry_config": {"max_retries": ATTEMPTS - 1, "retry_timeout": budget, "backoff": BACKOFF},
    }
    if own.endpoint.startswith("http://"):
        options["client_options"]["allow_http"] = True
    account, secret = own.access_key_id.get_secret_value(), own.secret_access_key.get_secret_value()
    if scheme == "gs":
        return GCSStore(bucket, **options)
    # Credentials are passed by a function: as options they would be combined with a session token from the environment
    # that belongs to other keys, and would be readable in the store's configuration.
    if scheme == "az":
        if own.endpoint:
            options["endpoint"] = own.endpoint
        if account:
            options["account_name"] = account
            options["credential_provider"] = lambda: {"access_key": secret, "expires_at": None}
        return AzureStore(bucket, **options)
    if own.endpoint:
        # Not `endpoint`: AWS_ENDPOINT_URL_S3 would replace that.
        options["aws_endpoint_url_s3"] = own.endpoint
    if own.region:
        options["region"] = own.region
    if account:
        credential = {"access_key_id": account, "secret_access_key": secret, "token": None, "expires_at": None}
        options["credential_provider"] = lambda: credential
    # One DELETE for each image: not every S3 has the request that deletes many.
    return S3Store(bucket, disable_bulk_delete=True, **options)


def _reason(error: Exception) -> str:
    """Return the text of an error without reply bodies, queries of URLs and quoted values: they may contain secrets."""
    text, _, details = str(error).partition("\n\nDebug source:")
    code, clock = re.search(r"<Code>(\w+)</Code>", text), CLOCK_IS_WRONG if SKEWED.search(text) else ""
    text = re.sub(r"(status code: \d{3}[ \w]*).*", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\?\S+", "", re.sub(r'"[^"]*"', '"..."', text))
    hint = code[1] if code else ", ".join(re.findall("dns error|tcp connect error|InvalidCertificate", details))
    text = f"{clock}: {text}" if clock else text or "no answer in time"
    return " ".join(filter(None, (f"{type(error).__name__}:", text, hint and f"({hint})")))
