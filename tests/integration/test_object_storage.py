"""The storage `object` with a real S3 server: what it saves, and the URLs that it returns."""

from __future__ import annotations

import io
import os
import threading
import urllib.request
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast
from urllib.parse import parse_qs, urlsplit

import pytest

from pipeline.plugins import storage_object
from pipeline.hooks import StorageBackend
from pipeline.testing import StorageBackendSuite
from pipeline.texts import cause_of
from pipeline.plugins.storage_object import ObjectSettings, ObjectStorage
from tests.factories import make_image
from tests.integration.object_storages import (
    PUBLIC_ID,
    only_own_settings,
    changed,
    fault_of,
    object_storage,
    own,
    run,
    save,
)
from tests.moto_server import REGION, MotoServer

__all__ = ["only_own_settings", "object_storage", "own"]  # fixtures

WEEK_SECONDS = 604_800
MEGABYTE = 1024 * 1024


class TestObjectStorage(StorageBackendSuite):
    """The built-in storage `object`."""

    @pytest.fixture
    def storage(self, object_storage: ObjectStorage) -> StorageBackend:
        return object_storage


def test_saved_url_gives_the_image_with_its_content_type(moto: MotoServer, object_storage: ObjectStorage) -> None:
    """The URL alone is enough to fetch the saved image."""
    url = save(object_storage, content_type="image/png")
    with moto.unchecked(), urllib.request.urlopen(url, timeout=10) as response:
        assert response.read() == make_image()
        assert response.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize("seconds", [WEEK_SECONDS, 3600])
def test_saved_url_is_signed_for_the_seconds_of_the_settings(own: ObjectSettings, seconds: int) -> None:
    """Amazon's own code makes the same signature, which covers the expiry. (moto checks neither of them.)"""
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    url = save(ObjectStorage(changed(own, url_seconds=seconds), budget_seconds=20))
    signed, _, signature = url.partition("&X-Amz-Signature=")
    query = parse_qs(urlsplit(url).query)
    assert query["X-Amz-Expires"] == [str(seconds)]
    secret = own.secret_access_key.get_secret_value()
    amazon = S3SigV4QueryAuth(
        Credentials(own.access_key_id.get_secret_value(), secret), "s3", REGION, expires=seconds
    )
    request = AWSRequest("GET", signed, headers={"host": urlsplit(url).netloc})
    request.context["timestamp"] = query["X-Amz-Date"][0]
    assert signature == amazon.signature(amazon.string_to_sign(request, amazon.canonical_request(request)), request)


def test_saved_url_begins_with_the_public_url(moto: MotoServer, own: ObjectSettings, bucket: str) -> None:
    """The URL is the public URL with the object's name, and never expires."""
    storage = ObjectStorage(changed(own, public_url="https://cdn.example/photos/"), budget_seconds=20)
    assert save(storage) == f"https://cdn.example/photos/some/prefix/{PUBLIC_ID}"
    assert moto.keys(bucket) == [f"some/prefix/{PUBLIC_ID}"]


@pytest.mark.parametrize(
    "path, prefix",
    [("", ""), ("/", ""), ("/a", "a/"), ("/a/", "a/"), ("/A.b/c_d", "A.b/c_d/"), ("/..a", "..a/")],
)
def test_images_are_stored_under_the_prefix(
    moto: MotoServer, own: ObjectSettings, bucket: str, path: str, prefix: str
) -> None:
    """The prefix is used as written, with or without a slash at its end."""
    storage = ObjectStorage(changed(own, url=f"s3://{bucket}{path}"), budget_seconds=20)
    save(storage)
    assert moto.keys(bucket) == [prefix + PUBLIC_ID]
    assert run(storage.open(PUBLIC_ID)).read() == make_image()


@pytest.mark.parametrize(
    "public_id", ["../escape", "a/../../b", "/etc", "a//b", "", ".check", "A", "a\0b", "a?x", "a\n"]
)
def test_path_that_is_no_public_id_is_refused(object_storage: ObjectStorage, public_id: str) -> None:
    """No id leads out of the prefix or into the query of a URL."""
    for call in (
        lambda: object_storage.save(public_id, io.BytesIO(b"x"), "image/png"),
        lambda: object_storage.open(public_id),
        lambda: object_storage.delete(public_id),
    ):
        with pytest.raises(ValueError, match="not a public_id"):
            run(call())


@pytest.mark.parametrize("megabytes, parts", [(10, 1), (33, 3)])
def test_large_files_are_sent_in_parts(
    moto: MotoServer, object_storage: ObjectStorage, bucket: str, megabytes: int, parts: int
) -> None:
    """A file of an allowed size is one request; a larger file is sent in parts. Both can be read unchanged."""
    content = os.urandom(MEGABYTE) * megabytes
    with SpooledTemporaryFile(max_size=MEGABYTE) as file:
        file.write(content)
        save(object_storage, cast(BinaryIO, file), "image/webp")
    assert run(object_storage.open(PUBLIC_ID)).read() == content
    head = moto.s3.head_object(Bucket=bucket, Key=f"some/prefix/{PUBLIC_ID}")
    # S3 ends the ETag of an object made of parts with their number.
    assert int(head["ETag"].strip('"').partition("-")[2] or 1) == parts
    assert head["ContentType"] == "image/webp"


class RecordingFile(io.BytesIO):
    """A file that records which threads read it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.readers: set[int] = set()

    def read(self, size: int | None = -1) -> bytes:
        self.readers.add(threading.get_ident())
        return super().read(size)


def test_file_is_not_read_on_the_event_loop(object_storage: ObjectStorage) -> None:
    """A slow disk would block all requests of the process."""
    file = RecordingFile(make_image())
    save(object_storage, file)
    assert file.readers and threading.get_ident() not in file.readers


@pytest.mark.fault("U19")
def test_object_larger_than_any_photo_is_not_read(
    object_storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object is stored in memory while it is read, so a too large one is refused."""
    monkeypatch.setattr(storage_object, "READ_AT_MOST_BYTES", 1000)
    save(object_storage, io.BytesIO(bytes(1000)))
    assert run(object_storage.open(PUBLIC_ID)).read() == bytes(1000)
    save(object_storage, io.BytesIO(bytes(1001)))
    error = fault_of(lambda: run(object_storage.open(PUBLIC_ID)))
    assert cause_of(error) == "OSError: OSError: the object has 1001 bytes, more than 1000"
