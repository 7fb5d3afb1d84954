"""The storage `cloudinary` with a fake Cloudinary: what it saves, and how it reads errors and rate limits."""

from __future__ import annotations

import asyncio
import io
import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from pipeline.clock import Clock
from pipeline.plugins import storage_cloudinary
from pipeline.errors import ConfigurationError, DependencyUnavailable, ValidationError
from pipeline.texts import cause_of
from pipeline.plugins.storage_cloudinary import CloudinaryStorage, PrivateCloudinaryStorage
from tests.factories import make_image
from tests.fake_cloudinary import SECRET, FakeCloudinary
from tests.integration.built_in_storages import cloudinary_storage

__all__ = ["cloudinary_storage"]  # fixtures


def test_cloudinary_save_uses_the_public_id_and_returns_its_url(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """The image has exactly the given id. (The fake refuses a wrong signature.)"""
    url = cloudinary_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")
    assert cloudinary.images == {"assets/65f0/original": make_image()}
    assert url == f"{cloudinary.url}/testcloud/image/upload/v1/assets/65f0/original.jpg"


@pytest.mark.parametrize("status", [500, 502, 503], ids=str)
def test_cloudinary_save_is_repeated_after_a_temporary_error(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage, status: int
) -> None:
    """After two failures the third attempt succeeds. The complete file is sent each time."""
    cloudinary.fail(status, times=2)
    cloudinary_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")
    assert cloudinary.images == {"assets/65f0/original": make_image()}
    assert cloudinary.calls == ["upload"] * 3


def test_cloudinary_gives_up_after_three_attempts(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """A Cloudinary that fails three times is unavailable and is not called any more."""
    cloudinary.fail(503, times=9)
    with pytest.raises(DependencyUnavailable):
        cloudinary_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")
    assert cloudinary.calls == ["upload"] * 3


def test_cloudinary_is_checked_once_a_minute_and_its_limit_is_no_outage(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """Readiness is checked often, but the Admin API allows few calls and answers 420 after that."""
    cloudinary.fail(420)
    for _ in range(5):
        cloudinary_storage.check()
    assert cloudinary.calls == ["ping"]


def test_cloudinary_call_ends_within_its_budget(cloudinary: FakeCloudinary) -> None:
    """When Cloudinary does not answer, the call with all its attempts ends within the budget."""
    cloudinary.delay_ms = 60_000
    storage = CloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=1, connections=1)
    with pytest.raises(DependencyUnavailable) as caught:
        storage.check()
    assert "timed out" in str(caught.value.__cause__).lower()
    storage.close()


def test_image_that_cloudinary_refuses_is_an_error_of_the_client(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """The error is a 400 for the field `image`, and the upload is not repeated."""
    with pytest.raises(ValidationError) as caught:
        cloudinary_storage.save("assets/65f0/original", io.BytesIO(b"not an image"), "image/jpeg")
    assert caught.value.details == [{"field": "image", "message": "The image storage refused this image"}]
    assert cloudinary.calls == ["upload"]


@pytest.mark.fault("U11")
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Stale request - reported time is 2026-01-01 10:00:00 +0000 which is more than 1 hour ago", "clock"),
        ("Invalid Signature abc. String to sign - 'public_id=x&timestamp=1'", "Invalid Signature"),
        ("Upload preset must be whitelisted for unsigned uploads", "Upload preset"),
        ("Unknown API key 1234", "Unknown API key"),
        ("Account is disabled", "disabled"),
        ("Invalid transformation parameter - x", "transformation"),
    ],
    ids=["clock", "signature", "preset", "key", "account", "other"],
)
def test_request_that_cloudinary_refuses_is_no_error_of_the_client(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage, message: str, reason: str
) -> None:
    """A 400 that is not about the image is an outage. The cause names the reason. Cloudinary is called once."""
    cloudinary.fail(400, message)
    with pytest.raises(DependencyUnavailable) as caught:
        cloudinary_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")
    assert reason in cause_of(caught.value)
    assert cloudinary.calls == ["upload"]


@pytest.mark.fault("U11")
def test_cloudinary_download_with_a_wrong_clock_names_the_clock(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """The URL of a download is signed with the time, too."""
    cloudinary.fail(400, "Stale request - reported time is 2026-01-01 10:00:00 +0000")
    with pytest.raises(DependencyUnavailable) as caught:
        cloudinary_storage.open("assets/65f0/original")
    assert "the clock of this machine" in cause_of(caught.value)
    assert cloudinary.calls == ["download"]


@pytest.mark.fault("U11")
@pytest.mark.parametrize(
    "message",
    [
        "Invalid image file",
        "File size too large. Got 11000000. Maximum is 10485760. Upgrade your plan to enjoy higher limits",
        "Maximum image size is 25 Megapixels. Requested 40 Megapixels",
        "Image file format ico not allowed",
    ],
    ids=["damaged", "bytes", "pixels", "format"],
)
def test_cloudinary_messages_about_the_image_are_errors_of_the_client(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage, message: str
) -> None:
    """These messages are about the image, so the user can send another one."""
    cloudinary.fail(400, message)
    with pytest.raises(ValidationError):
        cloudinary_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")


def in_an_hour() -> str:
    """Return that instant as an HTTP date."""
    return format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@pytest.mark.fault("U11")
@pytest.mark.parametrize(
    ("status", "headers", "least", "most"),
    [
        (420, {"X-FeatureRateLimit-Reset": "hour"}, 3500, 3601),
        (429, {"X-FeatureRateLimit-Reset": "hour"}, 3500, 3601),
        (429, {"Retry-After": "120"}, 120, 120),
        (429, {"Retry-After": "hour"}, 3500, 3601),
        (420, {}, 5, 5),
        (429, {"Retry-After": "nonsense"}, 5, 5),
        (429, {"Retry-After": "0"}, 1, 1),
    ],
    ids=["420 reset", "429 reset", "seconds", "date", "no header", "nonsense", "at once"],
)
def test_cloudinary_is_not_called_until_its_rate_limit_ends(
    cloudinary: FakeCloudinary,
    cloudinary_storage: CloudinaryStorage,
    status: int,
    headers: dict[str, str],
    least: int,
    most: int,
) -> None:
    """The call is not repeated, and the next call fails at once. Each error gives the seconds to wait."""
    cloudinary.fail(status, "Rate limited", headers={n: in_an_hour() if v == "hour" else v for n, v in headers.items()})
    calls = (
        lambda: cloudinary_storage.save("a/original", io.BytesIO(make_image()), "image/jpeg"),
        lambda: cloudinary_storage.open("a/original"),
    )
    for call in calls if most > 1 else calls[:1]:
        with pytest.raises(DependencyUnavailable) as caught:
            call()
        assert least - 2 <= caught.value.retry_after_seconds <= most
    assert cloudinary.calls == ["upload"]
    # The Admin API has a separate limit.
    cloudinary_storage.check()
    assert list(cloudinary_storage.list("")) == []


@pytest.mark.fault("U11")
def test_cloudinary_over_its_limit_for_lists_is_ready_and_accepts_uploads(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """Over the limit of the Admin API lists fail until its reset. Uploads and the readiness check still work."""
    cloudinary.fail(420, "Rate limited", headers={"X-FeatureRateLimit-Reset": in_an_hour()})
    for _ in range(2):
        with pytest.raises(DependencyUnavailable):
            next(cloudinary_storage.list(""))
    assert cloudinary.calls == ["resources"]
    cloudinary_storage.check()
    cloudinary_storage.save("a/original", io.BytesIO(make_image()), "image/jpeg")


@pytest.mark.fault("U19")
def test_cloudinary_image_larger_than_any_photo_is_not_read(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download of a too large image is ended and not repeated."""
    monkeypatch.setattr(storage_cloudinary, "READ_AT_MOST_BYTES", 1000)
    cloudinary.images |= {"a/fits": bytes(1000), "a/large": bytes(1001)}
    assert cloudinary_storage.open("a/fits").read() == bytes(1000)
    with pytest.raises(DependencyUnavailable) as caught:
        cloudinary_storage.open("a/large")
    assert cause_of(caught.value) == "ValueError: the download has more than 1000 bytes"
    assert cloudinary.calls == ["download"] * 2


def test_cloudinary_image_that_arrives_too_slowly_is_given_up(cloudinary: FakeCloudinary) -> None:
    """The budget is for the complete image: bytes that still arrive do not prolong it."""
    cloudinary.images["a/slow"] = bytes(1000)
    cloudinary.byte_ms = 100
    storage = CloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=1, connections=1)
    with pytest.raises(DependencyUnavailable) as caught:
        storage.open("a/slow")
    assert cause_of(caught.value) == "TimeoutError: the download timed out"
    storage.close()


@pytest.mark.fault("U16")
def test_cloudinary_private_images_have_urls_that_expire(cloudinary: FakeCloudinary) -> None:
    """A URL without signature, an expired one and a changed one show nothing. After a delete no URL shows the image."""
    storage = PrivateCloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=5, connections=1)
    saved = storage.save("a/original", io.BytesIO(make_image()), "image/jpeg")
    assert httpx.get(saved).status_code == 404
    url, expired = (asyncio.run(storage.url("a/original", seconds)) for seconds in (60, -1))
    assert httpx.get(url).content == make_image()
    assert httpx.get(expired).status_code == 404
    assert httpx.get(url.replace("expires_at=1", "expires_at=2")).status_code == 401
    assert SECRET not in url
    storage.delete("a/original")
    assert (httpx.get(url).status_code, cloudinary.private) == (404, {})
    storage.close()


@pytest.mark.fault("R7")
def test_cloudinary_urls_expire_by_service_time(cloudinary: FakeCloudinary, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose clock is behind, a URL would have expired before its user has it."""
    monkeypatch.setattr("pipeline.clock.CLOCK", Clock(wall=lambda: 4e9))
    storage = PrivateCloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=5, connections=1)
    assert "expires_at=4000000060" in asyncio.run(storage.url("a/original", 60))
    storage.close()


def test_cloudinary_with_a_wrong_secret_is_unavailable_and_shows_no_secret(
    cloudinary: FakeCloudinary, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong account is no error of the client. No error, log or repr shows the secret."""
    wrong = cloudinary.cloudinary_url.replace(SECRET, "some-other-secret")
    storage = CloudinaryStorage(wrong, budget_seconds=5, connections=1)
    with caplog.at_level(logging.DEBUG):
        for call in (
            lambda: storage.check(),
            lambda: storage.save("a/original", io.BytesIO(make_image()), "image/jpeg"),
            lambda: storage.delete("a/original"),
            lambda: storage.open("a/original"),
        ):
            with pytest.raises(DependencyUnavailable) as caught:
                call()
            assert "some-other-secret" not in f"{caught.value!r} {caught.value.__cause__!r} {storage!r}"
    assert "some-other-secret" not in caplog.text
    storage.close()


def test_two_cloudinary_storages_have_separate_accounts(cloudinary: FakeCloudinary) -> None:
    """Each storage has its own account, not the global one of the SDK. One that cannot be reached is unavailable."""
    other = CloudinaryStorage("cloudinary://k:s@c?upload_prefix=http://127.0.0.1:1", budget_seconds=1, connections=1)
    storage = CloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=5, connections=1)
    storage.check()
    with pytest.raises(DependencyUnavailable):
        other.check()
    storage.check()
    storage.close()
    other.close()


@pytest.mark.parametrize("url", ["", "https://k:s@c", "cloudinary://k@c", "cloudinary://c"])
def test_cloudinary_url_that_names_no_account_stops_the_start(url: str) -> None:
    """The message shows the right form and not the wrong value, which may contain a secret."""
    with pytest.raises(ConfigurationError, match="cloudinary://KEY:SECRET@CLOUD"):
        CloudinaryStorage(url, budget_seconds=5, connections=1)
