"""Uploads that are repeated with their Idempotency-Key: a refused upload does not use its key, an accepted one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.factories import make_image
from tests.faults.processes import wait_until
from tests.packages import install
from tests.service import AiService, Service

POLICY = """
from pipeline.errors import ValidationError
from pipeline.hooks import hookimpl

@hookimpl
def validate_upload(upload, settings):
    if upload.category == "lego" or (settings.data_dir / "closed").exists():
        raise ValidationError.of("category", "No bricks here")
"""
STORAGE = """
from pipeline.errors import ValidationError
from pipeline.hooks import hookimpl

class Fussy:
    def __init__(self, folder):
        self.folder = folder

    def save(self, public_id, file, content_type):
        if content_type == "image/png":
            raise ValidationError.of("image", "No PNG here")
        path = self.folder / public_id.replace("/", "-")
        path.write_bytes(file.read())
        return "https://images.example/" + public_id

    def open(self, public_id):
        return (self.folder / public_id.replace("/", "-")).open("rb")

    def delete(self, public_id):
        (self.folder / public_id.replace("/", "-")).unlink(missing_ok=True)

    def check(self):
        pass

@hookimpl
def register_storage_backends(settings):
    yield "fussy", lambda: Fussy(settings.data_dir)
"""
KEY = {"Idempotency-Key": "the-same-each-time"}
TOO_MANY_WAIT = "Too many photos are waiting to be processed"


def refusal(reply: httpx.Response) -> str:
    """Return the message with which an upload was refused; IdempotencyKeyReused has another status."""
    assert reply.status_code in (400, 503), reply.text
    message: str = reply.json()["error"]["message"]
    return message


def upload_once_there_is_room(service: Service, **upload: Any) -> httpx.Response:
    """Return the first answer that is not TOO_MANY_WAIT: the service counts the waiting photos from time to time."""

    def ask() -> httpx.Response | None:
        reply = service.upload(**upload)
        return None if reply.status_code == 503 and refusal(reply) == TOO_MANY_WAIT else reply

    reply: httpx.Response = wait_until(ask)
    return reply


@pytest.mark.fault("E15")
@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        ({"category": "lego"}, "No bricks here"),
        ({"image": make_image("PNG")}, "No PNG here"),
    ],
    ids=["filter", "storage"],
)
def test_refused_upload_is_accepted_once_it_is_corrected(
    tmp_path: Path, ai_service: AiService, faulty: dict[str, Any], message: str
) -> None:
    """A filter or the storage refused it; the key then belongs to the accepted upload."""
    packages = install(tmp_path / "packages", policy=POLICY, fussy=STORAGE)
    with Service(tmp_path / "data", ai_service.url, STORAGE_BACKEND="fussy", **packages) as service:
        for _ in range(2):
            assert refusal(service.upload(headers=KEY, **faulty)) == message
        accepted = service.upload(headers=KEY)
        assert accepted.status_code == 202, accepted.text
        assert service.upload(headers=KEY).json() == accepted.json()
        assert service.upload(headers=KEY, **faulty).status_code == 422
        service.wait_log("job_completed")
        images = [path for path in (tmp_path / "data").glob("*original*")]
        assert len(images) == 1, "a refused upload leaves no image"


@pytest.mark.fault("E15")
def test_upload_refused_for_a_full_queue_may_be_another_photo(tmp_path: Path, ai_service: AiService) -> None:
    """503 with Retry-After is a refusal too: the client may send another photo with its key."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url, MAX_BACKLOG="1", CONCURRENCY="1") as service:
        service.upload()
        service.wait_log("job_claimed")
        service.upload()
        assert refusal(service.upload(headers=KEY)) == TOO_MANY_WAIT
        ai_service.configure(paused=False)
        service.wait_status(completed=2)
        corrected = upload_once_there_is_room(service, headers=KEY, image=make_image(seed=1))
        assert corrected.status_code == 202, corrected.text


@pytest.mark.fault("E15")
def test_answer_is_repeated_although_the_upload_would_be_refused_now(tmp_path: Path, ai_service: AiService) -> None:
    """A client that lost its 202 gets it for the same key, although a filter or a full queue would refuse."""
    ai_service.configure(paused=True)
    packages = install(tmp_path / "packages", policy=POLICY)
    with Service(tmp_path / "data", ai_service.url, MAX_BACKLOG="1", CONCURRENCY="1", **packages) as service:
        service.upload()
        service.wait_log("job_claimed")
        accepted = service.upload(headers=KEY)
        assert refusal(service.upload()) == TOO_MANY_WAIT
        assert service.upload(headers=KEY).json() == accepted.json()
        (tmp_path / "data" / "closed").touch()
        ai_service.configure(paused=False)
        service.wait_status(completed=2)
        assert refusal(upload_once_there_is_room(service)) == "No bricks here"
        assert service.upload(headers=KEY).json() == accepted.json()
