"""The storage `object`: images in S3 and what speaks like it, in Google Cloud Storage or in Azure, through obstore.

`async def` methods: obstore works, and reads the file, in threads of its own. It sets no time limit over all its
attempts, and its errors quote whole replies and addresses, signed ones among them; here each call has one budget and
each error is cut down to what holds no secret.
"""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pydantic import Field, SecretStr, field_validator, model_validator

from pipeline.errors import ConfigurationError, DependencyUnavailable
from pipeline.hooks import PluginSettings, StorageBackend, StoredImage, hookimpl
from pipeline.hooks.storage_protocol import READ_AT_MOST_BYTES

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    from pipeline.settings import Settings

EXTRA, PACKAGES = "object", ("obstore",)
PUBLIC_ID = re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)*")
# Letters that need no escaping in a URL; no part of the prefix is "." or "..".
STORE_URL = re.compile(r"(s3|gs|az)://([A-Za-z0-9$][\w.-]+)((?:/(?!\.{1,2}(?:/|$))[\w.-]+)*)/?", re.ASCII)
ADDRESS = re.compile(r"https?://[^/?#\s@]+(/[^?#\s]*)?")
# What the contract lets a job carry as the URL of its image.
IMAGE_ADDRESS = re.compile(r"(https://[^/?#\s@]+|http://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?)(/[^?#\s]*)?")
WEEK_SECONDS = 7 * 24 * 3600
ATTEMPTS = 3
CONNECT_SECONDS = 3.0
# The contract's 10 MB go in one request, so that an upload cut off on the way leaves no parts behind to be paid for.
PART_BYTES = 16 * 1024 * 1024
PARTS_AT_ONCE = 4
# Half of what S3 gives in one reply: a step of the caller never needs more than one.
LISTED_AT_ONCE = 500
# Lies beside the images, not among them: nothing is ever stored there.
PROBED = ".check"
UNAVAILABLE = "Image storage unavailable"
# In a 404: the image, and not its bucket, is what is missing. S3 and GCS say the first; Azure the others, the last of
# them to a delete.
GONE = re.compile(r"<Code>(NoSuchKey|BlobNotFound)</Code>|The specified blob does not exist")
# What the clouds say when asked too much, and when the time in a signature is not theirs.
BUSY = re.compile(r"\b429\b|SlowDown|TooManyRequests|ServerBusy|RequestLimitExceeded|Throttling")
SKEWED = re.compile(r"<Code>(RequestTimeTooSkewed|RequestExpired)</Code>|Request date header too old")
CLOCK_IS_WRONG = "the clock of this machine differs from the storage's"
# What clients are told to wait then, and otherwise.
BUSY_SECONDS, AWAY_SECONDS = 30, 5
# Between two attempts: a storage that is asked too much would count them as well.
BACKOFF = {"init_backoff": timedelta(seconds=0.6), "max_backoff": timedelta(seconds=5), "base": 2}
Answer = TypeVar("Answer")


class ObjectSettings(PluginSettings):
    """Where the images lie, and under which URLs others get them."""

    url: str = Field(
        description="s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX; the prefix may be left out."
    )
    endpoint: str = Field(
        default="",
        description="Address of an S3 that is not Amazon's (MinIO, R2) or of an Azure emulator; default: the cloud's.",
    )
    region: str = Field(default="", description="Region of an S3 bucket; default: AWS_REGION, else us-east-1.")
    access_key_id: SecretStr = Field(
        default=SecretStr(""),
        description="Access key of S3, account name of Azure; default: the cloud's usual variables, files and roles.",
    )
    secret_access_key: SecretStr = Field(default=SecretStr(""), description="The secret, or account key, of that.")
    public_url: str = Field(
        default="",
        description="Base URL of a CDN or public bucket: an image's URL is this, the prefix and its name, and lasts. "
        "Default: URLs are signed whenever an image is shown, and end.",
    )
    url_seconds: int = Field(
        default=WEEK_SECONDS,
        ge=60,
        le=WEEK_SECONDS,
        description="The longest that signed URLs work, whatever MEDIA_URL_SECONDS is: S3 and GCS allow 7 days. Those "
        "signed with a role's credentials stop with these, often after hours.",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if not STORE_URL.fullmatch(url):
            raise ValueError("must look like s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX")
        return url

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        if endpoint and not ADDRESS.fullmatch(endpoint):
            raise ValueError("must be an http:// or https:// address")
        return endpoint

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, public_url: str) -> str:
        if public_url and not IMAGE_ADDRESS.fullmatch(public_url):
            raise ValueError("must be https:// (http:// only for a loopback host)")
        return public_url

    @model_validator(mode="after")
    def _check_relations(self) -> ObjectSettings:
        faults = []
        scheme, _, _ = self.place
        secret = self.secret_access_key.get_secret_value()
        if bool(self.access_key_id.get_secret_value()) != bool(secret):
            faults.append("PLUGIN_OBJECT_ACCESS_KEY_ID and PLUGIN_OBJECT_SECRET_ACCESS_KEY need each other")
        # Signed URLs lead to the endpoint. With a public URL only we go there, perhaps in a network of our own.
        if self.endpoint and not self.public_url and not IMAGE_ADDRESS.fullmatch(self.endpoint):
            faults.append(
                "PLUGIN_OBJECT_ENDPOINT must be https:// (http:// only for a loopback host) "
                "unless PLUGIN_OBJECT_PUBLIC_URL is set"
            )
        if scheme == "az" and not _is_base64(secret):
            faults.append("PLUGIN_OBJECT_SECRET_ACCESS_KEY must be base64 for az://, as Azure's account keys are")
        for field in {"s3": (), "az": ("region",), "gs": ("endpoint", "region", "access_key_id")}[scheme]:
            if getattr(self, field) != type(self).model_fields[field].default:
                faults.append(f"PLUGIN_OBJECT_{field.upper()} means nothing for {scheme}://")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def place(self) -> tuple[str, str, str]:
        """Scheme, bucket, and prefix: "" or ending in a slash."""
        match = STORE_URL.fullmatch(self.url)
        assert match is not None
        scheme, bucket, prefix = match.groups()
        return scheme, bucket, f"{prefix[1:]}/" if prefix else ""


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
    """Keeps each image as the object PREFIX/<public_id>. budget_seconds: the longest one method may take."""

    def __init__(self, own: ObjectSettings, budget_seconds: float) -> None:
        try:
            import obstore
            import obstore.exceptions
        except ImportError as error:
            raise ConfigurationError("object needs obstore: pip install 'ai-queue-pipeline[object]'") from error
        self._sdk = obstore
        self._budget_seconds = budget_seconds
        self._prefix = own.place[2]
        self._public_url = own.public_url.rstrip("/")
        self._url_lasts = timedelta(seconds=own.url_seconds)
        try:
            self._store = _build_store(own, budget_seconds)
            return
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            reason = _reason(error)
        # Outside of the except block: what is raised in there carries obstore's own error along.
        raise ConfigurationError(f"PLUGIN_OBJECT_URL: {reason}")

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        """Store the file under its content type; the URL is the public one or signed here and now."""
        key = self._key(public_id)
        file.seek(0)
        return await self._bounded(self._upload(key, file, content_type))

    async def open(self, public_id: str) -> BinaryIO:
        """Return the stored image; FileNotFoundError when there is none, but not when there is no bucket."""
        return io.BytesIO(await self._bounded(self._download(self._key(public_id))))

    async def url(self, public_id: str, seconds: int) -> str:
        """Return the public URL, or one signed now; with a role's credentials signing may have to ask for them."""
        return await self._bounded(self._make_url(self._key(public_id), timedelta(seconds=seconds)))

    async def delete(self, public_id: str) -> None:
        """Remove the image; GCS and Azure call one that is not there an error, we do not."""
        with suppress(FileNotFoundError):
            await self._bounded(self._sdk.delete_async(self._store, self._key(public_id)))

    async def list(self, prefix: str) -> AsyncIterator[StoredImage]:
        """Yield the images whose public_id begins with the prefix; one step has the time of one call."""
        # obstore takes a prefix for a folder: that of "65f0/orig" is "65f0".
        folder = self._prefix + prefix[: prefix.rfind("/") + 1]
        listing = self._sdk.list(self._store, folder or None, chunk_size=LISTED_AT_ONCE)
        while found := await self._bounded(anext(listing, None)):
            for entry in found:
                public_id = entry["path"].removeprefix(self._prefix)
                if public_id.startswith(prefix) and PUBLIC_ID.fullmatch(public_id):
                    yield StoredImage(public_id, entry["last_modified"].astimezone(UTC))

    async def check(self) -> None:
        """Return when the bucket lets us list it; without that right S3 would not tell "gone" from "forbidden"."""
        await self._bounded(self._sdk.list(self._store, self._prefix + PROBED).collect_async())

    async def _upload(self, key: str, file: BinaryIO, content_type: str) -> str:
        # The URL first: when it cannot be had, no image is left behind that nobody knows of.
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
        found = await self._sdk.get_async(self._store, key)
        if (size := found.meta["size"]) > READ_AT_MOST_BYTES:
            raise OSError(f"the object has {size} bytes, more than {READ_AT_MOST_BYTES}")
        return bytes(await found.bytes_async())

    def _key(self, public_id: str) -> str:
        if not PUBLIC_ID.fullmatch(public_id):
            raise ValueError(f"not a public_id: {public_id!r}")
        return self._prefix + public_id

    async def _bounded(self, work: Awaitable[Answer]) -> Answer:
        """Return what the work returns; FileNotFoundError or DependencyUnavailable, without obstore's own error."""
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

    scheme, bucket, _ = own.place
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
    # Credentials go in by a function: as options they would be completed from the environment, by a session token that
    # belongs to other keys, and be readable in the store's configuration.
    if scheme == "az":
        if own.endpoint:
            options["endpoint"] = own.endpoint
        if account:
            options["account_name"] = account
            options["credential_provider"] = lambda: {"access_key": secret, "expires_at": None}
        return AzureStore(bucket, **options)
    if own.endpoint:
        # Not `endpoint`: AWS_ENDPOINT_URL_S3 would win over that.
        options["aws_endpoint_url_s3"] = own.endpoint
    if own.region:
        options["region"] = own.region
    if account:
        credential = {"access_key_id": account, "secret_access_key": secret, "token": None, "expires_at": None}
        options["credential_provider"] = lambda: credential
    # One DELETE for one image: not every S3 knows the request that deletes many.
    return S3Store(bucket, disable_bulk_delete=True, **options)


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def _reason(error: Exception) -> str:
    """Return what happened, without reply bodies, queries of URLs and quoted values: they may hold secrets."""
    text, _, details = str(error).partition("\n\nDebug source:")
    code, clock = re.search(r"<Code>(\w+)</Code>", text), CLOCK_IS_WRONG if SKEWED.search(text) else ""
    text = re.sub(r"(status code: \d{3}[ \w]*).*", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\?\S+", "", re.sub(r'"[^"]*"', '"..."', text))
    hint = code[1] if code else ", ".join(re.findall("dns error|tcp connect error|InvalidCertificate", details))
    text = f"{clock}: {text}" if clock else text or "no answer in time"
    return " ".join(filter(None, (f"{type(error).__name__}:", text, hint and f"({hint})")))
