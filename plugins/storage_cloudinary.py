"""The storages `cloudinary` and `cloudinary_private`: images at Cloudinary, through its SDK.

The first stores them as Cloudinary's type `upload`: every client with the URL can see the image, for ever. The second
stores them as type `authenticated`, and their URLs expire. To Cloudinary these are two name spaces, so they are two
storages here: an image is read, shown and removed by the storage that saved it, whichever is current.

Plain `def` methods, which run in threads; `url` is `async def`, because it only computes.

The SDK blocks, tries once, waits for ever and has a global configuration. So each call here passes its own account and
timeouts, and is retried within its time budget.
"""

from __future__ import annotations

import io
import json
import math
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import parse_qs, unquote, urlsplit

import urllib3

from pipeline.errors import ConfigurationError, DependencyUnavailable, PipelineError, ValidationError
from pipeline.hooks import StorageBackend, StoredImage, hookimpl, retry_after_of, utc_now
from pipeline.hooks.storage_protocol import READ_AT_MOST_BYTES

if TYPE_CHECKING:
    from pipeline.settings import Settings

ATTEMPTS = 3
BACKOFF_SECONDS = 0.25
CONNECT_SECONDS = 3.0
# A retry with less time than this would only fail later.
LEAST_SECONDS = 0.5
# Small plans allow 500 calls an hour, pings included; /readyz is called every few seconds.
CHECK_SECONDS = 60.0
# The most images in one reply of the Admin API.
LISTED_AT_ONCE = 500
PIECE_BYTES = 1024 * 1024
UNAVAILABLE = "Image storage unavailable"
# In Cloudinary's errors about an image that it refuses. Every other 400 is about our request (a signature, an upload
# preset, the account, the clock), so the user who uploaded the image must not get it.
IMAGE_FAULT = re.compile(
    r"invalid image file|file size too large|megapixels|image dimensions|unsupported (image|file)|empty file|corrupt"
    r"|format \w+ (is )?not (allowed|supported)",
    re.IGNORECASE,
)
STALE = re.compile("stale request", re.IGNORECASE)
CLOCK_IS_WRONG = "the clock of this machine differs from Cloudinary's"
# The delay after a rate limit without a time, and the longest delay that is accepted.
BUSY_SECONDS, LONGEST_BUSY_SECONDS = 5.0, 86_400.0
Answer = TypeVar("Answer")


@hookimpl
def register_storage_backends(settings: Settings) -> Iterator[tuple[str, Callable[[], StorageBackend]]]:
    """Offer `cloudinary` and `cloudinary_private`."""
    # A little under the caller's budget, so that the reason arrives rather than a timeout.
    budget_seconds = settings.storage_timeout_seconds * 0.9
    url = settings.cloudinary_url
    for name, kind in (("cloudinary", CloudinaryStorage), ("cloudinary_private", PrivateCloudinaryStorage)):
        yield name, partial(kind, url.get_secret_value(), budget_seconds, settings.pool_threads)


class CloudinaryStorage:
    """Stores each image under its public_id, resource type image.

    url: cloudinary://KEY:SECRET@CLOUD, optionally with ?upload_prefix= and &signature_algorithm=.
    budget_seconds: the longest time of one method, with all its attempts.
    connections: how many stay open.
    """

    # Cloudinary's type of the stored images; of type `upload` the URL in the reply never expires.
    delivery = "upload"

    def __init__(self, url: str, budget_seconds: float, connections: int) -> None:
        self._account = _parse_account(url)
        self._budget_seconds = budget_seconds
        # Not at the top: the import reads the environment and may fail because of it.
        import cloudinary.api
        import cloudinary.api_client.call_api
        import cloudinary.uploader

        self._sdk = cloudinary
        # The SDK's own pools keep one connection, and repeat a failed connect at once whatever the time.
        for module in (cloudinary.uploader, cloudinary.api_client.call_api):
            module._http.connection_pool_kw.update(maxsize=connections, retries=False)
            if not isinstance(module._http, _Connections):
                module._http = _Connections(module._http)
        redirects_only = urllib3.Retry(total=None, connect=0, read=0, redirect=2, status=0, other=0)
        self._downloads = urllib3.PoolManager(maxsize=connections, retries=redirects_only)
        self._checked_until = 0.0
        # Until when Cloudinary's rate limits allow no calls. The Admin API has its own limit, which a ping ignores.
        # No circuit breaker: the reply names the time, and failures do not count.
        self._busy_until = {"upload": 0.0, "admin": 0.0, "ping": 0.0}

    def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        """Upload the file and return its https URL; ValidationError when Cloudinary refuses it as an image."""

        def upload(timeout: urllib3.Timeout) -> str:
            file.seek(0)
            options = {"public_id": public_id, "filename": "image", "overwrite": True, "invalidate": True}
            try:
                reply = self._sdk.uploader.upload(file, **options, **self._options(timeout))
            except self._sdk.exceptions.BadRequest as error:
                if not IMAGE_FAULT.search(str(error)):
                    raise
                raise ValidationError.of("image", "The image storage refused this image") from error
            return str(reply["secure_url"])

        return self._repeat(upload)

    def open(self, public_id: str) -> BinaryIO:
        """Return the original, past the CDN's cache; FileNotFoundError when there is none."""

        def download(timeout: urllib3.Timeout) -> BinaryIO:
            url = self._sdk.utils.private_download_url(public_id, None, **self._options(timeout))
            response = self._downloads.request("GET", url, timeout=timeout, preload_content=False)
            try:
                body = _read(response, cast(float, timeout.total))
            finally:
                response.close()
            if response.status == 404:
                raise FileNotFoundError(public_id)
            if response.status != 200:
                LAST_REPLY.headers = response.headers
                kind = self._sdk.uploader.EXCEPTION_CODES.get(response.status, self._sdk.exceptions.GeneralError)
                raise kind(f"download answered {response.status}{_message_in(body)}")
            return io.BytesIO(body)

        return self._repeat(download)

    def delete(self, public_id: str) -> None:
        """Remove the image, also from the CDN's caches; a missing one is no error."""
        self._repeat(lambda timeout: self._sdk.uploader.destroy(public_id, invalidate=True, **self._options(timeout)))

    def list(self, prefix: str) -> Iterator[StoredImage]:
        """Yield the images whose public_id begins with the prefix, with a call of the Admin API for every 500."""
        options = {"type": self.delivery, "max_results": LISTED_AT_ONCE} | ({"prefix": prefix} if prefix else {})
        while True:
            page = self._repeat(lambda timeout: self._sdk.api.resources(**(self._options(timeout) | options)), "admin")
            for resource in page["resources"]:
                yield StoredImage(resource["public_id"], datetime.fromisoformat(resource["created_at"]))
            if not (cursor := page.get("next_cursor")):
                return
            options = options | {"next_cursor": cursor}

    def check(self) -> None:
        """Return when Cloudinary accepts our account, or did so within the last minute."""

        def ping(timeout: urllib3.Timeout) -> None:
            # The Admin API has an hourly limit of its own, which does not affect uploads.
            with suppress(self._sdk.exceptions.RateLimited):
                self._sdk.api.ping(**self._options(timeout))

        if time.monotonic() >= self._checked_until:
            self._repeat(ping, "ping")
            self._checked_until = time.monotonic() + CHECK_SECONDS

    def close(self) -> None:
        """Close the connections of downloads; the SDK's connections belong to the process."""
        self._downloads.clear()

    def _options(self, timeout: urllib3.Timeout) -> dict[str, Any]:
        return {**self._account, "resource_type": "image", "type": self.delivery, "timeout": timeout}

    def _repeat(self, call: Callable[[urllib3.Timeout], Answer], api: str = "upload") -> Answer:
        """Return the call's answer; retry after temporary errors as long as there is time.

        api: the API whose rate limit applies. While that is used up, nothing is sent.
        """
        errors = self._sdk.exceptions
        if (busy := self._busy_until[api] - time.monotonic()) > 0:
            cause = OSError("Cloudinary's limit of calls is used up")
            raise DependencyUnavailable(UNAVAILABLE, retry_after_seconds=math.ceil(busy)) from cause
        deadline = time.monotonic() + self._budget_seconds
        for attempt in range(1, ATTEMPTS + 1):
            left = deadline - time.monotonic()
            try:
                return call(urllib3.Timeout(connect=min(CONNECT_SECONDS, left), total=left))
            except (FileNotFoundError, PipelineError):
                raise
            except errors.RateLimited as error:
                seconds = _busy_seconds(LAST_REPLY.headers)
                self._busy_until[api] = time.monotonic() + seconds
                raise DependencyUnavailable(UNAVAILABLE, retry_after_seconds=math.ceil(seconds)) from error
            except (errors.BadRequest, errors.AuthorizationRequired, errors.NotAllowed, errors.NotFound) as error:
                cause = OSError(f"{CLOCK_IS_WRONG}: {error}") if STALE.search(str(error)) else error
                raise DependencyUnavailable(UNAVAILABLE) from cause
            # The SDK raises a plain Exception for unknown statuses.
            except Exception as error:
                wait = BACKOFF_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                if attempt == ATTEMPTS or deadline - time.monotonic() < wait + LEAST_SECONDS:
                    raise DependencyUnavailable(UNAVAILABLE) from error
            time.sleep(wait)
        raise AssertionError("unreachable")


class _Connections:
    """The connections of the SDK. Its errors lack the headers of the reply; LAST_REPLY has those of each thread."""

    def __init__(self, connections: urllib3.PoolManager) -> None:
        self._connections = connections
        self.connection_pool_kw = connections.connection_pool_kw

    def request(self, *args: Any, **options: Any) -> urllib3.BaseHTTPResponse:
        """Send a request as the SDK's own connections do."""
        LAST_REPLY.headers = {}
        response = self._connections.request(*args, **options)
        LAST_REPLY.headers = response.headers
        return response


class _LastReply(threading.local):
    headers: Mapping[str, str] = {}


LAST_REPLY = _LastReply()


def _busy_seconds(headers: Mapping[str, str]) -> float:
    """Return how long Cloudinary allows no calls: Retry-After, else until its rate limit is reset."""
    reset = {"Date": headers.get("Date", ""), "Retry-After": headers.get("X-FeatureRateLimit-Reset", "")}
    waits = (retry_after_of(headers), retry_after_of(reset))
    seconds = next((each for each in waits if each is not None), BUSY_SECONDS)
    return min(max(seconds, 1.0), LONGEST_BUSY_SECONDS)


def _read(response: urllib3.BaseHTTPResponse, seconds: float) -> bytes:
    """Return the body of a reply; TimeoutError when it comes too slowly, DependencyUnavailable when it is too large."""
    # urllib3's timeout is for each single read, and a reply may come byte by byte.
    until = time.monotonic() + seconds
    body = bytearray()
    while piece := response.read1(PIECE_BYTES, decode_content=False):
        body += piece
        if len(body) > READ_AT_MOST_BYTES:
            cause = ValueError(f"the download has more than {READ_AT_MOST_BYTES} bytes")
            raise DependencyUnavailable(UNAVAILABLE) from cause
        if time.monotonic() > until:
            raise TimeoutError("the download timed out")
    return bytes(body)


def _message_in(body: bytes) -> str:
    """Return the message in the body of an error, "" when there is none."""
    try:
        return f": {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return ""


class PrivateCloudinaryStorage(CloudinaryStorage):
    """Stores each image so that only a signed URL shows it."""

    delivery = "authenticated"

    async def url(self, public_id: str, seconds: int) -> str:
        """Return a URL at Cloudinary's API that expires after so many seconds.

        URLs of its CDN that expire need a key that only its larger plans have.
        """
        options = {**self._account, "resource_type": "image", "type": self.delivery}
        expires_at = int(utc_now().timestamp()) + seconds
        return str(self._sdk.utils.private_download_url(public_id, None, expires_at=expires_at, **options))


def _parse_account(url: str) -> dict[str, Any]:
    """Return the SDK's options for an account. All options are set, so that none comes from the SDK's global."""
    parts = urlsplit(url)
    if parts.scheme != "cloudinary" or not (parts.hostname and parts.username and parts.password):
        raise ConfigurationError("CLOUDINARY_URL must look like cloudinary://KEY:SECRET@CLOUD")
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return {
        "cloud_name": parts.hostname,
        "api_key": unquote(parts.username),
        "api_secret": unquote(parts.password),
        "upload_prefix": query.get("upload_prefix"),
        "signature_algorithm": query.get("signature_algorithm", "sha1"),
        "signature_version": 2,
        "oauth_token": None,
        "upload_preset": None,
    }
