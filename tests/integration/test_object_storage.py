"""The storage `object` against a real S3 server, and against far ends that break as that one cannot be made to."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import urllib.request
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from pipeline.plugins import storage_object
from pipeline.errors import ConfigurationError, DependencyUnavailable
from pipeline.hooks import StorageBackend
from pipeline.settings import Settings
from pipeline.testing import StorageBackendSuite
from pipeline.texts import cause_of
from pipeline.plugins.storage_object import ObjectSettings, ObjectStorage, register_settings, register_storage_backends
from tests.factories import make_image
from tests.moto_server import REGION, MotoServer
from tests.requirements import require
from tests.slowdown import slowdown

WRONG_SECRET = "c29tZS1vdGhlci1zZWNyZXQ="
WEEK_SECONDS = 604_800
MEGABYTE = 1024 * 1024
PUBLIC_ID = "65f0/original-1a2b3c4d"


@pytest.fixture(autouse=True)
def _only_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No account of whoever runs the tests is used, and obstore is there."""
    require(importlib.util.find_spec("obstore") is not None, "needs obstore")
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def own(moto: MotoServer, bucket: str) -> ObjectSettings:
    """The settings that lead to it."""
    return ObjectSettings(
        url=f"s3://{bucket}/some/prefix",
        endpoint=moto.url,
        access_key_id=SecretStr(moto.access_key_id),
        secret_access_key=SecretStr(moto.secret_access_key),
    )


@pytest.fixture
def object_storage(own: ObjectSettings) -> ObjectStorage:
    """The storage, at that bucket."""
    return ObjectStorage(own, budget_seconds=20)


class TestObjectStorage(StorageBackendSuite):
    """The built-in storage `object`."""

    @pytest.fixture
    def storage(self, object_storage: ObjectStorage) -> StorageBackend:
        return object_storage


def run(work: Awaitable[Any]) -> Any:
    """Return the result of the work, on a loop of its own."""

    async def awaited() -> Any:
        return await work

    return asyncio.run(awaited())


def changed(own: ObjectSettings, **values: Any) -> ObjectSettings:
    """Return the settings with some of them different, checked like any."""
    return ObjectSettings(**(dict(own) | values))


def save(storage: ObjectStorage, file: BinaryIO | None = None, content_type: str = "image/jpeg") -> str:
    """Return the URL of an image just saved."""
    return cast(str, run(storage.save(PUBLIC_ID, file or io.BytesIO(make_image()), content_type)))


def calls(storage: ObjectStorage) -> list[Callable[[], Any]]:
    """Return each of the four methods as a call."""
    return [
        lambda: run(storage.check()),
        lambda: save(storage),
        lambda: run(storage.open(PUBLIC_ID)),
        lambda: run(storage.delete(PUBLIC_ID)),
    ]


def fault_of(call: Callable[[], Any]) -> DependencyUnavailable:
    """Return the error of a call to a storage that is not usable."""
    with pytest.raises(DependencyUnavailable, match="^Image storage unavailable$") as caught:
        call()
    return caught.value


@contextmanager
def answering(status: int, body: str = "", **headers: str) -> Iterator[tuple[str, list[str]]]:
    """Run a server that answers every request alike; yield its address and the methods it was asked with."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_saved_url_gives_the_image_with_its_content_type(moto: MotoServer, object_storage: ObjectStorage) -> None:
    """Whoever has the URL, and nothing else, gets what was saved."""
    url = save(object_storage, content_type="image/png")
    with moto.unchecked(), urllib.request.urlopen(url, timeout=10) as response:
        assert response.read() == make_image()
        assert response.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize("seconds", [WEEK_SECONDS, 3600])
def test_saved_url_is_signed_for_as_long_as_the_settings_say(own: ObjectSettings, seconds: int) -> None:
    """The signature, made again by Amazon's own code, is the same, and covers the expiry; moto checks neither."""
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


def test_saved_url_is_the_public_one_when_there_is_one(moto: MotoServer, own: ObjectSettings, bucket: str) -> None:
    """It is made of the public URL and the object's name, and holds nothing that expires."""
    storage = ObjectStorage(changed(own, public_url="https://cdn.example/photos/"), budget_seconds=20)
    assert save(storage) == f"https://cdn.example/photos/some/prefix/{PUBLIC_ID}"
    assert moto.keys(bucket) == [f"some/prefix/{PUBLIC_ID}"]


@pytest.mark.parametrize(
    "path, prefix",
    [("", ""), ("/", ""), ("/a", "a/"), ("/a/", "a/"), ("/A.b/c_d", "A.b/c_d/"), ("/..a", "..a/")],
)
def test_images_lie_under_the_prefix(
    moto: MotoServer, own: ObjectSettings, bucket: str, path: str, prefix: str
) -> None:
    """The prefix is kept as written, with or without a slash behind it."""
    storage = ObjectStorage(changed(own, url=f"s3://{bucket}{path}"), budget_seconds=20)
    save(storage)
    assert moto.keys(bucket) == [prefix + PUBLIC_ID]
    assert run(storage.open(PUBLIC_ID)).read() == make_image()


@pytest.mark.parametrize(
    "public_id", ["../escape", "a/../../b", "/etc", "a//b", "", ".check", "A", "a\0b", "a?x", "a\n"]
)
def test_a_path_that_is_no_public_id_is_refused(object_storage: ObjectStorage, public_id: str) -> None:
    """No id leads out of the prefix or into the query of a URL."""
    for work in (
        lambda: object_storage.save(public_id, io.BytesIO(b"x"), "image/png"),
        lambda: object_storage.open(public_id),
        lambda: object_storage.delete(public_id),
    ):
        with pytest.raises(ValueError, match="not a public_id"):
            run(work())


@pytest.mark.parametrize("megabytes, parts", [(10, 1), (33, 3)])
def test_big_images_go_whole_or_in_parts(
    moto: MotoServer, object_storage: ObjectStorage, bucket: str, megabytes: int, parts: int
) -> None:
    """What the contract allows is one request, larger files are sent in parts; both come back unchanged."""
    content = os.urandom(MEGABYTE) * megabytes
    with SpooledTemporaryFile(max_size=MEGABYTE) as file:
        file.write(content)
        save(object_storage, cast(BinaryIO, file), "image/webp")
    assert run(object_storage.open(PUBLIC_ID)).read() == content
    head = moto.s3.head_object(Bucket=bucket, Key=f"some/prefix/{PUBLIC_ID}")
    # S3 ends the ETag of an object made of parts with their number.
    assert int(head["ETag"].strip('"').partition("-")[2] or 1) == parts
    assert head["ContentType"] == "image/webp"


class Noting(io.BytesIO):
    """A file that notes which threads read it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.readers: set[int] = set()

    def read(self, size: int | None = -1) -> bytes:
        self.readers.add(threading.get_ident())
        return super().read(size)


def test_the_file_is_not_read_on_the_event_loop(object_storage: ObjectStorage) -> None:
    """A slow disk would stop the whole service."""
    file = Noting(make_image())
    save(object_storage, file)
    assert file.readers and threading.get_ident() not in file.readers


@pytest.mark.fault("U19")
def test_an_object_larger_than_any_photo_is_not_read(
    object_storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is all in memory while it is read."""
    monkeypatch.setattr(storage_object, "READ_AT_MOST_BYTES", 1000)
    save(object_storage, io.BytesIO(bytes(1000)))
    assert run(object_storage.open(PUBLIC_ID)).read() == bytes(1000)
    save(object_storage, io.BytesIO(bytes(1001)))
    error = fault_of(lambda: run(object_storage.open(PUBLIC_ID)))
    assert cause_of(error) == "OSError: OSError: the object has 1001 bytes, more than 1000"


def test_a_wrong_secret_is_unavailable_and_told_nowhere(own: ObjectSettings, caplog: pytest.LogCaptureFixture) -> None:
    """The log says what S3 said; the secret shows in no error, log or repr."""
    wrong = changed(own, secret_access_key=SecretStr(WRONG_SECRET))
    storage = ObjectStorage(wrong, budget_seconds=20)
    with caplog.at_level(logging.DEBUG):
        faults = [fault_of(call) for call in calls(storage)]
    assert all("403 Forbidden (SignatureDoesNotMatch)" in str(fault.__cause__) for fault in faults)
    causes = [fault.__cause__ for fault in faults]
    assert WRONG_SECRET not in f"{wrong!r} {storage!r} {vars(storage)!r} {faults!r} {causes!r} {caplog.text}"


def test_a_missing_bucket_is_unavailable_and_not_a_missing_image(own: ObjectSettings) -> None:
    """A job whose image is gone fails for good: a slip of the operator must not look like that."""
    storage = ObjectStorage(changed(own, url="s3://no-such-bucket"), budget_seconds=20)
    assert all("NoSuchBucket" in str(fault_of(call).__cause__) for call in calls(storage))


def test_a_storage_that_cannot_be_reached_is_unavailable(own: ObjectSettings) -> None:
    """A refused connection is repeated, then reported, long before the time is up."""
    storage = ObjectStorage(changed(own, endpoint="http://127.0.0.1:1"), budget_seconds=20)
    started = time.monotonic()
    for call in calls(storage):
        assert "after 2 retries" in (reason := str(fault_of(call).__cause__)) and "tcp connect error" in reason
    assert time.monotonic() - started < 20 * slowdown()


def test_a_storage_that_never_answers_is_given_up_on_in_time(own: ObjectSettings) -> None:
    """Connections are taken and then nothing comes: each method ends with its budget, attempts and all."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        storage = ObjectStorage(changed(own, endpoint=endpoint), budget_seconds=0.4)
        for call in calls(storage):
            started = time.monotonic()
            fault = fault_of(call)
            assert time.monotonic() - started < 2 * slowdown()
            # Ours, or the library's own at the same moment.
            assert re.search("TimeoutError: no answer in time|error sending request", str(fault.__cause__))


LEAKY_REPLY = f"<Error><Code>InternalError</Code><StringToSign>{WRONG_SECRET}</StringToSign></Error>"


def test_a_broken_storage_is_asked_three_times_and_not_quoted(own: ObjectSettings) -> None:
    """S3 and proxies put what they were sent into their replies; of those only the code gets into our errors."""
    with answering(503, LEAKY_REPLY) as (endpoint, asked):
        storage = ObjectStorage(changed(own, endpoint=endpoint), budget_seconds=20)
        for call, method in zip(calls(storage), ("GET", "PUT", "GET", "DELETE"), strict=True):
            fault = fault_of(call)
            assert "503 Service Unavailable (InternalError)" in str(fault.__cause__)
            assert WRONG_SECRET not in str(fault.__cause__)
            # Nor does obstore's own error, which quotes everything, hang on ours.
            assert fault.__context__ is None
            assert asked == [method] * 3
            asked.clear()


@pytest.mark.fault("U11")
@pytest.mark.parametrize(
    ("status", "body", "told", "seconds", "tries"),
    [
        (403, "<Error><Code>RequestTimeTooSkewed</Code></Error>", "the clock of this machine", 5, 1),
        (503, "<Error><Code>SlowDown</Code></Error>", "SlowDown", 30, 3),
        (429, "", "429", 30, 3),
    ],
    ids=["clock", "slow down", "too many"],
)
def test_clock_and_pace_are_told_apart_from_an_outage(
    own: ObjectSettings, status: int, body: str, told: str, seconds: int, tries: int
) -> None:
    """The log names the clock; a storage that is asked too much is asked slowly, and clients come back later."""
    with answering(status, body) as (endpoint, asked):
        storage = ObjectStorage(changed(own, endpoint=endpoint), budget_seconds=20)
        fault = fault_of(calls(storage)[0])
        assert told in str(fault.__cause__)
        assert (fault.retry_after_seconds, len(asked)) == (seconds, tries)


@pytest.mark.parametrize("body", ["404 page not found", "", "<Error><Code>ContainerNotFound</Code></Error>"])
def test_only_a_reply_that_names_the_image_means_it_is_gone(own: ObjectSettings, body: str) -> None:
    """Any server answers 404 to what it does not know."""
    with answering(404, body) as (endpoint, _):
        storage = ObjectStorage(changed(own, endpoint=endpoint), budget_seconds=20)
        for call in calls(storage):
            fault_of(call)


def azure_settings(endpoint: str) -> ObjectSettings:
    """Return settings of an Azure that is reached at this endpoint, "" for the cloud's own."""
    return ObjectSettings(
        url="az://photos/prefix",
        endpoint=endpoint,
        access_key_id=SecretStr("account"),
        secret_access_key=SecretStr(WRONG_SECRET),
    )


def azure_batch(status: str) -> tuple[int, str, str]:
    """Return what Azure answers to a delete, as status, body and content type: a reply within the reply."""
    head = "Content-Type: application/http\r\nContent-ID: 0\r\n"
    return 202, f"--batch\r\n{head}\r\nHTTP/1.1 {status}\r\n\r\n--batch--\r\n", "multipart/mixed; boundary=batch"


@pytest.mark.parametrize("status", ["202 Accepted", "404 The specified blob does not exist."])
def test_azure_delete_bears_repetition(status: str) -> None:
    """To Azure deleting what is not there is an error, to us it is not."""
    code, body, content_type = azure_batch(status)
    with answering(code, body, Content_Type=content_type) as (endpoint, asked):
        run(ObjectStorage(azure_settings(endpoint), budget_seconds=20).delete(PUBLIC_ID))
        assert asked == ["POST"]


@pytest.mark.parametrize(
    "status", ["404 The specified container does not exist.", "403 Server failed to authenticate the request."]
)
def test_azure_delete_that_is_refused_is_unavailable(status: str) -> None:
    """Nor is a refusal taken for a success because the reply around it is one."""
    code, body, content_type = azure_batch(status)
    with answering(code, body, Content_Type=content_type) as (endpoint, _):
        fault_of(lambda: run(ObjectStorage(azure_settings(endpoint), budget_seconds=20).delete(PUBLIC_ID)))


def test_azure_open_of_a_missing_image_raises_file_not_found() -> None:
    """Azure has a word of its own for it."""
    with answering(404, "<Error><Code>BlobNotFound</Code></Error>") as (endpoint, _):
        with pytest.raises(FileNotFoundError):
            run(ObjectStorage(azure_settings(endpoint), budget_seconds=20).open(PUBLIC_ID))


def test_azure_urls_are_signed_with_the_account_key() -> None:
    """The URL leads to the image, in the container of the account, and allows no more than to read it."""
    with answering(201, ETag='"0x8"', Last_Modified="Fri, 26 Jun 2026 23:39:12 GMT") as (endpoint, asked):
        url = save(ObjectStorage(azure_settings(f"{endpoint}/account"), budget_seconds=20))
    assert asked == ["PUT"]
    assert url.startswith(f"{endpoint}/account/photos/prefix/{PUBLIC_ID}?")
    query = parse_qs(urlsplit(url).query)
    lasts = datetime.fromisoformat(query["se"][0]) - datetime.fromisoformat(query["st"][0])
    assert (query["sp"], query["sr"], lasts) == (["r"], ["b"], timedelta(days=7))
    assert len(b64decode(query["sig"][0])) == 32


def test_the_clouds_own_addresses_are_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without an endpoint URLs lead to Azure and Google; Google's credentials are where its own tools look for them."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    account = {
        "type": "service_account",
        "private_key": key.decode(),
        "private_key_id": "1",
        "client_email": "pipeline@example.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    google = ObjectStorage(ObjectSettings(url="gs://photos/prefix"), budget_seconds=20)
    azure = ObjectStorage(azure_settings(""), budget_seconds=20)
    # Signing asks nobody; storing would.
    assert run(signed(google)).startswith(f"https://storage.googleapis.com/photos/{PUBLIC_ID}?X-Goog-Algorithm=")
    assert run(signed(azure)).startswith(f"https://account.blob.core.windows.net/photos/{PUBLIC_ID}?")


async def signed(storage: ObjectStorage) -> str:
    """Return a URL of the store beneath."""
    import obstore

    return await obstore.sign_async(storage._store, "GET", PUBLIC_ID, timedelta(days=7))


def test_the_environment_does_not_mix_into_what_is_set(
    moto: MotoServer, own: ObjectSettings, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, session and endpoint of another account, as a developer's shell or a role leaves them, change nothing."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "other")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_BUCKET", "other")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    url = save(ObjectStorage(changed(own, region=REGION), budget_seconds=20))
    assert moto.keys(bucket) == [f"some/prefix/{PUBLIC_ID}"]
    assert url.startswith(moto.url) and "Security-Token" not in url and f"%2F{REGION}%2F" in url


def test_keys_come_from_the_environment_when_none_are_set(
    moto: MotoServer, own: ObjectSettings, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has AWS's usual variables need not repeat them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret_access_key)
    save(ObjectStorage(ObjectSettings(url=own.url, endpoint=own.endpoint), budget_seconds=20))
    assert moto.keys(bucket) == [f"some/prefix/{PUBLIC_ID}"]


def built(**variables: str) -> ObjectStorage:
    """Return the storage as the pipeline builds it, from PLUGIN_OBJECT_ variables."""
    settings = Settings(storage_timeout_seconds=10).with_plugin_variables(
        {f"PLUGIN_OBJECT_{name}": value for name, value in variables.items()}
    )
    ((name, build),) = register_storage_backends(settings)
    assert (name, ObjectSettings) == next(register_settings())
    return cast(ObjectStorage, build())


def test_settings_reach_the_storage(moto: MotoServer, bucket: str) -> None:
    """PLUGIN_OBJECT_ variables are all it takes."""
    storage = built(
        URL=f"s3://{bucket}",
        ENDPOINT=moto.url,
        ACCESS_KEY_ID=moto.access_key_id,
        SECRET_ACCESS_KEY=moto.secret_access_key,
        PUBLIC_URL="https://cdn.example",
    )
    assert save(storage) == f"https://cdn.example/{PUBLIC_ID}"
    assert storage._budget_seconds == 9


def test_nothing_is_checked_or_imported_before_the_storage_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most services use another storage; who chose this one is told what to install."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    ((_, build),) = register_storage_backends(Settings().with_plugin_variables({"PLUGIN_OBJECT_URL": "s3://photos"}))
    with pytest.raises(ConfigurationError, match=r"pip install 'ai-queue-pipeline\[object\]'"):
        build()


KEYS = {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "c2VjcmV0"}
IN_NETWORK = "http://minio:9000"


@pytest.mark.parametrize(
    "variables, fault",
    [
        ({}, "PLUGIN_OBJECT_URL: Field required"),
        ({"URL": "memory://"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "file:///tmp/photos"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://key:hidden@photos"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos/a/../b"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos/.."}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos//a"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos/a b"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos?a=hidden"}, "PLUGIN_OBJECT_URL: must look like s3://"),
        ({"URL": "s3://photos", "ENDPOINT": "minio:9000"}, "PLUGIN_OBJECT_ENDPOINT: must be an http"),
        ({"URL": "s3://photos", "ENDPOINT": "https://id:hidden@minio"}, "PLUGIN_OBJECT_ENDPOINT: must be an http"),
        ({"URL": "s3://photos", "ENDPOINT": IN_NETWORK}, "PLUGIN_OBJECT_ENDPOINT must be https"),
        ({"URL": "s3://photos", "ENDPOINT": "http://127.0.0.1.example"}, "PLUGIN_OBJECT_ENDPOINT must be https"),
        ({"URL": "s3://photos", "PUBLIC_URL": "http://cdn.example"}, "PLUGIN_OBJECT_PUBLIC_URL: must be https"),
        ({"URL": "s3://photos", "PUBLIC_URL": "https://cdn.example?a=b"}, "PLUGIN_OBJECT_PUBLIC_URL: must be https"),
        ({"URL": "s3://photos", "ACCESS_KEY_ID": "hidden"}, "PLUGIN_OBJECT_SECRET_ACCESS_KEY need each other"),
        ({"URL": "s3://photos", "SECRET_ACCESS_KEY": "hidden"}, "PLUGIN_OBJECT_ACCESS_KEY_ID and"),
        ({"URL": "s3://photos", "URL_SECONDS": "604801"}, "PLUGIN_OBJECT_URL_SECONDS: Input should be less than"),
        ({"URL": "s3://photos", "URL_SECONDS": "0"}, "PLUGIN_OBJECT_URL_SECONDS: Input should be greater than"),
        ({"URL": "az://photos", "REGION": "eu"} | KEYS, "PLUGIN_OBJECT_REGION means nothing for az://"),
        ({"URL": "gs://photos", "ENDPOINT": "https://x"} | KEYS, "PLUGIN_OBJECT_ENDPOINT means nothing for gs://"),
        ({"URL": "gs://photos"} | KEYS, "PLUGIN_OBJECT_ACCESS_KEY_ID means nothing for gs://"),
        ({"URL": "az://photos", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "hidden!"}, "_KEY must be base64 for az://"),
        ({"URL": "az://photos"}, "PLUGIN_OBJECT_URL: GenericError: Generic MicrosoftAzure error: Account must be"),
    ],
)
def test_a_setting_that_cannot_work_stops_the_start(variables: dict[str, str], fault: str) -> None:
    """The message names the variable and repeats no value."""
    with pytest.raises(ConfigurationError) as caught:
        built(**variables)
    assert fault in caught.value.message and "hidden" not in caught.value.message


@pytest.mark.parametrize(
    "variables",
    [
        {"ENDPOINT": IN_NETWORK, "PUBLIC_URL": "https://cdn.example"},
        {"ENDPOINT": IN_NETWORK, "PUBLIC_URL": "http://localhost:9000/photos"},
        {"ENDPOINT": "http://localhost:9000"},
        {"ENDPOINT": "https://minio:9000/path"},
    ],
)
def test_plain_http_is_allowed_where_no_job_gets_it(variables: dict[str, str]) -> None:
    """A MinIO in a network of one's own needs no certificate if images are fetched elsewhere."""
    assert built(URL="s3://photos", **KEYS, **variables)


@pytest.mark.parametrize("key", ["hidden", '"hidden"', '{"private_key": "hidden"}', '{"private_key": "hidden'])
def test_credentials_that_cannot_be_read_are_not_repeated(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Google's key may be in the environment as a whole; a slip in it does not put it into the log."""
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", key)
    with pytest.raises(ConfigurationError, match="PLUGIN_OBJECT_URL: GenericError") as caught:
        built(URL="gs://photos")
    assert "hidden" not in caught.value.message and caught.value.__context__ is None
