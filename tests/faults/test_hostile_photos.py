"""Photos whose decoding hangs, needs too much memory or crashes: the real service fails each of them alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.factories import make_image
from tests.faults.chaos.world import children_of
from tests.requirements import require
from tests.slowdown import slowdown
from tests.pictures import empty_webp, encode, endless_jpeg, many_items
from tests.service import Service

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
# With KEEP_METADATA the upload is accepted; libavif then compares each of its items with each, for a minute.
ENDLESS = many_items(b"avif", 150_000)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service with the provider `local`, whose calls have sixteen seconds.

    It keeps metadata: without it, the endless photo would be decoded at once.
    """
    require(find_spec("rapidocr") is not None, "the extra [local] is not installed")
    with Service(tmp_path / "data", PROVIDER_TIMEOUT_SECONDS="16", KEEP_METADATA="true") as service:
        yield service


def send(service: Service, image: bytes, sub: str = "ann", category: str = "camera") -> str:
    """Upload the photo and return its asset's id."""
    reply = service.upload(sub, category=category, image=image)
    assert reply.status_code == 202, reply.text
    asset_id: str = reply.json()["data"]["assetId"]
    return asset_id


def wait(service: Service, asset_id: str, sub: str = "ann") -> dict[str, Any]:
    """Return the asset once it is finished."""
    service.wait_log("asset_finished", assetId=asset_id)
    return service.asset(asset_id, sub)


def most_megabytes(service: Service) -> int:
    """Return the most memory that the service process, without its children, has ever had."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{service.pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) // 1024


@pytest.mark.fault("E2")
def test_blank_photos_are_partial_in_seconds(service: Service) -> None:
    """Pictures of one colour, for which the cut-out of OpenCV never ended, get a result, and so do other photos."""
    blank = [Image.new("RGB", (400, 200), "white"), Image.new("RGB", (128, 64), "red")]
    started_at = time.monotonic()
    ids = [send(service, encode(image, "PNG")) for image in blank]
    good = send(service, make_image(size=(640, 480)), "bob")
    assert [wait(service, asset_id)["status"] for asset_id in ids] == ["partial", "partial"]
    assert wait(service, good, "bob")["status"] in ("active", "partial")
    assert time.monotonic() - started_at < 30 * slowdown()
    assert service.find("sandbox_child_ended") == [] and service.find("job_retrying") == []


@pytest.mark.fault("E3")
@pytest.mark.fault("E4")
@pytest.mark.parametrize(
    ("image", "reason"),
    [(endless_jpeg(), "Must have at most 250 scans at this size"), (empty_webp(), "Needs 1711 MB of memory")],
    ids=["E3", "E4"],
)
def test_photo_that_costs_too_much_is_refused_at_the_upload(service: Service, image: bytes, reason: str) -> None:
    """The client gets 400 at once, with the reason in words."""
    reply = service.upload(image=image)
    assert reply.status_code == 400
    (detail,) = reply.json()["error"]["details"]
    assert detail["field"] == "image" and detail["message"].startswith(reason)


@LINUX
@pytest.mark.fault("E4")
def test_small_files_of_large_pictures_do_not_grow_the_service(service: Service) -> None:
    """Fifty megapixels in a thousand bytes are decoded in a child; the memory of the service process stays the same."""
    wait(service, send(service, make_image()))
    before = most_megabytes(service)
    large = [encode(Image.new("RGB", (10_000, 5_000), "white"), format) for format in ("AVIF", "PNG")]
    assert [wait(service, send(service, image))["status"] for image in large] == ["partial", "partial"]
    assert most_megabytes(service) - before < 60
    assert service.find("sandbox_child_ended") == []


@LINUX
@pytest.mark.fault("E3")
def test_endless_photo_fails_alone_and_thirty_good_ones_finish(service: Service) -> None:
    """A photo whose decoding does not end fails after two attempts, with the reason, and its child is ended.

    Photos that came at the same time and later spend one attempt each.
    """
    endless = send(service, ENDLESS, "eve")
    meanwhile = [send(service, make_image(seed=number), "bob") for number in range(3)]
    found = wait(service, endless, "eve")
    assert (found["status"], found["aiMetadata"]["error"]) == (
        "failed",
        "Reading the photo takes too long after 2 attempts",
    )
    assert {line["why"] for line in service.find("sandbox_child_ended")} <= {"time", "cpu"}
    after = [send(service, make_image(seed=number), "bob") for number in range(30)]
    assert {wait(service, asset_id, "bob")["status"] for asset_id in meanwhile + after} <= {"active", "partial"}
    assert {line["assetId"] for line in service.find("job_retrying")} == {endless}


@LINUX
def test_killed_children_cost_no_photo(service: Service) -> None:
    """After a kill of the children, idle or at work, new ones are started and all photos finish."""
    wait(service, send(service, make_image()))
    for number in range(3):
        ids = [send(service, make_image(size=(1600, 1200), seed=number)) for _ in range(2)]
        if number:
            service.wait_log("job_claimed", assetId=ids[0])
        for pid in children_of(service.pid):
            os.kill(pid, signal.SIGKILL)
        assert {wait(service, asset_id)["status"] for asset_id in ids} <= {"active", "partial"}


@LINUX
def test_children_end_with_the_service(service: Service) -> None:
    """After SIGTERM, and after kill -9 in the middle of a photo, no child is left."""
    send(service, ENDLESS)
    service.wait_log("job_claimed")
    while not (busy := children_of(service.pid)):
        time.sleep(0.01)  # no signal announces the start of a child
    service.kill()
    service.start()
    service.wait_log("job_claimed")
    while not (busy_after_restart := children_of(service.pid)):
        time.sleep(0.01)
    service.stop()
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in busy + busy_after_restart):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # they are not children of this process, so it cannot wait for them


def is_alive(pid: int) -> bool:
    """True for a process that is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
