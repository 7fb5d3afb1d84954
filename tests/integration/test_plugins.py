"""Our own plugins pass the suites plugin authors get, against real servers and files; then what is theirs alone."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest

from pipeline.plugins import storage_cloudinary
from pipeline.plugins.storage_local.durable_files import INCOMING
from pipeline.errors import ConfigurationError, DependencyUnavailable, ValidationError
from pipeline.handlers.multipart import MultipartReader
from pipeline.hooks import AIProvider, NewImage, Notification, Notifier, StorageBackend
from pipeline.testing import AIProviderSuite, Call, NotifierSuite, StorageBackendSuite
from pipeline.texts import cause_of
from pipeline.plugins.ai_http import HttpProvider
from pipeline.plugins.storage_cloudinary import CloudinaryStorage, PrivateCloudinaryStorage
from pipeline.plugins.storage_local import LocalStorage
from tests.factories import make_image, make_upload
from tests.fake_cloudinary import SECRET, FakeCloudinary
from tests.requirements import require


@pytest.fixture(scope="module")
def ai_service_url() -> Iterator[str]:
    """A fake AI service in a process of its own."""
    command = [sys.executable, "-m", "tests.fake_ai_service", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture
def cloudinary_storage(cloudinary: FakeCloudinary) -> Iterator[CloudinaryStorage]:
    """The storage, at that Cloudinary."""
    storage = CloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=5, connections=16)
    yield storage
    storage.close()


@pytest.fixture
def local_storage(tmp_path: Path) -> LocalStorage:
    """The storage, in an empty folder."""
    return LocalStorage(tmp_path / "media", "http://127.0.0.1:8080")


class TestHttpProvider(AIProviderSuite):
    """The built-in provider `http`."""

    @pytest.fixture
    def provider(self, ai_service_url: str) -> AIProvider:
        return HttpProvider(ai_service_url, "imageUrl")


class TestLocalStorage(StorageBackendSuite):
    """The built-in storage `local`."""

    @pytest.fixture
    def storage(self, local_storage: LocalStorage) -> StorageBackend:
        return local_storage


class TestCloudinaryStorage(StorageBackendSuite):
    """The built-in storage `cloudinary`."""

    @pytest.fixture
    def storage(self, cloudinary_storage: CloudinaryStorage) -> StorageBackend:
        return cloudinary_storage

    def test_url_shows_the_saved_bytes(self, storage: StorageBackend, call: Call) -> None:
        """It has no `url`: what `save` returns lasts. The suite's own test would skip, which CI takes for a failure."""
        assert not hasattr(storage, "url")


class TestPrivateCloudinaryStorage(StorageBackendSuite):
    """The built-in storage `cloudinary_private`."""

    @pytest.fixture
    def storage(self, cloudinary: FakeCloudinary) -> StorageBackend:
        return PrivateCloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=5, connections=16)

    def fetch(self, url: str) -> bytes | None:
        return httpx.get(url).raise_for_status().content


class Publishing:
    """The smallest notifier, as an author may write it: asynchronous."""

    async def notify(self, notification: Notification) -> None:
        await notification.rooms.publish(f"user:{notification.user_id}", notification.event)


class Counting:
    """The same, plain, with batches and a close method."""

    calls = 0

    def notify(self, notification: Notification) -> None:
        self.calls += 1

    def notify_many(self, notifications: Sequence[Notification]) -> Sequence[str]:
        self.calls += len(notifications)
        return [f"number {self.calls}" for _ in notifications]

    def close(self) -> None:
        self.calls = 0


class TestPublishingNotifier(NotifierSuite):
    """An asynchronous notifier passes the suite."""

    @pytest.fixture
    def notifier(self) -> Notifier:
        return Publishing()


class TestCountingNotifier(NotifierSuite):
    """A plain one too."""

    @pytest.fixture
    def notifier(self) -> Notifier:
        return Counting()


FAULTY_PLUGINS = """
    import pytest
    from pipeline.hooks import Analysis, Attribute
    from pipeline.testing import AIProviderSuite, NotifierSuite, StorageBackendSuite

    class Routed:
        def register_routes(self, routes): routes.add("GET", "/{id}", self.show)
        def show(self, request):
            assert request.path_params["id"] != "../" * 12 + "etc/passwd"
            assert request.user_id != "user-4"

    class TestProvider(AIProviderSuite):
        @pytest.fixture
        def provider(self):
            class Overconfident(Routed):
                max_concurrency = -1
                def check(self): return False
                def analyze(self, request):
                    if request.image == b"not an image":
                        raise ValueError("a stray error")
                    return Analysis(brand=Attribute("Nike", 93))
            return Overconfident()

    class TestStorage(StorageBackendSuite):
        @pytest.fixture
        def storage(self):
            class Forgetful(Routed):
                def save(self, public_id, file, content_type): return "/media/x"
                def open(self, public_id): raise KeyError(public_id)
                def delete(self, public_id): raise KeyError(public_id)
                def check(self): return True
                def list(self, prefix): return ["suite/65f5/original-1"]
                def url(self, public_id, seconds): return "/media/x"
                def save_many(self, images): return "/media/x"
            return Forgetful()

    class TestNotifier(NotifierSuite):
        @pytest.fixture
        def notifier(self):
            class Gossip(Routed):
                def check(self): return False
                def notify_many(self, notifications): return []
                async def notify(self, notification):
                    assert notification.user_id != "user-19"
                    notification.event["seen"] = True
                    await notification.rooms.publish("user:everybody", notification.event)
            return Gossip()
"""


def test_every_test_of_the_suites_can_fail(tmp_path: Path) -> None:
    """Plugins that break each promise fail each test, without Redis, MongoDB or Tornado being there."""
    absent = "import sys\nfor name in ('redis', 'motor', 'pymongo', 'tornado'): sys.modules[name] = None\n"
    (tmp_path / "test_faulty.py").write_text(absent + textwrap.dedent(FAULTY_PLUGINS))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:tornado", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout.splitlines()[-1].startswith("30 failed in"), run.stdout[-2000:]


def test_local_save_takes_over_a_file_without_a_name(local_storage: LocalStorage, tmp_path: Path) -> None:
    """A large upload on the same disk is not copied; a file that has a name is, and so is what was saved before."""
    require(sys.platform == "linux", "only Linux can give an open file a name")
    body, content_type = make_upload(bytes(500_000))
    reader = MultipartReader(content_type, wanted=(), max_image_bytes=10**6, folder=tmp_path)
    reader.feed(body)
    image = reader.finish().image
    assert image is not None
    for public_id, is_same in (("a/1", True), ("a/2", False)):
        local_storage.save(public_id, image, "image/png")
        stored = local_storage.media_root / f"{public_id}.png"
        assert stored.read_bytes() == bytes(500_000)
        assert (stored.stat().st_ino == os.fstat(image.fileno()).st_ino) is is_same
    with (local_storage.media_root / "a/1.png").open("rb") as named:
        local_storage.save("a/3", named, "image/png")
    assert (local_storage.media_root / "a/3.png").stat().st_nlink == 1
    reader.close()


def test_local_save_names_the_file_by_its_content_type(local_storage: LocalStorage) -> None:
    """The URL ends in the extension /media needs to answer with the right Content-Type."""
    url = local_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")
    assert url == "http://127.0.0.1:8080/media/assets/65f0/original.jpg"
    assert (local_storage.media_root / "assets/65f0/original.jpg").read_bytes() == make_image()


def test_local_save_of_another_type_leaves_one_file(local_storage: LocalStorage) -> None:
    """Replacing a PNG by a JPEG removes the PNG, or open would not know which to return."""
    local_storage.save("assets/65f0/original", io.BytesIO(b"png"), "image/png")
    local_storage.save("assets/65f0/original", io.BytesIO(b"jpeg"), "image/jpeg")
    assert [path.name for path in (local_storage.media_root / "assets/65f0").iterdir()] == ["original.jpg"]


@pytest.mark.parametrize(
    "public_id", ["../escape", "a/../../b", "/etc/passwd", "a//b", "", ".incoming/x", "A", "a\0b", "a*", "a\n"]
)
def test_local_refuses_a_path_that_is_no_public_id(local_storage: LocalStorage, public_id: str) -> None:
    """No id leads out of the folder or to a hidden file, and no pattern matches other images."""
    local_storage.save("a/original", io.BytesIO(b"kept"), "image/png")
    for attempt in (
        lambda: local_storage.save(public_id, io.BytesIO(b"x"), "image/png"),
        lambda: local_storage.open(public_id),
        lambda: local_storage.delete(public_id),
    ):
        with pytest.raises(ValueError, match="not a public_id"):
            attempt()
    kept = [path for path in local_storage.media_root.parent.rglob("*") if path.is_file()]
    assert kept == [local_storage.media_root / "a/original.png"]


def test_local_delete_removes_empty_folders_but_not_the_root(local_storage: LocalStorage) -> None:
    """Folders of deleted assets do not pile up."""
    local_storage.save("assets/65f0/original", io.BytesIO(b"x"), "image/png")
    local_storage.delete("assets/65f0/original")
    assert [path.name for path in local_storage.media_root.iterdir()] == [".incoming"]


class FullDisk(io.BytesIO):
    """A file whose copy fails half-way, as when the disk is full."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().read(10)


def test_local_save_on_a_full_disk_is_unavailable_and_leaves_nothing(local_storage: LocalStorage) -> None:
    """The client is told to come back; neither a half image nor a leftover stays, and an older image survives."""
    local_storage.save("assets/65f0/original", io.BytesIO(b"older"), "image/png")
    with pytest.raises(DependencyUnavailable) as caught:
        local_storage.save("assets/65f0/original", FullDisk(b"x" * 100), "image/png")
    assert isinstance(caught.value.__cause__, OSError)
    files = [path for path in local_storage.media_root.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in files] == [b"older"]


def new_images(*names: str, content_type: str = "image/png") -> list[NewImage]:
    return [NewImage(f"{name}/original", io.BytesIO(name.encode()), content_type) for name in names]


def stored_in(storage: LocalStorage) -> dict[str, bytes]:
    files = [path for path in storage.media_root.rglob("*") if path.is_file()]
    return {str(path.relative_to(storage.media_root)): path.read_bytes() for path in files}


def test_local_saves_many_as_it_saves_each(local_storage: LocalStorage) -> None:
    """New ones and those that were there, under another type as well; nothing of theirs is left in between."""
    local_storage.save("b/original", io.BytesIO(b"older"), "image/jpeg")
    local_storage.save("c/original", io.BytesIO(b"older"), "image/png")
    urls = local_storage.save_many(new_images("a", "b", "c"))
    assert urls == [local_storage.save(f"{name}/original", io.BytesIO(name.encode()), "image/png") for name in "abc"]
    assert stored_in(local_storage) == {f"{name}/original.png": name.encode() for name in "abc"}


def test_local_image_that_cannot_be_saved_harms_none_of_the_others(local_storage: LocalStorage) -> None:
    """A file that breaks off, and a name that is taken by a folder: what was there stays, and nothing half is left."""
    local_storage.save("b/original", io.BytesIO(b"older"), "image/png")
    (local_storage.media_root / "d" / "original.png").mkdir(parents=True)
    images = new_images("a", "b", "c", "d", "e")
    images[1] = NewImage("b/original", FullDisk(b"x" * 100), "image/png")
    images[2] = NewImage("c/original", FullDisk(b"x" * 100), "image/png")
    for each in images[1:3]:
        each.file.seek(1)
    ends = local_storage.save_many(images)
    assert [type(end) for end in ends] == [str, *[DependencyUnavailable] * 3, str]
    faults = [end.__cause__ for end in ends if isinstance(end, DependencyUnavailable)]
    assert [type(fault) for fault in faults] == [OSError, OSError, IsADirectoryError]
    assert stored_in(local_storage) == {"a/original.png": b"a", "b/original.png": b"older", "e/original.png": b"e"}
    assert not (local_storage.media_root / "c").exists()


def test_local_removes_what_a_dead_process_left_but_not_what_another_is_writing(tmp_path: Path) -> None:
    """Half-written files are swept at start once they are too old to be anybody's."""
    incoming = tmp_path / ".incoming"
    incoming.mkdir()
    (incoming / "old").write_bytes(b"x")
    os.utime(incoming / "old", (0, 0))
    (incoming / "new").write_bytes(b"x")
    LocalStorage(tmp_path, "http://127.0.0.1").check()
    assert [path.name for path in incoming.iterdir()] == ["new"]


def test_local_makes_no_folder_before_something_is_saved(tmp_path: Path) -> None:
    """A service whose storage is another one looks for old images here, checks signatures, and writes nothing."""
    storage = LocalStorage(tmp_path / "media", "http://127.0.0.1", 60)
    with pytest.raises(FileNotFoundError):
        storage.open("a/original")
    assert list(storage.list("")) == []
    storage.delete("a/original")
    assert storage.media_links.seconds_left("a/original", {"expires": "9" * 10, "signature": "x"}) == 0
    assert list(tmp_path.iterdir()) == []


def test_local_check_fails_when_nothing_can_be_written(local_storage: LocalStorage) -> None:
    """Readiness notices that the folder is gone."""
    local_storage.check()
    (local_storage.media_root / INCOMING).rmdir()
    with pytest.raises(DependencyUnavailable):
        local_storage.check()


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
