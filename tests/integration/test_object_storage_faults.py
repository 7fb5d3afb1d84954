"""The storage `object` with servers that refuse, hang or fail, and with the protocols of Azure and Google."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from base64 import b64decode
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from pipeline.plugins.storage_object import ObjectSettings, ObjectStorage
from tests.integration.object_storages import (
    PUBLIC_ID,
    WRONG_SECRET,
    only_own_settings,
    server_answering,
    calls,
    changed,
    fault_of,
    own,
    run,
    save,
)
from tests.slowdown import slowdown

__all__ = ["only_own_settings", "own"]  # fixtures


def test_wrong_secret_is_unavailable_and_is_never_shown(own: ObjectSettings, caplog: pytest.LogCaptureFixture) -> None:
    """The cause quotes the answer of S3. No error, log or repr shows the secret."""
    wrong = changed(own, secret_access_key=SecretStr(WRONG_SECRET))
    storage = ObjectStorage(wrong, budget_seconds=20)
    with caplog.at_level(logging.DEBUG):
        faults = [fault_of(call) for call in calls(storage)]
    assert all("403 Forbidden (SignatureDoesNotMatch)" in str(fault.__cause__) for fault in faults)
    causes = [fault.__cause__ for fault in faults]
    assert WRONG_SECRET not in f"{wrong!r} {storage!r} {vars(storage)!r} {faults!r} {causes!r} {caplog.text}"


def test_missing_bucket_is_unavailable_and_not_a_missing_image(own: ObjectSettings) -> None:
    """A job whose image is missing fails for good: a mistake in the settings must not have that effect."""
    storage = ObjectStorage(changed(own, url="s3://no-such-bucket"), budget_seconds=20)
    assert all("NoSuchBucket" in str(fault_of(call).__cause__) for call in calls(storage))


def test_storage_that_cannot_be_reached_is_unavailable(own: ObjectSettings) -> None:
    """A refused connection is tried three times and then reported, long before the budget ends."""
    storage = ObjectStorage(changed(own, endpoint="http://127.0.0.1:1"), budget_seconds=20)
    started = time.monotonic()
    for call in calls(storage):
        assert "after 2 retries" in (reason := str(fault_of(call).__cause__)) and "tcp connect error" in reason
    assert time.monotonic() - started < 20 * slowdown()


def test_storage_that_never_answers_is_given_up_within_the_budget(own: ObjectSettings) -> None:
    """The server accepts connections and sends no answer: each method ends with its budget, repeated calls included."""
    with socket.create_server(("127.0.0.1", 0)) as unanswering:
        endpoint = f"http://127.0.0.1:{unanswering.getsockname()[1]}"
        storage = ObjectStorage(changed(own, endpoint=endpoint), budget_seconds=0.4)
        for call in calls(storage):
            started = time.monotonic()
            fault = fault_of(call)
            assert time.monotonic() - started < 2 * slowdown()
            # The timeout of the storage, or the library's own timeout at the same moment.
            assert re.search("TimeoutError: no answer in time|error sending request", str(fault.__cause__))


LEAKY_REPLY = f"<Error><Code>InternalError</Code><StringToSign>{WRONG_SECRET}</StringToSign></Error>"


def test_failing_storage_is_called_three_times_and_its_reply_is_not_shown(own: ObjectSettings) -> None:
    """S3 and proxies repeat the request in their replies, so an error has only the code of a reply."""
    with server_answering(503, LEAKY_REPLY) as (endpoint, methods):
        storage = ObjectStorage(changed(own, endpoint=endpoint), budget_seconds=20)
        for call, method in zip(calls(storage), ("GET", "PUT", "GET", "DELETE"), strict=True):
            fault = fault_of(call)
            assert "503 Service Unavailable (InternalError)" in str(fault.__cause__)
            assert WRONG_SECRET not in str(fault.__cause__)
            # The error of obstore has the full reply, so it is not the context of this error.
            assert fault.__context__ is None
            assert methods == [method] * 3
            methods.clear()


@pytest.mark.fault("U11")
@pytest.mark.parametrize(
    ("status", "body", "reason", "seconds", "tries"),
    [
        (403, "<Error><Code>RequestTimeTooSkewed</Code></Error>", "the clock of this machine", 5, 1),
        (503, "<Error><Code>SlowDown</Code></Error>", "SlowDown", 30, 3),
        (429, "", "429", 30, 3),
    ],
    ids=["clock", "slow down", "too many"],
)
def test_wrong_clock_and_rate_limit_are_reported_as_such(
    own: ObjectSettings, status: int, body: str, reason: str, seconds: int, tries: int
) -> None:
    """The cause names the clock or the rate limit. After a rate limit clients are asked to wait longer."""
    with server_answering(status, body) as (endpoint, methods):
        storage = ObjectStorage(changed(own, endpoint=endpoint), budget_seconds=20)
        fault = fault_of(calls(storage)[0])
        assert reason in str(fault.__cause__)
        assert (fault.retry_after_seconds, len(methods)) == (seconds, tries)


@pytest.mark.parametrize("body", ["404 page not found", "", "<Error><Code>ContainerNotFound</Code></Error>"])
def test_404_that_does_not_name_the_image_is_unavailable(own: ObjectSettings, body: str) -> None:
    """Any server answers 404 for an unknown path: only a reply about the image proves that it is missing."""
    with server_answering(404, body) as (endpoint, _):
        storage = ObjectStorage(changed(own, endpoint=endpoint), budget_seconds=20)
        for call in calls(storage):
            fault_of(call)


def azure_settings(endpoint: str) -> ObjectSettings:
    """Return settings of an Azure container at this endpoint; "" is the endpoint of the cloud."""
    return ObjectSettings(
        url="az://photos/prefix",
        endpoint=endpoint,
        access_key_id=SecretStr("account"),
        secret_access_key=SecretStr(WRONG_SECRET),
    )


def azure_batch(status: str) -> tuple[int, str, str]:
    """Return Azure's answer to a delete: status, body and content type. The body contains the real reply."""
    head = "Content-Type: application/http\r\nContent-ID: 0\r\n"
    return 202, f"--batch\r\n{head}\r\nHTTP/1.1 {status}\r\n\r\n--batch--\r\n", "multipart/mixed; boundary=batch"


@pytest.mark.parametrize("status", ["202 Accepted", "404 The specified blob does not exist."])
def test_azure_delete_may_be_called_twice(status: str) -> None:
    """For Azure it is an error to delete a missing blob; for a storage it is none."""
    code, body, content_type = azure_batch(status)
    with server_answering(code, body, Content_Type=content_type) as (endpoint, methods):
        run(ObjectStorage(azure_settings(endpoint), budget_seconds=20).delete(PUBLIC_ID))
        assert methods == ["POST"]


@pytest.mark.parametrize(
    "status", ["404 The specified container does not exist.", "403 Server failed to authenticate the request."]
)
def test_azure_delete_that_is_refused_is_unavailable(status: str) -> None:
    """The outer reply is a success, but the refusal inside it is an error."""
    code, body, content_type = azure_batch(status)
    with server_answering(code, body, Content_Type=content_type) as (endpoint, _):
        fault_of(lambda: run(ObjectStorage(azure_settings(endpoint), budget_seconds=20).delete(PUBLIC_ID)))


def test_azure_open_of_a_missing_image_raises_file_not_found() -> None:
    """Azure's code for a missing image is BlobNotFound."""
    with server_answering(404, "<Error><Code>BlobNotFound</Code></Error>") as (endpoint, _):
        with pytest.raises(FileNotFoundError):
            run(ObjectStorage(azure_settings(endpoint), budget_seconds=20).open(PUBLIC_ID))


def test_azure_urls_are_signed_with_the_account_key() -> None:
    """The URL names the image in the container of the account, and allows only to read it."""
    with server_answering(201, ETag='"0x8"', Last_Modified="Fri, 26 Jun 2026 23:39:12 GMT") as (endpoint, methods):
        url = save(ObjectStorage(azure_settings(f"{endpoint}/account"), budget_seconds=20))
    assert methods == ["PUT"]
    assert url.startswith(f"{endpoint}/account/photos/prefix/{PUBLIC_ID}?")
    query = parse_qs(urlsplit(url).query)
    validity = datetime.fromisoformat(query["se"][0]) - datetime.fromisoformat(query["st"][0])
    assert (query["sp"], query["sr"], validity) == (["r"], ["b"], timedelta(days=7))
    assert len(b64decode(query["sig"][0])) == 32


def test_addresses_of_the_clouds_are_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without an endpoint URLs name Azure and Google. Google's credentials are read from its usual variable."""
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
    # To sign a URL needs no request, to store an image would need one.
    assert run(signed(google)).startswith(f"https://storage.googleapis.com/photos/{PUBLIC_ID}?X-Goog-Algorithm=")
    assert run(signed(azure)).startswith(f"https://account.blob.core.windows.net/photos/{PUBLIC_ID}?")


async def signed(storage: ObjectStorage) -> str:
    """Return a URL that the obstore object of the storage has signed."""
    import obstore

    return await obstore.sign_async(storage._store, "GET", PUBLIC_ID, timedelta(days=7))
