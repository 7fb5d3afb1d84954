"""The suite of storage backends."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import pytest

from pipeline.errors import DependencyUnavailable
from pipeline.hooks import NewImage, StorageBackend, StoredImage
from pipeline.hooks.checks import is_web_url
from pipeline.hooks.context import PluginContext
from pipeline.testing.findings import IN_VARIABLES, describe, expect, fail_test
from pipeline.testing.own_routes import OwnRoutes
from pipeline.testing.samples import GIF
from pipeline.testing.suite import Call

# A storage has a clock of its own.
CLOCKS_APART = timedelta(hours=1)
# Makes an image larger than the buffers of libraries and than one part of a multipart upload.
LARGE_ROWS = 4096
ABSOLUTE = "return an absolute http(s) URL"
ANEW = "open it anew for each reader"
REACHED = "can the storage be reached?"
GONE = "raise FileNotFoundError for an image that is not there"


# Many methods because each test, fixture and override of the suite is one.
class StorageBackendSuite(OwnRoutes):
    """Give it a fixture `storage`: an empty storage, or one without public_ids that begin with "suite/".

    Each test deletes the images that it saved.
    """

    content_type = "image/gif"
    content = GIF

    @pytest.fixture
    def storage(self) -> StorageBackend:
        """The storage under test, new for each test."""
        raise NotImplementedError("define a fixture `storage`")

    @pytest.fixture(autouse=True)
    def _in_use(
        self, _watched: None, loop: Any, context: PluginContext, storage: StorageBackend, call: Call
    ) -> Iterator[None]:
        self._saved: set[str] = set()
        use = self.while_started(storage, call, context, loop)
        next(use)
        yield
        for public_id in self._saved:
            with suppress(Exception, pytest.fail.Exception):  # another test checks delete
                call(storage.delete, public_id)
        next(use, None)

    def _save(self, call: Call, storage: StorageBackend, public_id: str, file: BinaryIO, content_type: str) -> object:
        self._saved.add(public_id)
        url = self._done(call, storage.save, public_id, file, content_type)
        self.class_state["saved"] = True
        expect(not file.closed, "save closes the file, which others still read: leave it open")
        return url

    def _done(self, call: Call, method: Any, *args: Any) -> Any:
        try:
            return call(method, *args)
        except DependencyUnavailable as error:
            fail_test(f"{method.__name__} raised {describe(error)}: {REACHED}")
        except Exception as error:
            fail_test(
                f"{method.__name__} raised {describe(error)}: raise DependencyUnavailable while the storage cannot be "
                "reached, and nothing otherwise"
            )

    def _read(self, call: Call, storage: StorageBackend, public_id: str) -> bytes:
        file = self._done(call, storage.open, public_id)
        expect(hasattr(file, "read"), f"open returns {type(file).__name__}: return a binary file, such as io.BytesIO")
        expect(not getattr(file, "closed", False), f"open returns a closed file: {ANEW}")
        with file:
            content = file.read()
        expect(isinstance(content, bytes), f"open returns a file of {type(content).__name__}: open it in binary mode")
        return cast(bytes, content)

    def _read_if_there(self, call: Call, storage: StorageBackend, public_id: str) -> bytes | None:
        try:
            with call(storage.open, public_id) as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def _expect_gone(self, call: Call, storage: StorageBackend, public_id: str, when: str) -> None:
        try:
            file = call(storage.open, public_id)
        except FileNotFoundError:
            return
        except Exception as error:
            is_away = isinstance(error, DependencyUnavailable) and not self.class_state.get("saved")
            hint = f": {REACHED}" if is_away else f" for an image {when}: {GONE}"
            fail_test(f"open raised {describe(error)}{hint}")
        fail_test(f"open returns {type(file).__name__} for an image {when}: {GONE}")

    def test_save_returns_a_url_and_open_the_same_bytes(self, storage: StorageBackend, call: Call) -> None:
        """The saved bytes are read back unchanged; the URL is an absolute http(s) one."""
        url = self._save(call, storage, "suite/65f0/original", io.BytesIO(self.content), self.content_type)
        expect(is_web_url(url), f"save returns {url!r}: {ABSOLUTE}")
        same = self._read(call, storage, "suite/65f0/original") == self.content
        expect(same, "open returns other bytes than were saved: store and return them unchanged")
        self._expect_served(call, storage, "save", cast(str, url), (self.content, self.content_type))

    def test_large_images_are_complete_and_have_several_readers(self, storage: StorageBackend, call: Call) -> None:
        """Images of the size of photos; two readers of one image do not affect each other."""
        large = self.content + bytes(range(256)) * LARGE_ROWS
        self._save(call, storage, "suite/65f9/original", io.BytesIO(large), self.content_type)
        one, other = (self._done(call, storage.open, "suite/65f9/original") for _ in range(2))
        expect(hasattr(one, "read"), f"open returns {type(one).__name__}: return a binary file, such as io.BytesIO")
        with one, other:
            both = one.read(10), other.read(10)
        expect(both[0] == both[1], f"open returns one and the same file to two readers: {ANEW}")
        same = self._read(call, storage, "suite/65f9/original") == large
        expect(same, "open returns other bytes than were saved, of a large image: read the file to its end")

    def test_save_reads_from_the_start_of_the_file(self, storage: StorageBackend, call: Call) -> None:
        """A file that was read before is still stored completely."""
        file = io.BytesIO(self.content)
        file.read()
        self._save(call, storage, "suite/65f1/original", file, self.content_type)
        same = self._read(call, storage, "suite/65f1/original") == self.content
        expect(same, "save does not store the file from its start: call file.seek(0) first")

    def test_save_replaces_what_was_there(self, storage: StorageBackend, call: Call) -> None:
        """A repeated job saves again under the same id, perhaps with another content type."""
        self._save(call, storage, "suite/65f2/processed-1", io.BytesIO(b"older"), "image/png")
        self._save(call, storage, "suite/65f2/processed-1", io.BytesIO(self.content), self.content_type)
        same = self._read(call, storage, "suite/65f2/processed-1") == self.content
        expect(same, "save does not replace what was there: overwrite it, also when the content type differs")

    def test_saves_at_once_do_not_mix(self, storage: StorageBackend, call: Call, call_together: Call) -> None:
        """Ten images that are saved at the same time each have their own bytes."""
        images = {f"suite/65f3/image-{number}": self.content + bytes([number]) for number in range(10)}
        self._saved.update(images)
        first = "suite/65f3/image-0"
        try:
            call_together(*[(storage.save, name, io.BytesIO(each), self.content_type) for name, each in images.items()])
        except Exception as error:
            if self.fails_alone(call, storage.save, first, io.BytesIO(self.content), self.content_type):
                self._save(call, storage, first, io.BytesIO(self.content), self.content_type)
            raised = f"save raised {describe(error)} when ten calls ran at once"
            fail_test(f"{raised}: {IN_VARIABLES}")
        same = {name: self._read_if_there(call, storage, name) for name in images} == images
        expect(same, f"images saved at once are mixed up: {IN_VARIABLES}")

    def test_save_many_answers_for_each(self, storage: StorageBackend, call: Call) -> None:
        """If it has `save_many`: it returns the URLs of the images in order, stores their bytes, and replaces older
        images.
        """
        if not hasattr(storage, "save_many"):
            pytest.skip("the storage has no save_many, which is optional")
        first = "suite/65fa/image-0"
        self._save(call, storage, first, io.BytesIO(b"older"), "image/png")
        for count in (3, 1):
            images = {f"suite/65fa/image-{number}": self.content + bytes([number, count]) for number in range(count)}
            self._saved.update(images)
            files = [NewImage(name, io.BytesIO(each), self.content_type) for name, each in images.items()]
            urls = self._done(call, storage.save_many, files)
            is_list = isinstance(urls, Sequence) and not isinstance(urls, (str, bytes)) and len(urls) == count
            expect(is_list, f"save_many returns {urls!r} for {count} images: return a list with the URL of each")
            for url in urls:
                expect(is_web_url(url), f"save_many answers {url!r} for an image: {ABSOLUTE}")
            same = {name: self._read_if_there(call, storage, name) for name in images} == images
            expect(same, "save_many mixes up its images, or leaves some out: store each as save does")
            alone = [self._done(call, storage.save, each.public_id, each.file, self.content_type) for each in files]
            in_order = [urlsplit(url).path for url in urls] == [urlsplit(url).path for url in alone]
            expect(in_order, "save_many answers with other URLs than save: return them in the order of the images")

    def test_open_of_a_missing_image_raises_file_not_found(self, storage: StorageBackend, call: Call) -> None:
        """FileNotFoundError distinguishes a missing image from an unreachable storage."""
        self._expect_gone(call, storage, "suite/missing/original", "that never was")

    def test_delete_removes_only_that_image_and_may_be_repeated(self, storage: StorageBackend, call: Call) -> None:
        """After delete the image is gone, a similar one is not, and a second delete does nothing."""
        for name in ("suite/65f4/original", "suite/65f4/original-2"):
            self._save(call, storage, name, io.BytesIO(self.content), self.content_type)
        for when in ("", " for an image that is gone: do nothing then"):
            try:
                call(storage.delete, "suite/65f4/original")
            except Exception as error:
                fail_test(f"delete raised {describe(error)}{when}")
        self._expect_gone(call, storage, "suite/65f4/original", "that was deleted")
        same = self._read_if_there(call, storage, "suite/65f4/original-2") == self.content
        expect(same, "delete harms an image with a similar public_id: remove that one alone")

    def test_url_shows_the_saved_bytes(self, storage: StorageBackend, call: Call) -> None:
        """If it has `url`: an absolute http(s) URL that shows the image; made without a look whether it exists."""
        if not hasattr(storage, "url"):
            pytest.skip("the storage has no url, which is optional")
        self._save(call, storage, "suite/65f8/original", io.BytesIO(self.content), self.content_type)
        url = self._done(call, storage.url, "suite/65f8/original", 60)
        expect(is_web_url(url), f"url returns {url!r}: {ABSOLUTE}")
        missing = self._done(call, storage.url, "suite/missing/original", 60)
        expect(is_web_url(missing), f"url returns {missing!r} for an image that is not there: do not look, {ABSOLUTE}")
        self._expect_served(call, storage, "url", cast(str, url), (self.content, self.content_type))
        if (fetched := self.fetch(cast(str, url))) is not None:
            expect(fetched == self.content, "the URL shows other bytes than were saved")

    def fetch(self, url: str) -> bytes | None:
        """Return the bytes at the URL; None, as here, skips the check. Override it if the URL can be reached."""
        return None

    def test_list_yields_the_images_under_the_prefix(self, storage: StorageBackend, call: Call) -> None:
        """If it has `list`: each image once, with its time; no deleted one, none outside of the prefix."""
        if not hasattr(storage, "list"):
            pytest.skip("the storage has no list, which is optional")
        names = [f"suite/65f5/{name}" for name in ("original-1", "original-2", "processed-1")]
        saved_after = datetime.now(UTC) - CLOCKS_APART
        for name in (*names, "suite/65f50/original-1", "suite/65f6/original-1"):
            self._save(call, storage, name, io.BytesIO(self.content), self.content_type)
        call(storage.delete, names[1])
        prefixes = ("suite/65f5/", "suite/65f7/", "suite/", "")
        found_at = {prefix: self._list(call, storage, prefix) for prefix in prefixes}
        ids = {prefix: [each.public_id for each in images] for prefix, images in found_at.items()}
        right = sorted(ids["suite/65f5/"]) == [names[0], names[2]] and ids["suite/65f7/"] == []
        expect(right, f"list('suite/65f5/') yields {sorted(ids['suite/65f5/'])}: each of its images once, no other")
        under = len([each for each in ids["suite/"] if each.startswith("suite/65f")])
        expect(under == 4, f"list('suite/') yields {under} of 4 images: each image of that prefix once")
        expect({*names[::2], "suite/65f6/original-1"} <= {*ids[""]}, "list('') does not yield all images")
        self._expect_times(found_at["suite/65f5/"], saved_after)

    def _expect_times(self, images: Sequence[StoredImage], saved_after: datetime) -> None:
        for each in images:
            is_aware = isinstance(each.stored_at, datetime) and each.stored_at.tzinfo is not None
            expect(is_aware, f"list yields a stored_at of {each.stored_at!r}: an aware datetime in UTC")
            is_now = saved_after < each.stored_at < datetime.now(UTC) + CLOCKS_APART
            expect(is_now, f"list yields a stored_at of {each.stored_at} for what was saved now: say when it was saved")

    def _list(self, call: Call, storage: Any, prefix: str) -> Sequence[StoredImage]:
        async def collect(images: AsyncIterator[StoredImage]) -> list[StoredImage]:
            return [image async for image in images]

        def gather(images: Any) -> list[StoredImage]:
            return list(images)

        images: Any = []
        try:
            listed = call(storage.list, prefix)
            images = call(collect if hasattr(listed, "__aiter__") else gather, listed)
        except Exception as error:
            fail_test(f"list raised {describe(error)}: yield StoredImage for each image, nothing when there is none")
        wrong = next((each for each in images if not isinstance(each, StoredImage)), None)
        expect(wrong is None, f"list yields {wrong!r}: yield StoredImage(public_id, stored_at)")
        return cast(list[StoredImage], images)

    def test_check_returns_when_the_storage_is_usable(self, storage: StorageBackend, call: Call) -> None:
        """/readyz calls it again and again; a usable storage returns nothing each time."""
        for _ in range(3):
            answer = self._done(call, storage.check)
            expect(answer is None, f"check returns {answer!r}: return nothing, raise when the storage is not usable")
