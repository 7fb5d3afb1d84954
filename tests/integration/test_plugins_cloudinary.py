"""The storage `cloudinary` with a fake Cloudinary: what it sends, refuses and repeats."""

from __future__ import annotations

import asyncio
import io
import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from pipeline.plugins import storage_cloudinary
from pipeline.errors import ConfigurationError, DependencyUnavailable, ValidationError
from pipeline.texts import cause_of
from pipeline.plugins.storage_cloudinary import CloudinaryStorage, PrivateCloudinaryStorage
from tests.factories import make_image
from tests.fake_cloudinary import SECRET, FakeCloudinary
from tests.integration.own_storages import cloudinary_storage

__all__ = ["cloudinary_storage"]  # fixtures


def test_cloudinary_save_keeps_the_public_id_and_returns_its_url(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """The image lies under exactly our id; a wrong signature would have been refused."""
    url = cloudinary_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")
    assert cloudinary.images == {"assets/65f0/original": make_image()}
    assert url == f"{cloudinary.url}/testcloud/image/upload/v1/assets/65f0/original.jpg"


@pytest.mark.parametrize("status", [500, 502, 503], ids=str)
def test_cloudinary_repeats_after_an_error_that_may_pass(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage, status: int
) -> None:
    """Two failures cost time, not the upload; the file is sent whole each time."""
    cloudinary.fail(status, times=2)
    cloudinary_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")
    assert cloudinary.images == {"assets/65f0/original": make_image()}
    assert cloudinary.calls == ["upload"] * 3


def test_cloudinary_gives_up_after_three_attempts(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """A Cloudinary that stays broken is unavailable, and is not hammered."""
    cloudinary.fail(503, times=9)
    with pytest.raises(DependencyUnavailable):
        cloudinary_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")
    assert cloudinary.calls == ["upload"] * 3


def test_cloudinary_is_checked_once_a_minute_and_its_limit_is_no_outage(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """Readiness asks often; the Admin API allows few calls and says 420 to more."""
    cloudinary.fail(420)
    for _ in range(5):
        cloudinary_storage.check()
    assert cloudinary.calls == ["ping"]


def test_cloudinary_stays_in_its_time_budget(cloudinary: FakeCloudinary) -> None:
    """A Cloudinary that does not answer is given up on within the budget, attempts and all."""
    cloudinary.delay_ms = 60_000
    storage = CloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=1, connections=1)
    with pytest.raises(DependencyUnavailable) as caught:
        storage.check()
    assert "timed out" in str(caught.value.__cause__).lower()
    storage.close()


def test_cloudinary_that_cannot_be_reached_is_unavailable() -> None:
    """A refused connection is repeated, then reported."""
    storage = CloudinaryStorage("cloudinary://k:s@c?upload_prefix=http://127.0.0.1:1", budget_seconds=5, connections=1)
    with pytest.raises(DependencyUnavailable):
        storage.check()
    storage.close()


def test_cloudinary_refusing_the_image_is_the_clients_error_and_not_repeated(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """What Cloudinary takes for no image is a 400 for the field `image`."""
    with pytest.raises(ValidationError) as caught:
        cloudinary_storage.save("assets/65f0/original", io.BytesIO(b"not an image"), "image/jpeg")
    assert caught.value.details == [{"field": "image", "message": "The image storage refused this image"}]
    assert cloudinary.calls == ["upload"]


@pytest.mark.fault("U11")
@pytest.mark.parametrize(
    ("message", "told"),
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
def test_cloudinary_refusing_our_request_is_not_the_clients_error(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage, message: str, told: str
) -> None:
    """A 400 that is not about the image is an outage; what the log shows names the reason. It is asked once."""
    cloudinary.fail(400, message)
    with pytest.raises(DependencyUnavailable) as caught:
        cloudinary_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")
    assert told in cause_of(caught.value)
    assert cloudinary.calls == ["upload"]


@pytest.mark.fault("U11")
def test_cloudinary_tells_of_the_clock_also_when_it_gives_no_image(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """The address of a download is signed with the time as well."""
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
def test_cloudinary_refusing_the_image_says_so(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage, message: str
) -> None:
    """These are about the image: the person who sent it can send another one."""
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
    ids=["420 reset", "429 reset", "seconds", "date", "nothing told", "nonsense", "at once"],
)
def test_cloudinary_is_left_alone_for_as_long_as_it_says(
    cloudinary: FakeCloudinary,
    cloudinary_storage: CloudinaryStorage,
    status: int,
    headers: dict[str, str],
    least: int,
    most: int,
) -> None:
    """Neither tried three times in a second nor asked by the next call; who is turned away is told how long."""
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
    # The Admin API has another limit.
    cloudinary_storage.check()
    assert list(cloudinary_storage.list("")) == []


@pytest.mark.fault("U11")
def test_cloudinary_without_calls_left_for_lists_is_ready_and_takes_uploads(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage
) -> None:
    """The Admin API's limit ends lists until its reset; uploads and readiness go on."""
    cloudinary.fail(420, "Rate limited", headers={"X-FeatureRateLimit-Reset": in_an_hour()})
    for _ in range(2):
        with pytest.raises(DependencyUnavailable):
            next(cloudinary_storage.list(""))
    assert cloudinary.calls == ["resources"]
    cloudinary_storage.check()
    cloudinary_storage.save("a/original", io.BytesIO(make_image()), "image/jpeg")


@pytest.mark.fault("U19")
def test_cloudinary_image_without_end_does_not_fill_the_memory(
    cloudinary: FakeCloudinary, cloudinary_storage: CloudinaryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is larger than any photo is not read to its end, and not asked for again."""
    monkeypatch.setattr(storage_cloudinary, "READ_AT_MOST_BYTES", 1000)
    cloudinary.images |= {"a/fits": bytes(1000), "a/large": bytes(1001)}
    assert cloudinary_storage.open("a/fits").read() == bytes(1000)
    with pytest.raises(DependencyUnavailable) as caught:
        cloudinary_storage.open("a/large")
    assert cause_of(caught.value) == "ValueError: the download has more than 1000 bytes"
    assert cloudinary.calls == ["download"] * 2


def test_cloudinary_image_that_comes_byte_by_byte_is_given_up_on(cloudinary: FakeCloudinary) -> None:
    """The budget is for the whole image, or its thread would never come free."""
    cloudinary.images["a/slow"] = bytes(1000)
    cloudinary.byte_ms = 100
    storage = CloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=1, connections=1)
    with pytest.raises(DependencyUnavailable) as caught:
        storage.open("a/slow")
    assert cause_of(caught.value) == "TimeoutError: the download timed out"
    storage.close()


@pytest.mark.fault("U16")
def test_cloudinary_private_images_are_shown_by_urls_that_end(cloudinary: FakeCloudinary) -> None:
    """Each request makes its own; nothing shows the image without a signature, and deleted it is gone."""
    storage = PrivateCloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=5, connections=1)
    saved = storage.save("a/original", io.BytesIO(make_image()), "image/jpeg")
    assert httpx.get(saved).status_code == 404
    url, over = (asyncio.run(storage.url("a/original", seconds)) for seconds in (60, -1))
    assert httpx.get(url).content == make_image()
    assert httpx.get(over).status_code == 404
    assert httpx.get(url.replace("expires_at=1", "expires_at=2")).status_code == 401
    assert SECRET not in url
    storage.delete("a/original")
    assert (httpx.get(url).status_code, cloudinary.private) == (404, {})
    storage.close()


def test_cloudinary_with_a_wrong_secret_is_unavailable_and_tells_no_secret(
    cloudinary: FakeCloudinary, caplog: pytest.LogCaptureFixture
) -> None:
    """Our account being wrong is not the client's fault; the secret shows in no error, log or repr."""
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


def test_two_cloudinary_accounts_do_not_see_each_other(cloudinary: FakeCloudinary) -> None:
    """The account is the storage's own, not the SDK's global one."""
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
    """The message says what it should look like, and not what it was: it may hold a secret."""
    with pytest.raises(ConfigurationError, match="cloudinary://KEY:SECRET@CLOUD"):
        CloudinaryStorage(url, budget_seconds=5, connections=1)
